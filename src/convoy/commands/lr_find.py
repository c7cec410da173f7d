"""`convoy lr-find`: find a learning rate for the network and the dataset, without a training."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convoy.commands.options import AsJson, messages
from convoy.core import console
from convoy.core.console import info, print_json

if TYPE_CHECKING:
    from convoy.sweep.lr_find import RangeTest
    from convoy.training.settings import TrainParams

DATASET = Path("build/dataset")
PICTURE = Path("build/plots/lr_find.png")


def lr_find(
    *,
    low: Annotated[float, typer.Option(min=1e-12, max=100, help="Learning rate of the first step.")] = 1e-5,
    high: Annotated[float, typer.Option(min=1e-12, max=100, help="Learning rate of the last step.")] = 10.0,
    steps: Annotated[
        int | None,
        typer.Option(min=20, max=1000, help="Steps.", show_default="100, or 10 passes over a small dataset"),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=1, max=100, help="Tests that are averaged.", show_default="as many as are cheap, at most 4"
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="PNG or SVG file to draw. With --json, only on request.", show_default=str(PICTURE)
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find a learning rate: train a throwaway network on build/dataset while the rate rises, until the loss explodes.

    Uses network, starting weights, optimizer, augmentation and batches of params.yaml. Nothing but the picture is written: no
    run, checkpoint or model. The suggestion is the rate at which the smoothed loss falls fastest. Where the curve shows none, the
    reason is printed.

    Example: convoy lr-find

    Example: convoy lr-find --low 1e-4 --high 1 --steps 200 --picture rates.svg
    """
    from convoy.core import params
    from convoy.core.dataset import Dataset
    from convoy.explain import figures
    from convoy.models import spec
    from convoy.training.settings import NetworkParams, TrainParams

    if picture:
        figures.check_name(picture)
    seed, train = params.seed(), params.section("train", TrainParams)
    network = params.section("network", NetworkParams)
    network_spec = spec.load(network.name)
    dataset = Dataset.load(DATASET)
    with messages(as_json=as_json):
        with console.slow("importing torch and Lightning"):
            from convoy.sweep.lr_find import draw, range_test
            from convoy.training import pretrained, teacher, threads
        starting = pretrained.load(network.weights, network_spec)
        taught_by = teacher.load(train.teacher, dataset.classes)
        threads.choose()
        test = range_test(
            dataset,
            network_spec,
            train,
            seed,
            starting,
            teacher=taught_by,
            low=low,
            high=high,
            steps=steps,
            repeats=repeats,
        )
    out = picture if as_json else picture or PICTURE
    if out:
        draw(test, out)
    command = _command(test.suggestion, train) if test.suggestion else None
    if as_json:
        print_json(
            {"network": network.name, "lr": train.lr}
            | asdict(test)
            | {"command": command, "picture": str(out) if out else None}
        )
        return
    info(_course(test, high))
    if test.suggestion:
        info(f"Suggestion: train.lr {test.suggestion:g} (now {train.lr:g}). Try it: {command}")
    else:
        info(f"No suggestion: {test.reason}")
    info(f"Picture: {out}")


def _course(test: "RangeTest", high: float) -> str:
    """Describe how the loss went."""
    lowest = test.smoothed[test.rates.index(test.lowest)]
    falls = (
        f"{len(test.rates)} steps{f', mean of {test.repeats} tests' if test.repeats > 1 else ''}: the smoothed loss falls from {test.smoothed[0]:.4g} to {lowest:.4g} at learning "
        f"rate {test.lowest:.2g}"
    )
    if test.exploded is not None:
        return f"{falls} and explodes at {test.exploded:.2g}."
    return f"{falls} and does not explode up to {high:g}."


def _command(suggestion: float, train: "TrainParams") -> str:
    """Write what tries the suggestion; the rates of `train.muon` rose with `train.lr`."""
    rates = {"train.lr": suggestion}
    if train.optimizer == "muon":
        ratio = suggestion / train.lr
        rates |= {
            "train.muon.rest_lr": train.muon.rest_lr * ratio,
            "train.muon.head_lr": train.muon.head_lr * ratio,
        }
    return "dvc exp run " + " ".join(f"-S {key}={value:.3g}" for key, value in rates.items())
