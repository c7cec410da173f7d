"""The bodies that the service answers with: predictions, and refusals with a status, a code and a reason."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from convoy.core.errors import DataError
from convoy.images.decode import TooLargeError
from convoy.images.formats import NotAnImageError, TruncatedError, UnsupportedError
from convoy.serving.model import ServedModel


class Refusal(Exception):  # noqa: N818 (an answer, not a fault of the service)
    """Answer a request, or an image of it, with an error.

    Attributes:
        status: of HTTP.
        code: names the case for programs, such as `body_too_large`.
        reason: a sentence for people: limit, what came, what to do.
        headers: of the answer.
    """

    def __init__(
        self, status: int, code: str, reason: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(reason)
        self.status, self.code, self.reason, self.headers = status, code, reason, tuple(headers)

    def body(self, request_id: str) -> bytes:
        """Format as the body of an answer."""
        error = {"status": self.status, "code": self.code, "reason": self.reason}
        return dumps({"error": error, "request_id": request_id})

    def body_v2(self) -> bytes:
        """Format as the Open Inference Protocol does."""
        return dumps({"error": self.reason})


def refused_image(error: DataError) -> Refusal:
    """Turn the reason why an image was not decoded into an answer.

    The text of a library's own error stays out: it may name its internals.
    """
    reason = f"The image {error}."
    if isinstance(error, TooLargeError):
        return Refusal(413, "too_many_pixels", reason)
    if isinstance(error, NotAnImageError):
        return Refusal(415, "not_an_image", f"The content {error}.")
    if isinstance(error, UnsupportedError):
        return Refusal(415, "unsupported_image", reason)
    if isinstance(error, TruncatedError):
        return Refusal(422, "truncated_image", reason)
    if error.__cause__ is None:
        return Refusal(422, "damaged_image", reason)
    return Refusal(422, "damaged_image", "The image is damaged: it cannot be decoded.")


def prediction(
    row: npt.NDArray[np.float32],
    order: npt.NDArray[np.int64],
    classes: Sequence[str],
    *,
    top_k: int,
    min_confidence: float,
) -> dict[str, Any]:
    """Describe an image: class, probability, whether it abstained, and the top k.

    Args:
        row: (K,) probabilities.
        order: (K,) indices of the classes, the most probable first.
        classes: K names.
        top_k: most probable classes to name.
        min_confidence: of an answer that does not abstain.
    """
    order = order[:top_k]
    likely = dict(zip([classes[index] for index in order.tolist()], row[order].tolist(), strict=True))
    first = classes[order[0]]
    probability = likely[first]
    return {
        "class": first,
        "probability": probability,
        "abstained": probability < min_confidence,
        "probabilities": likely,
    }


def origin(served: ServedModel) -> dict[str, str]:
    """Name the model that answered."""
    return {"model": served.public_name, "version": served.version, "run_id": served.run_id}


def dumps(content: Mapping[str, Any]) -> bytes:
    """Format as JSON in UTF-8."""
    return _encode(content).encode("utf-8", "replace")


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
