"""The scheduled job's own shell steps, round after round, each on a runner without anything of the last."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from clones import REPOSITORY, Clone, clone_working_tree, kill_uploaders
from convoy.core import yaml

pytestmark = pytest.mark.pipeline

MODEL = "rounds"
TEST, VAL, FEW, MANY = 300, 100, 150, 500
"""Images of the parts of a delivery, and of its train part at first and later."""

SMALL = {
    "tracking.experiment": MODEL,
    "tracking.registered_model": MODEL,
    "network.name": "lenet5",
    "train.epochs": "6",  # so that a training still runs when the kill arrives
    "train.batch_size": "8",
    "checkpoints.every_s": "0.1",
    "evaluate.feature_classes": "0",
    "evaluate.worst_images": "0",
    "export.latency_runs": "10",
    "energy.country": "none",
    "gate.min_class_recall": "null",  # which a model of few images may not reach
}
SWAPPED = {"1": "7", "7": "1", "3": "8", "8": "3"}


def steps() -> list[tuple[str, dict[str, str]]]:
    """List what retrain.yml runs in a shell, with the environment that it gives."""
    content = yaml.load((REPOSITORY / ".github/workflows/retrain.yml").read_text(encoding="utf-8"))
    found = [step for step in content["jobs"]["retrain"]["steps"] if "run" in step]
    return [(step["run"], step.get("env", {})) for step in found]


def script() -> list[tuple[str, dict[str, str]]]:
    """List the same of GitLab's job, in which variables of the project need no line."""
    job = yaml.load((REPOSITORY / ".gitlab-ci.yml").read_text(encoding="utf-8"))["retrain"]
    own = {name: str(text) for name, text in job["variables"].items()}
    return [
        (line, own | {"MLFLOW_TRACKING_URI": "${{ secrets.MLFLOW_TRACKING_URI }}"}) for line in job["script"]
    ]


def cached_paths() -> list[str]:
    """List the paths that the job keeps for the next one however it ends."""
    content = yaml.load((REPOSITORY / ".github/workflows/retrain.yml").read_text(encoding="utf-8"))
    saving = [step for step in content["jobs"]["retrain"]["steps"] if "cache/save" in step.get("uses", "")]
    return [
        path
        for step in saving
        if step["with"]["key"].startswith("retrain-state")
        for path in step["with"]["path"].split()
    ]


def computed(text: str, known: Mapping[str, str]) -> str:
    """Compute an expression of alternatives, as GitHub does: the first that is not empty."""

    def first(found: re.Match[str]) -> str:
        words = [word.strip() for word in found[1].split("||")]
        return next(
            filter(None, (known.get(word, word.strip("'") if word[0] == "'" else "") for word in words)), ""
        )

    return re.sub(r"\$\{\{(.*?)\}\}", first, text)


class Services:
    """A team's services, which outlive its runners: a git remote, a DVC remote, the source of the data, and MLflow."""

    def __init__(self, folder: Path, server: str) -> None:
        self.folder, self.server = folder, server
        self.remote, self.source, self.runners = folder / "remote.git", folder / "source", 0
        self.home = folder / "home"
        self.home.mkdir()
        self.source.mkdir()

    def deliver(self, train: int, swapped: Mapping[str, str] = {}) -> None:
        """Let upstream have other images: more of them, or the same with labels swapped."""
        with zipfile.ZipFile(REPOSITORY / "samples/digits/digits.zip") as digits:
            names = [name for name in digits.namelist() if name.endswith(".png")]
            names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
            held = TEST + VAL
            parts = {"test": names[:TEST], "val": names[TEST:held], "train": names[held : held + train]}
            with zipfile.ZipFile(self.source / "digits.zip", "w") as archive:
                for part, own in parts.items():
                    for name in own:
                        label, file = name.split("/")[-2:]
                        archive.writestr(
                            f"{part}/{swapped.get(label, label)}/{label}-{file}", digits.read(name)
                        )

    def create_repository(self) -> None:
        """Make the team's repository: the shipped files, with its own data, remotes and a small network."""
        team = clone_working_tree(self.folder / "team")
        for name, value in SMALL.items():
            team.set_param(name, value)
        team.run("convoy", "data", "use", str(self.source), PYTHONPATH=str(team.folder / "src"))
        team.run("dvc", "remote", "add", "--default", "store", str(self.folder / "dvc"))
        team.run("git", "commit", "-q", "-a", "-m", "Ours")
        self.host(team)
        shutil.rmtree(team.folder)

    def host(self, team: Clone) -> None:
        """Let the bare remote have what a repository has."""
        team.run("git", "init", "-q", "--bare", "-b", "main", str(self.remote))
        team.run("git", "push", "-q", str(self.remote), "HEAD:main")

    def runner(self, state: Path | None = None) -> Clone:
        """Give a machine that has a new clone, as shallow as a forge makes it, and what the job kept for it."""
        self.runners += 1
        folder = self.folder / f"runner-{self.runners}"
        subprocess.run(["git", "clone", "-q", "--depth", "1", self.remote.as_uri(), str(folder)], check=True)
        if state:
            shutil.copytree(state, folder, dirs_exist_ok=True)
        clone = Clone(folder)
        # No names, no settings, no credentials of the person who runs the tests.
        clone.env |= {"HOME": str(self.home), "GIT_CONFIG_NOSYSTEM": "1", "VENV": sys.prefix, "CI": "true"}
        clone.env["GITHUB_STEP_SUMMARY"] = str(folder.with_suffix(".md"))
        return clone

    def start(self, clone: Clone, command: str, env: Mapping[str, str]) -> "subprocess.Popen[str]":
        """Start a step of the job, in the shell that a forge gives it."""
        known = {"secrets.MLFLOW_TRACKING_URI": self.server, "github.token": "not-used"}
        (clone.folder.with_suffix(".sh")).write_text(command, encoding="utf-8")
        own = {name: computed(str(text), known) for name, text in env.items()}
        return clone.start("bash", "-e", str(clone.folder.with_suffix(".sh")), **own)

    def round(
        self, job: list[tuple[str, dict[str, str]]], state: Path | None = None
    ) -> tuple[dict[str, Any], str]:
        """Run a job on a new runner, which is then thrown away; give its verdict and what it printed."""
        clone, output = self.runner(state), ""
        for command, env in job:
            process = self.start(clone, command, env)
            printed, _ = process.communicate()
            output += printed
            assert process.returncode == 0, output
        out = clone.folder / "build/retrain"
        verdict = json.loads((out / "verdict.json").read_text(encoding="utf-8"))
        verdict["report"] = (out / "report.md").read_text(encoding="utf-8")
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", verdict["report"]):
            assert (out / picture).exists(), f"the report shows {picture}"
        assert clone.folder.with_suffix(".md").read_text(encoding="utf-8").strip(), "the job's summary"
        assert clone.run("git", "status", "--porcelain") == "", "the runner's own files are as they were"
        self.switch_off(clone)
        return verdict, output

    def switch_off(self, clone: Clone) -> None:
        """Take a machine away, with what still runs on it."""
        kill_uploaders(clone.folder)
        shutil.rmtree(clone.folder)

    def champion(self) -> str:
        return str(MlflowClient(self.server).get_model_version_by_alias(MODEL, "champion").version)

    def versions(self) -> int:
        return len(MlflowClient(self.server).search_model_versions(f"name = '{MODEL}'"))

    def branches(self) -> dict[str, list[str]]:
        """Map the remote's branches to the files that they change."""
        git = Clone(self.remote)
        names = git.run("git", "for-each-ref", "--format=%(refname:short)", "refs/heads/retrain").split()
        return {name: git.run("git", "diff", "--name-only", f"main...{name}").split() for name in names}


def test_three_scheduled_rounds_on_runners_that_forget_everything(server, tmp_path):
    services = Services(tmp_path, server)
    services.deliver(FEW)
    services.create_repository()

    verdict, _ = services.round(steps())
    assert (verdict["verdict"], services.champion()) == ("promoted", "1"), verdict["reason"]
    [(first, changed)] = services.branches().items()
    assert changed == ["dvc.lock"]
    # Its pull request is merged.
    Clone(services.remote).run("git", "update-ref", "refs/heads/main", f"refs/heads/{first}")

    services.deliver(MANY)
    state = killed_in_training(services)
    assert (services.versions(), services.champion(), len(services.branches())) == (1, "1", 1)
    verdict, output = services.round(steps(), state)
    assert "Resuming from epoch" in output
    assert (verdict["verdict"], services.champion()) == ("promoted", "2"), verdict["reason"]
    comparison = verdict["judgement"]["comparison"]
    assert comparison["images"] == TEST
    assert comparison["p_value"] < 0.01
    assert services.branches()[verdict["branch"]] == ["data.dvc", "dvc.lock"]

    colleague = by_hand(services, verdict["branch"])
    pulled = (colleague.folder / "build/deploy/model.onnx").read_bytes()
    assert hashlib.sha256(pulled).hexdigest() == verdict["identity"]["onnx_sha256"]
    fetching, [_, *typing] = commands_of_the_page()
    colleague.run(*fetching[0].replace("models:/convoy@", f"models:/{MODEL}@").split())
    assert (colleague.folder / "served/model.onnx").read_bytes() == pulled
    for line in typing:
        colleague.run(*line.split())
    assert (services.versions(), services.champion()) == (2, "1"), "the last of them is a rollback"

    # Left unmerged: the registry records what was judged, not main.
    services.deliver(MANY, SWAPPED)
    verdict, _ = services.round(steps())
    assert verdict["verdict"] == "refused"
    assert (services.versions(), services.champion()) == (3, "1")
    breached = {row["name"] for row in verdict["judgement"]["criteria"] if row["held"] is False}
    assert "champion_drop" in breached
    assert verdict["judgement"]["comparison"]["gain"] > 0.2, "the candidate learned the swapped labels"
    assert verdict["data"]["before"] == TEST + VAL + FEW
    assert verdict["data"]["relabelled"] > 100
    assert "**Labels changed.**" in verdict["report"]
    assert "relabelled.png" in verdict["report"]
    assert verdict["branch"] in services.branches()

    verdict, output = services.round(script())
    assert verdict["verdict"] == "nothing-new", "what was refused is not tried again every night"
    assert "[train]" not in output
    assert (services.versions(), services.champion()) == (3, "1")


def killed_in_training(services: Services) -> Path:
    """Let a job be cancelled while it trains, and give what it kept."""
    clone = services.runner()
    *_, (command, env) = steps()
    process = services.start(clone, command, env)
    until = time.monotonic() + 300
    while not list(clone.folder.glob("checkpoints/*/step-*.json")):
        assert time.monotonic() < until, "no checkpoint was written"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    rest = clone.stop(process, signal.SIGINT)
    kill_uploaders(clone.folder)
    assert process.returncode != 0
    verdict = json.loads((clone.folder / "build/retrain/verdict.json").read_text(encoding="utf-8"))
    assert (verdict["verdict"], verdict["step"]) == ("paused", "repro"), rest
    state = services.folder / "state"
    for path in cached_paths():
        if (clone.folder / path).exists():
            shutil.copytree(clone.folder / path, state / path)
    assert list(state.glob("checkpoints/*/*.ckpt")), rest
    services.switch_off(clone)
    return state


def commands_of_the_page() -> tuple[list[str], list[str]]:
    """Give the lines of docs/retraining.md that fetch the champion, and those of a round by hand."""
    page = (REPOSITORY / "docs/retraining.md").read_text(encoding="utf-8")
    blocks = [
        block.splitlines() for block in re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    ]
    assert blocks[0][0].startswith("mlflow artifacts download")
    assert (blocks[1][0], blocks[1][-1]) == ("make retrain", "convoy rollback")
    return blocks[0], blocks[1]


def by_hand(services: Services, branch: str) -> Clone:
    """Take a branch and its outputs from the remotes, as a colleague does."""
    clone = services.runner()
    clone.run("git", "fetch", "-q", "origin", branch)
    clone.run("git", "checkout", "-q", "FETCH_HEAD")
    clone.run("dvc", "pull", "-q")
    clone.env |= {"MLFLOW_TRACKING_URI": services.server, "PYTHONPATH": str(clone.folder / "src")}
    return clone


@pytest.mark.parametrize("job", [steps, script], ids=["github", "gitlab"])
def test_a_runner_without_a_server_or_a_remote_reports_both(fresh_clone, tmp_path, job):
    services = Services(tmp_path, server="")
    services.host(fresh_clone)
    runner = services.runner()
    *_, (command, env) = job()
    process = services.start(runner, command, env)
    output, _ = process.communicate()
    assert process.returncode != 0
    assert "MLFLOW_TRACKING_URI: address of the MLflow server" in output
    assert "a DVC remote: " in output
    assert "git remote" not in output
    verdict = json.loads((runner.folder / "build/retrain/verdict.json").read_text(encoding="utf-8"))
    assert (verdict["verdict"], verdict["step"]) == ("failed", "prerequisites")
