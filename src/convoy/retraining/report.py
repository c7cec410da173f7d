"""The report of a round of retraining, in the Markdown that GitHub and GitLab show."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from convoy.core import files
from convoy.gate import written
from convoy.gate.result import GateResult
from convoy.retraining import advice, escaped, tables
from convoy.retraining.facts import Delivery, Facts, Identity, Outcome, Step

__all__ = ["Delivery", "Facts", "Identity", "Outcome", "Step", "body", "write"]

MOST = 60_000
"""Characters of a report: GitHub takes 65,536 for a pull request, and a job may put something before it."""

PICTURES = {
    "gain": "accuracies and gain, with intervals",
    "classes": "recall per class",
    "relabelled": "images with another label than before",
    "flips": "images that flipped",
}
"""Pictures that are shown, by the name of their file, and the words that stand in for them."""


@dataclass(frozen=True)
class Room:
    """Say how much of each list the report holds; what is cut is counted there."""

    classes: int
    flips: int
    examples: int
    reasons: int
    sentence: int  # characters of a reason, a note or a remark
    block: int  # characters of an error, and of a step's last lines


ROOMS = (
    Room(classes=400, flips=20, examples=24, reasons=40, sentence=1000, block=8000),
    Room(classes=100, flips=10, examples=10, reasons=40, sentence=1000, block=4000),
    Room(classes=30, flips=5, examples=5, reasons=20, sentence=1000, block=2000),
    Room(classes=8, flips=2, examples=2, reasons=10, sentence=600, block=1000),
    Room(classes=8, flips=2, examples=2, reasons=5, sentence=150, block=1000),
)
"""From generous to tight: the first in which the report is short enough is taken."""


def write(path: Path, facts: Facts, pictures: Sequence[Path] = ()) -> None:
    """Write the report, with pictures that lie beside it as relative links.

    Args:
        path: the Markdown file.
        facts: what the round found and did.
        pictures: PNG files, as `gate.pictures.draw` and `retraining.pictures.draw` return them;
            those for dark pages are left out.
    """
    links = {
        one.stem: escaped.target(Path(os.path.relpath(one, path.parent)).as_posix())
        for one in pictures
        if one.stem in PICTURES
    }
    files.write_text(path, _render(facts, links))


def body(facts: Facts) -> str:
    """Render the report for a place where pictures beside it cannot be seen: a pull request, a job's summary.

    It says where they are, and links `facts.job`, where there is one.
    """
    return _render(facts, {})


def _render(facts: Facts, pictures: Mapping[str, str]) -> str:
    """Fill the template, cutting lists where it would be too long.

    Args:
        facts: what the round found and did.
        pictures: links, by name of the picture.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("convoy.retraining", "."),
        autoescape=False,  # noqa: S701 (Markdown: `escaped` keeps the texts of others from being markup)
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "code": escaped.code,
        "prose": escaped.prose,
        "block": escaped.block,
        "link": escaped.link,
    }
    template = environment.get_template("report.md.j2")
    judgement = facts.gate_result
    text = ""
    for room in ROOMS:
        text = template.render(
            facts=facts,
            judged=judgement,
            room=room,
            pictures=pictures,
            words=PICTURES,
            written=written,
            tables=tables,
            title=advice.title(facts),
            serving=advice.serving(facts),
            reasons=_reasons(facts),
            next_steps=advice.next_steps(facts),
            breached=sum(one.held is False for one in judgement.criteria) if judgement else 0,
            left_out=_left_out(judgement),
            flips=[(title, total, named[: room.flips]) for _, title, total, named in written.flips(judgement)]
            if judgement
            else [],
        )
        text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
        if len(text) <= MOST:
            break
    return text


def _reasons(facts: Facts) -> list[str]:
    """List why the round ended as it did: in the gate's sentences where the gate decided."""
    decided = facts.outcome in {"promoted", "kept", "refused"}
    said = list(facts.gate_result.reasons) if facts.gate_result and decided else []
    return said if not facts.reason or facts.reason in said else [facts.reason, *said]


def _left_out(judgement: GateResult | None) -> str:
    """Count the test images that were not judged, by reason."""
    excluded = judgement.excluded if judgement else {}
    return ", ".join(f"{images:,} {escaped.prose(reason)}" for reason, images in excluded.items() if images)
