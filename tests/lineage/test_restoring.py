"""`convoy trace --restore`: the state of a run comes back whole or not at all, and harms nothing."""

import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from convoy.core import yaml
from convoy.core.errors import RequestError
from convoy.lineage import restore, trace
from convoy.lineage.compare import only_run
from convoy.repo import dvc, dvc_cache
from convoy.repo.dvc_cache import RestoreError
from small_pipeline import Small

FIRST = "20261123-100000-aaaaaa"
SECOND = "20261123-110000-bbbbbb"
FAILED = "20261124-090000-cccccc"
COMMIT = "mlflow.source.git.commit"


def restored(text: str, target: Path) -> Small:
    asked, places = trace.look(text, Path.cwd())
    restore.restore(only_run(asked), places, target)
    return Small(target)


def tag(traced: Small, run_id: str, key: str, value: str) -> None:
    client = MlflowClient(f"sqlite:///{traced.folder}/mlflow.db")
    [run] = client.search_runs(["1"], f"tags.`convoy.run_id` = '{run_id}'")
    client.set_tag(run.info.run_id, key, value)


def lose(traced: Small, name: str) -> str:
    """Remove an output's content from the cache; its md5."""
    lock = yaml.load((traced.folder / "dvc.lock").read_text())
    [md5] = [out["md5"] for stage in lock["stages"].values() for out in stage["outs"] if out["path"] == name]
    dvc_cache.of_repository(traced.folder).path(md5).unlink()
    return str(md5)


def left_beside(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path.name != "traced")


def test_in_a_restored_run_dvc_repro_has_nothing_to_do(traced: Small, tmp_path: Path) -> None:
    clone = restored(FIRST, tmp_path / "clone")
    said = clone.repro()
    assert "Data and pipelines are up to date" in said
    assert "Running" not in said
    assert (clone.folder / "build/score").read_text() == (traced.folder / "build/score").read_text()
    assert clone.git("rev-parse", "HEAD") == traced.git("rev-parse", "HEAD")
    assert clone.git("branch", "--show-current") == f"restored/{FIRST}"
    assert "frozen: true" in (clone.folder / "data.dvc").read_text()
    assert clone.git("status", "--porcelain") == "M data.dvc", "nothing else differs from the commit"
    assert left_beside(clone.folder) == ["clone"]


def test_changes_that_were_not_committed_come_back(traced: Small, tmp_path: Path) -> None:
    clone = restored(SECOND, tmp_path / "clone")
    assert "lr: 0.25" in (clone.folder / "params.yaml").read_text()
    assert "cat -u build" in (clone.folder / "train.sh").read_text()
    assert (clone.folder / "note.txt").read_text() == "new\n"
    assert "Data and pipelines are up to date" in clone.repro()


def test_what_changes_upstream_later_does_not_reach_a_restored_run(traced: Small, tmp_path: Path) -> None:
    clone = restored(FIRST, tmp_path / "clone")
    clone.write("source/c.txt", "c\n")
    assert "Data and pipelines are up to date" in clone.repro()


def test_a_restored_run_keeps_its_commit_where_the_repository_loses_it(traced: Small, tmp_path: Path) -> None:
    commit = traced.git("rev-parse", "HEAD")
    traced.git("commit", "-q", "--amend", "-m", "amended")
    clone = restored(FIRST, tmp_path / "clone")
    for repository in (traced, clone):
        repository.git("reflog", "expire", "--expire=now", "--all")
        repository.git("gc", "-q", "--prune=now")
    with pytest.raises(RestoreError, match=rf"commit {commit} of run {FIRST} is not in this repository"):
        restored(FIRST, tmp_path / "again")
    assert clone.git("rev-parse", "HEAD") == commit
    assert clone.git("fsck", "--no-dangling") == ""


def test_a_shallow_repository_gives_a_commit_that_its_branches_do_not_hold(
    traced: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shallow = tmp_path / "shallow"
    traced.git("clone", "-q", "--depth=1", traced.folder.as_uri(), str(shallow))
    for name in (".dvc/cache", "mlflow.db"):
        (shutil.copytree if (traced.folder / name).is_dir() else shutil.copy)(
            traced.folder / name, shallow / name
        )
    small = Small(shallow)
    small.git("config", "user.email", "test@example.invalid")
    small.git("config", "user.name", "test")
    small.git("commit", "-q", "--amend", "-m", "amended")
    monkeypatch.chdir(shallow)
    clone = restored(FIRST, tmp_path / "clone")
    assert clone.git("rev-parse", "HEAD") == traced.git("rev-parse", "HEAD")
    assert "Data and pipelines are up to date" in clone.repro()


def test_removing_the_clone_and_emptying_its_cache_leave_the_repository_whole(
    traced: Small, tmp_path: Path
) -> None:
    clone = restored(SECOND, tmp_path / "clone")
    shutil.rmtree(clone.folder / "build")
    clone.write("dvc.lock", "schema: '2.0'\nstages: {}\n")
    clone.dvc("gc", "--workspace", "--force")
    assert len(list((clone.folder / ".dvc/cache").rglob("*.dir"))) == 1, "of its cache, only data are left"
    shutil.rmtree(clone.folder)
    shutil.rmtree(traced.folder / "build")
    traced.dvc("checkout")
    assert "Data and pipelines are up to date" in traced.repro()


def test_a_cache_that_a_team_shares_is_not_the_clone_s(traced: Small, tmp_path: Path) -> None:
    shutil.move(traced.folder / ".dvc/cache", tmp_path / "shared")
    traced.dvc("cache", "dir", str(tmp_path / "shared"))
    traced.dvc("config", "cache.type", "symlink")
    traced.commit("shared cache")
    tag(traced, FIRST, COMMIT, traced.git("rev-parse", "HEAD"))
    clone = restored(FIRST, tmp_path / "clone")
    assert dvc_cache.of_repository(clone.folder).folder == clone.folder / ".dvc/cache"
    assert not (clone.folder / "build/score").is_symlink()
    assert "Data and pipelines are up to date" in clone.repro()


def test_what_the_cache_lost_comes_from_a_remote_whose_path_is_relative(
    traced: Small, tmp_path: Path
) -> None:
    traced.dvc("remote", "add", "--default", "--local", "team", "../remote")
    traced.dvc("push")
    lose(traced, "build/score")
    (tmp_path / "elsewhere").mkdir()
    clone = restored(FIRST, tmp_path / "elsewhere/clone")
    assert "Data and pipelines are up to date" in clone.repro()


def test_data_that_are_nowhere_are_named_with_what_to_do(traced: Small, tmp_path: Path) -> None:
    md5 = lose(traced, "build/model")
    with pytest.raises(
        RestoreError, match=rf"build/model \({md5[:10]}\) not in DVC's cache and this .* has no DVC rem"
    ):
        restored(FIRST, tmp_path / "clone")
    assert left_beside(tmp_path / "clone") == []
    traced.dvc("remote", "add", "--default", "--local", "team", "../empty")
    with pytest.raises(RestoreError, match=r"nor in a DVC remote(.|\n)*Type `dvc push`"):
        restored(FIRST, tmp_path / "clone")
    assert left_beside(tmp_path / "clone") == []


def test_a_commit_that_is_gone_is_named_with_what_to_do(traced: Small, tmp_path: Path) -> None:
    with pytest.raises(
        RestoreError, match=r"deadbeef of run .*(.|\n)*git fetch --all --tags(.|\n)*artifacts in pipeline/"
    ):
        restored(FAILED, tmp_path / "clone")
    assert left_beside(tmp_path / "clone") == []


def test_a_run_without_a_lock_cannot_be_restored_and_says_why(traced: Small, tmp_path: Path) -> None:
    tag(traced, FAILED, COMMIT, traced.git("rev-parse", "HEAD"))
    with pytest.raises(RestoreError, match=r"is FAILED: it has no final dvc.lock(.|\n)*git checkout"):
        restored(FAILED, tmp_path / "clone")
    client = MlflowClient(f"sqlite:///{traced.folder}/mlflow.db")
    [run] = client.search_runs(["1"], f"tags.`convoy.run_id` = '{FAILED}'")
    client.set_terminated(run.info.run_id, "FINISHED")
    with pytest.raises(RestoreError, match=r"has no dvc.lock.*type `convoy sync`"):
        restored(FAILED, tmp_path / "clone")


def test_changes_that_were_not_kept_are_found_out(
    traced: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "DIFF", "pipeline/lost.diff")
    with pytest.raises(RestoreError, match=r"`dvc status` finds train(.|\n)*what differed was not kept"):
        restored(SECOND, tmp_path / "clone")
    assert left_beside(tmp_path / "clone") == []


def test_a_diff_that_does_not_fit_is_refused(traced: Small, tmp_path: Path) -> None:
    traced.write("train.sh", "true\n")
    tag(traced, SECOND, COMMIT, traced.commit("another"))
    with pytest.raises(RestoreError, match=r"do not fit its commit: `git apply` failed"):
        restored(SECOND, tmp_path / "clone")
    assert left_beside(tmp_path / "clone") == []


def test_a_run_without_a_commit_is_refused(traced: Small, tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{traced.folder}/mlflow.db")
    [run] = client.search_runs(["1"], f"tags.`convoy.run_id` = '{FIRST}'")
    client.delete_tag(run.info.run_id, COMMIT)
    with pytest.raises(RestoreError, match=r"names no commit: it was made outside a git repository"):
        restored(FIRST, tmp_path / "clone")


def test_a_folder_that_is_in_use_is_not_touched(traced: Small, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, said in (
        ("used", "is not empty"),
        ("file", "is a file"),
        ("traced/inside", "lies inside this repository"),
    ):
        with pytest.raises(RequestError, match=rf"{said}. Name a folder"):
            restored(FIRST, tmp_path / name)
    assert (tmp_path / "used/mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert (restored(FIRST, tmp_path / "empty").folder / "build/score").exists()


def test_an_interrupted_restore_leaves_nothing(
    traced: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(restore, "fill_cache", interrupt)
    with pytest.raises(KeyboardInterrupt):
        restored(FIRST, tmp_path / "clone")
    assert left_beside(tmp_path / "clone") == []


def test_content_is_copied_where_it_cannot_be_linked(
    traced: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(dvc_cache.os, "link", refuse)
    clone = restored(FIRST, tmp_path / "clone")
    assert "Data and pipelines are up to date" in clone.repro()
    dvc.remove(clone.folder)
