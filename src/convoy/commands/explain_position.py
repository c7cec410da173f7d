"""`convoy explain position`: the same shuffle of every image's pixels, before a CNN and a dense network."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from convoy.explain.position import Sheets

PICTURE = Path("build/explain/position.png")


def position(
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="Packed dataset, such as build/dataset: learns from train images, measures on val images.",
            show_default="the UCI digits that come with scikit-learn",
        ),
    ] = None,
    *,
    seed: Annotated[
        int, typer.Option(min=0, help="First of three seeds; also draws images and shuffle.")
    ] = 1,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="PNG or SVG file to draw into. With --json, only where it is given.",
            show_default=str(PICTURE),
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; accuracies 0..1.")] = False,
) -> None:
    """Show that the position of pixels matters to a CNN and not to a dense network.

    Trains both on images in place and on the same images shuffled, every one by the same
    shuffle: twelve short trainings, half a minute on a free core. Exit code 1 if the CNN loses
    no more than three times the spread over the seeds, or the dense network changes by more.

    Example: convoy explain position

    Example: convoy explain position --dataset build/dataset --seed 7 --picture shuffled.svg
    """
    from convoy.core.console import info, track
    from convoy.explain.figures import check_name

    if picture:
        check_name(picture)

    from convoy.explain.position import NETWORKS, SEEDS, conclude, digits, packed, trainings
    from convoy.explain.position_plot import draw

    sheets = packed(dataset, seed) if dataset else digits(seed)
    if as_json:
        verdict = conclude(list(trainings(sheets, seed)), sheets, seed)
        print(json.dumps({"data": sheets.as_json(), **verdict.as_json()}, ensure_ascii=False))
    else:
        for line in _introduction(sheets):
            info(line)
        total = len(NETWORKS) * 2 * SEEDS
        verdict = conclude(list(track(trainings(sheets, seed), "trainings", total)), sheets, seed)
        for line in (*verdict.lines(), *_reasons()):
            info(line)
    out = picture if as_json else picture or PICTURE
    if out:
        draw(sheets, verdict, out)
    if not as_json:
        info(f"Picture: {out}")
    if not verdict.holds:
        raise typer.Exit(1)


def _introduction(sheets: "Sheets") -> list[str]:
    from convoy.explain.position import IN_WORDS
    from convoy.explain.position_verdict import prose

    px, side = sheets.image_px, sheets.px
    return [
        *prose(
            f"Images: {sheets.source}. Each of {px}×{px} px lies on a black sheet of {side}×{side}, up to "
            f"{sheets.shift} px off the middle: anew whenever it is learnt from, once where it is measured. "
            f"Then one shuffle of the {side * side} places, the same for every sheet."
        ),
        *prose(
            f"{IN_WORDS} Each trains from the same weights, batches and shifts in place and shuffled; nothing "
            "but the shuffle differs."
        ),
        "",
    ]


def _reasons() -> list[str]:
    from convoy.explain.position_verdict import prose

    return [
        "",
        *prose(
            "Why: a filter sees a pixel together with its neighbours, and looks for one pattern in every place. "
            "After the shuffle neighbours are strangers, and an image that moves becomes another pattern. A dense "
            "layer has a weight of its own for each pixel and knows no neighbours: were its starting weights "
            "shuffled along with the pixels, every answer would be the same. What its two accuracies differ by "
            "is the draw of those weights."
        ),
    ]
