"""`convoy explain`: a convolution worked by hand, what a trained network sees, why the position of pixels matters."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from convoy.commands.options import AsJson
from convoy.core.console import info, print_json, track
from convoy.core.contract import DEFAULT_BACKGROUND
from convoy.core.errors import DataError, RequestError
from convoy.core.files import read_json

if TYPE_CHECKING:
    from convoy.core.dataset import Fit
    from convoy.evaluation.feature_maps import Features

DATASET = Path("build/dataset")
CONVOLUTION = Path("build/explain/convolution.png")
FEATURES = Path("build/explain/features.html")
POSITION = Path("build/explain/position.png")
_PICTURE = "PNG or SVG file to draw. With --json, only on request."

explain = typer.Typer(
    no_args_is_help=True,
    help="Show what a CNN computes: a convolution by hand, feature maps, why position matters.",
)


@explain.command()
def convolution(
    image: Annotated[
        str | None,
        typer.Argument(
            help='An image file, or a matrix: "0 1 0; 1 1 1; 0 1 0", further channels after |. '
            "A matrix that starts with a minus sign goes last, after --. Default: a 1 of 7×7 pixels.",
            show_default=False,
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="Weights, typed like a matrix, or a name: edge, vertical, horizontal, diagonal, sharpen, blur, "
            "emboss, identity. Repeat the option for several filters; each makes one map.",
            show_default="vertical",
        ),
    ] = None,
    *,
    padding: Annotated[int, typer.Option(help="Rows and columns added on every side, in pixels.")] = 0,
    padding_mode: Annotated[
        Literal["zero", "replicate"],
        typer.Option(help="Content of the padding: zeros, or copies of the border."),
    ] = "zero",
    stride: Annotated[int, typer.Option(help="Step from one window to the next, in pixels.")] = 1,
    picture: Annotated[Path | None, typer.Option(help=_PICTURE, show_default=str(CONVOLUTION))] = None,
    every_sum: Annotated[
        bool, typer.Option("--all", help="Print every product of every sum, however many.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Work out a convolution by hand: each product and sum, the output size, ReLU, pooling, and a picture.

    In JSON, rows and columns count from 1.

    Example: convoy explain convolution "0 1 0; 1 1 1; 0 1 0" --filter edge --padding 1

    Example: convoy explain convolution photo.jpg --filter vertical --filter horizontal --stride 2
    """
    from convoy.explain import convolution as worked
    from convoy.explain import figures

    if picture:
        figures.check_name(picture)
    given = worked.read_image(image, _background()), worked.read_filters(filters or ["vertical"])
    result = worked.work_out(*given, padding, padding_mode, stride)
    out = picture if as_json else picture or CONVOLUTION
    if out:
        worked.draw(result, out)
    if as_json:
        print_json(result.as_json())
        return
    for line in worked.lesson(result, every_sum=every_sum):
        info(line)
    info(f"Picture: {out}")


@explain.command()
def features(
    image: Annotated[Path, typer.Argument(help="An image file.", show_default=False)],
    model: Annotated[Path, typer.Option(help="Output folder of the stage `train`.")] = Path("build/model"),
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file to write. With --json, only on request.", show_default=str(FEATURES)),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Look into a trained network: its first filters, and the strongest maps of IMAGE at three depths.

    In JSON, channels count from 0.

    Example: convoy explain features photo.jpg

    Example: convoy explain features photo.jpg --model build/model --out photo.html
    """
    page = out if as_json else out or FEATURES
    if page and page.suffix.lower() not in (".html", ".htm"):
        raise RequestError(f"{page} is not an .html file. Try --out {page.with_suffix('.html')}")
    try:
        content = image.read_bytes()
    except OSError as error:
        raise RequestError(f"{image} cannot be read: {error.strerror}. Name an image file.") from error

    from convoy.evaluation.feature_maps import find
    from convoy.evaluation.report import Subject, likeliest, write_features
    from convoy.images.decode import decode
    from convoy.images.resize import Geometry
    from convoy.models import trained

    network, facts = trained.load(model)
    try:
        decoded_u8 = decode(content, background=facts.background).image_u8
    except DataError as error:
        raise DataError(f"{image} {error}. Name another image.") from error
    image_u8 = Geometry(facts.image_px, cast("Fit", facts.fit), facts.crop_share)(decoded_u8)
    seen = find(network, [image_u8])
    if page:
        try:
            write_features(page, facts.network, facts.classes, [Subject(str(image), image_u8)], seen)
        except OSError as error:
            raise RequestError(
                f"{page} cannot be written: {error.strerror}. Choose another file: --out {FEATURES}"
            ) from error
    predictions = likeliest(seen.images[0], facts.classes)
    if as_json:
        content_of_page = {
            "network": facts.network,
            "image": str(image),
            "predictions": [{"class": name, "probability": value} for name, value in predictions],
            **_features_as_json(seen),
            "page": str(page) if page else None,
        }
        print_json(content_of_page)
        return
    name, probability = predictions[0]
    info(f"{facts.network} predicts {name}, probability {probability:.4f}")
    if not seen.layers:
        info("It has no convolution, so there are no filters and maps to show.")
    for depth, layer in seen.layers.items():
        channels, height, width = layer.volume
        strongest = ", ".join(str(map_.channel) for map_ in seen.images[0].strongest[depth])
        info(f"{depth:<7} {layer.name} {height}×{width}×{channels}: strongest channels {strongest}")
    info(f"Page: {page}")


@explain.command()
def position(
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="Packed dataset, such as build/dataset: trains on its train images, measures on its val images.",
            show_default="the digits of samples/",
        ),
    ] = None,
    *,
    seed: Annotated[
        int, typer.Option(min=0, help="First of three seeds; also draws images and shuffle.")
    ] = 1,
    picture: Annotated[Path | None, typer.Option(help=_PICTURE, show_default=str(POSITION))] = None,
    as_json: AsJson = False,
) -> None:
    """Show that the position of pixels matters to a CNN and not to a dense network.

    Trains both on images as they are and on the same images shuffled, all by the same shuffle: twelve short
    trainings, half a minute on a free core. Exit code 1 if the CNN loses no more than three times the spread
    over the seeds, or the dense network changes by more. In JSON, accuracies are 0 to 1.

    Example: convoy explain position

    Example: convoy explain position --dataset build/dataset --seed 7 --picture shuffled.svg
    """
    from convoy.explain import figures

    if picture:
        figures.check_name(picture)

    from convoy.explain import position as experiment

    sheets = experiment.packed(dataset, seed) if dataset else experiment.digits(seed)
    trainings = experiment.trainings(sheets, seed)
    if as_json:
        result = experiment.conclude(list(trainings), sheets, seed)
        print_json({"data": sheets.as_json(), **result.as_json()})
    else:
        for line in experiment.introduction(sheets):
            info(line)
        done = track(trainings, "trainings", experiment.TRAININGS)
        result = experiment.conclude(list(done), sheets, seed)
        for line in experiment.report(result):
            info(line)
    out = picture if as_json else picture or POSITION
    if out:
        experiment.draw(sheets, result, out)
    if not as_json:
        info(f"Picture: {out}")
    if not result.holds:
        raise typer.Exit(1)


def _background() -> str:
    """Return the colour that the dataset has behind transparent pixels; without a dataset, the default."""
    from convoy.core.dataset import FACTS_FILE

    facts = DATASET / FACTS_FILE
    return (
        str(read_json(facts).get("background", DEFAULT_BACKGROUND)) if facts.exists() else DEFAULT_BACKGROUND
    )


def _features_as_json(features: "Features") -> dict[str, Any]:
    """Return filters and layers of the page as plain data; volumes are [H, W, C]."""
    filters = features.filters
    return {
        "filters": None
        if filters is None
        else {"layer": features.first, "count": len(filters), "shape": list(filters.shape[1:])},
        "layers": [
            {
                "depth": depth,
                "layer": layer.name,
                "operations": layer.operations,
                "volume": [*layer.volume[1:], layer.volume[0]],
                "channels": [
                    {"channel": map_.channel, "strength": map_.strength}
                    for map_ in features.images[0].strongest[depth]
                ],
            }
            for depth, layer in features.layers.items()
        ],
    }
