"""Train the network that params.yaml names: build/dataset/ + networks/NAME.yaml → build/model/."""

from pathlib import Path

from convoy import files, params, stage
from convoy.data.dataset import Dataset
from convoy.networks import spec
from convoy.networks.settings import NetworkParams
from convoy.tracking import stages
from convoy.training.curves import draw
from convoy.training.fit import fit
from convoy.training.reporting import EpochReport
from convoy.training.settings import TrainParams

DATASET = Path("build/dataset")
OUT = Path("build/model")


def main() -> None:
    """Run the stage."""
    seed = params.value("seed", params.Seed)
    train = params.section("train", TrainParams)
    network = spec.load(params.section("network", NetworkParams).name)
    dataset = Dataset.load(DATASET)
    inputs = {
        "data": dataset.hash,
        "network": network.model_dump(),
        "train": train.model_dump(),
        "seed": seed,
    }
    checkpoints = stage.repository() / "checkpoints" / params.digest(inputs)[:16]
    with stages.training(dataset.hash) as run:
        run.log_dataset(dataset.hash, DATASET)
        run.log_file(params.PARAMS_FILE, "pipeline")
        run.log_file(Path("dvc.yaml"), "pipeline")
        with run.system_metrics():
            metrics = fit(dataset, network, train, seed, OUT, checkpoints, [EpochReport(run.log_metrics)])
        files.write_json(Path("build/metrics/train.json"), metrics)
        run.log_result(metrics)
        run.log_file(draw(OUT / "history.csv", Path("build/plots/curves.png")))


if __name__ == "__main__":
    stage.main(main)
