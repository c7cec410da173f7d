"""What stages are given is read from dvc.yaml; a failed replacement puts everything back."""

import os
import stat

import pytest

from convoy.core import pipeline
from convoy.core.errors import RequestError
from convoy.repo import dvc, dvc_locks


def test_the_inputs_of_stages_are_commands_params_and_committed_files(small):
    def ids(*names: str) -> dict[str, str]:
        return {name: small.git("rev-parse", f"HEAD:{name}") for name in names}

    inputs = dvc.stage_inputs(small.folder)
    assert list(inputs) == ["prepare", "train", "evaluate"]
    assert inputs["train"] == {
        "cmd": "sh train.sh",
        "params": {"params.yaml:net": {"name": "one"}, "params.yaml:fit": {"lr": 0.5, "steps": [1, 2]}},
        "files": ids("nets/one.yaml", "train.sh"),
    }
    small.write("code/a.txt", "a\n")
    small.write("more.yaml", "a: {b: 1}\n")
    small.edit("dvc.yaml", "params: [pack]", "params: [pack.px, pack.none, {more.yaml: [a.b]}]")
    small.edit("dvc.yaml", "deps: [data, prepare.sh]", "deps: [data, code, prepare.sh]")
    small.commit("a folder and another file of params")
    small.write("code/a.txt", "not committed\n")
    prepare = dvc.stage_inputs(small.folder)["prepare"]
    assert prepare["params"] == {"params.yaml:pack.px": 8, "params.yaml:pack.none": None, "more.yaml:a.b": 1}
    assert prepare["files"] == ids("code", "prepare.sh")


def test_dvc_files_are_found_whatever_their_name(small):
    small.write("données.dvc", "outs:\n- md5: 1f.dir\n  path: données\n")
    assert dvc.required_outputs(small.folder)["données"] == "1f.dir"


def test_an_interrupted_replacement_puts_everything_back(small):
    def interrupted() -> None:
        with dvc.replacing(small.folder, ("data", "data.dvc", "nets/new")):
            assert not (small.folder / "data").exists()
            for name in ("data/a.txt", "nets/new", ".gitignore"):
                small.write(name, "new\n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (small.folder / "data/a.txt").read_text() == "a\n"
    assert not (small.folder / "nets/new").exists()
    assert small.git("status", "--porcelain") == ""


@pytest.fixture
def own_choice(small, monkeypatch):
    """Leave the choice of the folder to Convoy, in the repository."""
    for name in (dvc.SITE_CACHE, "CONVOY_REPOSITORY", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(small.folder)
    return small


def test_the_folder_of_dvcs_pickles_is_private_whoever_runs_dvc(own_choice):
    folder = own_choice.folder / f".dvc/tmp/site-{os.getuid()}"
    dvc.run(own_choice.folder, "status")
    assert list(folder.glob("repo/*")), "DVC uses it"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    used = {path: path.stat().st_mtime_ns for path in folder.glob("repo/*")}
    dvc.import_source(own_choice.folder, "data.dvc")
    assert used.keys() == set(folder.glob("repo/*")), "Convoy's own process as well"
    assert own_choice.git("status", "--porcelain") == ""


def test_a_folder_that_others_may_enter_is_closed_and_one_of_another_user_is_refused(
    own_choice, tmp_path, monkeypatch
):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv(dvc.SITE_CACHE, str(shared))
    assert dvc.environment(own_choice.folder)[dvc.SITE_CACHE] == str(shared)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(RequestError, match="owned by another user"):
        dvc.environment(own_choice.folder)
    monkeypatch.undo()
    monkeypatch.setenv(dvc.SITE_CACHE, str(tmp_path / "link"))
    (tmp_path / "link").symlink_to(shared)
    with pytest.raises(RequestError, match="is a link"):
        dvc.environment(own_choice.folder)


def test_every_call_of_dvc_gets_that_folder(repository):
    calls = [
        path
        for path in [*(repository / "src").rglob("*.py"), *(repository / "pipelines").glob("*.py")]
        if '"-m", "dvc"' in path.read_text(encoding="utf-8")
    ]
    assert len(calls) > 3
    for path in calls:
        assert "environment(" in path.read_text(encoding="utf-8"), path


def test_a_file_of_locks_that_a_full_disk_has_cut_is_removed_and_others_are_left(small):
    path = small.folder / ".dvc/tmp/rwlock"
    small.write(".dvc/tmp/rwlock", '{"write": {"/repository/build/mo')
    with pytest.raises(dvc.DvcError, match="rwlock"):
        small.dvc("repro")
    dvc_locks.repair(small.folder)
    assert not path.exists()
    small.dvc("repro")
    small.write(".dvc/tmp/rwlock", '{"write": {}}')
    dvc_locks.repair(small.folder)
    assert path.exists()


@pytest.mark.parametrize(("committed", "within"), [(True, False), (False, False), (True, True)])
def test_a_cut_dvc_lock_is_restored_as_committed_and_the_rest_comes_from_the_run_cache(
    small, committed, within
):
    small.dvc("repro")
    lock = small.folder / "dvc.lock"
    before = lock.read_bytes()
    if not committed:
        small.git("rm", "-q", "--cached", "dvc.lock")
        small.git("commit", "-qm", "not tracked")
    lock.write_bytes(before[: before.rindex(b"path") + 2] if within else b"")
    with pytest.raises(RequestError, match="make repro"):
        pipeline.locked(small.folder)
    dvc_locks.repair(small.folder)
    assert lock.exists() == committed
    small.dvc("repro")
    assert lock.read_bytes() == before
    lock.write_bytes(b"<<<<<<< ours\n" + before)
    dvc_locks.repair(small.folder)
    assert lock.read_bytes().startswith(b"<<<<<<<"), "a conflict is its owner's"


def test_a_folder_without_git_is_refused_unless_dvc_is_configured_for_that(tmp_path):
    (tmp_path / ".dvc").mkdir()
    with pytest.raises(RequestError, match=r"git init(.|\n)*no_scm true"):
        dvc.check_git(tmp_path)
    (tmp_path / ".dvc/config.local").write_text("[core]\nno_scm = true\n")
    dvc.check_git(tmp_path)
    (tmp_path / ".dvc/config.local").unlink()
    (tmp_path / ".git").mkdir()
    dvc.check_git(tmp_path)
