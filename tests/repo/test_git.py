"""The wrapper of git: its output, its errors, its objects, and files that it does not track."""

import subprocess
from pathlib import Path

import pytest

from convoy.repo import git


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A commit with `known.yaml`, and two files that git does not track."""
    git.run(tmp_path, "init", "-q", "-b", "main")
    for name in ("known.yaml", "new.yaml", "newer.yaml"):
        (tmp_path / name).write_text("layers: [flatten]\n", encoding="utf-8")
    git.run(tmp_path, "add", "known.yaml")
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.invalid")
    git.run(tmp_path, *identity, "commit", "-q", "-m", "known")
    return tmp_path


def test_output_comes_without_its_last_line_break_and_variables_reach_git(repository):
    assert git.run(repository, "log", "--format=%s") == "known"
    assert git.run(repository, "var", "GIT_AUTHOR_IDENT", env={"GIT_AUTHOR_NAME": "Ada"}).startswith("Ada ")


def test_an_error_names_the_command_and_hides_passwords(repository):
    with pytest.raises(git.GitError, match="`git checkout` failed") as error:
        git.run(repository, "-c", "a.b=c", "checkout", "--", "https://me:secret@example.invalid")
    assert "me:***@example.invalid" in str(error.value)
    assert "secret" not in str(error.value)
    assert git.query(repository, "rev-parse", "no-such-branch") == ""


def test_without_git_the_error_names_the_remedy(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(git.GitError, match="Install it"):
        git.run(repository, "status")
    assert git.query(repository, "status") == ""
    assert git.untracked(repository / "new.yaml") is None


def test_the_reason_why_a_commit_is_unknown_names_the_remedy(repository, tmp_path_factory):
    assert git.no_commit(repository) == ""
    outside = tmp_path_factory.mktemp("outside")
    assert "is in no git repository. Type: git init" in git.no_commit(outside)
    git.run(outside, "init", "-q")
    assert "no commit yet. Type: git add -A && git commit" in git.no_commit(outside)
    (outside / ".git/HEAD").write_text("damaged")
    assert "not a git repository" in git.no_commit(outside), "the reason is git's"


def test_a_subfolder_has_the_repository_s_top_and_its_own_path(repository):
    (repository / "ml").mkdir()
    assert (git.prefix(repository / "ml"), git.prefix(repository)) == (Path("ml"), Path())
    assert git.top(repository / "ml") == git.top(repository) == repository.resolve()


def test_objects_are_read_in_one_call_and_missing_ones_left_out(repository):
    number = git.run(repository, "rev-parse", "HEAD:known.yaml")
    names = ["HEAD:none.yaml", "HEAD:known.yaml", "HEAD:none too.yaml", number]
    assert git.contents(repository, names) == dict.fromkeys(names[1::2], b"layers: [flatten]\n")
    assert git.objects(repository, ["known.yaml", "new.yaml"]) == {"known.yaml": number}
    assert git.objects(repository, []) == {}


def test_a_commit_is_resolved_and_its_holders_are_named(repository):
    number = git.run(repository, "rev-parse", "HEAD")
    assert git.commit(repository, "main") == git.commit(repository, number[:8]) == number
    assert git.commit(repository, "none") == ""
    git.run(repository, "tag", "v1")
    git.run(repository, "update-ref", f"refs/exps/{number[:2]}/{number[2:]}/quick-fox", "HEAD")
    for other in ("stash", "zz"):
        git.run(repository, "update-ref", f"refs/exps/{other}", "HEAD")
    assert git.holders(repository, number) == ["main", "tag v1", "experiment quick-fox"]
    assert git.experiments(repository) == {"quick-fox": number}


def test_edits_are_counted_and_new_files_listed(repository):
    (repository / "known.yaml").write_text("a\nb\n", encoding="utf-8")
    (repository / "image.bin").write_bytes(b"\0\1")
    git.run(repository, "add", "image.bin")
    assert git.edits(repository, "HEAD", ".") == [
        {"name": "image.bin", "added": -1, "removed": -1},
        {"name": "known.yaml", "added": 2, "removed": 1},
        {"name": "new.yaml", "added": None, "removed": None},
        {"name": "newer.yaml", "added": None, "removed": None},
    ]


def test_untracked_files_are_named_with_the_remedy(repository, monkeypatch):
    monkeypatch.chdir(repository)
    note = git.untracked(Path("known.yaml"), Path("new.yaml"), Path("missing.yaml"))
    assert note is not None
    assert note.startswith("new.yaml is not tracked")
    assert note.endswith("git add new.yaml")
    assert str(git.untracked(Path("new.yaml"), Path("newer.yaml"))).endswith("git add new.yaml newer.yaml")
    assert git.untracked(Path("known.yaml"), Path("missing.yaml")) is None


def test_outside_of_git_nothing_is_untracked(tmp_path):
    (tmp_path / "mine.yaml").touch()
    assert git.untracked(tmp_path / "mine.yaml") is None
    assert subprocess.run(["git", "-C", tmp_path, "status"], check=False, capture_output=True).returncode
