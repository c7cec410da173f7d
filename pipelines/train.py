"""Train the network that params.yaml names: build/dataset/ + networks/NAME.yaml (+ weights/) → build/model/.

A training that was stopped, however, goes on from its last checkpoint, in the same run.
"""

import time
from pathlib import Path

from convoy.core import files, params, stage
from convoy.core.dataset import Dataset
from convoy.energy.settings import EnergyParams
from convoy.models import spec
from convoy.tracking import stages
from convoy.tracking.settings import TrackingParams
from convoy.training.network_settings import NetworkParams
from convoy.training.settings import CheckpointParams, TrainParams

STARTED = time.monotonic()
DATASET = Path("build/dataset")
OUT = Path("build/model")
PLOTS = Path("build/plots")
PICTURE = PLOTS / "network.png"
REFERENCE = stages.RUNS / "train.json"


def main() -> None:
    """Run the stage."""
    seed = params.seed()
    train = params.section("train", TrainParams)
    chosen = params.section("network", NetworkParams)
    tracking = params.section("tracking", TrackingParams)
    energy = params.section("energy", EnergyParams)
    network = spec.load(chosen.name)
    stages.expect()
    from convoy.energy.callback import TrainingEnergy
    from convoy.energy.meter import metered
    from convoy.explain import diagram
    from convoy.explain.curves import draw
    from convoy.models import trained
    from convoy.training import inputs, pretrained
    from convoy.training.checkpoints import CheckpointStore
    from convoy.training.fit import TRANSFER, fit
    from convoy.training.resume import Resumable

    weights = pretrained.read(chosen.weights, network)
    dataset = Dataset.load(DATASET)
    given = inputs.digest(dataset, network, weights, train, seed)
    kept = CheckpointStore(
        stage.repository() / "checkpoints", given, params.section("checkpoints", CheckpointParams)
    )
    with kept.alone():
        if kept.is_recorded(REFERENCE):
            kept.clear()
        kept.prune()
        found = kept.newest()
        with stages.training(dataset.hash, found.note.run_id if found else None) as run:
            run.log_dataset(dataset.hash, DATASET)
            diagram.draw(network, len(dataset.classes), dataset.image_px, PICTURE)
            resumable = Resumable(
                kept=kept,
                found=found,
                run_id=run.reference.run_id,
                publish=run.log_points,
                step_interval=tracking.step_interval,
                started=STARTED,
            )
            with metered("train", energy.country) as meter, run.system_metrics():
                watch = [TrainingEnergy(meter)]
                metrics = fit(
                    dataset, network, train, seed, OUT, callbacks=watch, starting=weights, resumable=resumable
                )
            metrics |= meter.result()
            run.set_tags(meter.tags())
            files.write_json(Path("build/metrics/train.json"), metrics)
            run.log_result(metrics)
            run.log_file(draw(OUT / "history.csv", PLOTS / "curves.png"))
            run.log_file(PICTURE)
            for name in (trained.WEIGHTS, trained.FACTS):
                run.log_file(OUT / name, "weights")
            if weights:
                run.log_file(OUT / TRANSFER)
        kept.note_result(REFERENCE)


if __name__ == "__main__":
    stage.main(main)
