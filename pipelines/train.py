"""Train the network that params.yaml names: build/dataset/ + networks/NAME.yaml (+ weights/) → build/model/.

However a training was stopped, it resumes from its last checkpoint, in the same run.
"""

from convoy.core import stage

stage.stop_quietly()

import time
from pathlib import Path

from convoy.core import console, files, params
from convoy.core.contract import AUGMENTATION, FACTS, TEACHER, THREADS, WEIGHTS
from convoy.core.dataset import Dataset
from convoy.energy.settings import EnergyParams
from convoy.models import spec
from convoy.repo import dvc_locks, imported
from convoy.tracking import stages
from convoy.tracking.settings import TrackingParams
from convoy.training.settings import CheckpointParams, NetworkParams, TrainParams

STARTED = time.monotonic()
DATASET = Path("build/dataset")
OUT = Path("build/model")
PLOTS = Path("build/plots")
REFERENCE = stages.RUNS / "train.json"


def main() -> None:
    """Run the stage."""
    imported.correct(Path())
    seed = params.seed()
    train = params.section("train", TrainParams)
    network = params.section("network", NetworkParams)
    checkpoints = params.section("checkpoints", CheckpointParams)
    tracking = params.section("tracking", TrackingParams)
    energy = params.section("energy", EnergyParams)
    network_spec = spec.load(network.name)
    stages.start_uploader()  # the uploader starts while the next lines import torch
    with console.slow("importing torch and Lightning"):
        from convoy.energy.callback import TrainingEnergy
        from convoy.energy.meter import metered
        from convoy.explain import augmentation, diagram, figures
        from convoy.explain.table import tabulate
        from convoy.training import pretrained, teacher, threads
        from convoy.training.augment import policy
        from convoy.training.checkpoints import CheckpointStore, Resumable, inputs_digest
        from convoy.training.fit import HISTORY, TRANSFER, check, fit

    with console.slow("opening dataset and starting weights"):
        starting = pretrained.load(network.weights, network_spec)
        dataset = Dataset.load(DATASET)
        check(dataset, network_spec, train)  # before a run is opened
        layers = tabulate(network_spec, len(dataset.classes), dataset.image_px)
        taught_by = teacher.load(train.teacher, dataset.classes)
        inputs = inputs_digest(dataset, network_spec, starting, train, seed, teacher=taught_by)
    store = CheckpointStore(stage.repository() / "checkpoints", inputs, checkpoints)
    with store.exclusive():
        with console.slow("looking for checkpoints"):
            checkpoint = store.resume(REFERENCE)
        with stages.training(dataset.hash, checkpoint.facts.run_id if checkpoint else None) as run:
            run.log_dataset(dataset.hash, DATASET)
            with console.slow("drawing the network and augmented images"):
                pictures = [
                    diagram.draw(layers, PLOTS / "network.png"),
                    augmentation.draw(dataset, train, seed, PLOTS / "augmentation.png"),
                ]
            watch = threads.ThreadWatch(threads.choose(checkpoint.facts.threads if checkpoint else None))
            run.set_tags(
                {AUGMENTATION: policy.described(train.augment), THREADS: watch.line()}
                | ({TEACHER: str(taught_by)} if taught_by else {})
            )
            store.begin(run_id := run.reference.run_id)
            resumable = Resumable(store, checkpoint, run_id, run.log_points, tracking.step_interval, STARTED)
            with metered("train", energy.country) as meter, run.system_metrics():
                metrics = fit(
                    dataset,
                    network_spec,
                    train,
                    seed,
                    OUT,
                    callbacks=[TrainingEnergy(meter), watch],
                    starting=starting,
                    teacher=taught_by,
                    resumable=resumable,
                )
            metrics |= meter.result()
            run.set_tags(meter.tags() | {THREADS: watch.line()})
            files.write_json(Path("build/metrics/train.json"), metrics)
            run.log_result(metrics)
            for picture in (figures.draw_curves(OUT / HISTORY, PLOTS / "curves.png"), *pictures):
                run.log_file(picture)
            run.log_file(OUT / WEIGHTS, "weights")
            run.log_file(OUT / FACTS, "weights")
            if starting:
                run.log_file(OUT / TRANSFER)
        store.record_result(REFERENCE)


if __name__ == "__main__":
    stage.main(main, "train", dvc_locks.experiments_refused())
