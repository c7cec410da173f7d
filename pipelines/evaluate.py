"""Measure the trained network on the test split: build/dataset/ + build/model/ → build/evaluation/."""

from pathlib import Path

from convoy import files, params, stage
from convoy.data.dataset import Dataset
from convoy.evaluation.evaluate import evaluate
from convoy.evaluation.settings import EvaluateParams
from convoy.tracking import stages

DATASET = Path("build/dataset")
OUT = Path("build/evaluation")


def main() -> None:
    """Run the stage."""
    chosen = params.section("evaluate", EvaluateParams)
    with stages.continuing("evaluate", Dataset.load(DATASET).hash) as run:
        metrics = evaluate(DATASET, Path("build/model"), chosen, OUT)
        files.write_json(Path("build/metrics/evaluate.json"), metrics)
        run.log_result(metrics)
        run.log_file(OUT, "evaluation")


if __name__ == "__main__":
    stage.main(main)
