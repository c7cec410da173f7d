"""The `convoy` command: help, what importing it costs, exit codes."""

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import typer
from typer.testing import CliRunner

from convoy import __version__, cli

SLOW = ("torch", "numpy", "pandas", "matplotlib", "mlflow", "dvc", "optuna", "onnxruntime", "PIL", "pydantic")
"""Packages that take longer to import than `convoy --help` may run."""


def python(repository: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=repository,
        env={"PYTHONPATH": str(repository / "src")},
        check=False,
        capture_output=True,
        text=True,
    )


def convoy(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(repository, "from convoy.cli import main; main()", *arguments)


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Walk all commands and subcommands."""
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


def test_the_version_is_printed_and_is_that_of_the_package(repository):
    assert CliRunner().invoke(cli.app, ["--version"]).stdout.strip() == __version__
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project.get("version", __version__) == __version__


@pytest.mark.parametrize("path", list(commands(typer.main.get_command(cli.app))), ids=" ".join)
def test_every_command_has_help(path):
    result = CliRunner().invoke(cli.app, [*path, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"{' '.join(path)} [OPTIONS]" in result.stdout


def test_help_lists_every_command_in_the_order_of_the_work():
    text = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "120", "TERMINAL_WIDTH": "120"}).stdout
    listed = [line.split()[1] for line in text.splitlines() if line.startswith("│ ") and "--" not in line[:8]]
    names = [name for name in listed if name in typer.main.get_command(cli.app).commands]
    assert names == [name for panel in cli.COMMANDS.values() for name in panel]
    titles = [line.split()[1] for line in text.splitlines() if line.startswith("╭─")]
    assert titles == ["Options", *cli.COMMANDS]


def test_help_imports_nothing_slow(repository):
    code = f"import sys, convoy.cli; print([name for name in {SLOW!r} if name in sys.modules])"
    assert python(repository, code).stdout.strip() == "[]"


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """A second checkout, of another version, while this one's environment is active."""
    shutil.copytree(repository / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "src/convoy/__init__.py").write_text('__version__ = "other"\n')
    (tmp_path / ".dvc").mkdir()
    return tmp_path


def test_in_another_checkout_convoy_is_that_checkout_s(repository, checkout):
    command = [sys.executable, "-c", "from convoy.cli import main; main()", "--version"]
    env = {"PYTHONPATH": str(repository / "src")}
    for folder, version in ((checkout, "other"), (repository, __version__), (checkout / ".dvc", __version__)):
        done = subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, text=True)
        assert done.stdout.strip() == version


def test_a_python_that_ignores_the_checkout_s_path_is_refused(checkout):
    code = f"import sys; sys.path.insert(0, {str(Path(cli.__file__).parents[1])!r}); from convoy.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], cwd=checkout, check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert str(checkout / "src") in done.stderr
    assert "make environment" in done.stderr


def test_data_check_prints_json_for_programs(repository):
    result = json.loads(convoy(repository, "data", "check", "samples/digits", "--json").stdout)
    assert result["data"]["images"] == 1797
    assert result["accepted"] is True


def test_an_empty_folder_is_exit_1_without_a_traceback(repository, tmp_path):
    result = convoy(repository, "data", "check", str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.startswith("ERROR: ")
    assert "Traceback" not in result.stderr


def test_a_model_that_does_not_exist_is_exit_2(repository):
    result = convoy(repository, "predict", "samples", "--model", "no.onnx")
    assert result.returncode == 2
    assert "no.onnx" in result.stderr
    assert "Traceback" not in result.stderr


INTERRUPTED = """
import signal, sys
from convoy import cli
from convoy.core import params
def section(*_):
    signal.raise_signal(signal.SIGINT)
params.section = section
sys.argv = ["convoy", "network", "list"]
cli.main()
"""


def test_ctrl_c_ends_a_command_with_a_line_and_130(repository):
    done = python(repository, INTERRUPTED)
    assert (done.returncode, done.stderr) == (130, "\nStopped. Type the command again to run it.\n")


def test_a_fault_of_the_system_is_a_message(monkeypatch, capsys):
    monkeypatch.setattr(cli, "app", Mock(side_effect=PermissionError(13, "Permission denied", "sweeps")))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert "ERROR: sweeps cannot be read or written by this user" in capsys.readouterr().err
