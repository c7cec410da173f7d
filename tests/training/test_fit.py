import csv
import dataclasses
import json
import os
import signal
from contextlib import suppress

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy

from convoy.core.errors import NetworkError, RequestError, TrainingError
from convoy.models import trained
from convoy.models.spec import Spec
from convoy.training.data import DataModule, shuffled
from convoy.training.fit import check, fit
from convoy.training.optim import lr_schedule
from convoy.training.whitening import covariance, whitening_filters
from new_pages import ALL, GLIBC, new_pages

HAS_BF16, HAS_GPU = torch.cpu._is_avx512_bf16_supported(), torch.cuda.is_available()
BF16 = pytest.param(
    "bf16", marks=pytest.mark.skipif(not HAS_BF16, reason="the processor has no AVX-512 BF16")
)
CPU = pytest.mark.skipif(HAS_GPU, reason="equal to the bit on a CPU; this machine has a GPU")


def history(folder):
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


class Recorder(pl.Callback):
    """Note what a training shows to its callbacks."""

    def __init__(self):
        self.batches, self.rates, self.metrics, self.val_losses = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        images_u8 = batch.pixels_u8.cpu().permute(0, 2, 3, 1).numpy()
        self.batches.append((trainer.current_epoch, batch.step, images_u8))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_validation_epoch_end(self, trainer, pl_module):
        batches = list(trainer.datamodule.val_dataloader())
        pixels, labels = (
            torch.cat(parts).to(pl_module.device) for parts in zip(*(b[:2] for b in batches), strict=True)
        )
        self.val_losses.append(float(cross_entropy(pl_module.model(pixels.float()), labels)))

    def on_train_epoch_end(self, trainer, pl_module):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@pytest.fixture(scope="module")
def finished_training(dataset, tiny, params, tmp_path_factory):
    """The folder, the metrics and the record of a training of twelve epochs. Read only."""
    folder, recorder = tmp_path_factory.mktemp("fit") / "model", Recorder()
    chosen = params(epochs=12, augment=[], schedule="cosine", lr=0.2, label_smoothing=0.5)
    return folder, fit(dataset, tiny, chosen, 7, folder, callbacks=[recorder]), recorder


def test_a_training_learns_and_writes_the_model_and_its_history_only(dataset, finished_training):
    out, metrics, _ = finished_training
    model, facts = trained.load(out)
    pixels = torch.from_numpy(dataset.images("test").copy()).permute(0, 3, 1, 2).float()
    right = model(pixels).argmax(1).numpy() == dataset.labels("test")
    assert right.mean() > 0.9
    assert metrics["val"]["accuracy"] > 0.9
    assert (facts.network, facts.classes, facts.image_px) == ("tiny", ["blue", "green", "red"], 8)
    assert facts.mean == list(dataset.mean)
    assert {path.name for path in out.iterdir()} == {"history.csv", "model.json", "weights.pt"}


def test_the_metrics_are_the_last_row_of_the_history_and_what_the_best_epoch_reached(finished_training):
    out, metrics, recorder = finished_training
    rows = history(out)
    best = min(rows, key=lambda row: float(row["val/loss"]))
    assert list(rows[0]) == ["epoch", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr"]
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 13)]
    assert metrics["best"]["epoch"] == int(best["epoch"])
    assert metrics["best"]["val_loss"] == pytest.approx(float(best["val/loss"]), rel=1e-5)
    assert metrics["best"]["val_accuracy"] == pytest.approx(float(best["val/accuracy"]), rel=1e-5)
    for split in ("train", "val"):
        assert metrics[split]["loss"] == pytest.approx(float(rows[-1][f"{split}/loss"]), rel=1e-5)
    assert metrics["train"]["epochs_trained"] == 12
    assert metrics["train"]["seconds"] > 0
    json.dumps(metrics)
    for row, seen in zip(rows, recorder.metrics, strict=True):
        assert {name: float(row[name]) for name in seen} == seen


def test_the_learning_rate_follows_the_schedule_step_by_step(finished_training):
    out, _, recorder = finished_training
    factor = lr_schedule("cosine", 0.2, 36)
    assert recorder.rates == pytest.approx([0.2 * factor(step) for step in range(36)])
    assert [float(row["lr"]) for row in history(out)] == pytest.approx(recorder.rates[::3])


def test_every_epoch_shows_the_images_in_the_order_of_its_seed_and_number(dataset, finished_training):
    batches = finished_training[2].batches
    assert [(epoch, step) for epoch, step, _ in batches] == [(e, s) for e in range(12) for s in range(3)]
    for epoch, step, images_u8 in batches:
        rows = np.sort(np.array_split(shuffled(48, 7, epoch), 3)[step])
        assert np.array_equal(images_u8, dataset.images("train")[rows])


def test_the_validation_loss_is_taken_without_smoothing(finished_training):
    recorder = finished_training[2]
    assert [epoch["val/loss"] for epoch in recorder.metrics] == pytest.approx(recorder.val_losses, rel=1e-4)


@CPU
def test_the_shipped_defaults_train_as_a_plain_loop_of_torch_does_bit_for_bit(dataset, tiny, params, out, on):
    """No setting that is off may change a bit: momentum, schedule, loss, clipping, accumulation and the rest."""
    batches = []
    collect = on("on_train_batch_start", lambda _trainer, _module, batch, _index: batches.append(batch))
    fit(dataset, tiny, params(epochs=3), 7, out, callbacks=[collect])
    torch.manual_seed(7)
    same = {name: getattr(dataset, name) for name in ("classes", "image_px", "fit", "mean", "std")}
    model = trained.make(trained.ModelFacts(network="tiny", spec=tiny, **same))
    model = model.to(memory_format=torch.channels_last).train()
    decaying = [value for value in model.parameters() if value.ndim > 1]
    others = [value for value in model.parameters() if value.ndim <= 1]
    groups = [{"params": decaying, "weight_decay": 0.0005}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_schedule("one_cycle", 0.2, 9))
    for batch in batches:
        optimizer.zero_grad()
        loss = cross_entropy(model(batch.pixels_u8.float()), batch.labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        schedule.step()
    for name, value in trained.load(out)[0].network.state_dict().items():
        assert torch.equal(value, model.network.state_dict()[name]), name


def head(module):
    return module.model.network.dense1.weight.detach().clone()


def test_the_model_has_the_weights_of_the_best_epoch_not_of_the_last(dataset, tiny, params, out, on):
    heads = []

    def worsen(trainer, module):
        """Let every later epoch predict `blue`, so that the first is the best."""
        if trainer.current_epoch > 0:
            torch.nn.init.constant_(module.model.network.dense1.bias[:1], 50.0)

    keep = on("on_validation_end", lambda _trainer, module: heads.append(head(module)))
    callbacks = [on("on_validation_start", worsen), keep]
    metrics = fit(dataset, tiny, params(epochs=3), 1, out, callbacks=callbacks)
    assert metrics["best"]["epoch"] == 1
    assert torch.equal(trained.load(out)[0].network.dense1.weight, heads[0])


def pretending(on, losses, accuracies):
    """Make a callback that lets each epoch's validation log given metrics."""

    def replace(_trainer, module):
        def compute():
            epoch = module.current_epoch
            return {"loss": torch.tensor(losses[epoch]), "accuracy": torch.tensor(accuracies[epoch])}

        module.val_sums.compute = compute

    return on("on_fit_start", replace)


@pytest.mark.parametrize(
    ("best", "losses", "accuracies", "epoch"),
    [
        ("val/loss", [3.0, 1.0, 2.0, 1.0], [0.1, 0.2, 0.9, 0.3], 2),
        ("val/accuracy", [3.0, 1.0, 2.0, 1.0], [0.1, 0.2, 0.9, 0.3], 3),
        ("val/accuracy", [3.0, 2.0, 1.0, 1.5], [0.5, 0.9, 0.9, 0.9], 3),
        ("last", [1.0, 2.0, 3.0, 4.0], [0.9, 0.8, 0.7, 0.6], 4),
    ],
)
def test_the_epoch_whose_weights_are_kept_follows_train_best_also_when_resumed(
    dataset, tiny, params, out, on, resumable, best, losses, accuracies, epoch
):
    heads = {}
    keep = on("on_validation_epoch_end", lambda t, module: heads.update({t.current_epoch + 1: head(module)}))

    def kill(trainer, module, *_):
        if trainer.current_epoch == 2:
            raise InterruptedError

    def run(*more):
        callbacks = [pretending(on, losses, accuracies), keep, *more]
        chosen = params(epochs=4, best=best)
        return fit(dataset, tiny, chosen, 1, out, callbacks=callbacks, resumable=resumable())

    with pytest.raises(InterruptedError):
        run(on("on_train_batch_end", kill))
    assert run()["best"]["epoch"] == epoch
    assert torch.equal(trained.load(out)[0].network.dense1.weight, heads[epoch])


def test_the_average_of_weights_is_validated_and_saved(dataset, tiny, params, out, on):
    weights, measured = [], []  # of the head, after each step and at each validation
    keep = on("on_train_batch_end", lambda _t, module, *_: weights.append(head(module)))
    look = on("on_validation_batch_start", lambda _t, module, *_: measured.append(head(module)))
    metrics = fit(dataset, tiny, params(epochs=3, ema=0.8), 1, out, callbacks=[keep, look])
    average = weights[0]
    for weight in weights[1:]:
        average = 0.8 * average + 0.2 * weight
    saved = trained.load(out)[0].network.dense1.weight
    assert metrics["best"]["epoch"] == 3
    assert not torch.allclose(weights[-1], average)
    assert torch.allclose(saved, average, atol=1e-6)
    assert torch.equal(saved, measured[-1])


@CPU
@pytest.mark.parametrize("precision", [32, BF16])
def test_the_same_seed_gives_equal_metrics_and_equal_bytes(dataset, tiny, params, tmp_path, precision):
    outcomes = []
    for run, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(run)
        metrics = fit(dataset, tiny, params(precision=precision), seed, out)
        del metrics["train"]["seconds"]
        outcomes.append((metrics, (out / "weights.pt").read_bytes(), (out / "history.csv").read_text()))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1] != outcomes[2][1]


def test_early_stop_ends_after_so_many_epochs_without_a_better_loss(dataset, tiny, params, out):
    metrics = fit(dataset, tiny, params(epochs=20, lr=1e-9, early_stop=2), 1, out)
    assert metrics["train"]["epochs_trained"] < 20
    assert metrics["train"]["epochs_trained"] == len(history(out))


def test_early_stop_follows_the_accuracy_where_that_chooses_the_epoch(dataset, tiny, params, out, on):
    chosen = params(epochs=8, early_stop=2, best="val/accuracy")
    improving = pretending(on, losses=[9.0 - epoch for epoch in range(8)], accuracies=[0.5] * 8)
    metrics = fit(dataset, tiny, chosen, 1, out, callbacks=[improving])
    assert metrics["train"]["epochs_trained"] == 3


def test_a_lost_loss_ends_the_training_with_the_remedy(dataset, tiny, params, out):
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf).*Lower train\.lr \(now 100\.0\)"):
        fit(dataset, tiny, params(epochs=200, lr=100.0, weight_decay=1.0, warmup=0.0), 1, out)


def test_a_network_too_deep_for_the_images_is_refused_before_anything_is_written(dataset, params, out):
    layers = [{"conv": {"filters": 2, "kernel": 9}}, "flatten", {"dense": "classes"}]
    deep = Spec.model_validate({"name": "deep", "layers": layers})
    with pytest.raises(NetworkError, match="deep does not take images of 8 px"):
        fit(dataset, deep, params(), 1, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("batch_size", "images", "least"),
    [
        (1, 48, r"train\.batch_size 1 .*of the 48 .*layer norm1 of pooled .*batch_size to 2 or more"),
        (2, 47, r"train\.batch_size 2 .*of the 47 .*layer norm1 of pooled .*batch_size to 3 or more"),
        (2, 48, None),
        (3, 47, None),
    ],
)
def test_a_single_image_in_a_batch_is_refused_where_a_norm_needs_more(
    dataset, params, out, batch_size, images, least
):
    cut = dataclasses.replace(dataset, splits=dataset.splits | {"train": (0, images)})
    layers = [
        {"conv": {"filters": 2, "kernel": 3}},
        "global_avg_pool",
        "norm",
        "flatten",
        {"dense": "classes"},
    ]
    pooled = Spec.model_validate({"name": "pooled", "layers": layers})
    if least is None:
        fit(cut, pooled, params(batch_size=batch_size, epochs=1), 1, out)
    else:
        with pytest.raises(RequestError, match=least):
            fit(cut, pooled, params(batch_size=batch_size), 1, out)
        with pytest.raises(RequestError, match=least):
            check(cut, pooled, params(batch_size=batch_size))
    assert out.exists() is (least is None)


@pytest.mark.parametrize(
    ("change", "images", "message"),
    [
        ({"batch_size": 16, "accumulate": 64}, 48, r"train\.accumulate 64 needs as many batches.*48 or less"),
        ({"augment": ["mixup"], "batch_size": 2}, 47, r"mixup mixes two images .*batch_size to 4 or more"),
        ({"augment": [{"shift": {"pixels": 8}}]}, 48, r"shift\.pixels is 8"),
        ({"progressive": {"start": 0.5, "full": 0.5}}, 48, r"layer dense1 has weights for 192 values"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_run_is_opened(dataset, params, change, images, message):
    cut = dataclasses.replace(dataset, splits=dataset.splits | {"train": (0, images)})
    flat = Spec.model_validate({"name": "flat", "layers": ["flatten", {"dense": "classes"}]})
    state = torch.get_rng_state()
    with pytest.raises(RequestError, match=message):
        check(cut, flat, params(**change))
    check(cut, flat, params(batch_size=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_single_images_train_where_norms_see_more_than_a_value(dataset, tiny, params, out):
    metrics = fit(dataset, tiny, params(batch_size=1, epochs=1), 1, out)
    assert metrics["train"]["epochs_trained"] == 1


@CPU
def test_accumulated_batches_make_the_steps_of_one_large_batch(dataset, params, out, on):
    layers = [
        {"conv": {"filters": 4, "kernel": 3}},
        "relu",
        "global_avg_pool",
        "flatten",
        {"dense": "classes"},
    ]
    plain = Spec.model_validate(
        {"name": "plain", "layers": layers}
    )  # no norm, whose statistics are of a batch
    steps, lost, states = [], [], []
    count = on("on_before_optimizer_step", lambda trainer, *_: steps.append(trainer.global_step))
    points = on("on_train_end", lambda _trainer, module: states.append(module.model.network.state_dict()))
    for size, batches in ((24, 1), (8, 3)):
        chosen = params(batch_size=size, accumulate=batches, augment=[], epochs=4)
        fit(dataset, plain, chosen, 1, out, callbacks=[count, points])
        lost.append([float(row["train/loss"]) for row in history(out)])
    assert steps == [*range(8), *range(8)]
    assert lost[0] == pytest.approx(lost[1], rel=1e-4)
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "size", "batches", "sizes"), [(47, 8, 3, {7, 8}), (40, 8, 4, {5}), (5, 8, 4, {1, 2})]
)
def test_every_step_gets_its_batches_also_at_the_end_of_an_epoch(
    dataset, params, images, size, batches, sizes
):
    cut = dataclasses.replace(dataset, splits=dataset.splits | {"train": (0, images)})
    loader = DataModule(cut, params(batch_size=size, accumulate=batches), 1).train_dataloader()
    seen = [len(batch.labels) for batch in loader]
    assert len(seen) % batches == 0
    assert (sum(seen), set(seen)) == (images, sizes)


def test_fewer_images_than_batches_of_a_step_are_refused(dataset, tiny, params, out):
    with pytest.raises(
        RequestError, match=r"accumulate 64 .*only 48 training images.*accumulate to 48 or less"
    ):
        fit(dataset, tiny, params(accumulate=64), 1, out)
    assert not out.exists()


@CPU
def test_a_training_that_accumulates_and_clips_is_killed_at_every_batch_and_resumes_bit_for_bit(
    dataset, tiny, params, out, on, resumable
):
    chosen = params(batch_size=6, accumulate=3, clip_norm=0.5, loss="focal", schedule="linear", lr_end=0.1)
    points = []
    expected = fit(dataset, tiny, chosen, 1, out)
    whole, rows = (out / "weights.pt").read_bytes(), history(out)
    for number in range(1, 19):  # two epochs of nine batches
        seen = []

        def kill(*_, seen=seen, number=number):
            seen.append(0)
            if len(seen) == min(number, 4):
                raise InterruptedError

        with suppress(InterruptedError):
            fit(
                dataset,
                tiny,
                chosen,
                1,
                out,
                resumable=resumable(points.extend),
                callbacks=[on("on_train_batch_end", kill)],
            )
            break
    metrics = fit(dataset, tiny, chosen, 1, out, resumable=resumable(points.extend))
    assert (out / "weights.pt").read_bytes() == whole
    assert history(out) == rows
    assert metrics["best"] == expected["best"]
    losses = {point.step: point.value for point in points if point.name == "step/loss"}
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    mean = sum(float(row["train/loss"]) for row in rows) / 2
    assert 0.6 * mean < sum(losses.values()) / 6 < 1.6 * mean


@CPU
def test_gradients_longer_than_clip_norm_are_shortened_to_it(dataset, tiny, params, out, on):
    norms = []

    def measure(_trainer, module, *_):
        squares = [value.grad.square().sum() for value in module.parameters() if value.grad is not None]
        norms.extend([float(torch.stack(squares).sum().sqrt())] if squares else [])

    look = on("on_before_zero_grad", measure)
    fit(dataset, tiny, params(epochs=1, clip_norm=0.05), 1, out, callbacks=[look])
    assert max(norms) == pytest.approx(0.05, rel=1e-3)


def test_a_torchvision_network_trains(dataset, params, out):
    spec = Spec(name="mine", torchvision="shufflenet_v2_x0_5")
    metrics = fit(dataset, spec, params(epochs=1), 1, out)
    model, facts = trained.load(out)
    assert facts.spec == spec
    assert metrics["train"]["epochs_trained"] == 1
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


def test_starting_weights_are_where_a_training_starts_and_their_statistics_are_the_models(
    dataset, tiny, params, out, starting
):
    weights = starting(tiny)
    still = params(epochs=1, lr=1e-12, transfer={"batch_norm": "frozen"})
    fit(dataset, tiny, still, 1, out, starting=weights)
    model, facts = trained.load(out)
    state = model.network.state_dict()
    assert (facts.mean, facts.std) == (weights.facts.mean, weights.facts.std)
    assert model.mean.flatten().tolist() == pytest.approx(weights.facts.mean)
    for name, tensor in weights.tensors.items():
        torch.testing.assert_close(state[name], tensor)


@pytest.mark.parametrize("changes", [{"ema": 0.9}, {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.5}])
def test_whitening_filters_come_from_the_training_images_and_stay(
    dataset, whitened, params, out, capsys, changes
):
    fit(dataset, whitened, params(epochs=2, **changes), 1, out)
    model, _ = trained.load(out)
    filters = model.network.whiten1.weight
    expected = whitening_filters(covariance(model, dataset.images("train"), (2, 2)), 5e-4)
    torch.testing.assert_close(filters.flatten(1), expected.float())
    assert "frozen: 1 tensors unchanged" in capsys.readouterr().out
    assert model.network.whiten1.bias.abs().min() > 0


def test_starting_weights_bring_their_whitening_filters_which_stay_in_every_phase(
    dataset, whitened, params, out, starting
):
    weights = starting(whitened)
    plan = {"freeze": "whiten1", "release": 1}
    fit(dataset, whitened, params(epochs=3, best="last", transfer=plan), 1, out, starting=weights)
    state = trained.load(out)[0].network.state_dict()
    assert torch.equal(state["whiten1.weight"], weights.tensors["whiten1.weight"])
    assert not torch.equal(state["whiten1.bias"], weights.tensors["whiten1.bias"])


def test_whitening_filters_that_something_writes_to_fail_the_training(dataset, whitened, params, out):
    class Writes(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            pl_module.model.network.whiten1.weight.mul_(1.01)

    with pytest.raises(TrainingError, match=r"frozen tensors changed: whiten1\.weight"):
        fit(dataset, whitened, params(epochs=1), 1, out, callbacks=[Writes()])


def test_starting_weights_of_unknown_statistics_take_the_datasets(dataset, tiny, params, out, starting):
    weights = dataclasses.replace(starting(tiny), facts=None)
    fit(dataset, tiny, params(epochs=1), 1, out, starting=weights)
    facts = trained.load(out)[1]
    assert (facts.mean, facts.std) == (list(dataset.mean), list(dataset.std))


def test_what_became_of_starting_weights_is_printed_before_the_first_step_and_written_down(
    dataset, tiny, params, out, starting, capsys
):
    weights = starting(tiny)
    other_classes = weights.facts.model_copy(update={"classes": ["a", "b", "c"]})
    weights = dataclasses.replace(weights, facts=other_classes)
    fit(dataset, tiny, params(epochs=2, transfer={"freeze": "conv1"}), 1, out, starting=weights)

    printed = capsys.readouterr().out
    written = json.loads((out / "transfer.json").read_text())
    assert list(written) == ["source", "resolved", "head", "taken", "reinitialised", "ignored", "plan"]
    assert (written["source"], written["resolved"]) == ("models:/convoy@champion", "models:/convoy/3")
    assert written["head"] in printed
    assert {"conv1.weight", "norm1.running_mean"} < set(written["taken"])
    assert written["reinitialised"] == ["dense1.weight", "dense1.bias"]
    assert written["plan"].splitlines()[2].split() == ["conv1", "never", "frozen", "frozen"]
    assert 0 < printed.index("reinitialised") < printed.index(written["plan"]) < printed.index("epoch 1/2")


@pytest.mark.parametrize(
    ("transfer", "weights", "reason"),
    [
        ({"freeze": 1}, False, r"freeze is 1, .*network\.weights.*freeze to 0"),
        ({"freeze": "conv1"}, False, r"freeze is conv1, .*network\.weights"),
        ({"batch_norm": "frozen"}, False, r"batch_norm is frozen, .*network\.weights.*batch_norm to adapt"),
        ({"freeze": "conv3"}, True, "tiny has no block `conv3`; did you mean `conv1`"),
    ],
)
def test_a_plan_that_freezes_random_weights_or_unknown_blocks_is_refused_before_anything_is_written(
    dataset, tiny, params, out, starting, transfer, weights, reason
):
    with pytest.raises(RequestError, match=reason):
        fit(dataset, tiny, params(transfer=transfer), 1, out, starting=starting(tiny) if weights else None)
    assert not out.exists()


def test_a_network_with_auxiliary_heads_trains_with_them_and_is_saved_without(
    dataset, params, out, resumable
):
    head = ["global_avg_pool", "flatten", {"dense": "classes"}]
    block = [{"conv": {"filters": 8, "kernel": 3}}, "norm", "relu"]
    layers = [*block, {"auxiliary": {"weight": 0.3, "layers": head}}, *block, *head]
    spec = Spec.model_validate({"name": "aside", "layers": layers})

    metrics = fit(dataset, spec, params(epochs=12), 1, out, resumable=resumable(every_s=60.0))

    model, facts = trained.load(out)
    [path] = out.parent.glob("checkpoints/*/step-*.ckpt")
    content = torch.load(path, weights_only=True)  # tensors and plain data only
    assert metrics["val"]["accuracy"] > 0.9
    assert (content["epoch"], bool(content["optimizer_states"])) == (12, True)
    assert trained.ModelFacts.model_validate_json(content["convoy"]) == facts
    assert "model.network.auxiliary1.dense1.weight" in content["state_dict"]
    assert not any("auxiliary" in name for name in model.network.state_dict())
    best = content["callbacks"]["BestWeights"]["weights"]
    assert torch.equal(model.network.conv1.weight, best["network.conv1.weight"])


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
@pytest.mark.parametrize("precision", [32, "auto"])
def test_weights_trained_on_a_gpu_load_on_a_cpu_and_give_near_equal_logits(
    dataset, tiny, params, out, on, precision
):
    models, devices = [], []

    def keep(_trainer, module):
        models.append(module.model)
        devices.append(module.device.type)

    chosen = params(epochs=12, precision=precision)
    metrics = fit(dataset, tiny, chosen, 1, out, callbacks=[on("on_train_end", keep)])

    pixels = torch.from_numpy(dataset.images("test").copy()).permute(0, 3, 1, 2).float()
    on_gpu = models[0].to("cuda").eval()(pixels.to("cuda")).cpu()
    assert devices == ["cuda"]
    assert metrics["val"]["accuracy"] > 0.9
    torch.testing.assert_close(trained.load(out)[0](pixels), on_gpu, rtol=1e-3, atol=1e-3)


class StopError(BaseException):
    """Raised by a signal's handler."""


def stop(number, frame):
    raise StopError


@pytest.mark.parametrize(
    ("number", "handler", "error"),
    [
        (signal.SIGINT, signal.default_int_handler, KeyboardInterrupt),
        (signal.SIGTERM, stop, StopError),
        (signal.SIGTERM, signal.SIG_DFL, SystemExit),
    ],
)
def test_a_signal_reaches_the_caller_as_what_its_handler_raises_or_as_an_exit(
    dataset, tiny, params, out, on, number, handler, error
):
    send = on("on_train_batch_end", lambda *_: os.kill(os.getpid(), number))
    before = signal.signal(number, handler)
    try:
        with pytest.raises(error):
            fit(dataset, tiny, params(), 1, out, callbacks=[send])
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert not (out / "weights.pt").exists()


@GLIBC
def test_training_keeps_freed_memory_for_the_next_step(dataset, tiny, params, out, on):
    counts = []
    count = on("on_train_batch_end", lambda *_: counts.append(new_pages()))
    fit(dataset, tiny, params(epochs=1), 7, out, callbacks=[count])
    assert min(counts) < ALL / 2
