"""What a round made reaches the remotes before the champion changes, or the champion does not change."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from convoy.core.errors import RequestError
from convoy.repo import dvc
from convoy.retraining import publish, round  # noqa: A004 (the module's name)
from retraining_rounds import Programs, Rounds, state
from small_pipeline import Small


@dataclass
class Remotes:
    """Remotes of a repository, and what was pushed to them."""

    rounds: Rounds
    git: Small
    dvc: Path

    def branches(self) -> list[str]:
        return [one for one in self.git.git("branch", "--format=%(refname:short)").split() if one != "main"]

    def hook(self, text: str) -> None:
        """Let the git remote do something with a push before it takes it."""
        self.git.write("hooks/pre-receive", f"#!/bin/sh\n{text}\n")
        (self.git.folder / "hooks/pre-receive").chmod(0o755)


@pytest.fixture
def remotes(trained: Rounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remotes:
    """Remotes to push to, and a param that makes the next round train."""
    trained.small.git("init", "-q", "--bare", "-b", "main", str(tmp_path / "remote.git"))
    trained.small.git("remote", "add", "origin", "../remote.git")
    add_remote(trained.small, url=tmp_path / "store")
    trained.small.edit("params.yaml", "lr: 0.5", "lr: 0.25")
    trained.small.commit("another rate")
    trained.small.git("push", "-q", "origin", "main")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    return Remotes(trained, Small(tmp_path / "remote.git"), tmp_path / "store")


@pytest.fixture
def no_data_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave DVC's remote out, for what only git matters to."""
    monkeypatch.setattr(publish, "push_data", lambda *_: None)


def test_another_machine_takes_what_a_round_pushed_instead_of_running_it(
    remotes: Remotes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rounds = remotes.rounds
    assert rounds.run(push=True) == 0
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
    rounds.kept[1].tags.clear()
    assert rounds.run(push=True) == 0
    output = capfd.readouterr().out
    assert "Running stage" not in output
    assert "Stage 'train' is cached - skipping run, checking out outputs" in output
    assert len(rounds.kept) == 2


def test_nothing_leaves_this_machine_without_push(remotes: Remotes, quick: Programs) -> None:
    assert remotes.rounds.run() == 0
    assert remotes.branches() == []
    assert not remotes.dvc.exists()
    [branch] = remotes.rounds.branches()
    assert f"run: git push origin {branch}" in remotes.rounds.report
    assert "PUSH=1 was not given; run: dvc push" in remotes.rounds.report
    assert remotes.rounds.result["pushed"] == {"data and models": False, "branch": False}


def test_a_rejected_branch_leaves_the_champion_and_passes_on_what_the_remote_said(
    remotes: Remotes, quick: Programs, no_data_leave: None
) -> None:
    remotes.hook("echo 'only robots may push' && exit 1")
    before = state(remotes.rounds.root)
    assert remotes.rounds.run(push=True) == 1
    result = remotes.rounds.result
    assert (result["verdict"], result["step"], result["champion"]) == ("failed", "push branch", "convoy/1")
    assert remotes.rounds.champion() == "1"
    assert "only robots may push" in result["reason"]
    assert "May this machine push there (../remote.git)?" in result["reason"]
    assert "only robots may push" in remotes.rounds.report
    assert state(remotes.rounds.root) == before


def test_a_token_in_the_address_of_the_git_remote_is_not_shown(
    remotes: Remotes, quick: Programs, no_data_leave: None
) -> None:
    rounds = remotes.rounds
    rounds.small.git("remote", "set-url", "origin", "https://x:secret@127.0.0.1:9/team.git")
    assert rounds.run(push=True) == 1
    assert rounds.result["step"] == "push branch"
    assert "https://x:***@127.0.0.1:9/team.git" in rounds.result["reason"]
    assert "secret" not in json.dumps(rounds.result) + rounds.report


def test_a_dvc_remote_that_takes_nothing_leaves_the_champion(remotes: Remotes, quick: Programs) -> None:
    remotes.dvc.write_text("a file, where a folder belongs")
    before = state(remotes.rounds.root)
    assert remotes.rounds.run(push=True) == 1
    result = remotes.rounds.result
    assert (result["step"], result["champion"]) == ("push data", "convoy/1")
    assert "the DVC remote rejected the data and models: " in result["reason"]
    assert "`dvc push`" in result["reason"]
    assert remotes.branches() == []
    assert state(remotes.rounds.root) == before


def test_a_dvc_remote_that_does_not_answer_stops_a_round_that_pushes_before_it_trains(
    remotes: Remotes, quick: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dvc, "check_remote", lambda _: "no route to host")
    assert remotes.rounds.run(push=True) == 1
    assert remotes.rounds.result["step"] == "check the remote"
    assert "the DVC remote does not answer: no route to host" in remotes.rounds.result["reason"]
    assert remotes.rounds.run() == 0, "one that stays here needs no remote"
    assert "did not answer (no route to host)" in remotes.rounds.report


def test_why_a_remote_does_not_answer_is_asked_before_anything_else(
    remotes: Remotes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dvc.check_remote(remotes.rounds.root) == ""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    keys = {"access_key_id": "a", "secret_access_key": "b"}
    add_remote(remotes.rounds.small, url="s3://bucket/path", endpointurl="http://127.0.0.1:9", **keys)
    assert "Could not connect to the endpoint URL" in dvc.check_remote(remotes.rounds.root)


def test_github_gets_a_pull_request_for_a_promoted_lock_alone(
    remotes: Remotes, quick: Programs, no_data_leave: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gh(
        tmp_path, monkeypatch, 'for one; do last=$one; echo "$one" >> $OUT/words; done; cp "$last" $OUT/body'
    )
    assert remotes.rounds.run(push=True) == 0
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:6] == ["pr", "create", "--base", "main", "--head", remotes.rounds.result["branch"]]
    assert words[6:9] == ["--title", "Retrained: convoy/2 is champion", "--body-file"]
    assert "to promote is what the test says." in (tmp_path / "body").read_text()
    (tmp_path / "words").unlink()
    remotes.rounds.small.edit("params.yaml", "lr: 0.25", "lr: 0.125")
    remotes.rounds.small.commit("another")
    remotes.rounds.verdict = "refuse"
    assert remotes.rounds.run(push=True) == 0
    assert remotes.rounds.result["branch"] in remotes.branches()
    assert not (tmp_path / "words").exists()


def test_a_pull_request_that_fails_is_a_failure_that_names_the_new_champion(
    remotes: Remotes, quick: Programs, no_data_leave: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gh(tmp_path, monkeypatch, "echo 'no permission' >&2; exit 4")
    assert remotes.rounds.run(push=True) == 1
    result = remotes.rounds.result
    assert (result["step"], result["champion"]) == ("propose", "convoy/2")
    assert result["reason"].startswith(
        f"convoy/2 is champion and its branch {result['branch']} is pushed, but no request was opened: "
        "`gh pr create` failed: no permission"
    )
    assert result["branch"] in remotes.branches()


def test_gitlab_gets_a_merge_request_by_push_options_once_the_lock_is_promoted(
    remotes: Remotes, quick: Programs, no_data_leave: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITLAB_CI", "true")
    remotes.git.git("config", "receive.advertisePushOptions", "true")
    monkeypatch.setenv("CI_JOB_URL", "https://forge/job/7")
    options = ";".join(f"$GIT_PUSH_OPTION_{n}" for n in range(4))
    remotes.hook(f'echo "$GIT_PUSH_OPTION_COUNT;{options}" >> {tmp_path}/options')
    champions = []
    promoted = remotes.rounds.carry_out
    monkeypatch.setattr(
        round.promote,
        "carry_out",
        lambda judged: champions.append((tmp_path / "options").read_text()) or promoted(judged),
    )
    assert remotes.rounds.run(push=True) == 0
    first, second = (tmp_path / "options").read_text().splitlines()
    assert champions == [f"{first}\n"], "the branch is there before the alias moves, the request comes after"
    assert first == "0;;;;"
    assert second == (
        "4;merge_request.create;merge_request.target=main;merge_request.title=Retrained: convoy/2 is champion;"
        "merge_request.description=to promote is what the test says. Report and pictures: https://forge/job/7"
    )
    assert remotes.rounds.result["pushed"]["merge request"]


def test_a_proposal_goes_to_the_branch_of_the_caller_or_of_the_remote(
    remotes: Remotes, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = remotes.rounds.root
    remotes.rounds.small.git("checkout", "-q", "-b", "stable")
    assert publish.base_branch(root) == "stable"
    remotes.rounds.small.git("checkout", "-q", "--detach")
    assert publish.base_branch(root) == "main"
    monkeypatch.setenv("CI_COMMIT_BRANCH", "trunk")
    assert publish.base_branch(root) == "trunk"


def test_all_that_push_needs_and_is_missing_is_named_at_once(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("PATH", str(bin_with(tmp_path, "git")))
    assert rounds.run(push=True) == 2
    reason = rounds.result["reason"]
    assert reason.startswith("PUSH=1 requires:\n  MLFLOW_TRACKING_URI: ")
    for name in (
        "\n  a DVC remote: ",
        "\n  a git remote `origin`: ",
        "\n  gh: ",
        "\nWithout PUSH=1 a round stays",
    ):
        assert name in reason
    assert "PUSH=1 requires" in rounds.report


def test_a_round_wants_a_commit_to_start_from(tmp_path: Path) -> None:
    small = Small(tmp_path)
    small.git("init", "-q")
    (tmp_path / ".dvc").mkdir()
    with pytest.raises(RequestError, match="has no git commit"):
        round.check_prerequisites(tmp_path, push=False)


def test_commits_are_made_in_the_caller_s_name_or_in_convoy_s(
    rounds: Rounds, quick: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    assert rounds.run() == 0
    author = ("log", "-1", "--format=%an <%ae>")
    assert rounds.small.git(*author, rounds.result["branch"]) == "test <test@example.invalid>"
    for name in ("user.name", "user.email"):
        rounds.small.git("config", "--unset", name)
    rounds.kept[0].tags.clear()
    rounds.small.git("branch", "-D", rounds.result["branch"])
    assert rounds.run() == 0
    assert rounds.small.git(*author, rounds.result["branch"]) == "Convoy <convoy@localhost>"


def test_a_lock_that_is_as_committed_makes_no_branch(rounds: Rounds, quick: Programs) -> None:
    assert rounds.run() == 0
    rounds.small.git("merge", "-q", rounds.result["branch"])
    rounds.small.git("branch", "-D", rounds.result["branch"])
    rounds.kept[0].tags.clear()
    assert rounds.run() == 0
    assert rounds.branches() == []
    assert "nothing differs from the commit" in rounds.report


def fake_gh(folder: Path, patch: pytest.MonkeyPatch, text: str) -> None:
    """Put a fake `gh` first in PATH, which runs this shell script."""
    script = bin_with(folder) / "gh"
    script.write_text(f"#!/bin/sh\nOUT={folder}\n{text}\n")
    script.chmod(0o755)
    patch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    patch.setenv("GITHUB_ACTIONS", "true")


def bin_with(folder: Path, *names: str) -> Path:
    """Make a folder of programs."""
    (folder / "bin").mkdir(exist_ok=True)
    for name in names:
        found = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip()
        (folder / "bin" / name).symlink_to(found)
    return folder / "bin"


def add_remote(small: Small, **settings: object) -> None:
    """Write DVC's configuration, as `dvc remote add` and `dvc remote modify` do."""
    lines = "".join(f"    {name} = {text}\n" for name, text in settings.items())
    small.write(".dvc/config", f"[core]\n    remote = store\n['remote \"store\"']\n{lines}")


def test_the_page_of_the_job_is_linked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "CI_JOB_URL"):
        monkeypatch.delenv(name, raising=False)
    assert publish.job_page() == ""
    monkeypatch.setenv("CI_JOB_URL", "https://gitlab.example/job/7")
    assert publish.job_page() == "https://gitlab.example/job/7"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    for name, value in {"RUN_ID": "7", "SERVER_URL": "https://github.com", "REPOSITORY": "a/b"}.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)
    assert publish.job_page() == "https://github.com/a/b/actions/runs/7"
