"""Export the served graph, then prove it: build/model/ + data/ + build/evaluation/ → build/deploy/.

Two commands of one stage: `build` makes the graph under a temporary name; `prove`, in a
process that never imports torch, compares it with what was measured and renames it.
"""

import sys
from pathlib import Path

from convoy.core import contract, files, params, stage
from convoy.core.dataset import MANIFEST_FILE, Dataset
from convoy.energy.meter import metered
from convoy.energy.settings import EnergyParams
from convoy.energy.total import with_total
from convoy.export import image_index
from convoy.export.settings import ExportParams
from convoy.tracking import stages

DATASET = Path("build/dataset")
MODEL = Path("build/model")
OUT = Path("build/deploy")
METRICS = Path("build/metrics")
SPENT = OUT / "energy.json"
"""What `build` used, for `prove` to add to its own."""


def build() -> None:
    """Make the graph, with the identity of the run that exports it in its metadata."""
    from convoy.export.onnx_graph import build as build_graph  # noqa: PLC0415 (torch: `prove` must not import it)

    params.section("export", ExportParams)
    data_hash = Dataset.load(DATASET).hash
    country = params.section("energy", EnergyParams).country
    with stages.continuing("export", data_hash) as run, metered("export", country, gpu=False) as meter:
        build_graph(MODEL, OUT, stages.exported_identity(run, data_hash))
        image_index.write(DATASET / MANIFEST_FILE, OUT / contract.IMAGES)
    meter.hand_over(SPENT)


def prove() -> None:
    """Prove the graph from the delivered files, log it as a model and end the run."""
    from convoy.export.verify import prove as prove_graph  # noqa: PLC0415 (what only this command needs)

    chosen = params.section("export", ExportParams)
    country = params.section("energy", EnergyParams).country
    with stages.finishing("export") as run:
        with metered("export", country, gpu=False) as meter:
            meter.take_over(SPENT)
            metrics = prove_graph(OUT, MODEL, Path("data"), Path("build/evaluation"), chosen)
        metrics |= with_total(METRICS, meter.result())
        files.write_json(METRICS / "export.json", metrics)
        run.log_result(metrics)
        run.set_tags(meter.tags())
        beside = [OUT / name for name in (contract.VERIFICATION, contract.MODEL_CARD, contract.IMAGES)]
        for path in beside[:2]:
            run.log_file(path, "deploy")
        run.log_onnx(OUT / contract.VERIFIED, *beside)


if __name__ == "__main__":
    stage.main({"build": build, "prove": prove}[sys.argv[1]])
