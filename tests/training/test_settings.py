from pathlib import Path

import pytest

from convoy.core import params, yaml
from convoy.core.errors import RequestError
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
        ({"precision": 16}, "train.precision is 16: input should be 'auto', 32 or 'bf16'"),
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
