"""What a model answers to the test images, or why it gives no answers.

n images; K classes of the model, which may be others than today's.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from convoy.core import files
from convoy.core.errors import ConvoyError
from convoy.export.onnx_model import OnnxModel
from convoy.gate.contender import ModelUnderTest

SAMPLE_BYTES = 64 * 2**20
"""Most bytes of test images that are kept to be timed."""


class NoAnswer(Exception):  # noqa: N818 (the champion's is no error: the candidate is judged without it)
    """Say why a model gives no answers, as half a sentence."""


class Answers:
    """Ask one model about n images; keep the most probable class of each.

    Attributes:
        served: the open model.
        probability: (n,) of the most probable class.
    """

    def __init__(self, contender: ModelUnderTest, images: int, threads: int = 0) -> None:
        """Open the model.

        Raises:
            NoAnswer: it is gone, has other bytes, or is no model.
        """
        self.served = opened(contender, threads)
        self.probability = np.full(images, np.nan, np.float64)
        self._number = np.zeros(images, np.int64)

    @property
    def names(self) -> npt.NDArray[np.object_]:
        """Give the (n,) names of the most probable classes, as strings, each of which is held once."""
        return np.array(self.served.classes, np.object_)[self._number]

    def ask(
        self, where: Sequence[int], paths: Sequence[str], images_u8: Sequence[npt.NDArray[np.uint8]]
    ) -> None:
        """Answer (H, W, 3) images of any sizes and keep the answers at their places.

        Raises:
            NoAnswer: it fails on one, or answers what is no probability.
        """
        try:
            found = self.served.predict_mixed(images_u8)
        except Exception as error:  # onnxruntime's errors share no base class
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise NoAnswer(
                f"fails on {paths[0]} or one of the {len(paths)} images from there on: {lines[0]}"
            ) from error
        # A sum of float32 may be a little off; NaN is equal to nothing, so it is refused here too.
        right = (found >= 0).all(axis=1) & (np.abs(found.sum(axis=1) - 1) < 1e-3)
        if not right.all():
            n = int(np.flatnonzero(~right)[0])
            raise NoAnswer(f"answers {paths[n]} with {_numbers(found[n])}, which are no probabilities")
        self._number[list(where)] = found.argmax(axis=1)
        self.probability[list(where)] = found.max(axis=1)


def opened(contender: ModelUnderTest, threads: int) -> OnnxModel:
    """Open a model whose bytes are those that were registered.

    Raises:
        NoAnswer: they are not, or they are no model.
    """
    if not contender.onnx.is_file():
        raise NoAnswer(f"its file is gone ({contender.onnx})")
    sha256 = files.sha256(contender.onnx)
    if sha256 != contender.sha256:
        raise NoAnswer(
            f"its file has other bytes than were registered (sha256 {sha256[:12]}…, not {contender.sha256[:12]}…)"
        )
    try:
        return OnnxModel(contender.onnx, threads=threads)
    except (ConvoyError, ValueError, TypeError) as error:  # the last two: metadata that is no list of names
        raise NoAnswer(str(error).splitlines()[0]) from error


class Sample:
    """Keep the first of the test images, which are a fair sample, to be timed."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[int, npt.NDArray[np.uint8]] = {}
        self._bytes = 0

    def add(self, number: int, image_u8: npt.NDArray[np.uint8]) -> None:
        """Keep an image if it is one of the first and there is room; the very first that comes always."""
        if number >= self._most or (self._kept and self._bytes + image_u8.nbytes > SAMPLE_BYTES):
            return
        self._kept[number] = image_u8
        self._bytes += image_u8.nbytes

    def images_u8(self) -> list[npt.NDArray[np.uint8]]:
        """Give the images in order, one at least where there were any."""
        return [self._kept[number] for number in sorted(self._kept)]


def _numbers(row: npt.NDArray[np.float32]) -> str:
    return ", ".join(f"{number:.3g}" for number in row[:5]) + (" …" if len(row) > 5 else "")
