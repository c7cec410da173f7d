"""Every command in a wrong place, with wrong files and without permissions: one message, and nothing is left behind."""

import ctypes
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import typer
from PIL import Image

from convoy import cli

COMMANDS = (
    "data use ./images",
    "data check",
    "data drift images",
    "weights use imagenet",
    "network show convnet",
    "network list",
    "explain convolution image.png",
    "explain features image.png",
    "explain position",
    "recipe list",
    "recipe show digits",
    "recipe apply digits",
    "recipe suggest",
    "lr-find",
    "sweep",
    "sync",
    "ui",
    "trace champion",
    "why",
    "register",
    "promote",
    "rollback",
    "predict image.png",
    "serve --port 0",
    "verify build/deploy/model.onnx",
    "demo page",
    "migrate sqlite:////no/such/folder/mlflow.db",
)
"""Each as somebody types it in the repository's root."""

FAULTS = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "empty": lambda path: path.touch(),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 40),
}

NOT_MISSING = tuple(FAULTS)[1:]

READ = {
    "data check X": tuple(FAULTS),
    "data use ./X": ("missing",),
    "weights use ./X": ("missing", "folder"),
    "network show X": tuple(FAULTS),
    "explain convolution X": tuple(FAULTS),
    "explain features X --model model": tuple(FAULTS),
    "explain features image.png --model X": tuple(FAULTS),
    "explain position --dataset X": tuple(FAULTS),
    "trace X": tuple(FAULTS),
    "register X": tuple(FAULTS),
    "predict image.png --model X": tuple(FAULTS),
    "predict X --model model.onnx": tuple(FAULTS),
    "verify X": tuple(FAULTS),
    "demo page --model X": tuple(FAULTS),
    "serve --model X --port 0": tuple(FAULTS),
    "migrate sqlite:///{cwd}/new.db --from sqlite:///{cwd}/X": ("missing", "folder", "binary"),
}
"""Commands with a file or folder `X`, and what it may wrongly be."""

WRITTEN = {
    "explain convolution --picture X.png": ("folder",),
    "explain convolution --picture X/a.png": ("empty",),
    "network show convnet --picture X/a.png": ("empty",),
    "explain features image.png --model model --out X.html": ("folder",),
    "explain features image.png --model model --out X/a.html": ("empty",),
}

FILES = {
    "params.yaml": (
        "data check",
        "weights use imagenet",
        "network list",
        "sweep",
        "sync",
        "register",
        "promote",
        "rollback",
    ),
    "networks/convnet.yaml": ("network show convnet", "weights use imagenet"),
    "mlflow.db": ("sync", "ui", "trace champion", "register", "rollback"),
}
"""Files of the repository, and commands that read them."""

NEXT = re.compile(
    r"`|\b(?:convoy|dvc|mlflow|git|cd|ls|df|mv|iconv|chmod)\b|\b(?:Name|Choose|Give|Use|Set|Change|Add|Expected|Restore|Run|Train|Type)\b"
)


@pytest.fixture
def place(repository, tmp_path, monkeypatch, built, empty_store):
    """A repository in which nothing has run, which is the current folder; and some files to name."""
    for name in ("MLFLOW_TRACKING_URI", "CONVOY_REPOSITORY", "DVC_ROOT", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "place"
    shutil.copytree(repository / "networks", folder / "networks")
    for name in ("params.yaml", "dvc.yaml", "data.dvc", ".dvcignore"):
        shutil.copy(repository / name, folder)
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\nno_scm = true\n")
    shutil.copy(empty_store, folder / "mlflow.db")
    Image.new("RGB", (12, 12)).save(folder / "image.png")
    shutil.copy(built.unverified, folder / "model.onnx")
    shutil.copytree(built.home / "model", folder / "model")
    monkeypatch.chdir(folder)
    return folder


def check(line, folder, capfd, monkeypatch):
    """Run a command that must fail with a message and leave nothing; return what it printed."""
    before = names(folder)
    monkeypatch.setattr(sys, "argv", ["convoy", *line.split()])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    captured = capfd.readouterr()
    output = captured.out + captured.err
    assert caught.value.code in {1, 2}, output
    assert "Traceback" not in output
    assert "ERROR: " in output
    assert NEXT.search(output.partition("ERROR: ")[2]) or line.endswith("--model model.onnx"), output
    assert names(folder) == before
    return output


def names(folder):
    """List the files in a folder; those in .dvc/tmp are DVC's, and git ignores them."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {name for name in found if not name.startswith(".dvc/tmp")}


def leaves(command, path=()):
    inner = getattr(command, "commands", {})
    return [leaf for name, item in inner.items() for leaf in leaves(item, (*path, name))] or [" ".join(path)]


def test_the_table_has_every_command():
    known = leaves(typer.main.get_command(cli.app))
    assert [name for name in known if not any(line.startswith(name) for line in COMMANDS)] == []


@pytest.mark.parametrize("line", COMMANDS)
def test_in_an_empty_folder(line, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "CONVOY_REPOSITORY", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    check(line, tmp_path, capfd, monkeypatch)


@pytest.mark.parametrize(
    ("line", "fault"), [(line, fault) for line, faults in (READ | WRITTEN).items() for fault in faults]
)
def test_with_a_wrong_file(line, fault, place, capfd, monkeypatch):
    wrong = f"{fault}-file"
    suffix = next(iter(re.findall(r"X(\.\w+)", line)), "")
    FAULTS[fault](place / f"{wrong}{suffix}")
    output = check(line.replace("X", wrong).replace("{cwd}", str(place)), place, capfd, monkeypatch)
    assert wrong in output


@pytest.mark.parametrize(
    ("name", "line", "fault"),
    [
        *((name, line, fault) for name, lines in FILES.items() for line in lines for fault in NOT_MISSING),
        *((name, "why", "binary") for name in ("dvc.yaml", "data.dvc")),
    ],
)
def test_with_a_wrong_file_of_the_repository(name, line, fault, place, capfd, monkeypatch):
    (place / name).unlink()
    FAULTS[fault](place / name)
    if (name, fault) != ("mlflow.db", "empty"):  # an empty file is an empty database
        assert name in check(line, place, capfd, monkeypatch)


@contextmanager
def read_only(folder) -> Iterator[None]:
    """Take the permission to write away, and from root the capability to write without one."""
    header, capabilities = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    is_root = os.geteuid() == 0
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    if is_root:
        assert libc.capget(header, capabilities) == 0
        before = capabilities[0]
        capabilities[0] &= ~0b10  # CAP_DAC_OVERRIDE, effective
        assert libc.capset(header, capabilities) == 0
    try:
        yield
    finally:
        if is_root:
            capabilities[0] = before
            libc.capset(header, capabilities)
        for path in folders:
            path.chmod(0o755)


@pytest.mark.parametrize(
    "line",
    [
        "sync",
        "ui",
        "register",
        "promote",
        "rollback",
        "why",
        "data use ./model",
        "weights use ./model",
        "explain convolution",
        "explain features image.png --model model",
        "network show convnet --picture a.png",
        "sweep",
        "trace champion",
    ],
)
def test_in_a_folder_that_may_not_be_written(line, place, capfd, monkeypatch):
    with read_only(place):
        check(line, place, capfd, monkeypatch)
