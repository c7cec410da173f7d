"""What a judgement says: the verdict, why, and every figure that it rests on."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from convoy.core.errors import VerificationError

Verdict = Literal["promote", "keep", "refuse"]
Unit = Literal["share", "points", "ms", "MB", "times", "images", ""]
Sense = Literal["at least", "at most"]


@dataclass(frozen=True)
class Criterion:
    """Hold one thing that was asked of the candidate, what was found, and what was the limit.

    Attributes:
        name: key, such as `class_drop`.
        title: the same for people.
        figure: what was found; None where it was not measured, or is no number. Parts of 1 where
            the unit is `share` or `points`.
        limit: what was asked, in the same unit; None where params.yaml sets no limit, or it is no number.
        held: None where there is no limit, or nothing to compare with; `note` says which.
        note: what the figure alone does not say, such as the worst class.
    """

    name: str
    title: str
    figure: float | None
    limit: float | None
    sense: Sense
    unit: Unit
    held: bool | None
    note: str


@dataclass(frozen=True)
class Share:
    """Hold the share of right answers, with its interval at the gate's confidence; all but the counts 0..1."""

    correct: int
    images: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Hold both models' answers to the same images, counted.

    Attributes:
        gain: accuracy of the candidate minus that of the champion, -1..1.
        low: lower end of the gain's interval at the gate's confidence.
        high: its upper end; 0 lies outside exactly where the test finds a difference.
        p_value: of McNemar's exact test, two-sided.
        images_needed: how many test images would show the gain with 80 % power. Where there is no
            gain and the split could show none either: how many would show that all of the
            champion's mistakes are mended. None where there is no gain, and the split could have shown one.
        showable: whether this many images could show any gain at all.
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
    """Hold the recall of one class under both models, 0..1.

    Attributes:
        images: of the class that were judged.
        candidate: None where none was, or the candidate does not know the class.
        champion: likewise, or there is none to compare with.
    """

    name: str
    images: int
    candidate: float | None
    champion: float | None


@dataclass(frozen=True)
class Flip:
    """Hold an image that one of the two gets right and the other wrong.

    Attributes:
        path: of the delivered file.
        champion: the class it answers.
        candidate: the class it answers.
        champion_probability: that it gives its answer, 0..1.
        candidate_probability: likewise.
        kind: `fixed` by the candidate, or `broken` by it.
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
    """Hold the verdict on a candidate, with everything that it rests on.

    Attributes:
        verdict: `promote`, `keep` (the champion stays, the candidate breaks no limit) or `refuse`.
        reasons: sentences for people; the first is the headline.
        candidate: such as `convoy/7`.
        champion: likewise; None where there is none yet.
        champion_sha256: None also where the champion cannot be read.
        data_hash: of the dataset whose test split was judged on.
        images: test images that were judged on.
        excluded: reason to number of test images that were not.
        candidate_share: None where no image was left, as `champion_share` and `comparison`.
        champion_share: None also where there is no champion that can be read.
        comparison: likewise, and where the candidate is the champion.
        flips: at most `facts.KEPT` of each kind, the most certain answers of the candidate first;
            `comparison` counts them all.
        conditions: versions, hardware and how it was measured.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    candidate: str
    champion: str | None
    candidate_sha256: str
    champion_sha256: str | None
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

    def as_json(self) -> dict[str, Any]:
        """Give what `from_json` reads, of JSON's own types alone.

        Raises:
            ValueError: a figure is no number or infinite: JSON has neither.
        """
        content: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "GateResult":
        """Read what `as_json` gave.

        Raises:
            ProofError: something is missing, or is not what it should be.
        """
        try:
            text = json.dumps(content, allow_nan=False)
            return TypeAdapter(cls).validate_json(text, strict=True)
        except (ValidationError, ValueError, TypeError) as error:
            raise VerificationError(
                f"this is no judgement that this version of Convoy reads: {_first(error)}. "
                "Judge again: convoy promote"
            ) from error


def _first(error: Exception) -> str:
    """Say where the first thing is wrong, and what."""
    if isinstance(error, ValidationError):
        details = error.errors()[0]
        return f"{'.'.join(str(part) for part in details['loc']) or 'it'}: {details['msg']}"
    return str(error)
