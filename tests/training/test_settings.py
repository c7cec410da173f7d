from pathlib import Path

import pytest

from convoy.core import params, yaml
from convoy.core.errors import RequestError
from convoy.training import other_names
from convoy.training.settings import TrainParams

SHIPPED = yaml.load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))["train"]


@pytest.mark.parametrize("precision", ["auto", 32, "bf16"])
def test_precision_is_written_as_one_would_type_it(precision):
    assert params.check("train", TrainParams, SHIPPED | {"precision": precision}).precision == precision


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0}, "train.lr is 0: input should be greater than 0"),
        ({"epochs": 0}, "train.epochs is 0: input should be greater than or equal to 1"),
        ({"batch_size": 2.5}, "train.batch_size is 2.5: input should be a valid integer"),
        ({"optimizer": "adam"}, "train.optimizer is 'adam': input should be 'sgd', 'adamw' or 'muon'"),
        (
            {"augment": ["shift", "flop"]},
            "train.augment.1 is 'flop': unknown transform; did you mean `flip`?",
        ),
        ({"warmup": 0.95}, "train.warmup is 0.95: input should be less than or equal to 0.9"),
        (
            {"precision": 16},
            "train.precision is 16: input should be 'auto', 32 or 'bf16'; did you mean `bf16`?",
        ),
        ({"learning_rate": 0.1}, "unknown key train.learning_rate"),
        (
            {"lr_end": 0.1},
            "lr_end: 0.1 has no effect with schedule: one_cycle. Set lr_end: 0.0, or schedule: linear or cosine",
        ),
        (
            {"schedule": "step"},
            "fall after 30 epochs (step_epochs), but epochs is 10. Set step_epochs to 9 or less",
        ),
        (
            {"step_epochs": []},
            "train.step_epochs is []: input should be a number of epochs from 1 to 10000, or a list",
        ),
        ({"accumulate": 0}, "train.accumulate is 0: input should be greater than or equal to 1"),
        ({"schedule": "OneCycleLR"}, "'step' or 'constant'; did you mean `one_cycle`?"),
        ({"schedule": "fit_one_cycle"}, "did you mean `one_cycle`?"),
        ({"schedule": "cosine_annealing"}, "did you mean `cosine`?"),
        ({"schedule": "CosineLRScheduler"}, "did you mean `cosine`?"),
        ({"schedule": "cos_lr"}, "did you mean `cosine`?"),
        ({"schedule": "lrf"}, "did you mean `linear` with lr_end: `0.01`?"),
        ({"schedule": "MultiStepLR"}, "did you mean `step` with step_epochs: `[60, 80]`?"),
        ({"schedule": "ReduceLROnPlateau"}, "plateau is not offered"),
        ({"schedule": "consine"}, "did you mean `cosine`?"),
        (
            {"schedule": "xyz"},
            "is 'xyz': input should be 'one_cycle', 'cosine', 'linear', 'step' or 'constant'",
        ),
        ({"optimizer": "Adam"}, "input should be 'sgd', 'adamw' or 'muon'; did you mean `adamw`?"),
        ({"lrf": 0.01}, "unknown key train.lrf; did you mean `train.lr_end`?"),
        ({"gradient_clip_val": 1}, "unknown key train.gradient_clip_val; did you mean `train.clip_norm`?"),
        ({"tta": "views"}, "tta: views averages an image with its mirror image, which training never shows"),
        ({"tta": "flip", "augment": [{"flip": {"axis": "vertical"}}]}, "Add flip to augment"),
        ({"tta": "ten_crop"}, "train.tta is 'ten_crop': input should be 'none', 'flip' or 'views'"),
        ({"best": "val/f1"}, "train.best is 'val/f1': input should be 'val/loss', 'val/accuracy' or 'last'"),
        ({"best": "last", "early_stop": 3}, "best: val/loss or val/accuracy, or early_stop: 0"),
        ({"transfer": 3}, "train.transfer is 3: input should be a valid dictionary"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_is_allowed(change, message):
    with pytest.raises(RequestError) as caught:
        params.check("train", TrainParams, SHIPPED | change)
    assert message in str(caught.value)


@pytest.mark.parametrize("freeze", [0, 3, "layer4", "features.3"])
@pytest.mark.parametrize("release", [0, 3, {"layer4": 3, "layer3": 5}])
def test_freeze_is_a_count_or_a_name_and_release_a_number_or_one_per_name(freeze, release):
    transfer = SHIPPED["transfer"] | {"freeze": freeze, "release": release}
    read = params.check("train", TrainParams, SHIPPED | {"transfer": transfer}).transfer
    assert (read.freeze, read.release) == (freeze, release)


BLOCKS = "input should be a number of blocks from 0, or the name of a block"
EPOCHS = (
    "input should be a number of epochs from 0 to 10000, or `block: epochs` pairs, epochs from 1 to 10000"
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"freeze": -1}, f"train.transfer.freeze is -1: {BLOCKS}"),
        ({"freeze": 2.5}, f"train.transfer.freeze is 2.5: {BLOCKS}"),
        ({"freeze": True}, f"train.transfer.freeze is True: {BLOCKS}"),
        ({"freeze": ""}, f"train.transfer.freeze is '': {BLOCKS}"),
        ({"release": -1}, f"train.transfer.release is -1: {EPOCHS}"),
        ({"release": "conv1"}, f"train.transfer.release is 'conv1': {EPOCHS}"),
        ({"release": {}}, f"train.transfer.release is {{}}: {EPOCHS}"),
        ({"release": {"conv1": 0}}, f"train.transfer.release is {{'conv1': 0}}: {EPOCHS}"),
        ({"release": {"conv1": 10_001}}, f"train.transfer.release is {{'conv1': 10001}}: {EPOCHS}"),
        ({"release": {3: 1}}, f"train.transfer.release is {{3: 1}}: {EPOCHS}"),
        ({"lr_factor": 0}, "train.transfer.lr_factor is 0: input should be greater than 0"),
        ({"lr_factor": 1.5}, "train.transfer.lr_factor is 1.5: input should be less than or equal to 1"),
        ({"batch_norm": "on"}, "train.transfer.batch_norm is 'on': input should be 'adapt' or 'frozen'"),
        ({"frozen": 1}, "unknown key train.transfer.frozen; did you mean `train.transfer.freeze`?"),
    ],
)
def test_a_wrong_value_in_the_transfer_plan_is_reported_once_with_what_is_allowed(change, message):
    with pytest.raises(RequestError) as caught:
        params.check("train", TrainParams, SHIPPED | {"transfer": SHIPPED["transfer"] | change})
    assert str(caught.value).splitlines()[1:] == [f"  {message}"]


SAME_ELSEWHERE = {
    "schedule": {
        "cosine": "CosineAnnealingLR cos_lr cosine CosineDecay CosineDecayRestarts fit_flat_cos fit_sgdr TanhLRScheduler",
        "cosine` with warmup: `0.05": "WarmupCosine cosine_with_warmup get_cosine_schedule_with_warmup",
        "one_cycle": "OneCycleLR fit_one_cycle 1cycle CyclicLR onecycle",
        "linear` with lr_end: `0.01": "PolynomialLR polynomial PolynomialDecay InverseTimeDecay PolyLRScheduler",
        "linear` with warmup: `0.05": "WarmupLR get_linear_schedule_with_warmup",
        "step": "StepLR StepLRScheduler",
        "step` with step_epochs: `[60, 80]": "MultiStepLR PiecewiseConstantDecay",
        "step` with step_epochs: `1": "ExponentialLR ExponentialDecay MultiplicativeLR",
        "constant": "ConstantLR none",
    },
    "optimizer": {
        "adamw": "Adam AdamW RAdam Lion lamb NAdam RMSprop rmsproptf Adagrad Adafactor adabelief lookahead adamw8bit fusedadam auto",
        "sgd": "SGD lars sgdp nesterov momentum ASGD",
        "muon": "Muon NorMuon SOAP shampoo",
    },
    "loss": {
        "cross_entropy": "CrossEntropyLoss CrossEntropyLossFlat NLLLoss SparseCategoricalCrossentropy SoftTargetCrossEntropy ce cross-entropy",
        "cross_entropy` with label_smoothing: `0.1": "LabelSmoothingCrossEntropy LabelSmoothingCrossEntropyFlat",
        "cross_entropy` with class_weights: `balanced": "weighted_cross_entropy",
        "focal` with focal_gamma: `2.0": "sigmoid_focal_loss AsymmetricLoss",
        "focal": "FocalLoss FocalLossFlat focal_loss",
    },
    "best": {"val/loss": "val_loss min", "val/accuracy": "val_acc accuracy max"},
    "class_weights": {"balanced": "auto inverse", "effective": "class_balanced"},
    "sampler": {"balanced": "WeightedRandomSampler weighted", "shuffle": "RandomSampler"},
    "precision": {"bf16": "bf16-mixed fp16 mixed_bfloat16", "32": "float32 fp32", "auto": "amp"},
    "tta": {"flip": "hflip", "views": "multi_crop"},
}


@pytest.mark.parametrize("key", SAME_ELSEWHERE)
def test_names_of_other_libraries_are_answered_with_what_does_the_same(key):
    for line, names in SAME_ELSEWHERE[key].items():
        for name in names.split():
            if name == line:
                continue
            with pytest.raises(RequestError) as caught:
                params.check("train", TrainParams, SHIPPED | {key: name})
            assert f"train.{key} is '{name}': input should be " in str(caught.value)
            assert f"; did you mean `{line}`?" in str(caught.value), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "PlateauLRScheduler"}, "waits for a plateau is not offered, since a resumed run"),
        ({"schedule": "LambdaLR"}, "has its warm-up in train.warmup. Set `one_cycle` or `cosine`"),
        ({"optimizer": "LBFGS"}, "second order over the whole set are not offered. Set `sgd` or `adamw`"),
        ({"loss": "BCE"}, "for two classes it is the same. Set `cross_entropy`"),
        ({"loss": "BCEWithLogitsLoss"}, "Set `cross_entropy`"),
        ({"loss": "binary_crossentropy"}, "Set `cross_entropy`"),
        ({"loss": "MSELoss"}, "made for regression"),
        ({"loss": "DiceLoss"}, "made for masks"),
        ({"loss": "TripletMarginLoss"}, "learns distances of images"),
        ({"loss": "ArcFace"}, "learns distances of images"),
    ],
)
def test_names_without_a_counterpart_are_refused_with_the_reason_and_what_to_set(change, message):
    with pytest.raises(RequestError) as caught:
        params.check("train", TrainParams, SHIPPED | change)
    assert message in str(caught.value)


def test_no_name_of_other_libraries_has_two_answers():
    tables = [value for name, value in vars(other_names).items() if name.isupper()]
    assert len(tables) > 8
    for table in tables:
        names = [other_names.plain(each) for line in table.values() for each in line.split(", ")]
        assert len(names) == len(set(names)), [name for name in names if names.count(name) > 1]
