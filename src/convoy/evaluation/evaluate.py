"""Measure a trained model on the test split, which is used for nothing else; on the validation split if there is no test image.

N images, K classes; labels and predictions are class numbers in 0..K-1.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from convoy.core import escaping, files
from convoy.core.dataset import MANIFEST_FILE, Dataset, Split
from convoy.core.errors import DataError, NetworkError
from convoy.core.intervals import wilson
from convoy.evaluation import feature_maps, label_errors, report
from convoy.evaluation.calibration import calibration_error
from convoy.evaluation.settings import EvaluateParams
from convoy.models import trained
from convoy.models.trained import NormalizedModel, predict_logits


def evaluate(dataset_folder: Path, model_folder: Path, params: EvaluateParams, out: Path) -> dict[str, Any]:
    """Predict the test split in float32; write predictions, metrics and reports.

    Labels of the test and the validation split, of which no image was trained on, are checked as well (`label_errors`).

    Writes `predictions.parquet` (a row per test image: row, path, sha256, label, predicted,
    probabilities in class order), `summary.json` (classes, counts, metrics, also per class),
    `confusion.csv` (a line per image, for DVC's confusion plot), `confusion.png`, `label_errors.csv` (a line per image whose
    label is probably wrong, the clearest first), `report.html` and `features.html` (feature maps of the first test image of
    each class).

    Returns:
        `{"test": {"accuracy": …, "accuracy_low": …, "accuracy_high": …, "images": …,
        "macro_f1": …, "ece": …, "ece_uncalibrated": …}, "labels": {"checked": …, "suspected": …}}`: ECE is the calibration error,
        and what it would be at temperature 1; without `suspected` if the network is too weak to check labels.

    Raises:
        DataError: an image of the two splits is missing in the manifest.
        NetworkError: the classes of the model and of the dataset differ, or the model outputs NaN.
    """
    dataset = Dataset.load(dataset_folder)
    model, facts = trained.load(model_folder)
    if facts.classes != list(dataset.classes):
        raise NetworkError(
            f"{model_folder} was trained for the classes {', '.join(facts.classes)}; {dataset_folder} has "
            f"{', '.join(dataset.classes)}. Train on this dataset: dvc repro train"
        )
    classes = dataset.classes
    measured_split = dataset.measured
    parts = [
        _predict(dataset, split, model, facts.network, params.batch_size)
        for split in dict.fromkeys((measured_split, "val"))
    ]
    test = parts[0]
    labels, images_u8, probabilities, paths = test.labels, test.images_u8, test.probabilities, test.paths
    predicted = probabilities.argmax(axis=1)
    counts = confusion(labels, predicted, len(classes))
    summary = summarise(counts, classes)
    right = predicted == labels
    summary["ece"] = calibration_error(probabilities.max(axis=1), right)
    uncalibrated = softmax(test.logits * np.float32(facts.temperature))
    summary["ece_uncalibrated"] = calibration_error(uncalibrated.max(axis=1), right)

    out.mkdir(parents=True, exist_ok=True)
    names = np.array(classes, dtype=object)
    per_class = pa.FixedSizeListArray.from_arrays(probabilities.ravel(), len(classes))
    predictions = {
        "row": pa.array(np.arange(len(labels))),
        "path": paths,
        "sha256": test.sha256,
        "label": pa.array(names[labels], pa.string()),
        "predicted": pa.array(names[predicted], pa.string()),
        "probabilities": per_class.cast(pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(predictions), out / "predictions.parquet")
    with (out / "confusion.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        rows = zip(names[labels], names[predicted], strict=True)
        lines.writerows([("actual", "predicted"), *map(escaping.csv_row, rows)])
    measured = {
        "network": facts.network,
        "data_hash": dataset.hash,
        "image_px": dataset.image_px,
        "fit": dataset.fit,
        "crop_share": dataset.crop_share,
        "temperature": facts.temperature,
        "counts": dataset.counts,
    }
    content = {"classes": list(classes), "split": measured_split, measured_split: summary}
    files.write_json(out / "summary.json", measured | content)
    mistakes = report.most_confident_mistakes(
        images_u8, labels, probabilities, paths, classes, most=params.worst_images
    )
    suspects = _check_labels(parts[::-1], classes, out / "label_errors.csv", params.worst_images)
    report.write_report(
        out / "report.html",
        measured | {"split": measured_split},
        summary,
        counts,
        mistakes=mistakes,
        suspects=suspects,
    )
    if params.feature_classes:
        _, first = np.unique(labels, return_index=True)
        subjects = [
            report.Subject(paths[n], np.array(images_u8[n]), actual=classes[labels[n]])
            for n in first[: params.feature_classes]
        ]
        features = feature_maps.find(model, [subject.image_u8 for subject in subjects])
        report.write_features(out / "features.html", facts.network, classes, subjects, features)
    # A hundred classes would fill `dvc exp show` with columns; summary.json and the report have them.
    test_metrics = {name: value for name, value in summary.items() if name != "per_class"}
    numbers = ("checked", "suspected") if suspects["is_meaningful"] else ("checked",)
    # Of another name than val/accuracy, the curve of the training, and test/accuracy, with which it must not be compared.
    name = "test" if measured_split == "test" else "measured_on_val"
    return {name: test_metrics, "labels": {number: suspects[number] for number in numbers}}


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Turn (N, K) logits into probabilities; not finite where a logit is not."""
    probabilities: npt.NDArray[np.float32] = torch.from_numpy(logits).softmax(dim=1).numpy()
    return probabilities


def confusion(
    labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: int
) -> npt.NDArray[np.int64]:
    """Count images as (K, K): row = actual class, column = predicted class."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def summarise(counts: npt.NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    """Compute accuracy with its interval, macro F1, and precision, recall, F1 and images of each class.

    A class without a test image is not measured: its figures are None, and macro F1 leaves it out. Any other ratio without
    images, such as the precision of a class that is never predicted, is 0. `counts` are (K, K), as `confusion` returns them.
    """
    correct, total = int(counts.trace()), int(counts.sum())
    low, high = wilson(correct, total)
    hits, actual, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(actual, 1)
    f1 = 2 * hits / np.maximum(actual + predicted, 1)
    return {
        "accuracy": correct / total,
        "accuracy_low": low,
        "accuracy_high": high,
        "images": total,
        "macro_f1": float(np.mean(f1[actual > 0])),
        "per_class": {
            name: {
                "precision": float(precision[k]) if actual[k] else None,
                "recall": float(recall[k]) if actual[k] else None,
                "f1": float(f1[k]) if actual[k] else None,
                "images": int(actual[k]),
            }
            for k, name in enumerate(classes)
        },
    }


@dataclass(frozen=True)
class _HeldOut:
    """Hold the predictions of a split that was not trained on, in row order."""

    split: Split
    images_u8: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    paths: list[str]
    sha256: list[str]


def _predict(
    dataset: Dataset, split: Split, model: NormalizedModel, network: str, batch_size: int
) -> _HeldOut:
    images_u8 = dataset.images(split)
    paths, sha256 = _sources(dataset.folder / MANIFEST_FILE, split, *dataset.splits[split])
    logits = predict_logits(model, images_u8, batch_size)
    probabilities = softmax(logits)
    # Stop before NaN reaches a file: comparisons with NaN are silently false.
    bad = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if len(bad):
        raise NetworkError(
            f"network {network} outputs NaN for {len(bad)} of {len(probabilities)} {split} images, the first is "
            f"{paths[bad[0]]}: its weights have diverged. Train with a lower rate: dvc exp run -S train.lr=0.01"
        )
    labels = np.asarray(dataset.labels(split))
    return _HeldOut(split, images_u8, labels, logits, probabilities, paths, sha256)


def _check_labels(parts: Sequence[_HeldOut], classes: Sequence[str], out: Path, most: int) -> dict[str, Any]:
    """Write a line per image whose label is probably wrong; return what the report shows of at most `most` of them."""
    labels = np.concatenate([part.labels for part in parts])
    found = label_errors.find(labels, np.concatenate([part.probabilities for part in parts]))
    ends = np.cumsum([len(part.labels) for part in parts])
    lines = [("split", "path", "label", "likely", "probability_of_label", "probability_of_likely")]
    shown: list[dict[str, Any]] = []
    for row, likely in zip(found.rows.tolist(), found.likely.tolist(), strict=True):
        at = int(np.searchsorted(ends, row, side="right"))
        part, n = parts[at], row - (int(ends[at]) - len(parts[at].labels))
        own, other = (f"{part.probabilities[n, k]:.4f}" for k in (part.labels[n], likely))
        lines.append((part.split, part.paths[n], classes[part.labels[n]], classes[likely], own, other))
        if found.is_meaningful and len(shown) < most:
            described = report.describe(
                n,
                likely,
                part.images_u8,
                labels=part.labels,
                probabilities=part.probabilities,
                paths=part.paths,
                classes=classes,
            )
            shown.append(described | {"split": part.split})
    with out.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(map(escaping.csv_row, lines))
    return {
        "checked": len(labels),
        "suspected": len(found.rows),
        "accuracy": found.accuracy,
        "lowest_accuracy": label_errors.LOWEST_ACCURACY,
        "is_meaningful": found.is_meaningful,
        "shown": shown,
    }


def _sources(manifest: Path, split: Split, start: int, stop: int) -> tuple[list[str], list[str]]:
    """Look up path and SHA-256 of the delivered file behind each packed row of a split, in row order."""
    rows = [("row", ">=", start), ("row", "<", stop)]
    table = (
        pq.read_table(manifest, columns=["row", "path", "sha256"], filters=rows).sort_by("row").to_pydict()
    )
    missing = sorted(set(range(start, stop)).difference(table["row"]))
    if missing:
        raise DataError(
            f"{manifest} has no delivered file for row {missing[0]} and {len(missing) - 1} other rows of the "
            f"{split} split. Prepare again: dvc repro --force prepare"
        )
    return table["path"], table["sha256"]
