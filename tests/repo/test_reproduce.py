"""`repo/reproduce.py` prints Convoy's lines about stages; errors, terminals and Ctrl-C are as with `dvc repro`."""

import os
import pty
import re
import runpy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from convoy import preflight
from convoy.core import files, stage
from convoy.repo import dvc, dvc_locks
from convoy.repo import reproduce as run_dvc
from convoy.tracking import outbox

COMMAND = [
    *(sys.executable, "-c"),
    "import sys; from convoy.repo import reproduce; sys.exit(reproduce.run(sys.argv[1:]))",
    "repro",
]


def without_times(text: str) -> list[str]:
    return [re.sub(r"\d+\.\d s$", "… s", line) for line in text.splitlines() if line]


def reproduce(folder: Path, code: int = 0) -> tuple[list[str], str]:
    """Run the pipeline without a terminal: lines of standard output, and standard error."""
    done = subprocess.run(COMMAND, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return without_times(done.stdout), done.stderr


def on_terminal(folder: Path, key: str = "") -> tuple[int, str]:
    """Run the pipeline on a terminal and type `key` once a stage prints `ready`: exit code and output."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execv(COMMAND[0], COMMAND)  # noqa: S606 (no shell)
    output = b""
    try:
        while part := os.read(terminal, 4096):
            output += part
            if key and b"ready" in output:
                os.write(terminal, key.encode())
                key = ""
    except OSError:  # Linux: the other end is closed
        pass
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), output.decode()


def test_stages_are_listed_with_what_happened_to_them_and_how_long_it_took(small):
    lines, _ = reproduce(small.folder)
    stages = ["data", "prepare", "train", "evaluate"]
    assert lines == [f"[{stage}] up to date" for stage in stages]
    small.edit("params.yaml", "lr: 0.5", "lr: 0.25")
    small.edit("train.sh", "mkdir", "echo 'epoch 1/1'; mkdir")
    small.edit("dvc.yaml", "    cmd: sh train.sh", "    desc: Train the network\n    cmd: sh train.sh")
    lines, errors = reproduce(small.folder)
    assert lines[:5] == [
        *("[data] up to date", "[prepare] up to date"),
        *("[train] Train the network", "epoch 1/1", "[train] … s"),
    ]
    assert not errors
    small.edit("params.yaml", "lr: 0.25", "lr: 0.5")
    small.edit("train.sh", "echo 'epoch 1/1'; mkdir", "mkdir")
    lines, _ = reproduce(small.folder)
    assert lines[2].startswith("[train] Ran with these inputs before")
    small.remove("data.dvc")
    small.write("data.dvc", small.git("show", "HEAD:data.dvc") + "\n")
    small.write("source/a.txt", "new\n")
    lines, _ = reproduce(small.folder)
    assert lines[:2] == ["[data] Import source", "[data] … s"]


def test_a_stage_that_fails_has_dvc_s_error_and_exit_code(small):
    small.write("train.sh", "echo 'reason of the stage' >&2; exit 3\n")
    lines, errors = reproduce(small.folder, code=255)
    assert lines[-1] == "[train] failed after … s"
    assert "reason of the stage" in errors
    assert "failed to reproduce 'train': failed to run: sh train.sh, exited with 3" in errors
    small.write("build/model/other", "a file that the lock does not have\n")
    small.edit("dvc.yaml", "params: [net, fit]", "params: [net, fitt]")
    _, errors = reproduce(small.folder, code=255)
    assert "fitt" in errors


def test_a_stage_has_the_terminal_and_gets_ctrl_c(small):
    # Not a shell's `trap`: dash runs it after a `sleep` that began just after the signal had arrived.
    program = """import sys, time
try:
    print("a terminal" if sys.stdout.isatty() else "a pipe", "ready", sep="\\n", flush=True)
    time.sleep(300)
except KeyboardInterrupt:
    sys.exit("saved")
"""
    small.write("stage.py", program)
    small.write("train.sh", f"exec {sys.executable} stage.py\n")
    code, output = on_terminal(small.folder, key="\x03")
    assert code == 255
    assert "a terminal" in output
    assert "saved" in output, "the stage ended by itself"
    assert "[train] failed after" in output


@pytest.mark.parametrize(("terminal", "waited"), [(True, ["failed"]), (False, ["failed", "KILLED"])])
def test_only_a_job_waits_for_the_upload_of_a_run_that_was_stopped(repository, monkeypatch, terminal, waited):
    monkeypatch.setattr(stage, "stop_quietly", lambda: None)
    monkeypatch.setattr(preflight, "check", lambda _: None)
    monkeypatch.setattr(dvc, "environment", lambda _: {})
    monkeypatch.setattr(dvc_locks, "experiments_refused", lambda **_: nullcontext())
    monkeypatch.setattr(dvc_locks, "repair", lambda _: None)
    monkeypatch.setattr(run_dvc, "run", lambda _: 255)
    monkeypatch.setattr(outbox, "prepare_store", lambda _: None)
    monkeypatch.setattr(outbox, "journals", lambda _: [Path("failed"), Path("KILLED"), Path("open")])
    asked: list[str] = []
    monkeypatch.setattr(outbox, "wait_until_uploaded", lambda runs, *_: asked.extend(runs) or {})
    monkeypatch.setattr(sys, "argv", ["repro.py"])
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    script = runpy.run_path(str(repository / "pipelines/repro.py"))
    script["main"].__globals__["state"] = lambda path: SimpleNamespace(ended=path.name.replace("open", ""))
    with pytest.raises(script["PipelineError"]):
        script["main"]()
    assert asked == waited


@pytest.mark.parametrize(
    ("split", "accuracy", "expected"),
    [
        ("test", "accuracy", "90.00% of 369 test images, 95 % interval 85.00% to 94.00%"),
        ("measured_on_val", "accuracy_on_val", "90.00% of 369 validation images (there are no test images"),
    ],
)
def test_the_summary_states_on_which_images_the_accuracy_was_measured(
    repository, tmp_path, monkeypatch, split, accuracy, expected
):
    script = runpy.run_path(str(repository / "pipelines/repro.py"))
    deploy = {"label_flips": 0, "max_probability_gap": 1e-7, accuracy: 0.9}
    deploy |= dict.fromkeys(("latency_ms_p50", "latency_ms_p95", "eager_latency_ms_p50"), 1.0)
    measured = {"images": 369, "accuracy": 0.9, "accuracy_low": 0.85, "accuracy_high": 0.94}
    monkeypatch.chdir(tmp_path)
    files.write_json(script["METRICS"] / "evaluate.json", {split: measured})
    files.write_json(script["METRICS"] / "export.json", {"deploy": deploy})
    assert expected in script["summary"]()
