"""Measure a trained model on the test split, which is used for nothing else."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from convoy.core import files
from convoy.core.dataset import MANIFEST_FILE, Dataset
from convoy.core.errors import DataError, NetworkError
from convoy.evaluation import feature_maps, feature_page, metrics, picture, report
from convoy.evaluation.inference import probabilities
from convoy.evaluation.settings import EvaluateParams
from convoy.models import trained


def evaluate(dataset_folder: Path, model_folder: Path, params: EvaluateParams, out: Path) -> dict[str, Any]:
    """Predict the test split in float32 and write what the predictions amount to.

    Writes `predictions.parquet` (a row per test image: row, path, sha256, label, predicted,
    probabilities in class order), `summary.json` (classes, counts, accuracy, figures per class),
    `confusion.csv` (a line per image, for DVC's confusion plot), `confusion.png`, `report.html` and
    `features.html` (what the network sees in the first test image of each class).

    Returns:
        `{"test": {"accuracy": …, "accuracy_low": …, "accuracy_high": …, "images": …,
        "macro_f1": …}}`.

    Raises:
        DataError: the manifest does not name every test image.
        NetworkError: the model knows other classes than the dataset, or answers with NaN.
    """
    dataset = Dataset.load(dataset_folder)
    model, facts = trained.load(model_folder)
    if facts.classes != list(dataset.classes):
        raise NetworkError(
            f"{model_folder} was trained for the classes {', '.join(facts.classes)}; {dataset_folder} has "
            f"{', '.join(dataset.classes)}. Train on this dataset: dvc repro train"
        )
    delivered = _delivered(dataset_folder / MANIFEST_FILE, *dataset.splits["test"])
    labels = np.asarray(dataset.labels("test"))
    found = probabilities(model, dataset.images("test"), params.batch_size)
    _refuse_nan(found, delivered["path"], facts.network)
    predicted = found.argmax(axis=1)

    out.mkdir(parents=True, exist_ok=True)
    _write_predictions(out / "predictions.parquet", delivered, labels, found, dataset.classes)
    summary = metrics.summarise(labels, predicted, dataset.classes)
    facts_of_data = {
        "network": facts.network,
        "data_hash": dataset.hash,
        "image_px": dataset.image_px,
        "fit": dataset.fit,
        "counts": dataset.counts,
    }
    files.write_json(
        out / "summary.json", facts_of_data | {"classes": list(dataset.classes), "test": summary}
    )
    files.write_text(out / "confusion.csv", _confusion_lines(labels, predicted, dataset.classes))
    counts = metrics.confusion(labels, predicted, len(dataset.classes))
    (out / "confusion.png").write_bytes(picture.draw(counts, dataset.classes))
    mistakes = report.most_confident_mistakes(
        dataset.images("test"), labels, found, delivered["path"], dataset.classes, most=params.worst_images
    )
    report.write(out / "report.html", facts_of_data, summary, counts, mistakes)
    if params.feature_classes:
        subjects = _first_of_each_class(dataset, delivered["path"])[: params.feature_classes]
        seen = feature_maps.find(model, [subject.image_u8 for subject in subjects])
        feature_page.write(out / "features.html", facts.network, dataset.classes, subjects, seen)
    # A hundred classes would fill `dvc exp show` with columns; summary.json and the report have them.
    return {"test": {name: value for name, value in summary.items() if name != "per_class"}}


def _delivered(manifest: Path, start: int, stop: int) -> dict[str, list[str]]:
    """Look up which delivered file each packed row of a split came from: paths and sha256, in row order."""
    table = pq.read_table(manifest, columns=["row", "path", "sha256"]).to_pydict()
    of_row = {row: n for n, row in enumerate(table["row"]) if start <= row < stop}
    missing = [row for row in range(start, stop) if row not in of_row]
    if missing:
        raise DataError(
            f"{manifest} names no delivered file for row {missing[0]} and {len(missing) - 1} other rows of the "
            "test split. Prepare again: dvc repro --force prepare"
        )
    return {key: [table[key][of_row[row]] for row in range(start, stop)] for key in ("path", "sha256")}


def _refuse_nan(found: npt.NDArray[np.float32], paths: list[str], network: str) -> None:
    """Stop before a number that is none reaches a file: comparisons with NaN are silently false."""
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(bad):
        raise NetworkError(
            f"network {network} answers with NaN for {len(bad)} of {len(found)} test images, the first being "
            f"{paths[bad[0]]}: its weights have diverged. Train with a smaller rate: dvc exp run -S train.lr=0.01"
        )


def _write_predictions(
    path: Path,
    delivered: dict[str, list[str]],
    labels: npt.NDArray[np.int64],
    found: npt.NDArray[np.float32],
    classes: Sequence[str],
) -> None:
    names = np.array(classes, dtype=object)
    table = pa.table(
        {
            "row": pa.array(np.arange(len(labels))),
            "path": delivered["path"],
            "sha256": delivered["sha256"],
            "label": pa.array(names[labels], pa.string()),
            "predicted": pa.array(names[found.argmax(axis=1)], pa.string()),
            "probabilities": pa.FixedSizeListArray.from_arrays(found.ravel(), found.shape[1]).cast(
                pa.list_(pa.float32())
            ),
        }
    )
    pq.write_table(table, path)


def _first_of_each_class(dataset: Dataset, paths: Sequence[str]) -> list[feature_page.Subject]:
    """Pick the first test image of each class, in the order of the classes."""
    labels, images_u8 = dataset.labels("test"), dataset.images("test")
    _, rows = np.unique(labels, return_index=True)
    return [
        feature_page.Subject(paths[n], np.array(images_u8[n]), actual=dataset.classes[labels[n]])
        for n in rows
    ]


def _confusion_lines(
    labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: Sequence[str]
) -> str:
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["actual", "predicted"])
    writer.writerows((classes[a], classes[p]) for a, p in zip(labels, predicted, strict=True))
    return lines.getvalue()
