"""A round's worktree shares the caller's DVC cache and remotes, and is removed with all programs that run in it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from convoy.core import stage
from convoy.repo import dvc
from convoy.retraining import worktree
from convoy.retraining.worktree import RoundError
from retraining_rounds import state


def test_it_uses_the_cache_of_the_caller_and_links_nothing_into_reach_of_an_edit(trained):
    trained.small.dvc("config", "--local", "cache.type", "hardlink,symlink")
    tree = worktree.create(trained.root)
    dvc.run(tree, "repro")
    files = [path for path in (trained.root / ".dvc/cache").rglob("*") if path.is_file()]
    assert not list((tree / ".dvc").glob("cache/files"))
    data = tree / "data/a.txt"
    assert (data.is_symlink(), data.stat().st_nlink) == (False, 1)
    data.chmod(0o644)
    data.write_text("edited")
    assert all("edited" not in path.read_text(errors="replace") for path in files)


def test_it_knows_the_remotes_of_the_caller_with_passwords_and_relative_paths(rounds, tmp_path):
    rounds.small.dvc("remote", "add", "-q", "--default", "store", "../store")
    rounds.small.dvc("remote", "add", "-q", "--local", "http", "https://host/path")
    rounds.small.dvc("remote", "modify", "--local", "http", "password", "secret")
    rounds.small.commit("remotes")
    tree = worktree.create(rounds.root)
    file = tree / ".dvc/config.local"
    assert "password = secret" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    dvc.run(tree, "push")
    assert (tmp_path / "store/files").is_dir()
    assert rounds.small.git("-C", str(tree), "status", "--porcelain") == ""


def test_half_a_worktree_is_removed_like_a_whole_one(rounds):
    before = state(rounds.root)
    tree = worktree.create(rounds.root)
    assert state(rounds.root) != before, "git lists it"
    (tree / ".git").unlink()
    worktree.remove(rounds.root)
    assert state(rounds.root) == before
    worktree.create(rounds.root)
    dvc.remove(tree)
    worktree.remove(rounds.root)
    assert state(rounds.root) == before
    tree.mkdir(parents=True)
    (tree / "left.txt").touch()
    worktree.remove(rounds.root)
    assert not tree.exists()


def test_hooks_of_the_team_do_not_run_in_it(rounds, quick):
    for name in ("post-checkout", "pre-commit", "commit-msg", "pre-push"):
        hook = rounds.root / ".git/hooks" / name
        hook.write_text("#!/bin/sh\necho no >&2\nexit 1\n")
        hook.chmod(0o755)
    assert rounds.run()[0] == 0


def test_a_store_with_a_relative_address_is_the_same_from_the_worktree(rounds, monkeypatch):
    root = rounds.root
    assert worktree.absolute("sqlite:///mine.db", root) == f"sqlite:///{root}/mine.db"
    for same in ("sqlite:////srv/mlflow.db", "https://mlflow.example:5000", "databricks"):
        assert worktree.absolute(same, root) in (same, f"{root}/{same}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    monkeypatch.chdir(root)
    tree = worktree.create(root)
    with worktree.inside(root, tree):
        assert Path.cwd() == tree
        assert stage.repository() == root
        assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{root}/mine.db"
    assert Path.cwd() == root
    assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:///mine.db"
    assert stage.REPOSITORY not in os.environ


# Programs in it

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
from convoy.retraining import worktree
def stop(*_): raise worktree.Stopped
signal.signal(signal.SIGTERM, stop)
try:
    worktree.stream([sys.executable, "waits.py"], Path.cwd(), os.environ)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def test_lines_go_through_and_the_last_are_kept(tmp_path, capfd):
    code = "import sys; [print(n) for n in range(100)]; print('https://me:secret@host', file=sys.stderr)"
    output = worktree.stream([sys.executable, "-c", code], tmp_path, os.environ)
    assert capfd.readouterr().out.startswith("0\n1\n2\n")
    lines = output.splitlines()
    assert (len(lines), lines[0], lines[-1]) == (worktree.TAIL, "61", "https://me:***@host")


def test_a_program_that_fails_is_named_with_its_last_lines(tmp_path):
    with pytest.raises(RoundError, match=r"`-c` ended with exit code 3") as caught:
        worktree.stream([sys.executable, "-c", "print('why'); raise SystemExit(3)"], tmp_path, os.environ)
    assert caught.value.log == "why\n"


def test_sigterm_to_a_round_alone_lets_its_stages_save_and_leaves_nothing_running(tmp_path):
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


def test_stages_get_no_token_of_a_forge(small, monkeypatch):
    tokens = {
        "GH_TOKEN", "GITHUB_TOKEN", "GITLAB_TOKEN", "RETRAIN_TOKEN", "CI_JOB_TOKEN", "CI_REGISTRY_PASSWORD",
        "CI_REPOSITORY_URL", "ACTIONS_RUNTIME_TOKEN",
    }  # fmt: skip
    for name in tokens:
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://retrain:s3cret@gitlab.example/photos.git")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the DVC remote")
    monkeypatch.setenv("CI_COMMIT_BRANCH", "main")
    env = worktree.pipeline_environment(small.folder)
    assert not [name for name, text in env.items() if "s3cret" in text]
    assert env["CI_COMMIT_BRANCH"] == "main"
    assert env["AWS_SECRET_ACCESS_KEY"], "which DVC needs"
