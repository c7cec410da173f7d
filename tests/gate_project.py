"""A delivery of numbered images taken through the real `prepare`, and contenders whose answers are fixed_models."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import exported
import fixed_models
from convoy.core import files
from convoy.data.prepare import prepare
from convoy.data.split import pixel_hash
from convoy.export.comparison import Comparison
from convoy.export.image_index import Images
from convoy.gate.evidence import ModelUnderTest
from convoy.gate.judge import judge
from convoy.gate.settings import GateParams
from convoy.gate.test_images import TestImages
from deliveries import ONE_COLOUR, data_params

CLASSES = ("ape", "bee", "cat")
LIMITS = {
    "confidence": 0.95,
    "on_equal": "keep",
    "equal_within": 0.05,
    "min_images": 50,
    "min_accuracy": 0.5,
    "min_class_recall": 0.3,
    "max_class_drop": 0.2,
    "max_ece": 0.2,
    "max_latency_ms_p95": 10_000.0,  # generous: no test asserts how fast a machine is
    "max_latency_ratio": 1000.0,
    "max_size_mb": 600.0,
    "max_champion_drop": 0.1,
    "max_champion_age_days": 90.0,
    "public_key": "none",
}


def pixels(number):
    return pixel_hash(fixed_models.image_u8(number))


@dataclass
class GateProject:
    """Prepared data, and models for it."""

    home: Path
    truth: tuple[str, ...]
    """Label of each numbered image."""
    test: int
    classes: tuple[str, ...] = CLASSES
    made: int = field(default=0)

    @property
    def test_images(self):
        return TestImages.load(self.home / "dataset", self.home / "data")

    def limits(self, **changes):
        return GateParams.model_validate(LIMITS | changes)

    def judge(self, candidate, champion, **limits):
        return judge(candidate, champion, self.test_images, self.limits(**limits))

    def images(self, seen=(), labels=None):
        """List every image as prepared, except `seen` images, which are of train, and other labels."""
        table = {}
        for number, label in enumerate(self.truth):
            split = "test" if number < self.test and number not in seen else "train"
            table[pixels(number)] = ((labels or {}).get(number, label), split)
        return Images(table)

    def model(self, name="convoy/7", wrong=(), *, classes=None, predictions=None, seen=(), **changes):
        """Make a model that is right except on the images `wrong`, for which it predicts the next class.

        Images `seen` were in its training; `changes` are of `ModelUnderTest` or `fixed_models.write_onnx`.
        """
        served = tuple(classes or self.classes)
        predicted = [label if label in served else served[0] for label in self.truth]
        for number in wrong:
            predicted[number] = served[(served.index(predicted[number]) + 1) % len(served)]
        for number, prediction in (predictions or {}).items():
            predicted[number] = prediction
        self.made += 1
        graph = {key: changes.pop(key) for key in ("certainty", "products", "dead_bytes") if key in changes}
        path = fixed_models.write_onnx(self.home / f"model{self.made}.onnx", served, predicted, **graph)
        right = [s == t for s, t in zip(predicted, self.truth, strict=True)]
        attributes = {
            "name": name,
            "onnx": path,
            "sha256": files.sha256(path),
            "images": self.images(seen),
            "recorded_accuracy": float(np.mean(right[: self.test])),
            "verification": verification(files.sha256(path)),
            "created_ms": 1_700_000_000_000 + int(name.split("/")[1]),
        }
        return ModelUnderTest(**(attributes | changes))


def verification(sha256):
    """Return the part of verification.json that shows whether a model passed."""
    figures = Comparison("whole test split from delivered files", exported.LIMITS).figures()
    control = figures | {"mean_shift": 0.1, "caught": True}
    return {"model": {"sha256": sha256}, "checks": [figures], "negative_control": control}


def deliver(home, labels, test, **changes):
    """Write numbered images as files and prepare them: the first `test` are the test split; `changes` are of the section `data`."""
    rest = len(labels) - test
    for number, label in enumerate(labels):
        part = "test" if number < test else "train" if number < test + 2 * rest / 3 else "val"
        path = home / "data" / part / label / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(fixed_models.png(number))
    params = data_params(**{"image_px": 8, "max_quarantined": 0.0, "checks": ONE_COLOUR} | changes)
    prepare(home / "data", params, home / "dataset")
    return GateProject(home, tuple(labels), test, tuple(sorted(set(labels))))


def deliver_three_classes(home):
    """Deliver 120 test images, a third of each class by turns, then 30 of train and 15 of val."""
    return deliver(home, [CLASSES[n % 3] for n in range(165)], 120)


def breaches(result):
    return [criterion.name for criterion in result.breaches]


def criterion(result, name):
    return next(criterion for criterion in result.criteria if criterion.name == name)
