"""A round trains if something changed, promotes or explains, and leaves everything else as it was."""

import json
import runpy
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import psutil
import pytest

from clones import Clone
from convoy.core import files
from convoy.core.errors import RequestError
from convoy.registry import promote, register
from convoy.repo import git
from convoy.retraining import publish, round, trigger, worktree  # noqa: A004 (the module's name)
from retraining_rounds import DownError, state

STEPS = [
    ("prerequisites", round, "check_prerequisites", None),
    ("worktree", worktree, "create", None),
    ("look upstream", trigger, "look", None),
    ("decide", round, "decide", None),
    ("take the data", worktree, "checkout_pinned", None),
    ("commit the data", publish, "commit", None),
    ("repro", worktree, "stream", "pipelines/repro.py"),
    ("commit the lock", publish, "commit", "dvc.lock"),
    ("register", register, "register", None),
    ("judge", promote, "judge", None),
    ("branch", git, "run", "branch"),
    ("promote", promote, "carry_out", None),
]
"""Step, the function that fails in it, and an argument that tells this call from others, which work."""


def test_a_first_round_makes_a_champion_and_keeps_its_lock_on_a_branch(rounds, quick):
    before = state(rounds.root)
    assert rounds.run()[0] == 0
    assert (rounds.result["verdict"], rounds.champion()) == ("promoted", "1")
    [branch] = rounds.branches()
    assert rounds.result["branch"] == branch
    changed = rounds.small.git("diff", "--name-only", "main", branch).split()
    assert changed == ["dvc.lock"]
    after = state(rounds.root)
    assert after.pop("branch -a").split() == ["*", "main", branch]
    assert after == {name: text for name, text in before.items() if name != "branch -a"}


def test_a_round_with_nothing_new_trains_nothing(trained, monkeypatch):
    monkeypatch.setattr(worktree, "stream", lambda *_: pytest.fail("something ran"))
    (trained.root / "build/retrain/old.png").touch()
    before = state(trained.root)
    assert trained.run()[0] == 0
    assert not (trained.root / "build/retrain/old.png").exists(), "files of an earlier round"
    assert trained.result["verdict"] == "nothing-new"
    assert "params, code and limits are those of convoy/1" in trained.result["reason"]
    assert trained.calls == []
    assert state(trained.root) == before


def test_new_data_are_committed_before_they_are_trained_on(trained, quick, monkeypatch):
    quick.real = ("update",)
    trained.small.write("source/c.txt", "new\n")
    with monkeypatch.context() as earlier:
        earlier.setenv("GIT_COMMITTER_DATE", "2026-01-01T00:00:00+00:00")
        trained.small.commit("more images")
    assert trained.run()[0] == 0
    assert trained.result["trigger"] == "the data changed since convoy/1"
    [branch] = trained.branches()
    log = trained.small.git("log", "--format=%s", f"main..{branch}").splitlines()
    assert log == ["Retrain", "Take new data from source"]
    [data] = trained.small.git("log", "--format=%H", f"main..{branch}~1").split()
    assert trained.small.git("diff", "--name-only", "main", data) == "data.dvc"
    assert "frozen" not in trained.small.git("show", f"{branch}:data.dvc")
    lock_date, data_date = trained.small.git("log", "--format=%cI", f"main..{branch}").split()
    # That of the base: a repeated round makes the same commit again.
    assert data_date.startswith("2026-01-01T00:00:00")
    assert not lock_date.startswith("2026-01-01")


@pytest.mark.parametrize(("verdict", "word"), [("keep", "kept"), ("refuse", "refused")])
def test_a_candidate_that_is_not_promoted_stays_on_its_branch(trained, verdict, word, quick):
    trained.change_rate()
    trained.verdict = verdict
    assert trained.run() == (0, word, "")
    assert trained.result["reason"] == f"to {verdict} is what the test says."
    assert trained.result["trigger"] == "params, code or limits changed since convoy/1"
    assert (trained.champion(), trained.result["champion"]) == ("1", "convoy/1")
    assert trained.branches() == [trained.result["branch"]]
    assert trained.run() == (0, "nothing-new", ""), "a verdict is given once"


def test_uncommitted_changes_are_not_part_of_a_round_and_are_reported(trained):
    trained.small.edit("params.yaml", "lr: 0.5", "lr: 0.25")
    assert trained.run() == (0, "nothing-new", "")
    assert "Uncommitted changes in this working tree (`params.yaml`)" in trained.report


def test_params_that_are_not_committed_are_named_with_both_values_before_anything_trains(
    trained, quick, capsys, monkeypatch
):
    trained.change_rate("0.125")
    trained.small.edit("params.yaml", "lr: 0.125", "lr: 0.25\n  new: [a]")
    printed_before_training = []

    def program(words: list[str], folder: Path, env: dict[str, str]) -> str:
        printed_before_training.append(capsys.readouterr().out)
        return quick(words, folder, env)

    monkeypatch.setattr(worktree, "stream", program)
    assert trained.run()[0] == 0
    assert "fit.lr: committed 0.125 (used), here 0.25 (not used)" in printed_before_training[0]
    assert "fit.new: committed absent (used), here [a] (not used)" in printed_before_training[0]
    assert trained.result["uncommitted_params"] == {
        "fit.lr": {"committed": "0.125", "working": "0.25"},
        "fit.new": {"committed": "absent", "working": "[a]"},
    }
    assert "| `fit.lr` | `0.125` | `0.25` |" in trained.report


def test_a_params_file_that_cannot_be_read_is_reported_and_the_commit_is_used(trained, capsys):
    trained.small.write("params.yaml", "fit: [")
    assert trained.run() == (0, "nothing-new", "")
    assert "params.yaml: committed readable (used), here cannot be read" in capsys.readouterr().out
    assert trained.result["uncommitted_params"]["params.yaml"]["working"].startswith("cannot be read")


@pytest.mark.parametrize(("name", "module", "function", "argument"), STEPS, ids=[name for name, *_ in STEPS])
def test_a_failure_at_any_step_leaves_champion_and_repository_as_they_were(
    trained, name, module, function, argument, quick, monkeypatch
):
    trained.small.write("source/c.txt", "new\n")
    trained.small.commit("more images")
    before = state(trained.root)
    works = getattr(module, function)

    def fail(*words: Any, **more: object) -> object:
        flat = [part for word in words for part in (word if isinstance(word, list) else [word])]
        if argument and argument not in flat:
            return works(*words, **more)
        raise DownError(f"no {name} today")

    monkeypatch.setattr(module, function, fail)
    assert trained.run() == (1, "failed", name)
    assert trained.result["reason"] == f"no {name} today"
    assert f"no {name} today" in trained.report
    assert trained.champion() == "1"
    assert state(trained.root) == before


def test_a_registry_that_goes_down_after_the_alias_moved_keeps_the_champions_branch(
    rounds, quick, monkeypatch
):
    monkeypatch.setattr(rounds, "tag", Mock(side_effect=DownError("gone")))
    assert rounds.run() == (1, "failed", "remember")
    assert rounds.result["champion"] == "convoy/1"
    assert rounds.branches() == [rounds.result["branch"]]


def test_a_bug_is_reported_like_a_failure_in_the_job_s_summary_too(rounds, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    monkeypatch.setattr(trigger, "look", lambda _: {}["nothing"])
    assert rounds.run()[0] == 1
    assert rounds.result["reason"] == "KeyError: 'nothing'"
    assert "Traceback" in capsys.readouterr().err
    assert "KeyError: 'nothing'" in (tmp_path / "summary.md").read_text()


def test_a_training_that_fails_is_reported_with_its_last_lines(trained):
    error = "ERROR in train: params cannot be used:\\n  train.epochs is 0\\nDVC removed it"
    trained.small.write("train.sh", f"echo counting && printf '{error}\\n' && exit 1\n")
    trained.small.commit("worse code")
    assert trained.run() == (1, "failed", "repro")
    cause, remedy = trained.result["reason"].rsplit("\n", 1)
    assert cause == "the pipeline failed: train: params cannot be used:\n  train.epochs is 0"
    assert "resumes a training from its checkpoint" in remedy
    assert "counting" in trained.report


@pytest.mark.parametrize(
    ("status", "is_uploaded", "log", "verdict", "reason"),
    [
        ("SCHEDULED", True, "ERROR in train: no time left\nend\n", "paused", "train: no time left\n"),
        ("SCHEDULED", False, "ERROR in train: no time left\n", "paused", "train: no time left\n"),
        ("FAILED", True, "ERROR in train: no time left\n", "failed", "the pipeline failed: train: no time left\n"),
        ("", True, "killed\n", "failed", "the pipeline failed: `repro.py` ended with exit code 137\n"),
    ],
)  # fmt: skip
def test_the_status_of_a_run_and_no_message_pauses_a_round(
    trained, monkeypatch, status, is_uploaded, log, verdict, reason
):
    run_id = "20261123-100000-abcdef"

    def fail(words: list[str], folder: Path, env: object) -> str:
        files.write_json(folder / "build/runs/train.json", {"run_id": run_id})
        if not is_uploaded:
            path = trained.root / f"outbox/{run_id}/journal.jsonl"
            files.write_text(path, json.dumps({"kind": "end", "status": status}) + "\n")
        raise worktree.RoundError("`repro.py` ended with exit code 137", log)

    stored = SimpleNamespace(info=SimpleNamespace(status=status))
    monkeypatch.setattr(round.store, "find", lambda run: stored if status and run == run_id else None)
    monkeypatch.setattr(worktree, "stream", fail)
    trained.change_rate()
    assert trained.run() == (1, verdict, "repro")
    assert trained.result["reason"].startswith(reason)
    assert "`make retrain`" in trained.report


def test_a_missing_data_source_stops_a_round(trained):
    trained.small.git("mv", "source", "elsewhere")
    trained.small.commit("moved")
    assert trained.run() == (1, "failed", "look upstream")
    assert "the source of the data does not answer: source\n" in trained.result["reason"]
    assert "`convoy data use`" in trained.result["reason"]


def test_a_second_round_is_skipped_and_names_the_process_of_the_first(trained):
    with round.exclusive(trained.root):
        assert trained.run() == (0, "skipped", "")
    assert "another round runs in this repository: process " in trained.result["reason"]
    assert trained.run() == (0, "nothing-new", "")


def test_a_pipeline_that_outlived_its_round_keeps_others_out(rounds):
    tree = worktree.create(rounds.root)
    words = ["-c", "import time; print('up', flush=True); time.sleep(60)", "repro"]
    process = psutil.Popen(["python", *words], cwd=tree, stdout=-1)
    process.stdout.readline()
    try:
        assert rounds.run()[0] == 0
        assert rounds.result["verdict"] == "skipped"
        assert f"`kill {process.pid}`" in rounds.result["reason"]
    finally:
        process.kill()
        process.wait()
    with round.exclusive(rounds.root):
        pass


def test_what_a_killed_round_left_is_removed_and_the_next_goes_on(trained, quick):
    trained.change_rate()
    before = state(trained.root)
    tree = worktree.create(trained.root)
    (tree.parent / "out-1").mkdir()
    (tree / ".git").unlink()
    assert trained.run() == (0, "promoted", "")
    assert not list((trained.root / worktree.FOLDER).glob("out-*"))
    assert state(trained.root) == {**before, "branch -a": state(trained.root)["branch -a"]}


def test_a_round_that_is_interrupted_cleans_up_and_names_the_step(trained, monkeypatch):
    trained.change_rate()
    before = state(trained.root)
    monkeypatch.setattr(worktree, "stream", Mock(side_effect=worktree.Stopped))
    assert trained.run() == (1, "paused", "repro")
    assert trained.result["reason"].startswith("the round was stopped.")
    assert state(trained.root) == before


def test_an_old_champion_is_trained_anew_once_per_span(trained, quick):
    trained.verdict = "keep"
    trained.grow_older(91)
    assert trained.run()[0] == 0
    assert quick.started == [[sys.executable, "pipelines/repro.py", "--force"]]
    assert trained.result["trigger"].startswith("convoy/1 has been champion for 91.0 days")
    assert len(trained.registered) == 2
    assert trained.run() == (0, "nothing-new", "")


def test_a_round_restores_the_signal_handler(rounds, monkeypatch):
    before, during = signal.getsignal(signal.SIGTERM), []

    def fail(*_: object, **__: object) -> None:
        during.append(signal.getsignal(signal.SIGTERM))
        raise DownError("no git today")

    monkeypatch.setattr(round, "check_prerequisites", fail)
    assert rounds.run()[0] == 1
    assert during[0] != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("arguments", "push", "message"),
    [(["--now"], "", "no arguments such as '--now'"), ([], "yes", "PUSH is 'yes'")],
)
def test_the_script_takes_no_arguments_and_push_is_0_or_1(monkeypatch, repository, arguments, push, message):
    monkeypatch.setattr(sys, "argv", ["retrain.py", *arguments])
    monkeypatch.setenv("PUSH", push)
    with pytest.raises(RequestError, match=message):
        runpy.run_path(str(repository / "pipelines/retrain.py"))["main"]()


def test_force_and_pull_reach_dvc_and_other_options_do_not(fresh_clone, tmp_path):
    own = Clone(shutil.copytree(fresh_clone.folder, tmp_path / "clone", symlinks=True))
    fake = "import sys, dvc.cli\ndvc.cli.main = lambda words: print('DVC', *words, file=sys.stderr) or 1\n"
    (tmp_path / "sitecustomize.py").write_text(fake)
    path = f"{own.folder / 'src'}:{tmp_path}"
    script = (sys.executable, "pipelines/repro.py")
    output = own.run(*script, "--force", "--until", "train", "--pull", fails=True, PYTHONPATH=path)
    assert "DVC repro --force --pull train\n" in output
    output = own.run(*script, "--dry", fails=True, PYTHONPATH=path)
    assert "'--dry'" in output
