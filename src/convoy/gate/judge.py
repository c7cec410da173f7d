"""Judge a candidate against the champion, on today's test images that neither has seen.

Both are ONNX files, answered by onnxruntime as every user has them answered. Nothing here
knows MLflow: what is promoted, and how, is the registry's business.
"""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from convoy.core.errors import VerificationError
from convoy.export.latency import hardware, versions
from convoy.export.onnx_model import OnnxModel
from convoy.gate import criteria, latency, reasons, statistics
from convoy.gate.answers import Answers, NoAnswer, Sample, opened
from convoy.gate.calibration import BINS
from convoy.gate.contender import ModelUnderTest, UnavailableModel
from convoy.gate.evidence import Facts, Side
from convoy.gate.latency import Timed
from convoy.gate.result import Criterion, GateResult, Verdict
from convoy.gate.settings import GateParams
from convoy.gate.test_images import TestImages


def judge(
    candidate: ModelUnderTest,
    champion: ModelUnderTest | UnavailableModel | None,
    today: TestImages,
    limits: GateParams,
) -> GateResult:
    """Say whether a candidate should become champion, with every figure that this rests on.

    A champion that gives no answers is treated as unreadable: it must not stand in the way of
    a candidate that could replace it. A candidate that gives none is an error, and no verdict.

    Raises:
        ProofError: the candidate cannot be opened, fails on an image, or answers no probabilities.
        DataError: a test image is gone, or no longer the file that was prepared.
    """
    places, excluded = _unseen(candidate, champion, today)
    ours, theirs, sample, champion = _ask(candidate, champion, today, places)
    labels = np.array([today.labels[place] for place in places], dtype=np.object_)
    our_side = _side(ours, labels)
    their_side = None if theirs is None else _side(theirs, labels)
    del ours, theirs  # their threads would be timed as well
    both = None
    if their_side is not None and places:
        both = statistics.compare(our_side.right, their_side.right, limits.confidence)
    same = isinstance(champion, ModelUnderTest) and champion.sha256 == candidate.sha256
    timed = None if same or not places else _time(candidate, champion, sample)
    facts = Facts(
        candidate=candidate,
        champion=champion,
        today=today,
        labels=labels,
        paths=tuple(today.paths[place] for place in places),
        ours=our_side,
        theirs=their_side,
        excluded=excluded,
        relabelled=_relabelled(champion, today),
        comparison=both,
        timed=timed,
        size_bytes=candidate.onnx.stat().st_size,
    )
    asked = criteria.ask(facts, limits)
    verdict, said = _decide(facts, asked, limits)
    our_share = our_side.share(limits.confidence)
    their_share = our_share if same else None
    if their_side is not None:
        their_share = their_side.share(limits.confidence)
    return GateResult(
        verdict=verdict,
        reasons=tuple(said),
        candidate=candidate.name,
        champion=None if champion is None else champion.name,
        candidate_sha256=candidate.sha256,
        champion_sha256=champion.sha256 if isinstance(champion, ModelUnderTest) else None,
        data_hash=today.data_hash,
        images=len(places),
        excluded=excluded,
        candidate_share=our_share,
        champion_share=their_share,
        criteria=asked,
        comparison=both,
        classes=facts.classes,
        flips=facts.flips(),
        conditions=_conditions(limits, timed),
    )


def _unseen(
    candidate: ModelUnderTest, champion: ModelUnderTest | UnavailableModel | None, today: TestImages
) -> tuple[list[int], dict[str, int]]:
    """Choose the test images that neither was trained on; count the others by who was."""
    ours = candidate.images.seen if candidate.images else frozenset()
    known = champion.images if isinstance(champion, ModelUnderTest) else None
    theirs = known.seen if known else frozenset()
    places = []
    excluded: dict[str, int] = {}
    for place, pixels in enumerate(today.pixels):
        if pixels in ours:
            reason = "in the training of both" if pixels in theirs else "in the candidate's training"
        elif pixels in theirs:
            reason = "in the champion's training"
        else:
            places.append(place)
            continue
        excluded[reason] = excluded.get(reason, 0) + 1
    return places, excluded


def _ask(
    candidate: ModelUnderTest,
    champion: ModelUnderTest | UnavailableModel | None,
    today: TestImages,
    places: list[int],
) -> tuple[Answers, Answers | None, Sample, ModelUnderTest | UnavailableModel | None]:
    """Have both answer every image in one pass; a champion that fails becomes an unreadable one."""
    sample = Sample(latency.IMAGES)
    try:
        ours = Answers(candidate, len(places))
    except NoAnswer as error:
        raise _no_verdict(candidate, error) from error
    theirs: Answers | None = None
    if isinstance(champion, ModelUnderTest) and champion.sha256 != candidate.sha256:
        try:
            theirs = Answers(champion, len(places))
        except NoAnswer as error:
            champion = _unreadable(champion, error)
    number_of = {place: number for number, place in enumerate(places)}
    for chunk in today.read(places):
        numbers = [number_of[place] for place, _ in chunk]
        paths = [today.paths[place] for place, _ in chunk]
        images_u8 = [image_u8 for _, image_u8 in chunk]
        try:
            ours.ask(numbers, paths, images_u8)
        except NoAnswer as error:
            raise _no_verdict(candidate, error) from error
        if theirs is not None and isinstance(champion, ModelUnderTest):
            try:
                theirs.ask(numbers, paths, images_u8)
            except NoAnswer as error:
                theirs, champion = None, _unreadable(champion, error)
        for number, image_u8 in zip(numbers, images_u8, strict=True):
            sample.add(number, image_u8)
    return ours, theirs, sample, champion


def _side(answers: Answers, labels: npt.NDArray[np.object_]) -> Side:
    names = answers.names
    return Side(answers.served.classes, names, answers.probability, np.asarray(names == labels, np.bool_))


def _time(
    candidate: ModelUnderTest, champion: ModelUnderTest | UnavailableModel | None, sample: Sample
) -> Timed:
    models: list[OnnxModel] = [opened(candidate, latency.THREADS)]
    if isinstance(champion, ModelUnderTest):
        models.append(opened(champion, latency.THREADS))
    return latency.by_turns(models, sample.images_u8())


def _relabelled(champion: ModelUnderTest | UnavailableModel | None, today: TestImages) -> int:
    """Count today's test images that had another label when the champion was made."""
    if not isinstance(champion, ModelUnderTest) or champion.images is None:
        return 0
    before = champion.images.table
    return sum(
        pixels in before and before[pixels][0] != label
        for pixels, label in zip(today.pixels, today.labels, strict=True)
    )


def _decide(facts: Facts, asked: tuple[Criterion, ...], limits: GateParams) -> tuple[Verdict, list[str]]:
    """Come to a verdict: hard limits first, then the gain, then the rule for an equal one."""
    breaches = [one for one in asked if one.held is False]
    if facts.same:
        return "keep", reasons.same(facts, breaches)
    if breaches:
        return "refuse", reasons.refuse(facts, breaches, limits)
    if facts.champion is None:
        return "promote", reasons.first(facts, limits)
    if isinstance(facts.champion, UnavailableModel):
        return "promote", reasons.in_its_place(facts, facts.champion, limits)
    return _against(facts, facts.champion, limits)


def _against(facts: Facts, champion: ModelUnderTest, limits: GateParams) -> tuple[Verdict, list[str]]:
    both = facts.comparison
    if both is None:
        raise AssertionError("without a test image the candidate is refused")
    significant = both.p_value < 1 - limits.confidence
    if significant and both.gain > 0:
        return "promote", reasons.better(facts, both, limits)
    # A loss that shows is none to call equal, however small: round by round they would add up.
    if both.low >= -limits.equal_within and not significant:
        newer = facts.candidate.created_ms > champion.created_ms
        promote = limits.on_equal == "promote" and newer
        return "promote" if promote else "keep", reasons.as_good(facts, both, limits, promote=promote)
    return "keep", reasons.no_gain(facts, both, limits)


def _conditions(limits: GateParams, timed: Timed | None) -> dict[str, Any]:
    return {
        "moment": datetime.now(UTC).isoformat(timespec="seconds"),
        "confidence": limits.confidence,
        "on_equal": limits.on_equal,
        "equal_within": limits.equal_within,
        "test": "McNemar, exact, two-sided",
        "ece_bins": BINS,
        "latency": timed.conditions() if timed else None,
        "versions": versions(),
        "hardware": hardware(),
    }


def _unreadable(champion: ModelUnderTest, error: NoAnswer) -> UnavailableModel:
    return UnavailableModel(champion.name, str(error), champion.recorded_accuracy)


def _no_verdict(candidate: ModelUnderTest, error: NoAnswer) -> VerificationError:
    return VerificationError(
        f"there is no verdict on {candidate.name}: {error}. "
        "Make and prove it again with `dvc repro --force export`, then `convoy register`"
    )
