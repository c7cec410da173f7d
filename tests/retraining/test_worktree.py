"""A round's worktree shares the caller's DVC cache and remotes, and goes away whatever is left of it."""

import os
from pathlib import Path

import pytest

from convoy.core import stage
from convoy.repo import dvc
from convoy.retraining import worktree
from retraining_rounds import Programs, Rounds, state


def test_it_uses_the_cache_of_the_caller_and_links_nothing_into_reach_of_an_edit(trained: Rounds) -> None:
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


def test_it_knows_the_remotes_of_the_caller_with_passwords_and_relative_paths(
    rounds: Rounds, tmp_path: Path
) -> None:
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


def test_half_a_worktree_is_removed_like_a_whole_one(rounds: Rounds) -> None:
    before = state(rounds.root)
    tree = worktree.create(rounds.root)
    assert state(rounds.root) != before, "git lists it"
    (tree / ".git").unlink()
    assert worktree.remove(rounds.root)
    assert state(rounds.root) == before
    worktree.create(rounds.root)
    dvc.remove(tree)
    assert worktree.remove(rounds.root)
    tree.mkdir(parents=True)
    (tree / "left.txt").touch()
    assert worktree.remove(rounds.root)
    assert not worktree.remove(rounds.root)
    assert state(rounds.root) == before


def test_hooks_of_the_team_do_not_run_in_it(rounds: Rounds, quick: Programs) -> None:
    for name in ("post-checkout", "pre-commit", "commit-msg", "pre-push"):
        hook = rounds.root / ".git/hooks" / name
        hook.write_text("#!/bin/sh\necho no >&2\nexit 1\n")
        hook.chmod(0o755)
    assert rounds.run() == 0


def test_a_store_with_a_relative_address_is_the_same_from_the_worktree(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
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
