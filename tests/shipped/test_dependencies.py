"""dvc.yaml names exactly what each stage imports, so that an edit reruns what it can change."""

import ast
import shlex
from pathlib import Path

import pytest
import yaml

from convoy.training import inputs

SOURCE = "src/convoy"
# The stated exception: tracking and energy change no result, and identity is what only tracking needs.
EXEMPT = (f"{SOURCE}/tracking/", f"{SOURCE}/energy/", f"{SOURCE}/identity.py")
STAGES = ("prepare", "train", "evaluate", "export")


def module_file(root: Path, name: str) -> str | None:
    path = Path("src", *name.split("."))
    if (root / path.with_suffix(".py")).exists():
        return path.with_suffix(".py").as_posix()
    return f"{path.as_posix()}/__init__.py" if (root / path / "__init__.py").exists() else None


def imports(root: Path, file: str) -> set[str]:
    """List the project's files that a file names: by import, or as a template by string."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((root / file).read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".j2"):
            found.add((Path(file).parent / node.value).as_posix())
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.startswith("convoy.")
        ):
            names = [node.value]  # a module run by `python -m`
        found |= {path for name in names if name.startswith("convoy") and (path := module_file(root, name))}
    return {path for path in found if not path.endswith("__init__.py")}


def closure(root: Path, script: str) -> set[str]:
    seen: set[str] = set()
    todo = [script]
    while todo:
        file = todo.pop()
        if file in seen or file.startswith(EXEMPT):
            continue
        seen.add(file)
        if file.endswith(".py"):
            todo += imports(root, file)
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_modules_that_it_imports(repository: Path, stage: str) -> None:
    definition = yaml.safe_load((repository / "dvc.yaml").read_text())["stages"][stage]
    declared = {dep for dep in definition["deps"] if dep.startswith(("src/", "pipelines/"))}
    expected = closure(repository, f"pipelines/{stage}.py")
    wanted = "\n".join(f"      - {path}" for path in sorted(expected))
    assert declared == expected, f"dvc.yaml, stage {stage}, should depend on:\n{wanted}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_the_script_of_its_name_with_the_workspaces_own_source(
    repository: Path, stage: str
) -> None:
    command = yaml.safe_load((repository / "dvc.yaml").read_text())["stages"][stage]["cmd"]
    for line in [command] if isinstance(command, str) else command:
        assert shlex.split(line)[:3] == ["PYTHONPATH=src", "python", f"pipelines/{stage}.py"]


def test_package_files_hold_nothing_that_a_stage_could_depend_on(repository: Path) -> None:
    for path in (repository / SOURCE).rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert all(isinstance(node, (ast.Expr, ast.Assign)) for node in body), (
            f"{path} does more than document"
        )


def test_train_depends_on_every_param_of_its_section_that_can_change_a_result(repository: Path) -> None:
    stages = yaml.safe_load((repository / "dvc.yaml").read_text())["stages"]
    keys = yaml.safe_load((repository / "params.yaml").read_text())["train"].keys() - inputs.HARMLESS
    assert set(stages["train"]["params"]) == {"seed", "network", *(f"train.{key}" for key in keys)}


def test_no_stage_depends_on_a_run_reference(repository: Path) -> None:
    stages = yaml.safe_load((repository / "dvc.yaml").read_text())["stages"]
    assert not [dep for stage in stages.values() for dep in stage["deps"] if dep.startswith("build/runs")]
