import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy, one_hot
from torch.utils._python_dispatch import TorchDispatchMode

from convoy.models.spec import Spec
from convoy.training.batch import Batch
from convoy.training.data import DataModule
from convoy.training.fit import fit

STACK = ["conv1", "residual1", "conv2", "dense1"]


class Look(pl.Callback):
    """Note at every step what trains, how fast, and which norms follow the batch."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        network = pl_module.model.network
        names = {value: name for name, value in network.named_parameters()}
        with_grad = {name for value, name in names.items() if value.grad is not None}
        assert with_grad == {name for value, name in names.items() if value.requires_grad}
        rates = {names[value]: group["lr"] for group in optimizer.param_groups for value in group["params"]}
        norms = {name for name, module in network.named_modules() if "norm" in name and module.training}
        step = {"epoch": trainer.current_epoch, "with_grad": with_grad, "rates": rates, "batch_norms": norms}
        self.steps.append(step)

    def trained_blocks(self):
        """List the blocks that have gradients, for each epoch."""
        blocks = {}
        for step in self.steps:
            blocks.setdefault(step["epoch"], {name.split(".")[0] for name in step["with_grad"]} & set(STACK))
        return [[name for name in STACK if name in names] for names in blocks.values()]


def state(classifier):
    return {name: value.clone() for name, value in classifier.model.network.state_dict().items()}


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_each_epoch_trains_the_blocks_of_its_plan(stack, params, classifier, train):
    look = Look()
    transfer = {"freeze": 2, "release": {"residual1": 1, "conv1": 3}}
    train(classifier(stack, params(epochs=4, transfer=transfer)), look)
    assert look.trained_blocks() == [STACK[2:], STACK[1:], STACK[1:], STACK]


def test_the_first_phase_holds_before_the_optimizer_is_made(stack, params, classifier):
    made = classifier(stack, params(transfer={"freeze": "residual1"}))
    trained = {name for name, value in made.model.network.named_parameters() if value.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"conv2", "norm2", "dense1"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_neither_momentum_nor_weight_decay_moves_a_frozen_block(stack, params, classifier, train, optimizer):
    how = {"epochs": 2, "optimizer": optimizer, "weight_decay": 1.0, "transfer": {"freeze": "residual1"}}
    made = classifier(stack, params(**how))
    before = state(made)
    train(made)
    weights = {name for name, _ in made.model.network.named_parameters()}
    frozen = {name for name in weights if name.startswith(("conv1", "norm1", "residual1"))}
    assert moved(before, state(made)) & weights == weights - frozen


def test_with_adapt_the_statistics_of_frozen_blocks_follow_the_new_images(stack, params, classifier, train):
    made = classifier(stack, params(epochs=1, transfer={"freeze": 3}))
    before = state(made)
    train(made)
    changed = moved(before, state(made))
    for norm in ("norm1", "residual1.body.norm1", "norm2"):
        assert {f"{norm}.running_mean", f"{norm}.running_var", f"{norm}.num_batches_tracked"} <= changed
        assert not {f"{norm}.weight", f"{norm}.bias"} & changed


def test_frozen_norms_hold_statistics_scale_and_shift_also_in_blocks_that_train(
    stack, params, classifier, train, on
):
    """Other callbacks call `train()` in the middle of an epoch, as Lightning 1 did."""
    look, call_train = Look(), on("on_train_batch_start", lambda _t, module, *_: module.train())
    made = classifier(stack, params(epochs=3, transfer={"freeze": 1, "release": 1, "batch_norm": "frozen"}))
    before = state(made)
    train(made, look, call_train)
    norms = {name for name in before if "norm" in name}
    assert len(norms) == 15
    assert moved(before, state(made)) == before.keys() - norms
    assert all(step["batch_norms"] == set() for step in look.steps)


def test_a_norm_in_the_head_is_never_frozen(params, classifier, train):
    first, last = ({"conv": {"filters": filters, "kernel": 3}} for filters in (4, 3))
    layers = [first, "norm", last, "norm", "global_avg_pool", "flatten"]
    spec = Spec.model_validate({"name": "all_convolutional", "layers": layers})
    made = classifier(spec, params(epochs=2, transfer={"freeze": 1, "batch_norm": "frozen"}))
    before = state(made)
    train(made)
    assert moved(before, state(made)) == {name for name in before if name.startswith(("conv2", "norm2"))}


def test_evaluation_and_training_mode_come_and_go_around_frozen_norms(stack, params, classifier):
    made = classifier(stack, params(transfer={"batch_norm": "frozen"}))
    network = made.model.network
    for mode in (True, False, True):
        assert made.train(mode) is made
        assert network.conv1.training is network.relu1.training is mode
        assert network.norm1.training is network.norm2.training is False
    assert classifier(stack, params()).model.network.norm1.training


def test_the_plans_table_agrees_with_the_optimizer(dataset, stack, params, out, starting, capsys):
    look = Look()
    chosen = params(epochs=3, transfer={"freeze": 2, "release": 1, "lr_factor": 0.3})
    fit(dataset, stack, chosen, 1, out, callbacks=[look], starting=starting(stack))
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(tuple(STACK))]
    assert [row[0] for row in rows] == STACK
    for epoch in range(3):
        first = next(step for step in look.steps if step["epoch"] == epoch)
        for row in rows:
            weight = next(name for name in first["rates"] if name.startswith(row[0]) and "weight" in name)
            done = f"{first['rates'][weight]:.3g}" if weight in first["with_grad"] else "frozen"
            assert row[-3 + epoch] == done


@pytest.fixture
def aside():
    """A network with two auxiliary heads, of weights 0.3 and 0.5, the first with a norm."""
    head = ["global_avg_pool", "flatten", {"dense": "classes"}]
    conv = {"conv": {"filters": 4, "kernel": 3}}
    early = {"auxiliary": {"weight": 0.3, "layers": [conv, "norm", *head]}}
    late = {"auxiliary": {"weight": 0.5, "layers": head}}
    layers = [conv, "norm", early, conv, late, *head]
    return Spec.model_validate({"name": "aside", "layers": layers})


def test_auxiliary_heads_add_their_smoothed_losses_by_weight(dataset, params, classifier, aside):
    made = classifier(aside, params(label_smoothing=0.2))
    batch = next(iter(DataModule(dataset, params(), 1).val_dataloader()))
    loss = made.training_step(batch, 0)
    answer = made.model(batch.pixels_u8.float())
    (first, early), (second, late) = answer.auxiliary
    assert (first, second) == (0.3, 0.5)
    of = [cross_entropy(logits, batch.labels, label_smoothing=0.2) for logits in (answer.logits, early, late)]
    assert torch.allclose(made.train_sums.compute()["loss"], loss)
    torch.testing.assert_close(loss, of[0] + 0.3 * of[1] + 0.5 * of[2])
    right = (answer.logits.argmax(1) == batch.labels).float().mean()
    assert float(made.train_sums.compute()["accuracy"]) == pytest.approx(float(right))


class Reads(TorchDispatchMode):
    """Note the operations that read a number of a tensor, for which a GPU would wait."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in {
            "_local_scalar_dense",
            "nonzero",
            "_unique2",
            "equal",
            "is_nonzero",
        }:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("changes", [{}, {"class_weights": "balanced", "schedule": "cosine"}])
def test_steps_and_validation_read_nothing_back_from_the_device(dataset, tiny, params, out, on, changes):
    """The loss of the first step is checked, then that of every fiftieth, and the figures of the epoch are read at its end."""
    reads, counts = Reads(), []
    look = [
        on(hook, lambda *_: counts.append(len(reads.names)))
        for hook in ("on_train_batch_start", "on_train_batch_end", "on_validation_batch_end")
    ]
    with reads:
        fit(dataset, tiny, params(batch_size=4, epochs=1, **changes), 1, out, callbacks=look)
    first, steps = counts[1] - counts[0], counts[1:-1]
    assert first == 1
    assert len(steps) == 2 * 12 - 1 + 2
    assert len(set(steps)) == 1


def test_the_training_loss_weighs_each_image_alike(dataset, stack, params, classifier):
    made = classifier(stack, params())
    torch.nn.init.constant_(made.model.network.dense1.bias[:1], 5.0)  # certain of the first class
    pixels_u8 = torch.from_numpy(dataset.images("val").copy()).permute(0, 3, 1, 2)
    labels = torch.from_numpy(dataset.labels("val").copy())
    parts = (np.flatnonzero(labels == 0), np.flatnonzero(labels > 0))
    batches = [Batch(pixels_u8[rows], labels[rows], 0, rows) for rows in parts]
    first, others = (made.training_step(batch, 0).item() for batch in batches)
    assert others > 2 * first
    assert float(made.train_sums.compute()["loss"]) == pytest.approx((4 * first + 8 * others) / 12)


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_a_mixed_image_is_that_of_its_labels_by_their_shares(
    dataset, stack, params, classifier, weights, smoothing
):
    made = classifier(stack, params(label_smoothing=smoothing))
    made.class_weights = None if weights is None else torch.tensor(weights)
    made.eval()
    pixels_u8 = torch.from_numpy(dataset.images("val").copy()).permute(0, 3, 1, 2)
    labels, rows = torch.from_numpy(dataset.labels("val").copy()), np.arange(12)
    share = torch.linspace(0.5, 1, 12)[:, None]
    partner = (labels + 1) % 3
    targets = share * one_hot(labels, 3) + (1 - share) * one_hot(partner, 3)

    def losses(of):
        logits = made.model(pixels_u8.float())
        per_image = cross_entropy(logits, of, label_smoothing=smoothing, reduction="none")
        return per_image if weights is None else per_image * made.class_weights[of]

    loss = made.training_step(Batch(pixels_u8, labels, 0, rows, targets), 0)
    expected = (share[:, 0] * losses(labels) + (1 - share[:, 0]) * losses(partner)).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    sharp = made.training_step(Batch(pixels_u8, labels, 0, rows, one_hot(labels, 3).float()), 0)
    assert sharp.item() == pytest.approx(
        made.training_step(Batch(pixels_u8, labels, 0, rows), 0).item(), rel=1e-5
    )


def test_auxiliary_heads_train_at_the_heads_rate_however_much_is_frozen(params, classifier, train, aside):
    look = Look()
    transfer = {"freeze": 2, "lr_factor": 0.1, "batch_norm": "frozen"}
    made = classifier(aside, params(epochs=1, transfer=transfer))
    before = state(made)
    train(made, look)
    trained = {name for name in before if name.startswith(("auxiliary", "dense1"))}
    assert moved(before, state(made)) == trained
    assert sum("norm1" in name for name in trained) == 5
    rates = look.steps[0]["rates"]
    assert rates["auxiliary1.conv1.weight"] == rates["auxiliary2.dense1.bias"] == rates["dense1.weight"]
    assert rates["conv2.weight"] == pytest.approx(rates["dense1.weight"] / 10)
