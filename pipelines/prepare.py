"""Check, split and pack what was delivered: data/ → build/dataset/."""

from convoy.core import stage

stage.stop_quietly()

from pathlib import Path

from convoy.core import files, params
from convoy.data.prepare import prepare
from convoy.data.settings import DataParams
from convoy.energy.meter import metered
from convoy.energy.settings import EnergyParams
from convoy.repo import dvc_locks, imported, recorded


def main() -> None:
    """Run the stage."""
    imported.correct(Path())
    country = params.section("energy", EnergyParams).country
    with metered("prepare", country, gpu=False) as meter:
        data = params.section("data", DataParams)
        metrics = prepare(Path("data"), data, Path("build/dataset"), before=recorded.dataset())
    files.write_json(Path("build/metrics/prepare.json"), metrics | meter.result())


if __name__ == "__main__":
    stage.main(main, "prepare", dvc_locks.experiments_refused())
