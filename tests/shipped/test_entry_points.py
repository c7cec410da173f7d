"""dvc.yaml, pipelines, MLproject, Makefile and the workflows agree with each other."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from convoy.core import yaml
from watched import CACHES


def entry_points(repository: Path) -> dict[str, dict[str, object]]:
    return yaml.load((repository / "MLproject").read_text())["entry_points"]


def targets(repository: Path) -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*##", (repository / "Makefile").read_text(), re.MULTILINE))


def test_the_dag_is_prepare_train_evaluate_export(repository):
    stages = yaml.load((repository / "dvc.yaml").read_text())["stages"]
    assert list(stages) == ["prepare", "train", "evaluate", "export"]
    assert {path.stem for path in (repository / "pipelines").glob("*.py")} == {*stages, "repro", "retrain"}


def test_mlproject_runs_the_stages_and_declares_no_value(repository):
    stages = set(yaml.load((repository / "dvc.yaml").read_text())["stages"])
    for name, entry in entry_points(repository).items():
        words = shlex.split(str(entry["command"]))
        script = "retrain" if name == "retrain" else "repro"
        assert words[:3] == ["PYTHONPATH=src", "python", f"pipelines/{script}.py"]
        assert "parameters" not in entry, "params.yaml is where values stand"
        until = ["--until", name] if name in stages else []
        assert name in {"main", "retrain", *stages}
        assert words[3:] == until


def test_the_environment_of_mlflow_run_is_the_lock(repository):
    project = yaml.load((repository / "MLproject").read_text())
    environment = yaml.load((repository / project["python_env"]).read_text())
    assert environment["dependencies"] == ["-r requirements.txt"]


def locked(repository: Path) -> dict[str, str]:
    """Map each package of the lock to its lines: exact version, marker, hashes."""
    text = (repository / "requirements.txt").read_text().replace("\\\n", "")
    entries = [line for line in text.splitlines() if line.strip()]
    return {re.split(r"==|\[", line)[0]: line for line in entries}


def test_the_lock_is_exact_universal_and_hashed_and_names_no_index(repository):
    packages = locked(repository)
    assert len(packages) > 100
    for line in packages.values():
        assert re.match(
            r"^[a-z0-9._\[\]-]+==[^ ]+( ; [^#]+?)?(\s+--hash=sha256:[0-9a-f]{64})+$", line, re.IGNORECASE
        ), line[:80]
    assert packages["torch"].startswith("torch==2.14.1 ")
    assert packages["torchvision"].startswith("torchvision==0.29.1 ")
    assert any("sys_platform == 'linux'" in line for line in packages.values()), "platform markers"
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        assert re.split(r"[<>=!\[]", requirement)[0] in packages, f"{requirement} is not in the lock"
    assert "--require-hashes -r requirements.txt" in (repository / "Makefile").read_text()


def test_releases_known_to_be_malicious_are_excluded(repository):
    project = (repository / "pyproject.toml").read_text()
    assert "pytorch-lightning>=2.6,!=2.6.2,!=2.6.3," in project
    packages = locked(repository)
    assert "lightning" not in packages
    assert not re.match(r"pytorch-lightning==2\.6\.[23] ", packages["pytorch-lightning"])


def test_every_dependency_earns_its_place_in_a_comment(repository):
    lines = (repository / "pyproject.toml").read_text().splitlines()
    requirements = [line for line in lines if re.match(r'\s+"[a-z0-9-]+(\[\w+\])?[<>=]', line)]
    assert len(requirements) > 30
    for line in requirements:
        assert "# " in line, f"no reason: {line}"


def test_the_help_of_make_is_made_from_the_makefile(repository):
    said = subprocess.run(["make"], cwd=repository, check=True, capture_output=True, text=True).stdout
    assert {"repro", "test", "test-long", "check", "ui", "bench"} <= targets(repository)
    for target in targets(repository):
        assert f"make {target}" in said


def test_an_environment_that_is_not_there_is_refused_with_what_to_type(repository, tmp_path):
    done = subprocess.run(
        ["make", "repro", f"VENV={tmp_path}/none"],
        cwd=repository,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode
    assert f"{tmp_path}/none has no environment" in done.stdout
    assert "make repro" in done.stdout


def test_a_python_that_does_not_fit_is_refused_with_what_to_type(fresh_clone):
    said = fresh_clone.run("make", "repro", "PYTHON=/no/such/python", fails=True)
    assert "No Python 3.11 to 3.13 found (tried: /no/such/python)" in said
    assert "make PYTHON=/path/to/python3.12" in said
    assert not (fresh_clone.folder / ".venv").exists()


@pytest.mark.parametrize(
    "module", ["convoy.cli", "convoy.preflight", "convoy.export.verify", "convoy.data.prepare"]
)
def test_what_must_start_fast_or_without_torch_does_not_import_it(repository, module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(repository / "src")})


STARTED = ("convoy.cli", "convoy.tracking.uploader", "convoy.export.latency", "convoy.sweep.worker")
"""Modules that are processes of their own; the scripts in pipelines/ are the others."""


@pytest.mark.parametrize("name", [*STARTED, "prepare", "train", "evaluate", "export", "repro", "retrain"])
def test_an_entry_point_disables_statistics_before_it_imports_a_library_that_has_them(
    repository, tmp_path, name
):
    file = f"pipelines/{name}.py"
    load = (
        f"import {name}" if name in STARTED else f"import runpy; runpy.run_path({file!r}, run_name='loaded')"
    )
    env = {"PYTHONPATH": str(repository / "src"), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", load], cwd=repository, env=env, check=True)
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if not path.startswith(CACHES)]


def test_statistics_are_off_where_they_can_be_switched_off(repository):
    assert "analytics = false" in (repository / ".dvc/config").read_text()
    for name in (
        "ORT_DISABLE_TELEMETRY := 1",
        "MLFLOW_DISABLE_TELEMETRY := true",
        "DVC_NO_ANALYTICS := true",
    ):
        assert name in (repository / "Makefile").read_text()


def test_make_repro_in_a_downloaded_zip_file_states_what_to_type_and_leaves_nothing(repository, tmp_path):
    shutil.copytree(repository / "networks", tmp_path / "networks")
    shutil.copytree(repository / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml", "pipelines/repro.py", ".dvc/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(repository / name, tmp_path / name)
    before = {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
    done = subprocess.run(
        [sys.executable, "pipelines/repro.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    for fact in ("in no git repository", "git init && git add -A && git commit", "core.no_scm true"):
        assert fact in done.stderr
    assert {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts} == before
