"""What a space may hold, and how its values are written."""

import re

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from convoy import preflight
from convoy.core import params, yaml
from convoy.core.errors import RequestError
from convoy.sweep.request import Request


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train.lrr: [0.1, 0.2]", r"sweep\.space: unknown key train\.lrr; did you mean `train\.lr`\?"),
        ("train.lr: [0.1, 200]", r"train\.lr is 200: input should be less than or equal to 100"),
        (
            "train.lr: {low: 0, high: 1}",
            r"sweep\.space: train\.lr is 0\.0: input should be greater than 0.*range inside",
        ),
        ("train.lr: {low: 1, high: 0.1}", r"sweep\.space\.train\.lr is .*: low must be less than high"),
        (
            "train.lr: {low: 0, high: 1, log: true}",
            r"sweep\.space\.train\.lr is .*`log: true` low must be greater than 0",
        ),
        (
            "train.lr: {low: 0.1, high: 1, log: true, step: 0.1}",
            r"`log: true` and `step` exclude each other: keep one",
        ),
        ("train.lr: {low: 0.1, high: 1, step: 2}", r"step is larger than the whole range"),
        (
            "train.lr: {low: 0.1, hgih: 1}",
            r"unknown key sweep\.space\.train\.lr\.hgih; did you mean `sweep\.space\.train\.lr\.high`",
        ),
        (
            "train.lr: 0.1",
            r"sweep\.space\.train\.lr is 0\.1, which is one value\. Give choices, such as \[16, 32\]",
        ),
        ("train.lr: [0.1]", r"sweep\.space\.train\.lr is \[0\.1\]: there is nothing to choose"),
        ("train.lr: [0.1, 0.1]", r"sweep\.space\.train\.lr names 0\.1 twice\. Name it once"),
        ("train.optimizer: [sgd, adam]", r"train\.optimizer is 'adam': input should be 'sgd' or 'adamw'"),
        (
            "train.batch_size: {low: 8.5, high: 16}",
            r"train\.batch_size is 8\.5: input should be a valid integer",
        ),
        (
            "train.augment: [[crop], [crop, spin]]",
            r"train\.augment\.1 is 'spin': input should be 'crop' or 'flip'",
        ),
        ("seed: [1, -1]", r"seed is -1: input should be greater than or equal to 0"),
        ("network.name: [tiny, tinny]", r"there is no network `tinny` in networks/; did you mean `tiny`"),
        ("network.weights: [none, imagenet]", r"no ImageNet weights for the structure of tiny"),
        (
            "data.image_px: [16, 32]",
            r"data\.image_px needs another build/dataset.*dvc exp run --queue -S data\.image_px=",
        ),
        ("export.latency_runs: [16, 32]", r"export\.latency_runs changes no training"),
        (
            "train.transfer: [1, 2]",
            r"train\.transfer is a section\. Name its keys: train\.transfer\.freeze, ",
        ),
    ],
)
def test_what_a_sweep_cannot_try_is_refused_with_what_it_can(here, line: str, message: str) -> None:
    here.space(line)
    with pytest.raises(RequestError, match=re.compile(message, re.DOTALL)) as caught:
        Request.read()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("metric", "trials", "message"),
    [("test/accuracy", "4", r"sweep\.metric is 'test/accuracy': input should be 'val/loss' or 'val/accuracy'"),
     ("val/loss", "0", r"sweep\.trials is 0: input should be greater than or equal to 1")],
)  # fmt: skip
def test_a_sweep_is_never_judged_on_test_images(here, metric: str, trials: str, message: str) -> None:
    here.sweep(
        f"\nsweep:\n  trials: {trials}\n  metric: {metric}\n  warmup_epochs: 1\n  space:\n    seed: [1, 2]\n"
    )
    with pytest.raises(RequestError, match=message):
        Request.read()


def test_a_range_has_the_type_of_its_key(here) -> None:
    here.space(
        "train.batch_size: {low: 8, high: 17, step: 4}",
        "train.epochs: {low: 1, high: 100, log: true}",
        "train.lr: {low: 1, high: 2}",
        "train.label_smoothing: {low: 0.0, high: 0.25, step: 0.1}",
        "train.augment: [[], [crop], [crop, flip]]",
        "train.optimizer: [sgd, adamw]",
    )
    batch, epochs, lr, smoothing, augment, optimizer = Request.read().space
    assert batch.distribution == IntDistribution(8, 16, step=4)
    assert list(batch.all()) == [8, 12, 16]
    assert epochs.distribution == IntDistribution(1, 100, log=True)
    assert lr.distribution == FloatDistribution(1.0, 2.0)
    assert lr.all() is None
    assert smoothing.distribution == FloatDistribution(0.0, 0.2, step=0.1)
    assert list(smoothing.all()) == [0.0, 0.1, 0.2]
    assert augment.distribution == CategoricalDistribution(["[]", '["crop"]', '["crop", "flip"]'])
    assert augment.value('["crop"]') == ["crop"]
    assert augment.stored(["crop", "flip"]) == '["crop", "flip"]'
    assert augment.stored(["flip"]) is None
    assert optimizer.value("adamw") == "adamw"
    assert (batch.stored(12), batch.stored(13), lr.stored(0.5)) == (12, None, None)


def test_numbers_are_short_enough_to_be_typed_and_stay_in_their_range(here) -> None:
    here.space(
        "train.lr: {low: 0.0123456, high: 0.5, log: true}",
        "train.warmup: {low: 0.1, high: 0.6}",
        "train.label_smoothing: {low: 0.1, high: 0.1003}",
    )
    lr, warmup, smoothing = Request.read().space
    assert [lr.rounded(value) for value in (0.0123457, 0.0456789, 0.5)] == [0.0123456, 0.0457, 0.5]
    assert warmup.rounded(0.123456) == 0.1235
    assert smoothing.rounded(0.10012345) == 0.1001235


def test_the_shipped_space_is_one_that_can_be_swept(repository, monkeypatch: pytest.MonkeyPatch) -> None:
    from convoy.sweep.settings import SweepParams  # noqa: PLC0415
    from convoy.sweep.space import dimensions  # noqa: PLC0415

    monkeypatch.chdir(repository)
    sweep = params.section("sweep", SweepParams)
    content = yaml.read(params.PARAMS_FILE)
    assert [one.key for one in dimensions(sweep, content)] == list(sweep.space)


def test_the_check_before_the_pipeline_takes_a_space_as_one_value(
    repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    preflight.check({"train.lr": "0.05", "sweep.trials": "3", "sweep.space": "{train.lr: [0.1, 0.2]}"})
    with pytest.raises(RequestError, match=r"unknown key sweep\.space\.train\.lr\.low"):
        preflight.check({"sweep.space.train.lr.low": "0.1"})
    with pytest.raises(RequestError, match=r"unknown key train\.lrr; did you mean `train\.lr`"):
        preflight.check({"train.lrr": "0.1"})
    with pytest.raises(RequestError, match=r"sweep\.space\.train\.lr is 1, which is one value"):
        preflight.check({"sweep.space": "{train.lr: 1}"})
