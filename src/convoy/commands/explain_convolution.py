"""`convoy explain convolution`: a convolution worked out by hand, printed and drawn."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convoy.explain.filters import NAMED, PaddingMode

if TYPE_CHECKING:
    from convoy.explain.convolution import Worked
    from convoy.explain.convolution_input import GivenFilter, GivenImage

PICTURE = Path("build/explain/convolution.png")


def convolution(
    image: Annotated[
        str | None,
        typer.Argument(
            help='An image file, or a matrix: "0 1 0; 1 1 1; 0 1 0", further channels after |. '
            "One that starts with a minus sign stands last, after --. Left out: a 1 of 7×7 pixels.",
            show_default=False,
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="Weights, typed like a matrix, or a name. Given more than once, each filter makes one map. "
            + " ".join(f"{name}: {filter_.finds}." for name, filter_ in NAMED.items()),
            show_default="vertical",
        ),
    ] = None,
    *,
    padding: Annotated[int, typer.Option(help="Rows and columns added on every side, in pixels.")] = 0,
    padding_mode: Annotated[
        PaddingMode, typer.Option(help="What the padding holds: zeros, or copies of the border.")
    ] = PaddingMode.ZERO,
    stride: Annotated[int, typer.Option(help="Step from one window to the next, in pixels.")] = 1,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="PNG or SVG file to draw into. With --json, only where it is given.",
            show_default=str(PICTURE),
        ),
    ] = None,
    every_sum: Annotated[
        bool, typer.Option("--all", help="Print every product of every sum, however many.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; rows and columns count from 1.")
    ] = False,
) -> None:
    """Work a convolution out by hand: each product and sum, the size, ReLU, pooling, and a picture.

    Example: convoy explain convolution "0 1 0; 1 1 1; 0 1 0" --filter edge --padding 1

    Example: convoy explain convolution photo.jpg --filter vertical --filter horizontal --stride 2
    """
    from convoy.explain import convolution_input as given
    from convoy.explain import figures
    from convoy.explain.convolution import work_out
    from convoy.explain.convolution_plot import draw
    from convoy.explain.convolution_text import lesson

    if picture:
        figures.check_name(picture)
    given.check_padding(padding)
    convolved = given.read_image(image)
    chosen = given.read_filters(filters or ["vertical"])
    weights = given.stack(chosen, convolved.values.shape[2])
    worked = work_out(convolved.values, weights, padding, padding_mode, stride)
    out = picture if as_json else picture or PICTURE
    if out:
        draw(convolved, chosen, worked, out)
    if as_json:
        print(json.dumps(_facts(convolved, chosen, worked, padding_mode), ensure_ascii=False))
        return
    for line in lesson(convolved, chosen, worked, padding_mode, every_sum=every_sum):
        print(line)
    print(f"Picture: {out}")


def _facts(
    image: "GivenImage", filters: "list[GivenFilter]", worked: "Worked", mode: PaddingMode
) -> dict[str, Any]:
    """Give volumes as nested lists, [row][column][channel]."""
    from convoy.explain.convolution import largest

    row, column, channel = largest(worked.activation)
    return {
        "operation": "cross-correlation",
        "image": {"source": image.source, "shape": list(image.values.shape)},
        "filters": [
            {"name": one.name, "weights": weights.tolist()}
            for one, weights in zip(filters, worked.filters, strict=True)
        ],
        "padding": worked.padding,
        "padding_mode": mode.value,
        "stride": worked.stride,
        "largest": {
            "value": float(worked.activation[row, column, channel]),
            "row": row + 1,
            "column": column + 1,
            "filter": channel + 1,
        },
        **{
            name: {"shape": list(values.shape), "values": values.tolist()}
            for name, values in (
                ("activation", worked.activation),
                ("relu", worked.rectified),
                ("max_pool", worked.pooled),
            )
        },
    }
