"""Train the network that params.yaml names: build/dataset/ + networks/NAME.yaml (+ weights/) → build/model/."""

from pathlib import Path

from convoy import files, params, stage
from convoy.data.dataset import Dataset
from convoy.networks import saved, spec
from convoy.networks.settings import NetworkParams
from convoy.networks.table import picture
from convoy.networks.weights import starting
from convoy.tracking import stages
from convoy.training.curves import draw
from convoy.training.fit import TRANSFER, fit
from convoy.training.reporting import EpochReport
from convoy.training.settings import TrainParams

DATASET = Path("build/dataset")
OUT = Path("build/model")
PLOTS = Path("build/plots")
PICTURE = PLOTS / "network.png"


def main() -> None:
    """Run the stage."""
    seed = params.value("seed", params.Seed)
    train = params.section("train", TrainParams)
    chosen = params.section("network", NetworkParams)
    network = spec.load(chosen.name)
    weights = starting.read(chosen.weights, network)
    dataset = Dataset.load(DATASET)
    inputs = {
        "data": dataset.hash,
        "network": network.model_dump(),
        "weights": weights.sha256 if weights else None,
        "train": train.model_dump(),
        "seed": seed,
    }
    checkpoints = stage.repository() / "checkpoints" / params.digest(inputs)[:16]
    with stages.training(dataset.hash) as run:
        run.log_dataset(dataset.hash, DATASET)
        run.log_file(params.PARAMS_FILE, "pipeline")
        run.log_file(Path("dvc.yaml"), "pipeline")
        picture.draw(network, len(dataset.classes), dataset.image_px, PICTURE)
        with run.system_metrics():
            report = [EpochReport(run.log_metrics)]
            metrics = fit(dataset, network, train, seed, OUT, checkpoints, report, starting=weights)
        files.write_json(Path("build/metrics/train.json"), metrics)
        run.log_result(metrics)
        run.log_file(draw(OUT / "history.csv", PLOTS / "curves.png"))
        run.log_file(PICTURE)
        for name in (saved.WEIGHTS, saved.FACTS):
            run.log_file(OUT / name, "weights")
        if weights:
            run.log_file(OUT / TRANSFER)


if __name__ == "__main__":
    stage.main(main)
