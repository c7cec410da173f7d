"""What is asked of a candidate, one function for each thing: figure, limit, and whether it held."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convoy.gate.calibration import calibration_error
from convoy.gate.contender import ModelUnderTest, UnavailableModel
from convoy.gate.evidence import Facts
from convoy.gate.names import visible
from convoy.gate.result import Criterion, Sense, Unit
from convoy.gate.settings import GateParams
from convoy.gate.written import number


@dataclass(frozen=True)
class Numbered:
    """Describe a criterion with a number; `key` is its limit in the `gate` section."""

    key: str
    title: str
    sense: Sense
    unit: Unit


NUMBERED = {
    "images": Numbered("min_images", "test images that neither has seen", "at least", "images"),
    "champion_drop": Numbered(
        "max_champion_drop", "fall of the champion below its recorded accuracy", "at most", "points"
    ),
    "accuracy": Numbered("min_accuracy", "accuracy", "at least", "share"),
    "class_recall": Numbered("min_class_recall", "recall of the worst class", "at least", "share"),
    "class_drop": Numbered(
        "max_class_drop", "fall of a class's recall below the champion's", "at most", "points"
    ),
    "ece": Numbered("max_ece", "calibration error (ECE)", "at most", "share"),
    "latency_ms_p95": Numbered("max_latency_ms_p95", "time of one image (95th percentile)", "at most", "ms"),
    "latency_ratio": Numbered(
        "max_latency_ratio", "time of one image relative to the champion's", "at most", "times"
    ),
    "size_mb": Numbered("max_size_mb", "size of model.onnx", "at most", "MB"),
}

ROUNDING = 1e-9
"""0.8 - 0.6 is a little more than 0.2 to a computer, and no breach."""

UNSET = "no limit set"
NO_IMAGE = "no test image is left that neither has seen"


def ask(facts: Facts, limits: GateParams) -> tuple[Criterion, ...]:
    """Ask everything: hard facts first, then whether the data are to be trusted, then what rests on them."""
    return (
        _proof(facts.candidate),
        _classes(facts),
        _seen(facts),
        _images(facts, limits),
        _champion_drop(facts, limits),
        _accuracy(facts, limits),
        _class_recall(facts, limits),
        _class_drop(facts, limits),
        _ece(facts, limits),
        _latency(facts, limits),
        _latency_ratio(facts, limits),
        _numbered("size_mb", facts.size_bytes / 1e6, limits),
    )


def _proof(candidate: ModelUnderTest) -> Criterion:
    problem = _missing_proof(candidate.proof, candidate.sha256)
    title = "proof that what is served is what was measured"
    return _plain("proof", title, held=not problem, note=problem or "passed, of these bytes")


def _missing_proof(proof: Mapping[str, Any] | None, sha256: str) -> str:
    """Say what a verification.json does not prove; empty where it proves everything."""
    if proof is None:
        return "it has no verification.json"
    try:
        of = str(proof["model"]["sha256"])
        checks = [
            (
                str(check["check"]),
                check["label_flips"] <= check["max_label_flips"]
                and check["probability_gap"] <= check["max_probability_gap"],
            )
            for check in proof["checks"]
        ]
        caught = proof["negative_control"]["caught"]
    except KeyError as error:
        return f"its verification.json lacks {error}"
    except TypeError:
        return "its verification.json is not what the proof writes"
    if of != sha256:
        return f"its verification.json proves other bytes (sha256 {of[:12]}…, not {sha256[:12]}…)"
    failed = [name for name, passed in checks if not passed] + ([] if caught else ["negative control"])
    if failed or not checks:
        return f"its proof failed: {', '.join(failed) or 'nothing was checked'}"
    return ""


def _classes(facts: Facts) -> Criterion:
    today, ours = set(facts.today.classes), set(facts.ours.classes)
    theirs = set(facts.theirs.classes) if facts.theirs else set()
    problems = []
    if ours != today:
        problems.append(f"today's data have {_names(today)}, the candidate serves {_names(ours)}")
    if theirs - ours:
        problems.append(f"the champion serves {_names(theirs - ours)}, which the candidate does not know")
        if ours - theirs:
            problems.append(f"it knows {_names(ours - theirs)} instead")
    note = "; ".join(problems) or f"{len(today):,}, as in today's data"
    if not problems and theirs and today - theirs:
        note += f"; {_names(today - theirs)} new, where the champion is always wrong"
    return _plain("classes", "classes", held=not problems, note=note)


def _seen(facts: Facts) -> Criterion:
    title = "training images are known"
    if facts.candidate.images is None:
        return _plain("seen", title, held=False, note="which images the candidate was trained on is unknown")
    if isinstance(facts.champion, ModelUnderTest) and facts.champion.images is None:
        note = "the champion's are not: some of these images may flatter it"
        return _plain("seen", title, held=True, note=note)
    return _plain("seen", title, held=True, note="of both" if facts.theirs else "of the candidate")


def _images(facts: Facts, limits: GateParams) -> Criterion:
    out = ", ".join(f"{number:,} {reason}" for reason, number in facts.excluded.items())
    note = f"left out: {out}" if out else ""
    found = _numbered("images", len(facts.labels), limits, note)
    # Without an image there is nothing to judge, whatever the limits say.
    return found if len(facts.labels) else replace(found, held=False, note=_both(NO_IMAGE, note))


def _accuracy(facts: Facts, limits: GateParams) -> Criterion:
    share = facts.ours.share(limits.confidence)
    if share is None:
        return _numbered("accuracy", None, limits, NO_IMAGE)
    note = f"{number(share.low, 'share')} to {number(share.high, 'share')} at {100 * limits.confidence:g} % confidence"
    return _numbered("accuracy", share.accuracy, limits, note)


def _class_recall(facts: Facts, limits: GateParams) -> Criterion:
    classes = facts.classes
    # An unknown class is never answered, so its recall is 0.
    recalls = [(one.candidate or 0.0, one.name, one.images) for one in classes if one.images]
    if not recalls:
        return _numbered("class_recall", None, limits, NO_IMAGE)
    worst, name, images = min(recalls)
    found = _numbered("class_recall", worst, limits, f"class `{visible(name)}`, {_images_in_words(images)}")
    empty = [one.name for one in classes if not one.images]
    if empty and found.limit is not None:
        return replace(found, held=False, note=f"{NO_IMAGE} of class {_names(empty)}")
    return found


def _class_drop(facts: Facts, limits: GateParams) -> Criterion:
    drops = [
        (one.champion - one.candidate, one.name, one.images)
        for one in facts.classes
        if one.champion is not None and one.candidate is not None
    ]
    if not drops:
        return _numbered("class_drop", None, limits, facts.no_comparison or NO_IMAGE, compared=True)
    worst, name, images = max(drops)
    return _numbered("class_drop", worst, limits, f"class `{visible(name)}`, {_images_in_words(images)}")


def _ece(facts: Facts, limits: GateParams) -> Criterion:
    if not len(facts.labels):
        return _numbered("ece", None, limits, NO_IMAGE)
    return _numbered("ece", calibration_error(facts.ours.probability, facts.ours.right), limits)


def _champion_drop(facts: Facts, limits: GateParams) -> Criterion:
    """Doubt the data where a champion that was good is no longer: it has not changed, they have.

    Over the classes that it knows: a new class is no fault of its. For a champion that
    cannot be read the candidate stands in, which was trained on these data.
    """
    champion = facts.champion
    unreadable = isinstance(champion, UnavailableModel)
    side = facts.ours if unreadable or facts.same else facts.theirs
    note = facts.no_comparison
    if champion is None or side is None:
        return _numbered("champion_drop", None, limits, note, compared=True)
    recorded = champion.recorded_accuracy
    served = set(side.classes)
    known = np.array([label in served for label in facts.labels], np.bool_)
    if recorded is None:
        found = _numbered(
            "champion_drop", None, limits, _both(note, "its recorded accuracy is unknown"), compared=True
        )
    elif not known.any():
        found = _numbered("champion_drop", None, limits, _both(note, NO_IMAGE), compared=True)
    else:
        today = float(side.right[known].mean())
        note = _both(note, f"{number(today, 'share')} today, {number(recorded, 'share')} recorded")
        if facts.relabelled:
            note += f"; {facts.relabelled:,} of today's test images had another label when it was made"
        found = _numbered("champion_drop", recorded - today, limits, note)
    if unreadable:
        return replace(found, title="fall of the candidate below the champion's recorded accuracy")
    return found


def _latency(facts: Facts, limits: GateParams) -> Criterion:
    if facts.timed is None:
        note = "not timed: the candidate is the champion" if facts.same else NO_IMAGE
        return _numbered("latency_ms_p95", None, limits, note, compared=facts.same)
    return _numbered(
        "latency_ms_p95", facts.timed.p95_ms[0], limits, f"half of them in {facts.timed.p50_ms[0]:.3g} ms"
    )


def _latency_ratio(facts: Facts, limits: GateParams) -> Criterion:
    timed = facts.timed
    if timed is None or timed.ratio is None:
        return _numbered("latency_ratio", None, limits, facts.no_comparison or NO_IMAGE, compared=True)
    note = f"half of the images in {timed.p50_ms[0]:.3g} ms, the champion in {timed.p50_ms[1]:.3g} ms"
    return _numbered("latency_ratio", timed.ratio, limits, note)


def _numbered(
    name: str, figure: float | None, limits: GateParams, note: str = "", *, compared: bool = False
) -> Criterion:
    """Hold a figure against its limit.

    Args:
        name: of `NUMBERED`.
        figure: None where it could not be measured, which is a breach where there is a limit.
        limits: that params.yaml sets.
        note: what the figure alone does not say.
        compared: whether a missing figure is none to blame the candidate for: nothing to compare with.
    """
    of = NUMBERED[name]
    limit: float | None = getattr(limits, of.key)
    held: bool | None = None
    if limit is None:
        note = _both(UNSET, note)
    elif figure is not None:
        held = figure >= limit - ROUNDING if of.sense == "at least" else figure <= limit + ROUNDING
    elif not compared:
        held = False
    return Criterion(
        name=name,
        title=of.title,
        figure=None if figure is None else float(figure),
        limit=None if limit is None else float(limit),
        sense=of.sense,
        unit=of.unit,
        held=held,
        note=note,
    )


def _plain(name: str, title: str, *, held: bool, note: str) -> Criterion:
    """Note what is so or not, without a number."""
    return Criterion(name, title, None, None, "at least", "", held, note)


def _names(classes: Iterable[str]) -> str:
    shown = sorted(classes)
    return ", ".join(f"`{visible(name)}`" for name in shown[:5]) + (
        f" and {len(shown) - 5:,} more" if len(shown) > 5 else ""
    )


def _images_in_words(images: int) -> str:
    return f"{images:,} image{'s' * (images != 1)}"


def _both(first: str, second: str) -> str:
    return "; ".join(part for part in (first, second) if part)
