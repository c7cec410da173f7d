"""Export the served graph, then verify it: build/model/ + data/ + build/evaluation/ → build/deploy/.

Two commands of one stage: `build` makes the graph under a temporary name; `verify`, in a
process that never imports torch, compares it with what was measured and renames it.
"""

from convoy.core import stage

stage.stop_quietly()

import shutil
import sys
from pathlib import Path

from convoy.core import contract, files, params
from convoy.core.dataset import MANIFEST_FILE, Dataset
from convoy.core.inputs import watch
from convoy.energy.meter import metered, with_total
from convoy.energy.settings import EnergyParams
from convoy.export import image_index, signing
from convoy.export.settings import ExportParams
from convoy.repo import dvc_locks, imported
from convoy.tracking import stages

DATASET = Path("build/dataset")
MODEL = Path("build/model")
EVALUATION = Path("build/evaluation")
OUT = Path("build/deploy")
METRICS = Path("build/metrics")
BUILD_ENERGY = OUT / "energy.json"
"""The energy that `build` used, to which `verify` adds its own."""
BUILD_INPUTS = OUT / "inputs.json"
"""The inputs that `build` read, which must be those of `verify`."""


def build() -> None:
    """Make the graph, with the identity of the run that exports it, and time the model that it is made from."""
    imported.correct(Path())
    from convoy.export import latency, onnx_graph  # noqa: PLC0415 (torch: `verify` must not import it)

    limits = params.section("export", ExportParams)
    signing.private_key(limits.sign)  # before the work
    data_hash = Dataset.load(DATASET).hash
    country = params.section("energy", EnergyParams).country
    with stages.continuing("export", data_hash) as run, metered("export", country, gpu=False) as meter:
        onnx_graph.build(MODEL, OUT, stages.exported_identity(run, data_hash))
        image_index.write(DATASET / MANIFEST_FILE, OUT / contract.IMAGES)
        shutil.copyfile(DATASET / contract.BASELINE, OUT / contract.BASELINE)
        latency.measure_eager(MODEL, OUT, limits.latency_runs)
    meter.hand_over(BUILD_ENERGY)
    watch.hand_over(BUILD_INPUTS)


def verify() -> None:
    """Verify the graph from the delivered files, log it as a model and end the run."""
    from convoy.export import card, verify  # noqa: PLC0415 (only this command needs them)

    limits = params.section("export", ExportParams)
    key = signing.private_key(limits.sign)
    country = params.section("energy", EnergyParams).country
    with stages.finishing("export") as run:
        with metered("export", country, gpu=False) as meter:
            meter.take_over(BUILD_ENERGY)
            metrics = verify.verify(OUT, Path("data"), DATASET, EVALUATION, limits)
        metrics |= with_total(METRICS, meter.result())
        files.write_json(METRICS / "export.json", metrics)
        run.log_result(metrics)
        run.set_tags(meter.tags())
        card.write(OUT, EVALUATION, limits, metrics.get("energy"))  # again, with the energy
        if key:
            signing.sign(OUT, key)
        for name in (contract.VERIFICATION, contract.MODEL_CARD):
            run.log_file(OUT / name, "deploy")
        beside = [OUT / name for name in contract.BESIDE if (OUT / name).exists()]
        run.log_onnx(OUT / contract.VERIFIED, *beside)


if __name__ == "__main__":
    if sys.argv[1] == "build":
        stage.main(build, "export", dvc_locks.experiments_refused(keep=True))
    stage.main(verify, "export", dvc_locks.experiments_refused(), BUILD_INPUTS)
