"""The verdict of the gate as data: what was decided, on which criteria, and every figure behind it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["promote", "keep", "refuse"]
Decision = Literal[
    "identical",  # the candidate is the champion, byte for byte
    "limits",  # a limit is breached
    "first",  # there is no champion yet
    "champion_unavailable",  # the champion cannot be read, so the limits decide
    "better",
    "equal_promoted",
    "equal_kept",
    "equal_not_newer",  # gate.on_equal: promote, but the candidate is no newer
    "worse",
    "not_significant",
    "no_gain",
]
"""Why the verdict is what it is."""
Unit = Literal["share", "points", "ms", "MB", "times", "images", ""]
Sense = Literal["at least", "at most"]


@dataclass(frozen=True)
class Criterion:
    """Hold a criterion with its figure and limit; shares and points are in 0..1.

    Attributes:
        figure: None where it was not measured, or is no number.
        limit: None where params.yaml sets none, or it is no number.
        held: whether the limit is met; None where there is no limit, or nothing to compare with.
        note: what the figure alone does not show, such as the worst class.
    """

    name: str
    title: str
    figure: float | None
    limit: float | None
    sense: Sense
    unit: Unit
    held: bool | None
    note: str

    @property
    def key(self) -> str:
        """Name its limit in the section `gate`, where it has one."""
        return f"{'min' if self.sense == 'at least' else 'max'}_{self.name}"


@dataclass(frozen=True)
class Share:
    """Hold an accuracy with its interval at the gate's confidence; all but the counts 0..1."""

    correct: int
    images: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Hold the counts of both models' predictions on the same images.

    Attributes:
        gain: accuracy of the candidate minus that of the champion, -1..1.
        low: lower end of the gain's interval; 0 lies outside exactly where the test finds a difference.
        p_value: of McNemar's exact test, two-sided.
        images_needed: test images with which the gain would be significant with 80 % power. Without a gain: with
            which a fix of all the champion's mistakes would be, or None if this split could have shown that.
        showable: whether any gain could be significant on this many images.
    """

    images: int
    both_right: int
    only_candidate: int
    only_champion: int
    both_wrong: int
    gain: float
    low: float
    high: float
    p_value: float
    images_needed: int | None
    showable: bool


@dataclass(frozen=True)
class ClassFigures:
    """Hold the recall of one class under both models, 0..1; None without an image, the class or a champion."""

    name: str
    images: int
    candidate: float | None
    champion: float | None


@dataclass(frozen=True)
class Flip:
    """Hold an image that exactly one model classifies correctly, with both predictions and their probabilities.

    `kind` is `fixed` where the candidate is right, and `broken` where it regressed.
    """

    path: str
    label: str
    champion: str
    candidate: str
    champion_probability: float
    candidate_probability: float
    kind: Literal["fixed", "broken"]


@dataclass(frozen=True)
class GateResult:
    """Hold the verdict on a candidate with everything that it rests on.

    Attributes:
        verdict: `keep` where the champion stays although the candidate breaches no limit.
        reasons: the verdict as sentences, the headline first; filled in by `convoy.gate.text`.
        candidate: such as `convoy/7`.
        champion: None where there is none yet; `champion_sha256` and `champion_share` also where it cannot be read.
        champion_problem: why the champion cannot be read, as half a sentence; else empty.
        excluded: reason to number of test images that were left out.
        candidate_share: None where no image was left, as `champion_share`.
        comparison: None where there are no two predictions, or no image.
        flips: at most `evidence.MOST_FLIPS` of each kind, the most certain predictions of the candidate first;
            `comparison` counts them all.
        conditions: versions, hardware, rules and how latency was measured.
    """

    verdict: Verdict
    decision: Decision
    candidate: str
    champion: str | None
    candidate_sha256: str
    champion_sha256: str | None
    champion_problem: str
    data_hash: str
    images: int
    excluded: Mapping[str, int]
    candidate_share: Share | None
    champion_share: Share | None
    criteria: tuple[Criterion, ...]
    comparison: Comparison | None
    classes: tuple[ClassFigures, ...]
    flips: tuple[Flip, ...]
    conditions: Mapping[str, Any]
    reasons: tuple[str, ...] = ()

    @property
    def breaches(self) -> tuple[Criterion, ...]:
        """Return the criteria whose limit is breached."""
        return tuple(criterion for criterion in self.criteria if criterion.held is False)

    def as_json(self) -> dict[str, Any]:
        """Convert to JSON's own types.

        Raises:
            ValueError: a figure is NaN or infinite, which JSON lacks.
        """
        content: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return content
