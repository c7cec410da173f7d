"""What Convoy uses of DVC's own classes and files exists, with the meaning that repo/dvc.py and repo/dvc_locks.py assume."""

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from clones import REPOSITORY
from convoy.repo import dvc, dvc_locks
from convoy.repo.locks import AlreadyRunning
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


LOCKS = Path(".dvc/tmp/exps/rwlock")


def owner() -> dict[str, object] | None:
    """Read who has the lock of experiments in the current folder."""
    found = json.loads(LOCKS.read_text())["write"].get("refs/exps/stash") if LOCKS.exists() else None
    return found if found is None else dict(found)


def refuse(small) -> None:
    """Start an experiment while this process works, with other values in params.yaml; it must be refused."""
    small.edit("params.yaml", "lr: 0.5", "lr: 0.25")
    with pytest.raises(dvc.DvcError) as caught:
        small.dvc("exp", "run", "-S", "fit.lr=0.125")
    assert f"(PID {os.getpid()}): train works in this folder" in str(caught.value)
    assert "dvc exp run --queue" in str(caught.value)
    assert "lr: 0.25" in (small.folder / "params.yaml").read_text()
    assert small.git("for-each-ref", "refs/exps") == ""


def test_an_experiment_is_refused_while_a_stage_works_and_one_may_be_queued(small, monkeypatch, capsys):
    """DVC locks `refs/exps/stash` before `dvc exp run` touches the workspace."""
    monkeypatch.chdir(small.folder)
    monkeypatch.setenv("DVC_STAGE", "train")
    LOCKS.parent.mkdir(parents=True, exist_ok=True)
    LOCKS.write_text('{"write": {"refs/exps/stash": {"pid": 4194305, "cmd": "killed"}}, "read": {}}')
    with dvc_locks.experiments_refused():
        refuse(small)
        small.dvc("exp", "run", "--queue", "--name", "queued", "-S", "fit.lr=0.75")
        assert "lr: 0.25" in (small.folder / "params.yaml").read_text()
    assert "queued" in small.dvc("queue", "status")
    small.dvc("exp", "run", "--name", "after", "-S", "fit.lr=0.125")
    assert "lr: 0.125" in (small.folder / "params.yaml").read_text()
    assert capsys.readouterr().out == ""


def test_an_experiment_is_refused_where_dvc_locks_by_hard_links(small, monkeypatch):
    monkeypatch.chdir(small.folder)
    monkeypatch.setenv("DVC_STAGE", "train")
    for left in small.folder.glob(".dvc/tmp/**/*lock"):  # which this kind of lock would take for its own
        left.unlink()
    small.write(".dvc/config.local", "[core]\n    hardlink_lock = true\n")
    with dvc_locks.experiments_refused():
        refuse(small)
    assert owner() is None


def test_the_lock_of_another_process_is_left_alone_and_named(small, monkeypatch, capsys):
    monkeypatch.chdir(small.folder)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        theirs = {"read": {}, "write": {"refs/exps/stash": {"pid": other.pid, "cmd": "dvc exp run"}}}
        LOCKS.parent.mkdir(parents=True, exist_ok=True)
        LOCKS.write_text(json.dumps(theirs))
        with dvc_locks.experiments_refused():
            assert json.loads(LOCKS.read_text()) == theirs
        assert (
            f"does not refuse experiments meanwhile: process {other.pid}: dvc exp run"
            in capsys.readouterr().out
        )
        with (
            pytest.raises(AlreadyRunning, match=f"process {other.pid}: dvc exp run"),
            dvc_locks.experiments_refused(alone=True),
        ):
            pass
        assert json.loads(LOCKS.read_text()) == theirs
        other.communicate(b"\n")


def test_a_stage_under_make_repro_leaves_the_lock_to_it(small, monkeypatch, capsys):
    monkeypatch.chdir(small.folder)
    LOCKS.parent.mkdir(parents=True, exist_ok=True)
    above = {"pid": os.getppid(), "cmd": "repro.py"}
    LOCKS.write_text(json.dumps({"write": {"refs/exps/stash": above}}))
    with dvc_locks.experiments_refused():
        assert owner() == above
    assert owner() == above
    assert capsys.readouterr().out == ""


def test_between_the_commands_of_a_stage_dvc_itself_has_the_lock(small, monkeypatch):
    monkeypatch.chdir(small.folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    for name in ("build", "verify"):
        keep = name == "build"
        small.write(
            f"{name}.py",
            f"from convoy.repo import dvc_locks\nwith dvc_locks.experiments_refused(keep={keep}):\n    pass\n",
        )
    commands = [f"{sys.executable} build.py", f"cp {LOCKS} between.json", f"{sys.executable} verify.py"]
    small.write("dvc.yaml", json.dumps({"stages": {"two": {"cmd": commands, "outs": ["between.json"]}}}))
    command = [
        sys.executable,
        "-m",
        "dvc",
        "repro",
        "two",
    ]  # its own process, which `Small.repro` may not give
    subprocess.run(command, check=True)
    between = json.loads(Path("between.json").read_text())["write"]["refs/exps/stash"]
    assert between["cmd"].startswith("two works in this folder")
    assert not psutil.pid_exists(between["pid"]), "of the DVC that has ended"
    assert owner() is None


@pytest.mark.parametrize("problem", ["busy", "not a folder"])
def test_a_lock_that_cannot_be_had_is_reported_with_its_cause(small, monkeypatch, capsys, problem):
    monkeypatch.chdir(small.folder)
    monkeypatch.setattr("dvc.lock.DEFAULT_TIMEOUT", 0)
    LOCKS.parent.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        if problem == "busy":
            LOCKS.parent.mkdir()
            held.enter_context(FileLock(f"{LOCKS}.lock"))
            cause = "another process keeps .dvc/tmp/exps/rwlock.lock locked"
        else:
            LOCKS.parent.write_text("")
            cause = ".dvc/tmp/exps/rwlock cannot be written ("
        with dvc_locks.experiments_refused():
            [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"DVC does not refuse experiments meanwhile: {cause}")
    assert "Start none here before" in line


def test_make_repro_has_the_lock_before_dvc_starts(small, monkeypatch):
    monkeypatch.chdir(small.folder)
    script = importlib.util.spec_from_file_location("repro", REPOSITORY / "pipelines/repro.py")
    assert script
    assert script.loader
    repro = importlib.util.module_from_spec(script)
    script.loader.exec_module(repro)
    owners = []

    def started(command: list[str]) -> int:
        owners.append((command, owner()))
        return 1

    monkeypatch.setattr(repro.preflight, "check", lambda _: None)
    monkeypatch.setattr(repro.outbox, "prepare_store", lambda _: None)
    monkeypatch.setattr(repro.reproduce, "run", started)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for words in ([], ["--fit.lr", "0.125"]):
        monkeypatch.setattr(sys, "argv", ["repro.py", *words])
        with pytest.raises(repro.PipelineError):
            repro.main()
    [(plain, ours), (experiment, nobody)] = owners
    assert (plain, experiment) == (["repro"], ["exp", "run", "-S", "fit.lr=0.125"])
    assert ours
    assert ours["pid"] == os.getpid()
    assert nobody is None, "DVC takes it itself, and would be refused"
    assert owner() is None


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
