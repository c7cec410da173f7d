"""Run the DAG and print the results. Called by `make repro` and `mlflow run .`.

    python pipelines/repro.py [--until STAGE] [--force] [--pull] [--train.epochs 3 …]

With values it runs a DVC experiment (`dvc exp run -S`), otherwise `dvc repro`. `--force` and `--pull` are DVC's: run
unchanged stages too; fetch outputs of other machines from the DVC remote.
"""

from convoy.core import stage

stage.stop_quietly()

import os
import sys
from contextlib import nullcontext
from pathlib import Path

from convoy import preflight
from convoy.core.console import info, table
from convoy.core.errors import ConvoyError, RequestError
from convoy.core.files import read_json
from convoy.energy.meter import format_energy
from convoy.repo import dvc, dvc_locks, imported, packing, reproduce
from convoy.repo.locks import AlreadyRunning
from convoy.tracking import outbox
from convoy.tracking.journal import state

DVC_FLAGS = ("--force", "--pull")
METRICS = Path("build/metrics")


class PipelineError(ConvoyError):
    """DVC failed; DVC and its stage have printed the reason."""


def main() -> None:
    """Check first, run DVC, complete the tracking, print the summary."""
    words = sys.argv[1:]
    target = []
    if "--until" in words:
        at = words.index("--until")
        target = words[at + 1 : at + 2]
        del words[at : at + 2]
        if target not in (["prepare"], ["train"], ["evaluate"], ["export"]):
            raise RequestError(
                f"--until takes prepare, train, evaluate or export, not {' '.join(target) or 'nothing'}"
            )
    flags = [word for word in words if word in DVC_FLAGS]
    overrides = preflight.parse([word for word in words if word not in DVC_FLAGS])
    preflight.check(overrides)
    dvc.check_git(Path.cwd())
    settings = [part for key, value in overrides.items() for part in ("-S", f"{key}={value}")]
    where = outbox.folder()
    outbox.prepare_store(where)
    dvc_locks.repair(Path.cwd())
    imported.correct(Path.cwd())
    for line in packing.refresh(Path.cwd()):
        info(line)
    command = [*(["exp", "run", *settings] if overrides else ["repro"]), *flags]
    # Stage commands are `python …`: it must be the Python that runs this script.
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ |= {**dvc.environment(Path.cwd()), "PATH": search}
    try:
        # DVC itself refuses a second `dvc exp run`.
        with nullcontext() if overrides else dvc_locks.experiments_refused(alone=True):
            failed = reproduce.run([*command, *target])
    except AlreadyRunning as error:
        raise PipelineError(f"another process runs the pipeline in this folder: {error}") from error
    if failed:
        # In a CI job nothing is uploaded after this process has ended. Who typed Ctrl-C need not wait: the uploader goes on.
        left = ("", "KILLED") if sys.stdout.isatty() else ("",)
        ended = [path.name for path in outbox.journals(where) if state(path).ended not in left]
        outbox.warn_once(outbox.wait_until_uploaded(ended, where, outbox.WAIT_SECONDS), where)
        raise PipelineError(
            f"`dvc {' '.join([*command, *target])}` failed; the reason is in the output above."
        )
    if target and os.environ.get("MLFLOW_RUN_ID"):
        # `mlflow run` ends the run when this process has ended; an uploader that joins it at that moment
        # would set it back to RUNNING (`MlflowClient.update_run` reads the status and writes it again).
        joined = [path.name for path in outbox.journals(where) if not state(path).ended]
        outbox.warn_once(outbox.wait_until_uploaded(joined, where, outbox.WAIT_SECONDS), where)
    if not target:
        from convoy.tracking.sync import sync  # noqa: PLC0415 (a second saved where DVC fails first)

        outbox.warn_once(sync(outbox.WAIT_SECONDS, gone=outbox.writer()).failed, where)
        print(f"\n{summary()}")


def summary() -> str:
    """Format accuracy, label flips and latency of the served graph, the energy used, and where the results are."""
    evaluated, exported = (read_json(METRICS / f"{name}.json") for name in ("evaluate", "export"))
    deploy, energy = exported["deploy"], exported.get("energy", {})
    if "test" in evaluated:
        measured, accuracy, images = evaluated["test"], deploy["accuracy"], "test images"
    else:
        measured, accuracy = evaluated["measured_on_val"], deploy["accuracy_on_val"]
        images = "validation images (there are no test images: too good)"
    lines = {
        "served accuracy": f"{accuracy:.2%} of {measured['images']:,} {images}, 95 % interval "
        f"{measured['accuracy_low']:.2%} to {measured['accuracy_high']:.2%}",
        "verification": f"{deploy['label_flips']} label flips, "
        f"largest probability gap {deploy['max_probability_gap']:.1e}",
        "latency": f"{deploy['latency_ms_p50']:.2f} ms (p95 {deploy['latency_ms_p95']:.2f}), "
        f"eager torch {deploy['eager_latency_ms_p50']:.2f}",
        "energy": f"{format_energy(energy['kwh'], energy['co2_kg'])} ({energy['how']})"
        if "kwh" in energy
        else "not metered",
        "report": "build/evaluation/report.html",
        "model": "build/deploy/model.onnx (model_card.md beside it)",
        "compare runs": "make ui",
    }
    return table(["", ""], lines.items())


if __name__ == "__main__":
    stage.main(main)
