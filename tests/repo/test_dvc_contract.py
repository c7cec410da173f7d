"""What Convoy uses of DVC's own classes and files exists, with the meaning that repo/dvc.py assumes."""

import json
import os
from pathlib import Path

import pytest

from convoy.repo import dvc
from ignored import IGNORED, VERDICTS


def test_the_configuration_resolves_relative_remotes_and_names_the_default(small):
    small.dvc("remote", "add", "--default", "team", "../remote")
    small.dvc("remote", "add", "--local", "web", "https://example.invalid/data")
    small.dvc("remote", "modify", "--local", "web", "user", "robot")
    config = dvc.config(small.folder)
    assert dvc.default_remote(small.folder) == ("team", str(small.folder.parent / "remote"))
    assert Path(config.read("repo")["remote"]["team"]["url"]).resolve() == small.folder.parent / "remote"
    assert config.read("local")["remote"]["web"]["user"] == "robot"


def test_the_cache_is_laid_out_by_md5_and_lists_the_files_of_folders(reproduced):
    cache = dvc.Cache.of(reproduced.folder)
    assert cache.folder == reproduced.folder / ".dvc/cache"
    md5 = dvc.required_outputs(reproduced.folder)["data"]
    assert md5.endswith(".dir")
    assert set(cache.members(md5)) == {"a.txt", "b.txt"}
    assert cache.path(cache.members(md5)["a.txt"]).read_text() == "a\n"
    assert cache.lacks(md5) == []


def test_content_has_the_md5_that_dvc_records(reproduced):
    required = dvc.required_outputs(reproduced.folder)
    assert {name: dvc.content_md5(reproduced.folder / name) for name in required} == required
    assert dvc.content_md5(reproduced.folder / "absent") == ""


def test_an_import_is_compared_with_its_source(small):
    before = dvc.import_source(small.folder, "data.dvc")
    assert (before.address, before.has_fingerprint) == ("source", True)
    assert before.recorded == before.current == dvc.required_outputs(small.folder)["data"]
    small.write("source/c.txt", "c\n")
    after = dvc.import_source(small.folder, "data.dvc")
    assert after.recorded == before.recorded != after.current


def test_a_remote_is_contacted_and_gets_the_run_cache_entries_of_this_lock_only(small, tmp_path, monkeypatch):
    small.edit("params.yaml", "lr: 0.5", "lr: 0.25")
    small.repro()
    small.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    assert dvc.check_remote(small.folder) == ""
    dvc.push_run_cache(small.folder)
    entries = [path for path in (tmp_path / "store/runs").rglob("*") if path.is_file()]
    assert len(entries) == 3, "one for each stage; the run with the other rate stays here"
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    keys = {"access_key_id": "a", "secret_access_key": "b"}
    small.set_remote(url="s3://bucket", endpointurl="http://127.0.0.1:9", **keys)
    assert "Could not connect to the endpoint URL" in dvc.check_remote(small.folder)


def test_an_experiment_is_refused_while_a_stage_works_and_one_may_be_queued(small, monkeypatch):
    """DVC locks `refs/exps/stash` before `dvc exp run` touches the workspace."""
    monkeypatch.chdir(small.folder)
    monkeypatch.setenv("DVC_STAGE", "train")
    small.edit("params.yaml", "lr: 0.5", "lr: 0.25")
    locks = small.folder / ".dvc/tmp/exps/rwlock"
    for before in ("", '{"write": {"refs/exps/stash": {"pid": 4194305, "cmd": "killed"}}, "read": {}}'):
        locks.parent.mkdir(parents=True, exist_ok=True)
        locks.write_text(before) if before else locks.unlink(missing_ok=True)
        with dvc.experiments_refused():
            for flags in ((), ("--temp",)):
                with pytest.raises(dvc.DvcError) as caught:
                    small.dvc("exp", "run", *flags, "-S", "fit.lr=0.125")
                assert f"(PID {os.getpid()}): train works in this folder" in str(caught.value)
                assert "dvc exp run --queue" in str(caught.value)
            assert "lr: 0.25" in (small.folder / "params.yaml").read_text()
            assert small.git("for-each-ref", "refs/exps") == ""
    small.dvc("exp", "run", "--name", "after", "-S", "fit.lr=0.125")
    assert "lr: 0.125" in (small.folder / "params.yaml").read_text()
    with dvc.experiments_refused():
        small.dvc("exp", "run", "--queue", "--name", "queued", "-S", "fit.lr=0.75")
    assert "queued" in small.dvc("queue", "status")
    assert "lr: 0.125" in (small.folder / "params.yaml").read_text()


def test_locks_of_other_processes_are_left_alone(small, monkeypatch):
    monkeypatch.chdir(small.folder)
    locks = small.folder / ".dvc/tmp/exps/rwlock"
    theirs = {"read": {}, "write": {"refs/exps/stash": {"pid": os.getppid(), "cmd": "dvc exp run"}}}
    locks.parent.mkdir(parents=True, exist_ok=True)
    locks.write_text(json.dumps(theirs))
    with dvc.experiments_refused():
        assert json.loads(locks.read_text()) == theirs
    assert json.loads(locks.read_text()) == theirs
    small.write(".dvc/config.local", "[core]\n    hardlink_lock = true\n")
    locks.unlink()
    with dvc.experiments_refused():
        assert not locks.exists(), "its guard cannot be joined"


def test_files_are_ignored_as_by_dvc(small, monkeypatch):
    monkeypatch.chdir(small.folder)
    for name in VERDICTS:
        if name != "caches":  # a file cannot have the folder's name
            small.write(name, "")
    for name, text in IGNORED.items():
        small.write(name, text)
    ignored = small.dvc("check-ignore", *VERDICTS).splitlines()
    assert {name: name in ignored for name in VERDICTS} == VERDICTS


def test_status_json_lists_changed_inputs_params_outputs_and_commands(small):
    """`convoy why` reads this output of the public command line."""
    small.edit("params.yaml", "lr: 0.5", "lr: 0.25")
    small.edit("train.sh", "mkdir", "mkdir ")
    small.edit("dvc.yaml", "sh evaluate.sh", "sh -e evaluate.sh")
    small.remove("build/model")
    status = json.loads(dvc.run(small.folder, "status", "--json"))
    assert status["train"] == [
        {"changed deps": {"train.sh": "modified", "params.yaml": {"fit": "modified"}}},
        {"changed outs": {"build/model": "deleted"}},
    ]
    assert status["evaluate"] == [{"changed deps": {"build/model": "deleted"}}, "changed command"]
