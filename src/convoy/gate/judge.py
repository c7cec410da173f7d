"""Judge a candidate against the champion, on today's test images that neither was trained on.

Both are ONNX files and run in onnxruntime, as they are served. This package does not use MLflow.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from convoy.core import contract, files
from convoy.core.errors import ConvoyError, VerificationError
from convoy.evaluation.calibration import BINS
from convoy.export.latency import THREADS, hardware, versions
from convoy.export.onnx_model import SECONDS_PER_IMAGE, OnnxModel
from convoy.gate import criteria, statistics, text
from convoy.gate.evidence import (
    MOST_TIMED,
    ROUNDS,
    Evidence,
    ModelUnderTest,
    Predictions,
    UnavailableModel,
    measure_latency,
)
from convoy.gate.result import Comparison, Criterion, Decision, GateResult, Verdict
from convoy.gate.settings import GateParams
from convoy.gate.test_images import TestImages

SAMPLE_BYTES = 64 * 2**20  # of test images that are kept for the latency measurement

SEEN = {
    (True, False): "in the candidate's training",
    (False, True): "in the champion's training",
    (True, True): "in the training of both",
}
"""Reasons to leave a test image out, by whether the candidate and the champion were trained on it."""


def judge(
    candidate: ModelUnderTest,
    champion: ModelUnderTest | UnavailableModel | None,
    test_images: TestImages,
    limits: GateParams,
) -> GateResult:
    """Decide whether a candidate should become champion, with every figure behind the verdict.

    A champion that cannot be opened or fails on an image is treated as unavailable: it must not block
    a candidate that could replace it. A candidate that fails is an error, not a verdict.

    Raises:
        VerificationError: the candidate cannot be opened, fails on an image, or returns no probabilities.
        DataError: a test image is gone, or is not the file that was prepared.
    """
    indices, excluded = _unseen(candidate, champion, test_images)
    labels = np.array([test_images.labels[index] for index in indices], dtype=np.object_)
    runs = [Inference(candidate, len(indices))]
    if isinstance(champion, ModelUnderTest) and champion.sha256 != candidate.sha256:
        runs.append(Inference(champion, len(indices)))
    sample = _predict(runs, test_images, indices)
    if runs[0].failure:
        raise VerificationError(
            f"no verdict on {candidate.name}: {runs[0].failure}. "
            "Export and verify it again with `dvc repro --force export`, then `convoy register`"
        )
    if isinstance(champion, ModelUnderTest) and runs[-1].failure:
        champion = UnavailableModel(champion.name, runs.pop().failure, champion.recorded_accuracy)
    ours, *others = [run.predictions(labels) for run in runs]
    theirs = others[0] if others else None
    del runs  # their threads would disturb the latency measurement
    comparison = latency = None
    if theirs is not None and indices:
        comparison = statistics.compare(ours.correct, theirs.correct, limits.confidence)
    models = [model for model in (candidate, champion) if isinstance(model, ModelUnderTest)]
    if indices and len({model.sha256 for model in models}) == len(models):
        latency = measure_latency([OnnxModel(model.onnx, threads=THREADS) for model in models], sample)
    paths = tuple(test_images.paths[index] for index in indices)
    evidence = Evidence(
        candidate, champion, test_images, labels, paths, ours, theirs, excluded, comparison, latency
    )
    return text.describe(_result(evidence, criteria.check(evidence, limits), limits))


class Inference:
    """Run a model on n images and keep the most probable class of each.

    Attributes:
        failure: why the model cannot be used, as half a sentence; empty while it works.
        probability: (n,) of the most probable class.
    """

    def __init__(self, model: ModelUnderTest, images: int) -> None:
        """Open the model, if its bytes are the registered ones."""
        self.probability = np.full(images, np.nan, np.float64)
        self._class = np.zeros(images, np.int64)
        self._model: OnnxModel | None = None
        self.failure = ""
        if not model.onnx.is_file():
            self.failure = f"its file is gone ({model.onnx})"
        elif (sha256 := files.sha256(model.onnx)) != model.sha256:
            self.failure = f"its file has other bytes than were registered (sha256 {sha256[:12]}…, not {model.sha256[:12]}…)"
        else:
            try:
                self._model = OnnxModel(model.onnx, seconds_per_image=SECONDS_PER_IMAGE)
            except (ConvoyError, ValueError, TypeError) as error:  # the last two: bad metadata
                self.failure = str(error).splitlines()[0]

    @property
    def background(self) -> str:
        """Return the colour behind transparent pixels that the model was trained with."""
        return self._model.background if self._model else contract.DEFAULT_BACKGROUND

    def predict(
        self, indices: list[int], paths: Sequence[str], images_u8: Sequence[npt.NDArray[np.uint8]]
    ) -> None:
        """Predict (H, W, 3) images of any sizes; does nothing after a failure."""
        if self._model is None or self.failure:
            return
        try:
            probabilities = self._model.predict_mixed(images_u8)
        except Exception as error:  # noqa: BLE001 (onnxruntime's errors share no base class)
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.failure = f"fails on {paths[0]} or one of the {len(paths)} images from there on: {lines[0]}"
            return
        # A sum of float32 may be a little off; NaN equals nothing, so it is refused too.
        valid = (probabilities >= 0).all(axis=1) & (np.abs(probabilities.sum(axis=1) - 1) < 1e-3)
        if not valid.all():
            n = int(np.flatnonzero(~valid)[0])
            row = ", ".join(f"{value:.3g}" for value in probabilities[n, :5])
            more = " …" * (len(probabilities[n]) > 5)
            self.failure = f"returns {row}{more} for {paths[n]}, which are no probabilities"
            return
        self._class[indices] = probabilities.argmax(axis=1)
        self.probability[indices] = probabilities.max(axis=1)

    def predictions(self, labels: npt.NDArray[np.object_]) -> Predictions:
        """Compare the predicted classes with the (n,) labels."""
        classes = self._model.classes if self._model else ()
        names = np.array(classes, np.object_)[self._class]
        return Predictions(tuple(classes), names, self.probability, np.asarray(names == labels, np.bool_))


def _unseen(
    candidate: ModelUnderTest, champion: ModelUnderTest | UnavailableModel | None, test_images: TestImages
) -> tuple[list[int], dict[str, int]]:
    """Choose the test images that neither was trained on; count the others by reason."""
    ours, theirs = (
        model.images.seen if isinstance(model, ModelUnderTest) and model.images else frozenset()
        for model in (candidate, champion)
    )
    seen = [(pixels in ours, pixels in theirs) for pixels in test_images.pixels]
    indices = [index for index, by in enumerate(seen) if by not in SEEN]
    return indices, dict(Counter(SEEN[by] for by in seen if by in SEEN))


def _predict(
    runs: Sequence[Inference], test_images: TestImages, indices: Sequence[int]
) -> list[npt.NDArray[np.uint8]]:
    """Run every model on every image until the candidate fails, in one pass, or in two if their backgrounds differ.

    Returns:
        The first images, which are a fair sample, for the latency measurement; at least a single image if there are any.
    """
    sample: dict[int, npt.NDArray[np.uint8]] = {}
    room = SAMPLE_BYTES
    position = {index: n for n, index in enumerate(indices)}
    for background in dict.fromkeys(run.background for run in runs):
        fitting = [run for run in runs if run.background == background]
        for chunk in test_images.read(indices, background):
            numbers = [position[index] for index, _ in chunk]
            paths = [test_images.paths[index] for index, _ in chunk]
            images_u8 = [image_u8 for _, image_u8 in chunk]
            for run in fitting:
                run.predict(numbers, paths, images_u8)
            if runs[0].failure:
                break
            for number, image_u8 in zip(numbers, images_u8, strict=True):
                if number < MOST_TIMED and number not in sample and (not sample or image_u8.nbytes <= room):
                    sample[number] = image_u8
                    room -= image_u8.nbytes
    return [sample[number] for number in sorted(sample)]


def _decide(evidence: Evidence, checked: Sequence[Criterion], limits: GateParams) -> tuple[Verdict, Decision]:
    """Apply the rules in order: limits first, then significance, then the rule for equal models."""
    if evidence.identical:
        return "keep", "identical"
    if any(criterion.held is False for criterion in checked):
        return "refuse", "limits"
    if evidence.champion is None:
        return "promote", "first"
    if isinstance(evidence.champion, UnavailableModel):
        return "promote", "champion_unavailable"
    if evidence.comparison is None:
        raise AssertionError("without a test image the candidate is refused")
    newer = evidence.candidate.created_ms > evidence.champion.created_ms
    return compare(evidence.comparison, limits, newer=newer)


def compare(comparison: Comparison, limits: GateParams, *, newer: bool) -> tuple[Verdict, Decision]:
    """Decide between two models that meet every limit."""
    significant = comparison.p_value < 1 - limits.confidence
    if significant and comparison.gain > 0:
        return "promote", "better"
    # A significant loss is never equal, however small: losses would add up round by round.
    if comparison.low >= -limits.equal_within and not significant:
        if limits.on_equal == "keep":
            return "keep", "equal_kept"
        return ("promote", "equal_promoted") if newer else ("keep", "equal_not_newer")
    if comparison.high < 0:
        return "keep", "worse"
    return "keep", "not_significant" if comparison.gain > 0 else "no_gain"


def _result(evidence: Evidence, checked: tuple[Criterion, ...], limits: GateParams) -> GateResult:
    candidate, champion, latency = evidence.candidate, evidence.champion, evidence.latency
    verdict, decision = _decide(evidence, checked, limits)
    share = evidence.candidate_predictions.share(limits.confidence)
    champion_share = share if evidence.identical else None
    if evidence.champion_predictions:
        champion_share = evidence.champion_predictions.share(limits.confidence)
    timed = {"threads": THREADS, "rounds": ROUNDS, "images": latency.images} if latency else None
    return GateResult(
        verdict=verdict,
        decision=decision,
        candidate=candidate.name,
        champion=champion.name if champion else None,
        candidate_sha256=candidate.sha256,
        champion_sha256=champion.sha256 if isinstance(champion, ModelUnderTest) else None,
        champion_problem=champion.reason if isinstance(champion, UnavailableModel) else "",
        data_hash=evidence.test_images.data_hash,
        images=len(evidence.labels),
        excluded=evidence.excluded,
        candidate_share=share,
        champion_share=champion_share,
        criteria=checked,
        comparison=evidence.comparison,
        classes=evidence.classes,
        flips=evidence.flips(),
        conditions={
            "moment": datetime.now(UTC).isoformat(timespec="seconds"),
            "confidence": limits.confidence,
            "on_equal": limits.on_equal,
            "equal_within": limits.equal_within,
            "test": "McNemar, exact, two-sided",
            "ece_bins": BINS,
            "latency": timed,
            "versions": versions(),
            "hardware": hardware(),
        },
    )
