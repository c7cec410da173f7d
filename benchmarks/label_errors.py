"""Plant wrong labels in the sample digits, train on them, and count which ones the evaluation suspects: docs/training.md.

Run in the repository's root: python benchmarks/label_errors.py --share 0.05
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from convoy.core import params
from convoy.core.dataset import LABELS_FILE, Dataset
from convoy.data.prepare import prepare
from convoy.data.settings import DataParams
from convoy.evaluation import label_errors
from convoy.evaluation.evaluate import predict_probabilities
from convoy.models import spec, trained
from convoy.training.fit import fit
from convoy.training.settings import TrainParams


def main() -> None:
    """Print what was planted, suspected and found, per seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.05, help="share of all labels that is replaced")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=10)
    words = parser.parse_args()
    train = params.section("train", TrainParams).model_copy(update={"epochs": words.epochs})
    with tempfile.TemporaryDirectory() as scratch:
        folder, model_folder = Path(scratch) / "dataset", Path(scratch) / "model"
        prepare(Path("samples/digits"), params.section("data", DataParams), folder, before={})
        true = np.load(folder / LABELS_FILE)
        for seed in range(1, words.seeds + 1):
            random = np.random.default_rng(100 + seed)
            wrong = random.random(len(true)) < words.share
            labels = true.copy()
            labels[wrong] = (labels[wrong] + random.integers(1, 10, wrong.sum())) % 10
            np.save(folder / LABELS_FILE, labels)
            dataset = Dataset.load(folder)
            fit(dataset, spec.load("convnet"), train, seed, model_folder)
            model, _ = trained.load(model_folder)
            splits = [slice(*dataset.splits[split]) for split in ("val", "test")]
            held = np.concatenate([np.arange(len(true))[split] for split in splits])
            images = [dataset.images(split) for split in ("val", "test")]
            found = label_errors.find(
                labels[held], np.concatenate([predict_probabilities(model, part, 256) for part in images])
            )
            hits, planted = int(wrong[held][found.rows].sum()), int(wrong[held].sum())
            print(
                f"seed {seed}: accuracy {found.accuracy:.3f}, {planted} planted in {len(held)}, {len(found.rows)} suspected, {hits} of them planted"
            )


if __name__ == "__main__":
    main()
