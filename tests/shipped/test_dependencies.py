"""dvc.yaml names exactly the packages that each stage imports, and imports between packages point one way."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from convoy.core import contract, yaml
from convoy.core.dataset import FACTS_FILE, IMAGES, LABELS_FILE, MANIFEST_FILE

SOURCE = "src/convoy"
# Code that changes no result: an edit of it reruns no stage.
EXEMPT = tuple(f"{SOURCE}/{package}/" for package in ("tracking", "energy", "repo", "explain"))
SHARED = f"{SOURCE}/core"
STYLE = f"{SOURCE}/pages"
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
        elif file.endswith(".html.j2"):
            included = re.findall(r'{% include "(.+?)" %}', (root / file).read_text(encoding="utf-8"))
            todo += [f"{STYLE}/{name}" for name in included]
    return seen


def declared(root: Path, stage: str) -> set[str]:
    deps = yaml.load((root / "dvc.yaml").read_text())["stages"][stage]["deps"]
    return {dep for dep in deps if dep.startswith(("src/", "pipelines/"))}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_what_it_imports(repository, stage):
    """An edit reruns a stage only where the stage imports the file: whole packages are folders; of core some files serve others."""
    script = f"pipelines/{stage}.py"
    files = closure(repository, script)
    assert len(files) > 10
    expected = {script}
    for package in {Path(*Path(path).parts[:3]) for path in files - {script}}:
        held = {
            path.relative_to(repository).as_posix()
            for path in (repository / package).rglob("*")
            if path.suffix in (".py", ".j2") and path.name != "__init__.py"
        }
        whole = package.as_posix() == SHARED or held <= files
        expected |= {package.as_posix()} if whole else held & files
    assert declared(repository, stage) == expected


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_the_script_of_its_name_with_the_workspaces_own_source(repository, stage):
    command = yaml.load((repository / "dvc.yaml").read_text())["stages"][stage]["cmd"]
    for line in [command] if isinstance(command, str) else command:
        assert shlex.split(line)[:3] == ["PYTHONPATH=src", "python", f"pipelines/{stage}.py"]


def test_package_files_hold_nothing_that_a_stage_could_depend_on(repository):
    files = list((repository / SOURCE).rglob("__init__.py"))
    assert len(files) > 10
    for path in files:
        body = ast.parse(path.read_text()).body
        assert all(isinstance(node, (ast.Expr, ast.Assign)) for node in body), (
            f"{path} does more than document"
        )


def test_train_depends_on_the_sections_that_decide_a_training(repository):
    stages = yaml.load((repository / "dvc.yaml").read_text())["stages"]
    assert stages["train"]["params"] == ["seed", "network", "train"]


def test_no_stage_depends_on_a_run_reference(repository):
    stages = yaml.load((repository / "dvc.yaml").read_text())["stages"]
    outs = [out for stage in stages.values() for out in stage["outs"]]
    assert [out for out in outs if out.startswith("build/runs")]
    assert not [dep for stage in stages.values() for dep in stage["deps"] if dep.startswith("build/runs")]


LEVELS = (
    {"core"},
    {"repo", "images", "energy"},
    {"models", "data", "tracking"},
    {"training"},
    {"evaluation"},
    {"export", "explain"},
    {"gate", "sweep", "lineage"},
    {"registry"},
    {"retraining", "serving"},
    {"preflight"},
    {"recipes"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
"""Packages from the bottom up. A package imports only those of lower levels."""


def test_imports_between_packages_point_one_way(repository):
    level = {name: index for index, names in enumerate(LEVELS) for name in names}
    files = [path.relative_to(repository).as_posix() for path in (repository / SOURCE).rglob("*.py")]
    arrows = {
        (Path(file).parts[2].removesuffix(".py"), Path(target).parts[2].removesuffix(".py"))
        for file in files
        for target in imports(repository, file)
        if target.endswith(".py")
    }
    between = {(user, used) for user, used in arrows if user not in {used, "__init__"}}
    assert len(between) > 20
    upward = {f"{user} imports {used}" for user, used in between if level[user] <= level[used]}
    assert not upward


def test_an_edit_of_a_page_changes_nothing_that_a_training_depends_on(repository):
    """What `prepare` draws lies in its folder, so `train` names the files that it reads instead of the folder."""
    deps = yaml.load((repository / "dvc.yaml").read_text())["stages"]["train"]["deps"]
    data = [dep for dep in deps if dep.startswith("build/")]
    assert data == [f"build/dataset/{name}" for name in (FACTS_FILE, IMAGES, LABELS_FILE)]
    files = closure(repository, "pipelines/train.py")
    assert not [file for file in files if file.endswith(".j2")]


@pytest.mark.parametrize("stage", ["train", "evaluate", "export"])
def test_a_stage_names_each_file_of_the_dataset_that_it_reads(repository, stage):
    stages = yaml.load((repository / "dvc.yaml").read_text())["stages"]
    declared = {Path(dep).name for dep in stages[stage]["deps"] if dep.startswith("build/dataset")}
    names = {FACTS_FILE, IMAGES, LABELS_FILE, MANIFEST_FILE, contract.BASELINE}
    code = "".join(
        (repository / file).read_text(encoding="utf-8")
        for file in closure(repository, f"pipelines/{stage}.py")
        if not file.startswith(SHARED)
    )
    assert declared >= {FACTS_FILE, IMAGES, LABELS_FILE}, "`Dataset.load` reads them"
    assert declared <= names
    assert (MANIFEST_FILE in declared) == ("MANIFEST_FILE" in code)
    assert (contract.BASELINE in declared) == ("contract.BASELINE" in code)
