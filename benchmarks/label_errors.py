"""Plant wrong labels in the sample digits, train on them, and count which ones the evaluation suspects: docs/training.md.

Run in the repository's root:
    python benchmarks/label_errors.py --share 0.05
    python benchmarks/label_errors.py --share 0.05 --weak       of a logistic regression on digits with noise, 3 seeds
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from convoy.core import params
from convoy.core.dataset import LABELS_FILE, Dataset
from convoy.data.prepare import prepare
from convoy.data.settings import DataParams
from convoy.evaluation import label_errors
from convoy.evaluation.evaluate import softmax
from convoy.models import spec, trained
from convoy.models.trained import predict_logits
from convoy.training.fit import fit
from convoy.training.settings import TrainParams


def main() -> None:
    """Print what was planted, suspected and found, per seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.05, help="share of all labels that is replaced")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--weak", action="store_true", help="how the share of true suspects falls with accuracy"
    )
    words = parser.parse_args()
    if words.weak:
        weaken(words.share)
        return
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
                labels[held], softmax(np.concatenate([predict_logits(model, part, 256) for part in images]))
            )
            hits, planted = int(wrong[held][found.rows].sum()), int(wrong[held].sum())
            print(
                f"seed {seed}: accuracy {found.accuracy:.3f}, {planted} planted in {len(held)}, {len(found.rows)} suspected, {hits} of them planted"
            )


def weaken(share: float) -> None:
    """Print accuracy and the share of true suspects of a logistic regression, the noise on its images growing."""
    images, true = load_digits(return_X_y=True)
    for noise in (0.0, 0.2, 0.4, 0.6, 0.8, 1.2):
        accuracy, hits, suspected = 0.0, 0, 0
        for seed in (1, 2, 3):
            random = np.random.default_rng(seed)
            noisy = images / 16 + noise * random.standard_normal(images.shape)
            labels, wrong = true.copy(), random.random(len(true)) < share
            labels[wrong] = (labels[wrong] + random.integers(1, 10, wrong.sum())) % 10
            order = random.permutation(len(true))
            learnt, held = order[:1168], order[1168:]
            model = LogisticRegression(C=0.3, max_iter=300).fit(noisy[learnt], labels[learnt])
            found = label_errors.find(labels[held], model.predict_proba(noisy[held]).astype(np.float32))
            accuracy += found.accuracy / 3
            hits, suspected = hits + int(wrong[held][found.rows].sum()), suspected + len(found.rows)
        print(
            f"noise {noise}: accuracy {accuracy:.2f}, {suspected} suspected, {hits / suspected:.0%} of them planted"
        )


if __name__ == "__main__":
    main()
