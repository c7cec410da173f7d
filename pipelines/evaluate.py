"""Measure the trained network on the test split: build/dataset/ + build/model/ → build/evaluation/."""

from convoy.core import stage

stage.stop_quietly()

from pathlib import Path

from convoy.core import files, params
from convoy.core.dataset import Dataset
from convoy.energy.meter import metered
from convoy.energy.settings import EnergyParams
from convoy.evaluation.evaluate import evaluate
from convoy.evaluation.settings import EvaluateParams
from convoy.repo import dvc_locks, imported
from convoy.tracking import stages

DATASET = Path("build/dataset")
OUT = Path("build/evaluation")


def main() -> None:
    """Run the stage."""
    imported.correct(Path())
    chosen = params.section("evaluate", EvaluateParams)
    country = params.section("energy", EnergyParams).country
    with stages.continuing("evaluate", Dataset.load(DATASET).hash) as run:
        with metered("evaluate", country) as meter:
            metrics = evaluate(DATASET, Path("build/model"), chosen, OUT)
        metrics |= meter.result()
        files.write_json(Path("build/metrics/evaluate.json"), metrics)
        run.log_result(metrics)
        run.set_tags(meter.tags())
        run.log_file(OUT, "evaluation")


if __name__ == "__main__":
    stage.main(main, "evaluate", dvc_locks.experiments_refused())
