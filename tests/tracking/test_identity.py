"""What a run is made of: commit, changes, data."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from convoy.repo import identity
from convoy.tracking import store
from convoy.tracking.journal import FILE, read
from tracking_store import journal_folder, journal_state, trained


def kept(run) -> dict[str, bytes]:
    folder = journal_folder(run)
    entries = [entry for entry, _ in read(folder / FILE) if entry.get("kind") == "files"]
    return {path.name: path.read_bytes() for entry in entries for path in (folder / entry["at"]).iterdir()}


def test_a_clean_tree_has_a_commit_and_no_diff(git):
    Path("dvc.lock").write_text("written by DVC while it runs")
    run = trained()
    tags = journal_state(run).tags
    assert tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert tags["convoy.git_dirty"] == "false"
    assert set(kept(run)) == {"params.yaml", "data.dvc"}


def test_the_diff_of_a_dirty_tree_restores_it_new_and_binary_files_included(git, tmp_path):
    params = Path("params.yaml")
    params.write_text(params.read_text() + "# edited\n")
    Path("networks").mkdir()
    Path("networks/new ü.yaml").write_text("layers: []\n")
    Path("picture.png").write_bytes(bytes(range(256)))
    Path("data.dvc").unlink()
    git("add", "picture.png")
    before = git("status", "--porcelain")
    index = Path(".git/index").read_bytes()
    run = trained()
    assert Path(".git/index").read_bytes() == index, "the user's index was written"
    assert git("status", "--porcelain") == before
    assert journal_state(run).tags["convoy.git_dirty"] == "true"
    diff, clone = tmp_path / "diff", tmp_path / "clone"
    diff.write_bytes(kept(run)["workspace.diff"])
    git("clone", "-q", str(tmp_path), str(clone))
    git("-C", str(clone), "apply", str(diff))
    for name in ("params.yaml", "networks/new ü.yaml", "picture.png"):
        assert (clone / name).read_bytes() == Path(name).read_bytes()
    assert not (clone / "data.dvc").exists()


def test_settings_of_the_user_do_not_change_the_diff(git, tmp_path):
    for name, value in (("diff.noprefix", "true"), ("color.ui", "always"), ("diff.external", "false")):
        git("config", name, value)
    Path("new.py").write_text("new\n")
    assert not identity.write_diff(tmp_path / "outbox.diff")
    assert (tmp_path / "outbox.diff").read_text().startswith("diff --git a/new.py b/new.py\n")


SECRETS = (
    ".env",
    ".env.production",
    "src/.ENV",
    "deploy.pem",
    "keys/id_rsa",
    "id_ed25519.pub",
    "aws.key/a.yaml",
)


@pytest.mark.parametrize("added", [False, True])
def test_what_looks_like_a_secret_or_is_no_code_stays_out_of_the_diff_unless_git_tracks_it(git, added):
    Path("dvc.yaml").write_text(
        "stages: {a: {cmd: a, deps: ['words/${network.name}.txt', src], outs: [b]}}\n"
    )
    Path("settings.env").write_text("old")
    git("add", "-f", "dvc.yaml", "settings.env")
    git("commit", "-q", "-m", "with a secret in it")
    recorded = ("networks/new.yaml", "words/convnet.txt", "src/table.csv", "loose.py", "src/secret_layer.py")
    named = ("notes.txt", "db-secrets.yaml", "credentials.json", "words/resnet18.txt")
    for name in (*recorded, *named, *SECRETS):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"content of {name}")
    Path("settings.env").write_text("hunter2")
    if added:
        git("add", "-f", "--", *named, *SECRETS)
    run = trained()
    diff = kept(run)["workspace.diff"].decode()
    for name in recorded:
        assert f"content of {name}" in diff
    for name in (*named, *SECRETS):
        assert (f"content of {name}" in diff) == (added and name in named), name
    assert "hunter2" not in diff
    tag = journal_state(run).tags["convoy.new_files"].split(", ")
    assert set(tag) == {*SECRETS, "settings.env"} | (set() if added else set(named))


def test_new_files_that_no_run_records_leave_the_tree_clean(git):
    Path("notes.txt").write_text("mine")
    run = trained()
    tags = journal_state(run).tags
    assert (tags["convoy.git_dirty"], tags["convoy.new_files"]) == ("false", "notes.txt")
    assert "workspace.diff" not in kept(run)


def test_the_outbox_is_closed_to_other_users(workplace, tmp_path):
    (workplace / "outbox").mkdir(mode=0o755)
    run = trained()
    for path in (workplace / "outbox", *journal_folder(run).rglob("*/")):
        assert path.stat().st_mode & 0o777 == 0o700, path
    copies = [path for path in (journal_folder(run) / "files").rglob("*") if path.is_file()]
    assert copies
    for path in (*copies, journal_folder(run) / FILE):
        assert path.stat().st_mode & 0o777 == 0o600, path


def test_the_shipped_gitignore_ignores_files_of_variables(repository, git, workplace):
    Path(".gitignore").write_text((repository / ".gitignore").read_text())
    for name in (".env", ".env.local", "src/.env"):
        assert git("check-ignore", name) == name


@pytest.mark.parametrize("tracked", [True, False])
def test_a_diff_that_is_too_large_is_left_out_and_a_tag_has_the_reason(git, monkeypatch, tracked):
    monkeypatch.setattr(identity, "DIFF_BYTES", 1000)
    Path("large.py").write_text("x\n" * 600)
    if tracked:
        git("add", "large.py")
    run = trained()
    assert journal_state(run).tags["convoy.diff"] == "none: more than 0 MB differ from the commit"
    assert "workspace.diff" not in kept(run)


def test_a_store_that_is_being_made_leaves_the_tree_clean(git, workplace, monkeypatch):
    states = []

    def connect(uri: str) -> MlflowClient:
        client = MlflowClient(uri)
        client.search_experiments()  # the scratch file is there
        states.append(identity.git_state()["convoy.git_dirty"])
        return client

    (workplace / "mlflow.db").unlink()
    monkeypatch.setattr(store, "connect", connect)
    store.make_file(store.uri())
    assert states == ["false"]
    assert (workplace / "mlflow.db").exists()


def test_without_a_repository_a_run_has_the_reason_and_no_commit(workplace, capsys):
    tags = journal_state(trained()).tags
    assert "mlflow.source.git.commit" not in tags
    assert "git init && git add -A" in tags["convoy.git_unknown"]
    assert tags["convoy.git_unknown"] in capsys.readouterr().err
    assert set(identity.git_state()) == {"convoy.git_unknown"}


def test_a_repository_of_another_user_is_named_at_once_with_the_command_that_admits_it(
    git, workplace, monkeypatch, capsys
):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(workplace / "outbox.gitconfig"))
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    reason = journal_state(trained()).tags["convoy.git_unknown"]
    command = f"git config --global --add safe.directory {workplace}"
    assert "dubious ownership" in reason
    assert reason.endswith(f"Type: {command}")
    assert reason in capsys.readouterr().err
    subprocess.run(command.split(), check=True)
    assert journal_state(trained()).tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")


def test_without_git_on_path_a_run_names_what_to_install(git, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        assert "Install it" in journal_state(trained()).tags["convoy.git_unknown"]
    assert "`git` is not on PATH" in capsys.readouterr().err


def test_changes_that_are_not_stored_are_stated_at_once(git, workplace, capsys):
    index = workplace / ".git/index"
    index.write_bytes(b"damaged" + index.read_bytes())
    tags = journal_state(trained()).tags
    assert tags["convoy.git_dirty"] == "true"
    assert tags["convoy.diff"].startswith("none: `git ")
    assert "records no uncommitted changes: `git " in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="macOS makes no such files")
def test_files_whose_names_are_no_utf_8_are_part_of_the_diff(git, tmp_path, monkeypatch):
    name = os.fsdecode(b"caf\xe9.py")
    for path in (name, os.fsdecode(b"caf\xe9.txt")):
        Path(path).write_text("new\n" * 10)
    with monkeypatch.context() as patch:
        patch.setattr(identity, "DIFF_BYTES", 39)
        assert "more than" in identity.write_diff(tmp_path / "outbox.diff"), (
            "its size counts before git reads it"
        )
        assert not (tmp_path / "outbox.diff").exists()
    run = trained()
    assert journal_state(run).tags["convoy.new_files"] == r"caf\xe9.txt"
    kept_files = kept(run)
    clone = tmp_path / "clone"
    (tmp_path / "outbox.diff").write_bytes(kept_files["workspace.diff"])
    git("clone", "-q", str(tmp_path), str(clone))
    git("-C", str(clone), "apply", str(tmp_path / "outbox.diff"))
    assert (clone / name).read_text() == "new\n" * 10
