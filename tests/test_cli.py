"""The `convoy` command: what it prints, and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from convoy import __version__


def convoy(repository: Path, *words: str) -> subprocess.CompletedProcess[str]:
    code = "from convoy.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=repository,
        env={"PYTHONPATH": str(repository / "src"), "COLUMNS": "120"},
        check=False,
        capture_output=True,
        text=True,
    )


def test_the_version_is_printed(repository: Path) -> None:
    assert convoy(repository, "--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("data",),
        ("data", "use"),
        ("data", "check"),
        ("network",),
        ("network", "list"),
        ("network", "show"),
        ("weights",),
        ("weights", "use"),
        ("explain",),
        ("explain", "convolution"),
        ("explain", "features"),
        ("explain", "position"),
        ("predict",),
        ("sweep",),
        ("sync",),
    ],
)
def test_help_teaches(repository: Path, words: tuple[str, ...]) -> None:
    done = convoy(repository, *words, "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout


def test_data_check_prints_json_for_programs(repository: Path) -> None:
    done = convoy(repository, "data", "check", "samples/digits", "--json")
    found = json.loads(done.stdout)
    assert found["data"]["images"] == 1797
    assert found["accepted"] is True


def test_data_check_of_nothing_is_exit_1_without_a_traceback(repository: Path, tmp_path: Path) -> None:
    done = convoy(repository, "data", "check", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("ERROR: ")
    assert "Traceback" not in done.stderr


def test_a_model_that_does_not_exist_is_exit_2(repository: Path) -> None:
    done = convoy(repository, "predict", "no.onnx", "samples")
    assert done.returncode == 2
    assert "no.onnx" in done.stderr
    assert "Traceback" not in done.stderr
