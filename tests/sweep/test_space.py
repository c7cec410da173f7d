"""What a space may hold, and how its values are written."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from convoy import preflight
from convoy.core import params, yaml
from convoy.core.errors import RequestError
from convoy.sweep.settings import SweepParams
from convoy.sweep.space import dimensions
from convoy.sweep.study import Request


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("train.lrr: [0.1, 0.2]", ("unknown key train.lrr", "`train.lr`")),
        ("train.lr: [0.1, 200]", ("train.lr is 200", "less than or equal to 100", "other choices")),
        ("train.lr: {low: 0, high: 1}", ("train.lr is 0.0", "greater than 0", "range within")),
        ("train.lr: {low: 1, high: 0.1}", ("sweep.space.train.lr", "low must be less than high")),
        ("train.lr: {low: 0, high: 1, log: true}", ("sweep.space.train.lr", "`log: true` low must be greater than 0")),
        ("train.lr: {low: 0.1, high: 1, log: true, step: 0.1}", ("`log: true` and `step` exclude each other",)),
        ("train.lr: {low: 0.1, high: 1, step: 2}", ("step is larger than the whole range",)),
        ("train.lr: {low: 0.1, hgih: 1}", ("unknown key sweep.space.train.lr.hgih", "`sweep.space.train.lr.high`")),
        ("train.lr: 0.1", ("sweep.space.train.lr is 0.1", "such as [16, 32]", "{low: 0.01, high: 0.1, log: true}")),
        ("train.lr: [0.1]", ("sweep.space.train.lr is [0.1]", "two choices")),
        ("train.lr: [0.1, 0.1]", ("sweep.space.train.lr lists 0.1 twice",)),
        ("train.optimizer: [sgd, adam]", ("train.optimizer is 'adam'", "'sgd', 'adamw' or 'muon'")),
        ("train.batch_size: {low: 8.5, high: 16}", ("train.batch_size is 8.5", "valid integer")),
        ("train.augment: [[flip], [flip, sift]]", ("train.augment.1 is 'sift'", "did you mean `shift`")),
        ("train.augment: [light, phot]", ("train.augment is 'phot'", "did you mean `photo`")),
        ("train.augment: [[], [{shift: {pixels: 40}}]]", ("shift.pixels is 40", "32 px", "at most 31")),
        ("train.crop_padding: {low: 0, high: 4}", ("train.crop_padding", "train.augment: [[{shift: {pixels: 0}}], [{shift: {pixels: 4}}]]")),
        ("seed: [1, -1]", ("seed is -1", "greater than or equal to 0")),
        ("network.name: [tiny, tinny]", ("`tinny`", "`tiny`")),
        ("network.weights: [none, imagenet]", ("tiny",)),
        ("data.image_px: [16, 32]", ("data.image_px", "dvc exp run --queue -S data.image_px=")),
        ("export.latency_runs: [16, 32]", ("export.latency_runs does not change training",)),
        ("train.transfer: [1, 2]", ("train.transfer is a section", "train.transfer.freeze, ")),
    ],
)  # fmt: skip
def test_what_a_sweep_cannot_try_is_refused_with_what_it_can(project, line, facts):
    project.space(line)
    with pytest.raises(RequestError) as caught:
        Request.read()
    assert caught.value.exit_code == 2
    for fact in facts:
        assert fact in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "trials", "fact"),
    [
        ("test/accuracy", "4", r"sweep\.metric is 'test/accuracy'.*'val/loss' or 'val/accuracy'"),
        ("val/loss", "0", r"sweep\.trials is 0.*greater than or equal to 1"),
    ],
)
def test_a_sweep_is_never_judged_on_test_images(project, metric, trials, fact):
    section = f"trials: {trials}\n  metric: {metric}\n  warmup_epochs: 1\n  space:\n    seed: [1, 2]\n"
    project.section(f"\nsweep:\n  {section}")
    with pytest.raises(RequestError, match=f"(?s){fact}"):
        Request.read()


def test_a_range_has_the_type_of_its_key(project):
    project.space(
        "train.batch_size: {low: 8, high: 17, step: 4}",
        "train.epochs: {low: 1, high: 100, log: true}",
        "train.lr: {low: 1, high: 2}",
        "train.label_smoothing: {low: 0.0, high: 0.25, step: 0.1}",
        "train.augment: [[], light, [{shift: {pixels: 2}}, flip]]",
        "train.weight_decay: [0.0, 0.00001]",
    )
    batch, epochs, lr, smoothing, augment, decay = Request.read().space
    assert batch.distribution == IntDistribution(8, 16, step=4)
    assert list(batch.all()) == [8, 12, 16]
    assert epochs.distribution == IntDistribution(1, 100, log=True)
    assert lr.distribution == FloatDistribution(1.0, 2.0)
    assert lr.all() is None
    assert smoothing.distribution == FloatDistribution(0.0, 0.2, step=0.1)
    assert list(smoothing.all()) == [0.0, 0.1, 0.2]
    assert augment.distribution == CategoricalDistribution(["[]", "light", "[{shift: {pixels: 2}}, flip]"])
    assert augment.value("light") == "light"
    assert augment.value("[{shift: {pixels: 2}}, flip]") == [{"shift": {"pixels": 2}}, "flip"]
    assert augment.stored([{"shift": {"pixels": 2}}, "flip"]) == "[{shift: {pixels: 2}}, flip]"
    assert augment.stored(["flip"]) is None
    assert decay.ends() == (0.0, 0.00001)
    assert [type(value) for value in decay.ends()] == [float, float]
    assert (batch.stored(12), batch.stored(13), lr.stored(0.5), lr.stored(True)) == (12, None, None, None)
    assert str(lr) == "train.lr 1.0 to 2.0"
    assert str(augment) == "train.augment [] | light | [{shift: {pixels: 2}}, flip]"


def test_numbers_are_short_enough_to_be_typed_and_stay_in_their_range(project):
    project.space(
        "train.lr: {low: 0.0123444, high: 0.5, log: true}",
        "train.warmup: {low: 0.1, high: 0.6}",
        "train.label_smoothing: {low: 0.1, high: 0.1003}",
        "train.early_stop: {low: 0, high: 4}",
        "train.ema: {low: 0.0, high: 0.3, step: 0.1}",
    )
    lr, warmup, smoothing, stop, ema = Request.read().space
    assert [lr.rounded(value) for value in (0.01234441, 0.04567891, 0.5)] == [0.0123444, 0.0457, 0.5]
    assert warmup.rounded(0.123456) == 0.123
    assert smoothing.rounded(0.10012345) == 0.100123
    assert stop.rounded(3) == 3
    assert ema.rounded(0.1 + 0.2) == 0.3


def test_the_shipped_space_is_one_that_can_be_swept(repository, monkeypatch):
    monkeypatch.chdir(repository)
    sweep = params.section("sweep", SweepParams)
    content = yaml.read(params.PARAMS_FILE)
    assert [dimension.key for dimension in dimensions(sweep, content)] == list(sweep.space)


def test_the_check_before_the_pipeline_takes_a_space_as_one_value(repository, monkeypatch):
    monkeypatch.chdir(repository)
    preflight.check({"train.lr": "0.05", "sweep.trials": "3", "sweep.space": "{train.lr: [0.1, 0.2]}"})
    with pytest.raises(RequestError, match=r"unknown key sweep\.space\.train\.lr\.low"):
        preflight.check({"sweep.space.train.lr.low": "0.1"})
    with pytest.raises(RequestError, match=r"unknown key train\.lrr; did you mean `train\.lr`"):
        preflight.check({"train.lrr": "0.1"})
    with pytest.raises(RequestError, match=r"sweep\.space\.train\.lr is 1, a single value"):
        preflight.check({"sweep.space": "{train.lr: 1}"})
