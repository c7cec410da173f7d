"""The results of a round reach the remotes before the champion changes, or the champion does not change."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import pytest

from convoy.core.errors import RequestError
from convoy.registry.promote import Judged
from convoy.repo import dvc, git
from convoy.retraining import publish, round, worktree  # noqa: A004 (the module's name)
from retraining_rounds import Rounds, branches, state
from small_pipeline import Small


@dataclass
class Remotes:
    rounds: Rounds
    git: Small
    dvc: Path

    def branches(self) -> list[str]:
        return branches(self.git)

    def hook(self, text: str) -> None:
        """Let the git remote do something with a push before it takes it."""
        self.git.write("hooks/pre-receive", f"#!/bin/sh\n{text}\n")
        (self.git.folder / "hooks/pre-receive").chmod(0o755)


@pytest.fixture
def remotes(trained: Rounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remotes:
    """Remotes to push to, and a param that makes the next round train."""
    trained.small.git("init", "-q", "--bare", "-b", "main", str(tmp_path / "remote.git"))
    trained.small.git("remote", "add", "origin", "../remote.git")
    trained.small.set_remote(url=tmp_path / "store")
    trained.change_rate()
    trained.small.git("push", "-q", "origin", "main")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    return Remotes(trained, Small(tmp_path / "remote.git"), tmp_path / "store")


@pytest.fixture
def no_dvc_push(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out DVC's remote, for tests of git's."""
    monkeypatch.setattr(publish, "push_data", lambda *_: None)


def test_another_machine_takes_what_a_round_pushed_and_runs_nothing(remotes, tmp_path, monkeypatch, capfd):
    rounds = remotes.rounds
    assert rounds.run(push=True)[0] == 0
    assert "Running stage 'train'" in capfd.readouterr().out
    assert remotes.branches() == [rounds.result["branch"]]
    assert rounds.result["pushed"] == {"data and models": True, "branch": True, "pull request": False}
    assert rounds.branches() == [], "what is pushed needs no branch here"
    assert f"git fetch, then git merge origin/{rounds.result['branch']}" in rounds.report, "outside CI"
    runs = [path for path in (remotes.dvc / "runs").rglob("*") if path.is_file()]
    assert len(runs) == 3, "of three stages, and not of the first round's train too"
    rounds.small.git("clone", "-q", "../remote.git", str(tmp_path / "other"))
    rounds.small = Small(tmp_path / "other")
    monkeypatch.chdir(rounds.root)
    rounds.registered[1].tags.clear()
    assert rounds.run(push=True)[0] == 0
    output = capfd.readouterr().out
    assert "Running stage" not in output
    assert "Stage 'train' is cached - skipping run, checking out outputs" in output
    assert len(rounds.registered) == 2


def test_nothing_leaves_this_machine_without_push(remotes, quick):
    assert remotes.rounds.run()[0] == 0
    assert remotes.branches() == []
    assert not remotes.dvc.exists()
    [branch] = remotes.rounds.branches()
    assert f"run: git push origin {branch}" in remotes.rounds.report
    assert "PUSH=1 was not given; run: dvc push" in remotes.rounds.report
    assert remotes.rounds.result["pushed"] == {"data and models": False, "branch": False}


def test_a_rejected_branch_leaves_the_champion_and_the_remotes_message_is_reported(
    remotes, quick, no_dvc_push
):
    remotes.hook("echo 'only robots may push' && exit 1")
    before = state(remotes.rounds.root)
    assert remotes.rounds.run(push=True) == (1, "failed", "push branch")
    result = remotes.rounds.result
    assert (result["champion"], remotes.rounds.champion()) == ("convoy/1", "1")
    assert "only robots may push" in result["reason"]
    assert "May this machine push there (../remote.git)?" in result["reason"]
    assert "only robots may push" in remotes.rounds.report
    assert state(remotes.rounds.root) == before


def test_a_token_in_the_address_of_the_git_remote_is_not_shown(remotes, quick, no_dvc_push):
    rounds = remotes.rounds
    rounds.small.git("remote", "set-url", "origin", "https://x:secret@127.0.0.1:9/team.git")
    assert rounds.run(push=True) == (1, "failed", "push branch")
    assert "https://x:***@127.0.0.1:9/team.git" in rounds.result["reason"]
    assert "secret" not in json.dumps(rounds.result) + rounds.report


def test_a_dvc_remote_that_rejects_the_data_leaves_the_champion(remotes, quick, monkeypatch):
    def fail(words: list[str], folder: Path, env: dict[str, str]) -> str:
        if "push" in words:
            raise worktree.RoundError("`dvc` ended with exit code 1", "disk quota exceeded\n")
        return quick(words, folder, env)

    monkeypatch.setattr(worktree, "stream", fail)
    before = state(remotes.rounds.root)
    assert remotes.rounds.run(push=True) == (1, "failed", "push data")
    result = remotes.rounds.result
    assert result["champion"] == "convoy/1"
    assert "the DVC remote rejected the data and models: disk quota exceeded\n" in result["reason"]
    assert "`dvc push`" in result["reason"]
    assert remotes.branches() == []
    assert state(remotes.rounds.root) == before


def test_a_dvc_remote_that_is_down_stops_a_round_that_pushes_before_it_trains(remotes, quick, monkeypatch):
    monkeypatch.setattr(dvc, "check_remote", lambda _: "no route to host")
    assert remotes.rounds.run(push=True) == (1, "failed", "check the remote")
    assert "the DVC remote does not answer: no route to host" in remotes.rounds.result["reason"]
    assert remotes.rounds.run()[0] == 0, "one that stays here needs no remote"
    assert "did not answer (no route to host)" in remotes.rounds.report


def test_github_gets_a_pull_request_for_a_promoted_lock(remotes, quick, no_dvc_push, tmp_path, monkeypatch):
    script = 'for word; do last=$word; echo "$word" >> $OUT/words; done; cp "$last" $OUT/body'
    fake_gh(tmp_path, monkeypatch, script)
    assert remotes.rounds.run(push=True)[0] == 0
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:6] == ["pr", "create", "--base", "main", "--head", remotes.rounds.result["branch"]]
    assert words[6:9] == ["--title", "Retrained: convoy/2 is champion", "--body-file"]
    assert "to promote is what the test says." in (tmp_path / "body").read_text()


def test_a_candidate_that_is_not_promoted_gets_no_request(remotes, quick, no_dvc_push, tmp_path, monkeypatch):
    fake_gh(tmp_path, monkeypatch, "touch $OUT/called")
    remotes.rounds.verdict = "refuse"
    assert remotes.rounds.run(push=True)[0] == 0
    assert remotes.branches() == [remotes.rounds.result["branch"]]
    assert not (tmp_path / "called").exists()


def test_a_pull_request_that_fails_is_a_failure_that_names_the_new_champion(
    remotes, quick, no_dvc_push, tmp_path, monkeypatch
):
    fake_gh(tmp_path, monkeypatch, "echo 'no permission' >&2; exit 4")
    assert remotes.rounds.run(push=True) == (1, "failed", "propose")
    result = remotes.rounds.result
    assert result["champion"] == "convoy/2"
    happened = f"convoy/2 is champion and its branch {result['branch']} is pushed, but no request was opened"
    assert result["reason"].startswith(f"{happened}: `gh pr create` failed: no permission")
    assert result["branch"] in remotes.branches()
    fake_gh(tmp_path, monkeypatch, 'for word; do echo "$word" >> $OUT/words; done')
    command = next(line for line in result["reason"].splitlines() if "gh pr create --base" in line)
    subprocess.run(["sh", "-c", command.partition(": ")[2]], check=True)
    words = (tmp_path / "words").read_text().splitlines()
    assert words[2:6] == ["--base", "main", "--head", result["branch"]]
    assert "RETRAIN_TOKEN" in result["reason"]
    assert "make retrain" not in remotes.rounds.report, "which would end with nothing new"
    assert remotes.rounds.run(push=True)[1] == "nothing-new"


def test_a_merge_request_that_fails_names_the_page_that_opens_it(remotes, quick, no_dvc_push, monkeypatch):
    monkeypatch.setenv("GITLAB_CI", "true")
    monkeypatch.setenv("CI_PROJECT_URL", "https://gitlab.example/team/photos")
    monkeypatch.setattr(publish.Publication, "_merge_request", Mock(side_effect=git.GitError("rejected")))
    assert remotes.rounds.run(push=True) == (1, "failed", "propose")
    branch = remotes.rounds.result["branch"].replace("/", "%2F")
    page = "https://gitlab.example/team/photos/-/merge_requests/new?merge_request%5Bsource_branch%5D="
    assert f"{page}{branch}&merge_request%5Btarget_branch%5D=main" in remotes.rounds.result["reason"]


@pytest.mark.parametrize("push", [True, False])
def test_a_remote_over_http_must_be_verified(remotes, quick, monkeypatch, push):
    monkeypatch.setattr(dvc, "check_remote", lambda _: "down")
    remotes.rounds.small.set_remote(url="http://user:word@127.0.0.1:9/store")
    assert remotes.rounds.run(push=push) == (2, "failed", "prerequisites")
    reason = remotes.rounds.result["reason"]
    assert "dvc remote modify store verify true" in reason
    assert "word@" not in reason
    remotes.rounds.small.set_remote(url="http://127.0.0.1:9/store", verify="true")
    assert remotes.rounds.run(push=push)[2] != "prerequisites"


def test_gitlab_gets_a_merge_request_by_push_options_once_the_lock_is_promoted(
    remotes, quick, no_dvc_push, tmp_path, monkeypatch
):
    monkeypatch.setenv("GITLAB_CI", "true")
    remotes.git.git("config", "receive.advertisePushOptions", "true")
    monkeypatch.setenv("CI_JOB_URL", "https://forge/job/7")
    options = ";".join(f"$GIT_PUSH_OPTION_{n}" for n in range(4))
    remotes.hook(f'echo "$GIT_PUSH_OPTION_COUNT;{options}" >> {tmp_path}/options')
    pushed, promoted = [], remotes.rounds.carry_out

    def promote(judged: Judged) -> bool:
        pushed.append((tmp_path / "options").read_text())
        return promoted(judged)

    monkeypatch.setattr(round.promote, "carry_out", promote)
    assert remotes.rounds.run(push=True)[0] == 0
    assert pushed == ["0;;;;\n"], "the branch is there before the alias moves, the request comes after"
    _, second = (tmp_path / "options").read_text().splitlines()
    assert second == (
        "4;merge_request.create;merge_request.target=main;merge_request.title=Retrained: convoy/2 is champion;"
        "merge_request.description=to promote is what the test says. Report and pictures: https://forge/job/7"
    )
    assert remotes.rounds.result["pushed"]["merge request"]


def test_a_proposal_goes_to_the_branch_of_the_caller_or_of_the_remote(remotes, monkeypatch):
    root = remotes.rounds.root
    remotes.rounds.small.git("checkout", "-q", "-b", "stable")
    assert publish.base_branch(root) == "stable"
    remotes.rounds.small.git("checkout", "-q", "--detach")
    assert publish.base_branch(root) == "main"
    monkeypatch.setenv("CI_COMMIT_BRANCH", "trunk")
    assert publish.base_branch(root) == "trunk"


def test_everything_that_push_requires_and_is_missing_is_named_at_once(rounds, monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    (tmp_path / "git").symlink_to(shutil.which("git"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert rounds.run(push=True)[0] == 2
    reason = rounds.result["reason"]
    assert reason.startswith("PUSH=1 requires:\n  MLFLOW_TRACKING_URI: ")
    assert all(f"\n  {name}: " in reason for name in ("a DVC remote", "a git remote `origin`", "gh"))
    assert "PUSH=1 requires" in rounds.report


def test_a_round_requires_a_commit(tmp_path):
    Small(tmp_path).init()
    (tmp_path / ".dvc").mkdir()
    with pytest.raises(RequestError, match="has no git commit"):
        round.check_prerequisites(tmp_path, push=False)


def test_commits_are_made_in_the_caller_s_name_or_in_convoy_s(tmp_path, monkeypatch):
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    small = Small(tmp_path)
    small.init()
    for author in ("test <test@example.invalid>", "Convoy <convoy@localhost>"):
        small.write("dvc.lock", author)
        number = publish.commit(tmp_path, ["dvc.lock", "data.dvc"], "Retrain")
        assert small.git("log", "-1", "--format=%H %an <%ae> %cn <%ce>") == f"{number} {author} {author}"
        (tmp_path / ".git/config").write_text("")
    assert publish.commit(tmp_path, ["dvc.lock"], "Retrain") == "", "nothing differs"


def test_a_lock_that_is_as_committed_makes_no_branch(trained, quick, monkeypatch):
    trained.registered[0].tags.clear()
    monkeypatch.setattr(publish, "commit", lambda *_, **__: "")
    assert trained.run() == (0, "promoted", "")
    assert trained.branches() == []
    assert "nothing differs from the commit" in trained.report


def fake_gh(folder: Path, patch: pytest.MonkeyPatch, text: str) -> None:
    """Put a fake `gh` first in PATH, which runs this shell script."""
    script = folder / "bin/gh"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"#!/bin/sh\nOUT={folder}\n{text}\n")
    script.chmod(0o755)
    patch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    patch.setenv("GITHUB_ACTIONS", "true")


def test_the_page_of_the_job_is_linked(monkeypatch):
    for name in ("GITHUB_ACTIONS", "CI_JOB_URL"):
        monkeypatch.delenv(name, raising=False)
    assert publish.job_page() == ""
    monkeypatch.setenv("CI_JOB_URL", "https://gitlab.example/job/7")
    assert publish.job_page() == "https://gitlab.example/job/7"
    values = {"ACTIONS": "true", "RUN_ID": "7", "SERVER_URL": "https://github.com", "REPOSITORY": "a/b"}
    for name, value in values.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)
    assert publish.job_page() == "https://github.com/a/b/actions/runs/7"
