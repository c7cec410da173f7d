"""The README's commands are run as they stand there."""

import re
import shutil
import signal
import sys
import urllib.request
import zipfile

import pytest
import typer
from mlflow.tracking import MlflowClient

from clones import Clone, free_port
from convoy import cli
from watched import Watched

pytestmark = pytest.mark.pipeline

# Run elsewhere, since they would not end, or would run the tests from within a test.
ELSEWHERE = {
    "make repro": "the fixture `finished`",
    "make ui": "test_make_ui_serves_the_runs",
    "source .venv/bin/activate": "every test: PATH",
    "make test": "CI",
    "make retrain": "test_retrain_rounds.py, as CI does",
    "convoy serve": "tests/serving/test_server.py",
    "convoy demo build/demo": "tests/serving/test_demo.py",
}


QUICK = (
    *(("network.name", "lenet5"), ("train.epochs", "1"), ("sweep.warmup_epochs", "1")),
    *(("evaluate.feature_classes", "0"), ("export.latency_runs", "10")),
)
"""Params of the team that types the README's lines."""

OTHERS = (
    "python pipelines/repro.py --until prepare",
    "git add -A && git commit -q -m 'as it is' && python pipelines/retrain.py",  # whose stages are all cached
    "convoy sync",
    *("convoy weights use build/model", "convoy migrate sqlite:///$PWD/copy.db"),
    "convoy data drift samples/digits",
    *("convoy recipe list", "convoy recipe show digits", "convoy lr-find --steps 20"),
    "convoy explain features $(find ~/photos -name '*.png' | head -1)",
    "convoy rollback || test $? = 2",  # there is no earlier champion
    # A single epoch instead of 40, which need not show the effect.
    """python -c "from convoy import cli; from convoy.explain import position as p; p.EPOCHS = 1; import sys; sys.argv = 'convoy explain position'.split(); cli.main()" || test $? = 1""",
    "convoy recipe apply digits",
    "convoy verify build/deploy/model.onnx",
    "timeout 10 convoy serve --port 0 || test $? = 124",
    "convoy demo build/demo --runtime nowhere.tgz || test $? = 2",
)
"""Entry points that start no training and that the README does not show as it stands."""

VERBS = (
    *(
        "data use",
        "data check",
        "why",
        "trace",
        "sweep",
        "network list",
        "network show",
        "explain convolution",
        "recipe suggest",
    ),
    *("recipe list", "recipe show", "recipe apply", "lr-find"),
    *("explain features", "explain position", "data drift"),
    *("register", "promote", "rollback", "predict", "sync", "weights use", "migrate"),
    *("serve", "verify", "demo"),
)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_every_bash_line_of_the_readme_works(clone, tmp_path):
    clone.run("git", "reset", "-q", "HEAD~1")  # as `make repro` leaves it: dvc.lock not committed yet
    home = tmp_path / "home"
    with zipfile.ZipFile(clone.folder / "samples/digits/digits.zip") as archive:
        archive.extractall(home / "photos")
    watched = Watched(clone, home)
    for name, value in QUICK:
        clone.set_param(name, value)
    lines = [
        line
        for block in blocks((clone.folder / "README.md").read_text(), "bash")
        for line in block.splitlines()
    ]
    assert len(lines) > len(ELSEWHERE), "the README shows commands"
    for line in lines:
        if line in ELSEWHERE:
            continue
        # In the words of the README, but with fewer epochs where it trains on what a person would bring.
        command = line if line != "dvc repro" else "dvc repro prepare"
        command += f" VENV={sys.prefix}" if line.startswith("make ") else ""
        said = clone.run("bash", "-c", command)
        assert "Traceback" not in said, f"{line}:\n{said}"
        if line.startswith("convoy recipe suggest"):
            for name, value in QUICK:
                clone.set_param(name, value)
        if line == "make experiments":
            assert {"test.accuracy", "val.accuracy", "train.lr", "train.epochs"} <= set(said.split())
            # The column network.name, empty here, takes 15.
            assert max(len(row.rstrip()) for row in said.splitlines()) <= 120 - 15, said
        models = MlflowClient(f"sqlite:///{clone.folder}/mlflow.db").search_registered_models()
        assert bool(models) == (line in lines[lines.index("convoy register") :]), f"{line} registers no model"
    assert "photos" in (clone.folder / "data.dvc").read_text()
    for line in OTHERS:
        clone.run("bash", "-c", line)
    watched.check(
        *("pipelines/repro.py", "pipelines/retrain.py", "pipelines/prepare.py", "pipelines/train.py"),
        *("pipelines/evaluate.py", "pipelines/export.py build", "pipelines/export.py verify"),
        *("convoy.tracking.uploader", "-m dvc", *(f"convoy {words}" for words in VERBS)),
    )


def test_every_command_is_watched():
    """`convoy ui` below."""
    commands = typer.main.get_command(cli.app).commands
    known = [
        f"{name} {inner}".strip()
        for name, one in commands.items()
        for inner in getattr(one, "commands", [""])
    ]
    assert sorted([*VERBS, "ui"]) == sorted(known)


def test_the_readmes_python_answers_for_an_image(finished, tmp_path):
    clone, _ = finished
    [code] = blocks((clone.folder / "README.md").read_text(), "python")
    with zipfile.ZipFile(clone.folder / "samples/digits/digits.zip") as archive:
        name = next(name for name in archive.namelist() if name.startswith("7/"))
        (tmp_path / "photo.png").write_bytes(archive.read(name))
    shutil.copytree(clone.folder / "build/deploy", tmp_path / "build/deploy")
    before = (
        "import numpy as np, onnxruntime; from PIL import Image\n"
        "image = np.asarray(Image.open('photo.png').convert('RGB'))[None]"
    )
    (tmp_path / "try.py").write_text(f"{before}\n{code}\nprint(probabilities.argmax())")
    assert Clone(tmp_path).run(sys.executable, "try.py").split()[-1] == "7"


def test_the_readmes_tree_exists(repository):
    text = (repository / "README.md").read_text()
    tree = next(block for block in blocks(text, "text") if "dvc.yaml" in block)
    for name in re.findall(r"^(\S+)", tree, re.MULTILINE):
        made = {"build/", "checkpoints/"}  # by the pipeline
        assert name in made or (repository / name).exists(), f"the README's tree shows {name}"


def test_make_ui_serves_the_runs(clone, tmp_path):
    watched = Watched(clone, tmp_path / "home")
    server = clone.start("make", "ui", f"VENV={sys.prefix}", f"PORT={free_port()}")
    try:
        printed = filter(None, (re.search(r"http://\S+/\?token=\S+#\S+", line) for line in server.stdout))
        address = next(printed)[0]
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        browser.open(address, timeout=60)
        page = browser.open(address.partition("?")[0], timeout=60).read().decode()
        assert '<div id="root"' in page
    finally:
        clone.stop(server, signal.SIGTERM)
    watched.check("convoy ui")
