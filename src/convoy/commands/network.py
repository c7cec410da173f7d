"""`convoy network`: inspect networks before they are trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convoy.commands.options import AsJson
from convoy.core.console import info, print_json

if TYPE_CHECKING:
    from convoy.models.spec import Spec

CLASSES = 10  # classes of a network whose spec has no `made_for`

network = typer.Typer(no_args_is_help=True, help="Inspect networks before they are trained.")


@network.command("show")
def network_show(
    name: Annotated[
        str,
        typer.Argument(
            help="A file in networks/, without .yaml; or torchvision:NAME or timm:NAME, such as timm:efficientnet_b0."
        ),
    ],
    image_px: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Side of the images, in pixels.",
            show_default="the spec's made_for, else data.image_px of params.yaml",
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(min=1, help="Number of classes.", show_default=f"the spec's made_for, else {CLASSES}"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images per training step, for the estimate of its memory.",
            show_default="train.batch_size of params.yaml",
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="PNG or SVG file for a drawing of the volumes, from image to classes.")
    ] = None,
    *,
    units: Annotated[
        bool, typer.Option("--units", help="Print one line per unit, without the layers inside it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print a network layer by layer: volumes, parameters, MACs, receptive field, memory.

    Nothing is trained and no weight is allocated. In JSON, `output` is height, width, channels.

    Example: convoy network show vgg16

    Example: convoy network show convnet --image-px 64 --classes 5 --picture convnet.svg
    """
    from convoy.core import params
    from convoy.explain import table
    from convoy.models.spec import FOLDER
    from convoy.repo.git import untracked

    if picture:
        from convoy.explain import diagram, figures

        figures.check_name(picture)
    spec = _load(name)
    side, width, note = _images(spec, image_px, classes)
    if batch_size is None:
        from convoy.training.settings import TrainParams

        batch_size = params.section("train", TrainParams).batch_size
    rows = table.tabulate(spec, width, side)
    if picture:
        diagram.draw(rows, picture)
    if as_json:
        print_json(table.as_json(rows, batch_size))
        return
    info(f"{spec.name}: {side}×{side} RGB images, {width} classes{note}")
    for line in table.lines(rows, batch_size, units=units):
        info(line)
    if remark := untracked(FOLDER / f"{name}.yaml"):
        info(f"\n{remark}")
    if picture:
        info(f"\nPicture: {picture}")


@network.command("list")
def network_list(
    *,
    everything: Annotated[
        bool,
        typer.Option("--all", help="List torchvision's classifiers too, measured once, and timm's."),
    ] = False,
    pattern: Annotated[
        str,
        typer.Option(
            "--filter",
            help="List only names that contain this, or match it, such as 'timm:mobilenetv4*'. With --all, timm's are measured if "
            "at most 30 match.",
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List the networks in networks/: parameters, MACs, the smallest images that they take.

    Example: convoy network list

    Example: convoy network list --all --filter efficientnet_b
    """
    from convoy.core import params
    from convoy.data.settings import DataParams
    from convoy.explain import network_list
    from convoy.models.spec import FOLDER
    from convoy.repo.git import untracked

    otherwise = params.section("data", DataParams).image_px
    entries = network_list.entries(
        FOLDER, otherwise, CLASSES, everything=everything, quiet=as_json, pattern=pattern
    )
    if as_json:
        print_json({"networks": [entry.model_dump() for entry in entries]})
        return
    for line in network_list.lines(entries):
        info(line)
    if note := untracked(*(FOLDER / f"{entry.name}.yaml" for entry in entries)):
        info(f"\n{note}")


def _load(name: str) -> "Spec":
    """Read a spec, or make a spec for a classifier of a library."""
    from convoy.models import spec

    key, colon, classifier = name.partition(":")
    if not colon or key not in spec.ZOOS:
        return spec.load(name)
    spec.ZOOS[key].check(classifier, name)
    return spec.Spec.model_validate({"name": classifier, key: classifier})


def _images(spec: "Spec", image_px: int | None, classes: int | None) -> tuple[int, int, str]:
    """Complete image side and classes from the spec, else from params.yaml; return them with a note on the source."""
    from convoy.core import params
    from convoy.data.settings import DataParams

    if image_px is not None and classes is not None:
        return image_px, classes, ""
    if made_for := spec.made_for:
        return image_px or made_for.image_px, classes or made_for.classes, " (defaults: made_for of the spec)"
    note = f" (defaults: data.image_px of params.yaml, {CLASSES} classes)"
    return image_px or params.section("data", DataParams).image_px, classes or CLASSES, note
