"""The verdict as one HTML page that needs nothing beside itself."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from convoy.core import files
from convoy.gate import written
from convoy.gate.looks import DARK_ENDING
from convoy.gate.names import short, visible
from convoy.gate.result import GateResult

MOST_FLIPS = 100
"""Most images listed of each kind of flip; verdict.json beside the page has no more either."""
LONGEST_NAME = 80
"""Characters of a name that are shown; pointing at it shows the whole."""

ALTERNATIVES = {
    "gain": "Accuracy of champion and candidate, and the gain, each with its interval",
    "classes": "Recall of each class under champion and candidate",
    "flips": "Images that one of the two gets right and the other wrong",
}
"""What a reader who cannot see a picture is told; the tables beside it have the figures."""


def write(path: Path, judgement: GateResult, pictures: Sequence[Path]) -> None:
    """Write the page, with the pictures inside it.

    Args:
        path: the HTML file.
        judgement: what was found.
        pictures: PNG files as `gate.pictures.draw` returns them; others are left out.
    """
    # Class names, paths and reasons come from the delivery: they are escaped, never markup.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("convoy.gate", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"short": _short, "visible": visible}
    page = environment.get_template("verdict.html.j2").render(
        judged=judgement,
        written=written,
        criteria=written.ordered(judgement.criteria),
        breached=sum(one.held is False for one in judgement.criteria),
        excluded={reason: images for reason, images in judgement.excluded.items() if images},
        flips=[
            (kind, title, total, named[:MOST_FLIPS]) for kind, title, total, named in written.flips(judgement)
        ],
        conditions=list(_flat(judgement.conditions)),
        pictures=_inside(pictures),
        alternatives=ALTERNATIVES,
    )
    files.write_text(path, page)


def _inside(pictures: Sequence[Path]) -> dict[str, dict[str, str]]:
    """Load pictures as data URIs, by name: `{"gain": {"light": ..., "dark": ...}}`; without its dark one, the light one is both."""
    by_name = {path.stem: path for path in pictures}
    found = {}
    for name in ALTERNATIVES:
        if name in by_name:
            dark = by_name.get(f"{name}{DARK_ENDING}", by_name[name])
            found[name] = {"light": _data_uri(by_name[name]), "dark": _data_uri(dark)}
    return found


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _short(name: str) -> str:
    return short(name, LONGEST_NAME)


def _flat(conditions: Mapping[str, Any], head: str = "") -> Iterator[tuple[str, str]]:
    """List nested conditions as pairs of texts, such as `versions, onnxruntime`."""
    for key, value in conditions.items():
        name = f"{head}, {key}" if head else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        elif isinstance(value, list | tuple):
            yield name.replace("_", " "), ", ".join(str(one) for one in value)
        else:
            yield name.replace("_", " "), written.NOTHING if value is None else str(value)
