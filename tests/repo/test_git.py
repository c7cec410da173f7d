"""Files that git does not track."""

import subprocess
from pathlib import Path

import pytest

from convoy.repo.git import untracked


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for name in ("known.yaml", "new.yaml", "newer.yaml"):
        (tmp_path / name).write_text("layers: [flatten]\n", encoding="utf-8")
    subprocess.run(["git", "-C", tmp_path, "add", "known.yaml"], check=True)
    return tmp_path


def test_a_file_that_git_does_not_track_is_named_with_what_to_type(repository, monkeypatch):
    monkeypatch.chdir(repository)
    assert untracked(Path("known.yaml"), Path("new.yaml")) == (
        "new.yaml is not tracked by git: a queued experiment (dvc exp run --queue) runs without it. "
        "Type: git add new.yaml"
    )


def test_several_files_are_named_together(repository):
    new, newer = repository / "new.yaml", repository / "newer.yaml"
    note = untracked(new, newer)
    assert note is not None
    assert note.startswith(f"{new}, {newer} are not tracked by git")
    assert note.endswith(f"runs without them. Type: git add {new} {newer}")


def test_tracked_and_missing_files_need_no_words(repository):
    assert untracked(repository / "known.yaml", repository / "missing.yaml") is None


def test_outside_of_git_nothing_is_said(tmp_path):
    (tmp_path / "mine.yaml").touch()
    assert untracked(tmp_path / "mine.yaml") is None


def test_without_git_nothing_is_said(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert untracked(repository / "new.yaml") is None
