"""The criteria of the gate, a function each: figure, limit, and whether the limit is met."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from convoy.core.errors import listed
from convoy.evaluation.calibration import calibration_error
from convoy.gate.evidence import Evidence, ModelUnderTest, UnavailableModel
from convoy.gate.result import Criterion, Sense, Unit
from convoy.gate.settings import GateParams
from convoy.gate.text import count, interval, number

LIMITED: dict[str, tuple[str, Sense, Unit]] = {
    "images": ("unseen test images", "at least", "images"),
    "champion_drop": ("champion accuracy drop vs. recorded", "at most", "points"),
    "accuracy": ("accuracy", "at least", "share"),
    "class_recall": ("recall of the worst class", "at least", "share"),
    "class_drop": ("largest class recall drop vs. champion", "at most", "points"),
    "ece": ("calibration error (ECE)", "at most", "share"),
    "latency_ms_p95": ("latency per image (p95)", "at most", "ms"),
    "latency_ratio": ("latency vs. champion", "at most", "times"),
    "size_mb": ("size of model.onnx", "at most", "MB"),
}
"""Title, sense and unit of each criterion with a limit."""

NO_IMAGE = "no unseen test image is left"
NO_TEST = "the dataset has no test images (data.splits.test), and validation images, which chose the epoch, are not compared"

ROUNDING = 1e-9
"""0.8 - 0.6 is a little more than 0.2 in floating point, and no breach."""


def check(evidence: Evidence, limits: GateParams) -> tuple[Criterion, ...]:
    """Check every criterion: identity of the model first, then the data, then what is measured on them."""
    predictions, error = evidence.candidate_predictions, None
    if len(evidence.labels):
        error = calibration_error(predictions.probability, predictions.correct)
    return (
        _unlimited(
            "proof",
            "verification of model.onnx",
            _verification(evidence.candidate),
            "passed with these bytes",
        ),
        _classes(evidence),
        _training_images(evidence),
        _images(evidence, limits),
        _champion_drop(evidence, limits),
        _accuracy(evidence, limits),
        _class_recall(evidence, limits),
        _class_drop(evidence, limits),
        _limited("ece", error, limits),
        _latency(evidence, limits),
        _latency_ratio(evidence, limits),
        _limited("size_mb", evidence.candidate.onnx.stat().st_size / 1e6, limits),
    )


def _verification(candidate: ModelUnderTest) -> str:
    """Check that verification.json is complete, passed, and of these bytes; return the problem, empty where there is none."""
    verification, sha256 = candidate.verification, candidate.sha256
    if verification is None:
        return "verification.json is missing"
    try:
        verified = str(verification["model"]["sha256"])
        passed = {
            str(check["check"]): check["label_flips"] <= check["max_label_flips"]
            and check["probability_gap"] <= check["max_probability_gap"]
            for check in verification["checks"]
        }
        passed["negative control"] = verification["negative_control"]["caught"]
    except KeyError as error:
        return f"verification.json lacks {error}"
    except TypeError:
        return "verification.json is malformed"
    if verified != sha256:
        return f"verification.json is of other bytes (sha256 {verified[:12]}…, not {sha256[:12]}…)"
    failed = [name for name, held in passed.items() if not held]
    if failed or len(passed) == 1:
        return f"verification failed: {', '.join(failed) or 'no check was run'}"
    return ""


def _classes(evidence: Evidence) -> Criterion:
    data, candidate = set(evidence.test_images.classes), set(evidence.candidate_predictions.classes)
    champion = set(evidence.champion_predictions.classes) if evidence.champion_predictions else candidate
    problems = []
    if candidate != data:
        problems.append(f"the data have {_names(data)}, the candidate {_names(candidate)}")
    if champion - candidate:
        problems.append(f"the candidate lacks {_names(champion - candidate)} of the champion")
        problems += [f"it has {_names(candidate - champion)} instead"] * bool(candidate - champion)
    note = f"{len(data):,}, as in the data"
    if data - champion:
        note += f"; {_names(data - champion)} new, on which the champion is always wrong"
    return _unlimited("classes", "classes", "; ".join(problems), note)


def _training_images(evidence: Evidence) -> Criterion:
    problem = "the candidate's training images are unknown" if evidence.candidate.images is None else ""
    note = "of both" if evidence.champion_predictions else "of the candidate"
    if isinstance(evidence.champion, ModelUnderTest) and evidence.champion.images is None:
        note = "the champion's are unknown, so its accuracy may be flattered"
    return _unlimited("seen", "training images on record", problem, note)


def _images(evidence: Evidence, limits: GateParams) -> Criterion:
    excluded = ", ".join(f"{images:,} {reason}" for reason, images in evidence.excluded.items())
    note = f"left out: {excluded}" if excluded else ""
    if len(evidence.labels):
        return _limited("images", len(evidence.labels), limits, note)
    # Without an image nothing can be judged, whatever the limits are.
    return replace(
        _limited("images", 0, limits),
        held=False,
        note=_join(NO_IMAGE if evidence.test_images.paths else NO_TEST, note),
    )


def _accuracy(evidence: Evidence, limits: GateParams) -> Criterion:
    share = evidence.candidate_predictions.share(limits.confidence)
    if share is None:
        return _limited("accuracy", None, limits)
    note = f"{100 * limits.confidence:g} % interval {interval(share)}"
    return _limited("accuracy", share.accuracy, limits, note)


def _class_recall(evidence: Evidence, limits: GateParams) -> Criterion:
    # A class that the model lacks is never predicted, so its recall is 0.
    recalls = [(row.candidate or 0.0, row.name, row.images) for row in evidence.classes if row.images]
    if not recalls:
        return _limited("class_recall", None, limits)
    recall, name, images = min(recalls)
    note = _join(f"class `{name}`, {count(images, 'image')}", _not_measured(evidence))
    criterion = _limited("class_recall", recall, limits, note)
    empty = [row.name for row in evidence.classes if not row.images and row.name not in evidence.untested]
    if empty and criterion.limit is not None:
        return replace(criterion, held=False, note=f"{NO_IMAGE} of class {_names(empty)}")
    return criterion


def _class_drop(evidence: Evidence, limits: GateParams) -> Criterion:
    drops = [
        (row.champion - row.candidate, row.name, row.images)
        for row in evidence.classes
        if row.champion is not None and row.candidate is not None
    ]
    if not drops:
        return _limited("class_drop", None, limits, evidence.no_comparison, required=False)
    drop, name, images = max(drops)
    note = _join(f"class `{name}`, {count(images, 'image')}", _not_measured(evidence))
    return _limited("class_drop", drop, limits, note)


def _not_measured(evidence: Evidence) -> str:
    """Name the classes that the test split lacks altogether, as `data.rare: train_only` allows."""
    return (
        f"not measured, since the test split lacks it: {_names(evidence.untested)}"
        if evidence.untested
        else ""
    )


def _champion_drop(evidence: Evidence, limits: GateParams) -> Criterion:
    """Compare the champion's accuracy with its record: it has not changed, so a drop means that the data have.

    Over the classes that it has. For a champion that cannot be read the candidate stands in, which was trained
    on these data.
    """
    champion, note = evidence.champion, evidence.no_comparison
    stand_in = isinstance(champion, UnavailableModel)
    own = evidence.candidate_predictions if stand_in or evidence.identical else evidence.champion_predictions
    if champion is None or own is None:
        return _limited("champion_drop", None, limits, note, required=False)
    recorded, classes = champion.recorded_accuracy, set(own.classes)
    known = np.array([label in classes for label in evidence.labels], np.bool_)
    drop = None
    if recorded is None:
        note = _join(note, "no accuracy on test images is recorded for it")
    elif not known.any():
        note = _join(note, NO_IMAGE)
    else:
        today = float(own.correct[known].mean())
        drop = recorded - today
        note = _join(note, f"{number(today, 'share')} today, {number(recorded, 'share')} recorded")
        before = champion.images.table if isinstance(champion, ModelUnderTest) and champion.images else {}
        labelled = zip(evidence.test_images.pixels, evidence.test_images.labels, strict=True)
        relabelled = sum(pixels in before and before[pixels][0] != label for pixels, label in labelled)
        if relabelled:
            note += f"; {relabelled:,} test images had another label when it was made"
    criterion = _limited("champion_drop", drop, limits, note, required=False)
    if stand_in:
        return replace(criterion, title="candidate accuracy drop vs. the champion's recorded accuracy")
    return criterion


def _latency(evidence: Evidence, limits: GateParams) -> Criterion:
    latency = evidence.latency
    if latency is None:
        note = f"not measured: {evidence.no_comparison}" if evidence.identical else ""
        return _limited("latency_ms_p95", None, limits, note, required=not evidence.identical)
    return _limited("latency_ms_p95", latency.p95_ms[0], limits, f"median {latency.p50_ms[0]:.3g} ms")


def _latency_ratio(evidence: Evidence, limits: GateParams) -> Criterion:
    latency = evidence.latency
    if latency is None or latency.ratio is None:
        return _limited("latency_ratio", None, limits, evidence.no_comparison, required=False)
    note = f"median {latency.p50_ms[0]:.3g} ms, champion {latency.p50_ms[1]:.3g} ms"
    return _limited("latency_ratio", latency.ratio, limits, note)


def _limited(
    name: str, figure: float | None, limits: GateParams, note: str = "", *, required: bool = True
) -> Criterion:
    """Compare a figure with its limit.

    A figure that could not be measured is None, since no image is left unless a note gives another reason. It breaches
    the limit if it is `required`: not where there is nothing to compare with.
    """
    title, sense, unit = LIMITED[name]
    figure = None if figure is None else float(figure)
    note = (note or NO_IMAGE) if figure is None else note
    criterion = Criterion(name, title, figure, None, sense, unit, None, note)
    limit = getattr(limits, criterion.key)
    if limit is None:
        return replace(criterion, note=_join("no limit set", note))
    held = False if required else None
    if figure is not None:
        held = figure >= limit - ROUNDING if sense == "at least" else figure <= limit + ROUNDING
    return replace(criterion, limit=float(limit), held=held)


def _unlimited(name: str, title: str, problem: str, note: str) -> Criterion:
    """Record a criterion without a number, which is always checked."""
    return Criterion(name, title, None, None, "at least", "", held=not problem, note=problem or note)


def _names(classes: Iterable[str]) -> str:
    return listed([f"`{name}`" for name in sorted(classes)], 5)


def _join(first: str, second: str) -> str:
    return "; ".join(filter(None, (first, second)))
