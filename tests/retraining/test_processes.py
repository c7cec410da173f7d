"""Programs that a round starts pass their lines on, and end when the round is stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from convoy.retraining import processes
from convoy.retraining.processes import RoundError

STAGE = """\
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("saved", flush=True)))
print("training", flush=True)
time.sleep(60)
"""

WAITS = """\
import subprocess, sys
sys.exit(subprocess.run([sys.executable, "pipelines/train.py"]).returncode)
"""

ROUND = """\
import os, signal, sys
from pathlib import Path
from convoy.retraining import processes
def stop(*_): raise processes.Stopped
signal.signal(signal.SIGTERM, stop)
try:
    processes.stream([sys.executable, "waits.py"], Path.cwd(), os.environ)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def test_lines_go_through_and_the_last_are_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = "import sys; [print(n) for n in range(100)]; print('https://me:secret@host', file=sys.stderr)"
    output = processes.stream([sys.executable, "-c", code], tmp_path, os.environ)
    assert capfd.readouterr().out.startswith("0\n1\n2\n")
    lines = output.splitlines()
    assert (len(lines), lines[0], lines[-1]) == (processes.TAIL, "61", "https://me:***@host")


def test_a_program_that_fails_is_named_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(RoundError, match=r"`-c` ended with exit code 3") as caught:
        processes.stream([sys.executable, "-c", "print('why'); raise SystemExit(3)"], tmp_path, os.environ)
    assert caught.value.log == "why\n"


def test_sigterm_to_a_round_alone_lets_its_stages_save_and_leaves_nothing_running(tmp_path: Path) -> None:
    (tmp_path / "pipelines").mkdir()
    for name, text in {"pipelines/train.py": STAGE, "waits.py": WAITS, "round.py": ROUND}.items():
        (tmp_path / name).write_text(text)
    process = subprocess.Popen(
        [sys.executable, "round.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "training\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "saved\nstopped\n"
    until = time.monotonic() + 10
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < until
        time.sleep(0.05)
