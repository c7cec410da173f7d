"""What evaluation measured, as the proof and the model card read it back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from convoy.core import files
from convoy.core.errors import VerificationError

PREDICTIONS = "predictions.parquet"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Measured:
    """Hold every test image's measured answer; n images, K classes.

    Attributes:
        paths: delivered files, by place.
        sha256: of the files when they were prepared.
        labels: (n,) class numbers.
        probabilities: (n, K), in the order of `classes`.
        classes: K names.
        summary: counts and accuracy, as evaluation wrote them.
    """

    paths: tuple[str, ...]
    sha256: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    classes: tuple[str, ...]
    summary: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "Measured":
        """Read a folder that evaluation wrote.

        Raises:
            ProofError: a file is missing, or the predicted classes are not the most probable ones.
        """
        for name in (PREDICTIONS, SUMMARY):
            if not (folder / name).is_file():
                raise VerificationError(
                    f"{folder / name} does not exist. Measure the model first: dvc repro evaluate"
                )
        summary = files.read_json(folder / SUMMARY)
        classes = tuple(summary["classes"])
        table = pq.read_table(folder / PREDICTIONS)
        column = table.column("probabilities").combine_chunks()
        probabilities = np.asarray(column.flatten(), dtype=np.float32).reshape(len(table), len(classes))
        number = {name: k for k, name in enumerate(classes)}
        paths = table.column("path").to_pylist()
        predicted = np.array([number[name] for name in table.column("predicted").to_pylist()])
        contradicting = np.flatnonzero(predicted != probabilities.argmax(axis=1))
        if len(contradicting):
            raise VerificationError(
                f"{folder / PREDICTIONS} contradicts itself: the predicted class of {paths[contradicting[0]]} is not "
                "its most probable one. Measure again: dvc repro --force evaluate"
            )
        return cls(
            paths=tuple(paths),
            sha256=tuple(table.column("sha256").to_pylist()),
            labels=np.array([number[name] for name in table.column("label").to_pylist()], dtype=np.int64),
            probabilities=probabilities,
            classes=classes,
            summary=summary,
        )
