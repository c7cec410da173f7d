"""What the pages say exists: links, commands, params and networks."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import typer
from dvc.cli.parser import get_main_parser

from convoy import cli
from convoy.core import params, yaml
from convoy.explain.table import tabulate
from convoy.models import spec
from convoy.models.build import assemble
from convoy.models.shapes import smallest_px

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "AGENTS.md",
    "docs/architecture.md",
    "docs/data.md",
    "docs/deployment.md",
    "docs/explain.md",
    "docs/networks.md",
    "docs/retraining.md",
    "docs/security.md",
    "docs/serving.md",
    "docs/sweep.md",
    "docs/trace.md",
    "docs/tracking.md",
    "docs/training.md",
)
WITHOUT_PARAMS = {"CONTRIBUTING.md", "AGENTS.md", "docs/security.md"}
RUNNERS = {"convoy", "dvc", "make"}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    """Leave out code blocks, in which a bracket or a dot means something else."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(text))


def commands(text: str) -> list[list[str]]:
    """List the project's commands: each line of a bash block, and what stands in backticks."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    spoken = [words for words in quoted(text) if words.startswith(tuple(RUNNERS)) and "'" not in words]
    found = []
    for line in map(shlex.split, [*lines, *spoken]):
        starts = [0, *(place + 1 for place, word in enumerate(line) if word == "&&")]
        found += [line[start:] for start in starts if line[start] in RUNNERS]
    return [command for command in found if len(command) > 1]


@cache
def options_of_convoy() -> dict[str, set[str]]:
    """Map every command of `convoy`, such as `data use`, to its options."""
    todo = [("", typer.main.get_command(cli.app))]
    leaves = {}
    while todo:
        name, command = todo.pop()
        inner = getattr(command, "commands", {})
        todo += [(f"{name} {own}".strip(), one) for own, one in inner.items()]
        if not inner:
            leaves[name] = {option for one in command.params for option in one.opts}
    return leaves


@cache
def options_of_dvc() -> dict[str, set[str]]:
    """Map every command of `dvc`, such as `exp run`, to its options."""
    todo = [("", get_main_parser())]
    leaves = {}
    while todo:
        name, parser = todo.pop()
        inner = next((one.choices for one in parser._actions if isinstance(one.choices, dict)), {})
        todo += [(f"{name} {own}".strip(), one) for own, one in inner.items()]
        if not inner:
            leaves[name] = {option for one in parser._actions for option in one.option_strings}
    return leaves


def targets(repository: Path) -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*##", (repository / "Makefile").read_text(), re.MULTILINE))


def missing(command: list[str], known: dict[str, set[str]]) -> str:
    """Name what a command line has that its program has not; empty where it has everything."""
    candidates = [" ".join(command[1:end]) for end in range(len(command), 1, -1)]
    name = next((one for one in candidates if one in known), None)
    if name is None:
        return f"no command `{' '.join(command)}`"
    options = {word.partition("=")[0] for word in command if re.match(r"--?[A-Za-z]", word)}
    return " ".join(options - known[name])


def anchors(page: Path) -> set[str]:
    """List the ids that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_every_page_is_looked_at(repository):
    shipped = {path.relative_to(repository).as_posix() for path in (repository / "docs").glob("*.md")}
    assert shipped | {"README.md", "CONTRIBUTING.md", "AGENTS.md"} == set(PAGES)


def test_the_readme_is_short(repository):
    assert len((repository / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    assert len((repository / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(repository, page):
    path = repository / page
    links = re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8")))
    assert links or page == "AGENTS.md"
    for link in links:
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), f"{page} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page} links to {link}, a heading that is not there"


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_exist(repository, page):
    known = {
        "convoy": options_of_convoy(),
        "dvc": options_of_dvc(),
        "make": {name: set() for name in targets(repository)},
    }
    found = commands((repository / page).read_text(encoding="utf-8"))
    assert found
    for command in found:
        words = [word for word in command if not re.match(r"[A-Z]+=", word)]  # make repro VENV=path
        lacking = missing(words, known[words[0]])
        assert not lacking, f"{page}: `{' '.join(command)}`: {lacking}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.startswith("docs/") and page != "docs/architecture.md"]
)
def test_bash_blocks_hold_commands_and_outputs_stand_elsewhere(repository, page):
    programs = {*RUNNERS, "docker", "git", "mlflow", "python"}
    lines = [
        line
        for block in blocks((repository / page).read_text(encoding="utf-8"), "bash")
        for line in block.splitlines()
    ]
    assert lines
    for line in lines:
        assert shlex.split(line)[0] in programs, f"{page}: {line}"
        assert "…" not in line, f"{page}: {line} cannot be typed"


FILE_SUFFIXES = (".csv", ".csv", ".dvc", ".json", ".parquet", ".tar", ".zip")
"""Of delivered files, such as Kaggle's `train.csv`, whose names begin as params do."""


@pytest.mark.parametrize("page", PAGES)
def test_params_that_a_page_names_exist(repository, page):
    content = yaml.read(repository / "params.yaml")
    flat = set(params.flatten(content))
    known = {".".join(key.split(".")[:end]) for key in flat for end in range(1, key.count(".") + 2)}
    text = (repository / page).read_text(encoding="utf-8")
    sections = "|".join(content)
    assert re.search(rf"`(?:{sections})\.[\w.]+|(?:-S|-P) [\w.]+=", text) or page in WITHOUT_PARAMS
    for name in re.findall(rf"`((?:{sections})\.[\w.]+)(?::[^`]*)?`", prose(text)):
        is_file = name.endswith(FILE_SUFFIXES) or (repository / name).exists()
        assert name in known or is_file, f"{page} names `{name}`"
    for name in re.findall(r"(?:-S|-P) ([\w.]+)=", text):
        assert name in flat, f"{page} sets {name}"


def test_the_mlflow_that_a_page_installs_is_the_one_of_the_lock(repository):
    lock = re.findall(
        r"^(\S+==\S+)", (repository / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    [installed] = re.findall(r"mlflow==[\d.]+", (repository / "docs/tracking.md").read_text(encoding="utf-8"))
    assert installed in lock


def test_every_network_in_the_page_on_networks_builds(repository, tmp_path):
    examples = blocks((repository / "docs/networks.md").read_text(encoding="utf-8"), "yaml")
    assert len(examples) >= 2
    for example in examples:
        (tmp_path / "example.yaml").write_text(example, encoding="utf-8")
        assemble(spec.load("example", tmp_path), classes=10, image_px=32)


def test_the_figures_of_the_shipped_networks_are_right(repository):
    page = (repository / "docs/networks.md").read_text(encoding="utf-8")
    table = page[page.index("| spec |") : page.index("Any classifier of torchvision")]
    for name in spec.names(repository / "networks"):
        shipped = spec.load(name, repository / "networks")
        made_for = shipped.made_for or spec.MadeFor(image_px=32, classes=10)
        found = tabulate(shipped, made_for.classes, made_for.image_px)
        # `vgg11`, `13`: the family stands once in its row.
        [row] = [
            line
            for line in table.splitlines()
            if f"`{name}`" in line or f"`{name.removeprefix('vgg')}`" in line
        ]
        assert f"{found.total('parameters'):,}" in row
        heads = found.total("parameters", auxiliary=True)
        assert not heads or f"{found.total('parameters') + heads:,}" in row
        assert f"| {smallest_px(shipped.layers, 10, 1)} px |" in row
