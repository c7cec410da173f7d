"""The two sides of a judgement, as local files: where they come from is the registry's business."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.export.image_index import Images


@dataclass(frozen=True)
class ModelUnderTest:
    """Hold one model, with what is known of its making.

    Attributes:
        name: such as `convoy/7`.
        sha256: that the bytes of `onnx` should have.
        images: what it was trained and tested on; None where that is unknown.
        recorded_accuracy: 0..1, of the proof that it was registered with; None where that is unknown.
        proof: content of its `verification.json`; None where there is none.
        created_ms: when it was registered, in milliseconds since 1970.
    """

    name: str
    onnx: Path
    sha256: str
    images: Images | None
    recorded_accuracy: float | None
    proof: Mapping[str, Any] | None
    created_ms: int


@dataclass(frozen=True)
class UnavailableModel:
    """Hold a champion that is registered, but whose file is gone or damaged.

    Attributes:
        name: such as `convoy/7`.
        reason: why it cannot be read, as half a sentence.
        recorded_accuracy: 0..1, of the proof that it was registered with; None where that is unknown.
    """

    name: str
    reason: str
    recorded_accuracy: float | None
