"""The range test of the learning rate: the rates that it tries, its rule, when it ends, what it leaves alone, what it refuses."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from convoy import cli
from convoy.core.dataset import Dataset
from convoy.core.errors import DataError, RequestError, TrainingError
from convoy.sweep import lr_find
from convoy.sweep.lr_find import range_test, steepest
from squares import CLASSES, PX, write_packed, write_squares


@pytest.fixture(scope="module")
def usual(dataset, tiny, params):
    """A range test whose loss falls. Read only."""
    return range_test(dataset, tiny, params(), 1, high=100.0, steps=60, repeats=1)


def test_the_rate_rises_by_the_same_factor_from_the_lowest_to_the_highest(
    dataset, stack, params, monkeypatch
):
    seen = []
    make = lr_find.make_trainer

    def watched(*given, callbacks, **options):
        class Watch(pl.Callback):
            def on_before_optimizer_step(self, trainer, module, optimizer):
                seen.append([group["lr"] for group in optimizer.param_groups])

        return make(*given, callbacks=[*callbacks, Watch()], **options)

    monkeypatch.setattr(lr_find, "make_trainer", watched)
    muon = {"steps": 3, "normalize": False, "rest": "sgd", "rest_lr": 0.05, "head_lr": 0.2}
    chosen = params(lr=0.1, optimizer="muon", muon=muon | {"rest_momentum": 0.9, "rest_decay": 0.0})
    test = range_test(dataset, stack, chosen, 1, low=1e-4, high=10.0, steps=31, repeats=1)
    assert test.rates == pytest.approx(np.geomspace(1e-4, 10.0, 31))
    ratios = np.array(seen) / np.array(test.rates)[:, None]
    assert ratios == pytest.approx(np.repeat(ratios[:1], 31, axis=0))
    assert set(ratios[0].round(6)) == {0.5, 1.0, 2.0}  # rest_lr, lr and head_lr over lr


def test_the_suggestion_lies_where_the_loss_falls_and_below_its_lowest(usual):
    assert usual.rates[0] < usual.suggestion < usual.lowest
    at = int(np.argmin(np.abs(np.log(np.array(usual.rates) / usual.suggestion))))
    assert usual.smoothed[at + 3] < usual.smoothed[at - 3]
    assert usual.suggestion == float(f"{usual.suggestion:.1e}")


def test_smoothed_losses_are_means_whose_early_parts_fade(usual):
    memory = 1 - 2 / 60
    weights = memory ** np.arange(len(usual.losses))[::-1]
    expected = np.average(usual.losses, weights=weights)
    assert usual.smoothed[-1] == pytest.approx(expected)
    assert usual.smoothed[0] == pytest.approx(usual.losses[0])


def test_equal_seeds_give_equal_results_and_others_do_not(dataset, tiny, params, usual):
    assert range_test(dataset, tiny, params(), 1, high=100.0, steps=60, repeats=1) == usual
    assert range_test(dataset, tiny, params(), 2, high=100.0, steps=60, repeats=1).losses != usual.losses


def test_schedule_epochs_and_validation_params_change_nothing(dataset, tiny, params, usual):
    other = params(schedule="constant", warmup=0.0, epochs=1, early_stop=3, ema=0.9, calibrate=False)
    assert range_test(dataset, tiny, other, 1, high=100.0, steps=60, repeats=1) == usual


def test_an_accumulated_step_has_the_mean_loss_of_its_batches(dataset, tiny, params):
    one = {"augment": [], "label_smoothing": 0.0, "batch_size": 48}
    common = {"low": 1e-8, "high": 100.0, "steps": 20, "repeats": 1}
    whole = range_test(dataset, tiny, params(**one), 1, **common)
    halves = range_test(dataset, tiny, params(**one | {"batch_size": 24, "accumulate": 2}), 1, **common)
    assert halves.losses[:3] == pytest.approx(whole.losses[:3], rel=0.05)  # norms see half as many images


def test_it_ends_when_the_loss_explodes(dataset, tiny, params, monkeypatch):
    monkeypatch.setattr(lr_find, "EXPLODED", 1.2)
    test = range_test(dataset, tiny, params(), 1, high=100.0, steps=100, repeats=1)
    assert len(test.rates) < 100
    assert test.smoothed[-1] > 1.2 * min(test.smoothed)
    assert test.exploded == pytest.approx(test.rates[-1] * (test.rates[1] / test.rates[0]))


def test_the_suggestion_is_where_the_loss_falls_fastest_before_its_lowest():
    slope = [0.0] * 10 + [-0.01] * 30 + [-0.05] * 5 + [-0.01] * 20
    after = [0.3, 0.3, -0.5, 0.6]  # chaos at high rates, which never gets lower
    assert steepest(list(3 + np.cumsum(slope + after))) == pytest.approx(42, abs=2)
    assert steepest(list(3 + np.cumsum([-0.5, *slope]))) == pytest.approx(
        43, abs=2
    )  # the first ones are noise
    assert steepest(list(range(20))) is None


@pytest.mark.parametrize(
    ("changes", "limits", "message"),
    [
        ({}, {"low": 1.0, "high": 2.0}, r"--low 1 to --high 2.*--low 0.002 --high 2"),
        ({"batch_size": 64}, {}, r"48 .*batch_size 64 make 10 steps.* needs 20.*batch_size to 47.*--steps 20"),
        ({"batch_size": 48, "accumulate": 2}, {}, r"batch_size to 23 .*--steps 20"),
        ({"transfer": {"freeze": 1}}, {}, r"network.weights"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_what_to_type(dataset, tiny, params, changes, limits, message):
    with pytest.raises(RequestError, match=message):
        range_test(dataset, tiny, params(**changes), 1, **limits)


def test_the_batch_size_of_the_message_is_the_largest_that_works(dataset, tiny, params):
    assert lr_find._affordable_steps(48, 2, params(batch_size=47)) == 20
    assert -(-48 // 47) == 2


def test_a_loss_that_is_not_finite_from_the_first_step_is_an_error_of_its_own(
    dataset, tiny, params, starting
):
    given = starting(tiny)
    given.tensors["conv1.weight"][0] = math.nan
    with pytest.raises(TrainingError, match=r"first loss of tiny .*no learning rate.*network\.weights: none"):
        range_test(dataset, tiny, params(), 1, given)


def test_a_loss_that_explodes_at_once_names_a_lower_start(dataset, tiny, params, monkeypatch):
    monkeypatch.setattr(lr_find, "EXPLODED", 1.0)
    with pytest.raises(TrainingError, match=r"exploded after \d steps.*--low 0\.01 --high"):
        range_test(dataset, tiny, params(augment=[]), 1, low=10, high=100, steps=40)


@pytest.mark.parametrize("seed", [1, 4, 6])
def test_rates_too_small_to_learn_give_no_suggestion_but_the_reason(dataset, tiny, params, seed):
    test = range_test(dataset, tiny, params(), seed, low=1e-12, high=1e-11, steps=100, repeats=1)
    assert test.suggestion is None
    assert re.search(
        r"no learning rate from 1e-12 to 1e-11 .*--repeats \d.*--low, --high.*convoy data check", test.reason
    )


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Images that show nothing of their labels, of which nine in ten are the first class."""
    folder = tmp_path_factory.mktemp("noise")
    random = np.random.default_rng(0)
    images_u8 = random.integers(0, 256, (400, PX, PX, 3), dtype=np.uint8)
    labels = np.where(random.random(400) < 0.9, 0, random.integers(0, 3, 400))
    write_packed(
        folder, images_u8, labels, {"train": [0, 360], "val": [360, 380], "test": [380, 400]}, CLASSES
    )
    return Dataset.load(folder)


@pytest.mark.parametrize(
    "changes",
    [{}, {"class_weights": "balanced", "optimizer": "adamw"}, {"sampler": "balanced", "loss": "focal"}],
)
def test_learning_how_frequent_classes_are_is_no_progress(noise, tiny, params, changes):
    test = range_test(noise, tiny, params(**changes), 1, steps=40, repeats=2)
    assert test.suggestion is None
    assert "without looking at the images" in test.reason


def test_a_rare_class_that_can_be_learnt_gets_a_rate(tiny, params, tmp_path):
    random = np.random.default_rng(0)
    labels = np.where(random.random(400) < 0.9, 0, 1)
    images_u8 = random.integers(0, 128, (400, PX, PX, 3), dtype=np.uint8) + (
        127 * labels[:, None, None, None]
    ).astype(np.uint8)
    write_packed(
        tmp_path, images_u8, labels, {"train": [0, 360], "val": [360, 380], "test": [380, 400]}, CLASSES
    )
    test = range_test(Dataset.load(tmp_path), tiny, params(), 1, repeats=2)
    assert 0.003 < test.suggestion < 1


def test_the_constant_answers_are_the_best_ones(noise, classifier, tiny, params):
    """As computed by torch on all labels."""
    chosen = params(label_smoothing=0.1)
    module = classifier(tiny, chosen)
    labels = torch.from_numpy(noise.labels("train").copy())
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

    def step():
        optimizer.zero_grad()
        loss = cross_entropy(logits.expand(len(labels), 3), labels, label_smoothing=0.1)
        loss.backward()
        return loss

    optimizer.step(step)
    pixels = torch.zeros(2, 3, PX, PX)
    before = module.model.eval()(pixels)
    assert lr_find._start_from_frequencies(module, noise) == pytest.approx(step().item(), abs=1e-4)
    added = (module.model(pixels) - before)[0].detach()
    assert (added - added.mean()) == pytest.approx((logits - logits.mean()).detach(), abs=0.02)


def losses_of(values, *, exploded=False, constant=math.inf):
    run = lr_find._Losses(1, 1 - 2 / len(values))
    run.values, run.exploded, run.constant = list(values), exploded, constant
    return run


def curve(at, *, steps=100, depth=1.0, noise=0.0, seed=0):
    """Losses that fall from 2 around a step and rise at the end."""
    x = np.arange(steps)
    losses = 2 - depth / (1 + np.exp(-(x - at) / 4)) + 3 * np.clip((x - 90) / 10, 0, None)
    return losses + noise * np.random.default_rng(seed).normal(size=steps)


def read(*runs):
    return lr_find._read(runs, lr_find.exponential(1e-5, 10.0, 100), 1e-5, 10.0)


def test_repeats_that_agree_give_their_mean_and_others_the_reason():
    agreeing = read(*(losses_of(curve(55, noise=0.1, seed=seed)) for seed in range(3)))
    assert agreeing.rates[55] < agreeing.suggestion < agreeing.rates[68]
    assert agreeing.losses[0] == pytest.approx(
        np.mean([curve(55, noise=0.1, seed=seed)[0] for seed in range(3)])
    )
    apart = read(losses_of(curve(30)), losses_of(curve(75)))
    assert apart.suggestion is None
    assert re.search(
        r"the 2 repeats disagree: without one of them, .* 0\.0017 to 1\.4\..*--repeats 4", apart.reason
    )


def test_a_fall_within_the_noise_gives_no_rate():
    for seed in range(20):
        assert read(losses_of(curve(55, depth=0.0, noise=0.3, seed=seed))).suggestion is None
        found = read(losses_of(curve(55, depth=1.0, noise=0.1, seed=seed)))
        assert found.rates[55] < found.suggestion < found.rates[68]


def test_a_loss_that_still_falls_at_the_end_names_a_higher_end():
    falling = read(losses_of(curve(85)[:91].tolist() + [0.9] * 9))
    assert falling.suggestion is None
    assert "--high 100" in falling.reason
    assert read(losses_of(curve(85)[:91].tolist() + [0.9] * 9, exploded=True)).reason == ""


def test_few_small_images_are_tested_several_times_and_more_or_larger_ones_once(
    dataset, tiny, params, monkeypatch
):
    monkeypatch.setattr(lr_find, "CHEAP_PIXELS", 48 * PX**2)
    assert range_test(dataset, tiny, params(), 1, steps=20).repeats == 3
    assert range_test(dataset, tiny, params(batch_size=48), 1, steps=20).repeats == 1
    assert range_test(dataset, tiny, params(batch_size=48), 1, steps=20, repeats=2).repeats == 2


@pytest.fixture
def project(tmp_path, monkeypatch, repository):
    """A folder with params, a network and a dataset, which becomes the current one; returns what runs the command in it."""
    shutil.copy(repository / "params.yaml", tmp_path)
    text = (
        (tmp_path / "params.yaml")
        .read_text()
        .replace("name: convnet ", "name: tiny ")
        .replace("batch_size: 32 ", "batch_size: 16 ")
    )
    (tmp_path / "params.yaml").write_text(text.replace("pixels: 2", "pixels: 1"))
    (tmp_path / "networks").mkdir()
    layers = (
        "layers: [{conv: {filters: 8, kernel: 3}}, norm, relu, global_avg_pool, flatten, {dense: classes}]\n"
    )
    (tmp_path / "networks/tiny.yaml").write_text(layers)
    write_squares(tmp_path / "build/dataset")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return lambda *words: CliRunner().invoke(cli.app, ["lr-find", *words])


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_command_prints_a_number_and_what_to_type_and_writes_only_the_picture(project, tmp_path):
    before = files_of(tmp_path)
    done = project("--high", "100", "--steps", "60")
    assert done.exit_code == 0, done.output
    suggestion = float(done.stdout.partition("train.lr ")[2].split()[0])
    assert f"dvc exp run -S train.lr={suggestion:g}" in done.stdout
    assert files_of(tmp_path) - before == {"build/plots/lr_find.png"}
    assert (tmp_path / "build/plots/lr_find.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_one_object_without_a_picture(project, tmp_path):
    before = files_of(tmp_path)
    found = json.loads(project("--high", "100", "--steps", "60", "--json").stdout)
    assert found["network"] == "tiny"
    assert found["command"] == f"dvc exp run -S train.lr={found['suggestion']:.3g}"
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"])
    assert files_of(tmp_path) == before


def test_where_there_is_no_suggestion_the_command_prints_the_reason_and_succeeds(project, tmp_path):
    done = project("--low", "1e-12", "--high", "1e-11", "--repeats", "1")
    assert done.exit_code == 0
    assert "No suggestion: no learning rate from 1e-12 to 1e-11" in done.stdout
    assert (tmp_path / "build/plots/lr_find.png").exists()
    found = json.loads(project("--low", "1e-12", "--high", "1e-11", "--repeats", "1", "--json").stdout)
    assert found["suggestion"] is found["command"] is None
    assert "convoy data check" in found["reason"]


def test_a_dataset_that_is_not_prepared_is_named_with_its_command(project, tmp_path):
    shutil.rmtree(tmp_path / "build/dataset")
    done = project()
    assert isinstance(done.exception, DataError)
    assert "dvc repro prepare" in str(done.exception)
