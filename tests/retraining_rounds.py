"""Rounds of retraining on the small pipeline, with a registry and a gate that are scripted."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from convoy.core import files
from convoy.core.errors import ConvoyError
from convoy.registry.alias import Entry
from convoy.registry.client import CANDIDATE, CHAMPION, Version
from convoy.registry.promote import Judged
from convoy.retraining import outcome, round, worktree  # noqa: A004 (the module's name)
from convoy.tracking.run import now_ms
from gate_results import gate_result
from small_pipeline import FILES, Small

REPRO = """\
import os, subprocess, sys
print("repository", os.environ["CONVOY_REPOSITORY"], "flags", *sys.argv[1:], flush=True)
sys.exit(subprocess.run([sys.executable, "-m", "dvc", "repro", *sys.argv[1:]]).returncode)
"""

GATE = """\
gate:
  confidence: 0.95
  on_equal: keep
  equal_within: 0.02
  min_images: 1
  min_accuracy: 0.5
  min_class_recall: null
  max_class_drop: null
  max_ece: null
  max_latency_ms_p95: null
  max_latency_ratio: null
  max_size_mb: null
  max_champion_drop: null
  max_champion_age_days: 90
  public_key: none
"""

PIPELINE = {
    **FILES,
    "params.yaml": FILES["params.yaml"] + GATE,
    "pipelines/repro.py": REPRO,
    "prepare.sh": FILES["prepare.sh"]
    + "echo '{\"hash\": \"'$(md5sum < build/dataset/all | cut -c1-32)'\"}' > build/dataset/dataset.json\n",
    # The limits of the gate are no params of a training.
    "train.sh": "mkdir -p build/model && cat build/dataset/all nets/* > build/model/weights && date +%N >> build/model/weights\n",
}

CI = (
    "GITHUB_ACTIONS", "GITLAB_CI", "GITHUB_STEP_SUMMARY", "GITHUB_RUN_ID", "CI_JOB_URL", "CI_COMMIT_BRANCH",
    "CI_DEFAULT_BRANCH", "MLFLOW_TRACKING_URI", "DVC_ROOT", "CONVOY_REPOSITORY",
)  # fmt: skip

STREAM = worktree.stream


@dataclass
class Rounds:
    """Run rounds in a copy of the small pipeline, with a registry in memory."""

    small: Small
    verdict: str = "promote"  # of the gate
    registered: list[Version] = field(default_factory=list)
    alias_numbers: dict[str, str] = field(default_factory=dict)
    moves: list[Entry] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)  # of registry and gate, in order

    @property
    def root(self) -> Path:
        return self.small.folder

    def run(self, *, push: bool = False) -> tuple[int, str, str]:
        """Run a round; return its exit code, verdict, and the step in which it failed or paused."""
        self.calls.clear()
        code = round.run(self.root, push=push)
        return code, self.result["verdict"], self.result["step"]

    @property
    def result(self) -> dict[str, Any]:
        """verdict.json of the last round."""
        return files.read_json(self.root / "build/retrain/verdict.json")

    @property
    def report(self) -> str:
        return (self.root / "build/retrain/report.md").read_text(encoding="utf-8")

    def branches(self) -> list[str]:
        return branches(self.small)

    def champion(self) -> str:
        return self.alias_numbers.get(CHAMPION, "")

    def change_rate(self, rate: str = "0.25") -> None:
        """Commit another param, for which the next round trains."""
        self.small.edit("params.yaml", "lr: 0.5", f"lr: {rate}")
        self.small.commit("another rate")

    # The fake registry and gate.

    def aliases(self) -> dict[str, str]:
        return dict(self.alias_numbers)

    def alias(self, alias: str) -> Version | None:
        number = self.alias_numbers.get(alias)
        return next((version for version in self.registered if version.number == number), None)

    def versions(self) -> list[Version]:
        return list(self.registered)

    def tag(self, version: Version, tags: dict[str, str]) -> None:
        self.calls.append("tag")
        at = int(version.number) - 1
        self.registered[at] = replace(self.registered[at], tags={**self.registered[at].tags, **tags})

    def register(self) -> Version:
        self.calls.append("register")
        assert os.environ["CONVOY_REPOSITORY"] == str(self.root)
        sha256 = files.sha256(Path("build/model/weights"))
        version = next((known for known in self.registered if known.sha256 == sha256), None)
        if version is None:
            number = str(len(self.registered) + 1)
            version = Version("convoy", number, sha256, f"run-{number}", f"mlflow-{number}", now_ms(), {})
            self.registered.append(version)
        self.alias_numbers[CANDIDATE] = version.number
        return version

    def judge(self, out: Path) -> Judged:
        self.calls.append("judge")
        candidate, champion = self.alias(CANDIDATE), self.alias(CHAMPION)
        assert candidate
        out.mkdir(parents=True)
        names = {"candidate": str(candidate), "champion": str(champion) if champion else None}
        unmeasured: dict[str, Any] = {"comparison": None, "criteria": (), "classes": (), "flips": ()}
        reasons = (f"to {self.verdict} is what the test says.",)
        result = gate_result(verdict=self.verdict, reasons=reasons, **names, **unmeasured)
        return Judged(result, candidate, champion, ())

    def carry_out(self, judged: Judged) -> bool:
        self.calls.append("promote")
        if judged.judgement.verdict != "promote":
            return False
        before, after = self.champion(), judged.candidate.number
        self.alias_numbers[CHAMPION] = after
        self.moves.append(Entry("run", "m", "promote", before, after, now_ms()))
        return True

    def grow_older(self, days: float) -> None:
        """Age everything in the registry."""
        past = int(days * 24 * 3600 * 1000)
        self.registered = [replace(known, created_ms=known.created_ms - past) for known in self.registered]
        self.moves = [replace(move, moment_ms=move.moment_ms - past) for move in self.moves]


def branches(repository: Small) -> list[str]:
    """List the branches besides main."""
    return [name for name in repository.git("branch", "--format=%(refname:short)").split() if name != "main"]


def with_fakes(rounds: Rounds, patch: pytest.MonkeyPatch) -> Rounds:
    """Replace the registry and the gate by fakes, outside CI."""
    for name in CI:
        patch.delenv(name, raising=False)
    patch.setattr(round.Registry, "open", lambda: rounds)
    patch.setattr(round.register, "register", rounds.register)
    patch.setattr(round.promote, "judge", rounds.judge)
    patch.setattr(round.promote, "carry_out", rounds.carry_out)
    patch.setattr(round.alias, "history", lambda *_: rounds.moves)
    patch.setattr(outcome, "compare_data", lambda *_: None)
    patch.setattr(outcome, "forget_finished", lambda *_: None)
    return rounds


def started(original: Rounds, folder: Path, patch: pytest.MonkeyPatch) -> Rounds:
    """Copy a repository with its registry, and enter it."""
    copy = deepcopy(original)
    copy.small = original.small.copy(folder / "repository")
    patch.chdir(copy.root)
    return with_fakes(copy, patch)


SPARED = (
    "build/retrain/", ".git/objects/", ".git/worktrees", ".dvc/cache/", ".dvc/tmp/", ".git/refs/", ".git/logs/",
)  # fmt: skip


def state(root: Path) -> dict[str, str]:
    """Hash every file of a caller that a round must not touch, with what git knows of it."""
    names = (path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file())
    hashes = {name: files.sha256(root / name) for name in names if not name.startswith(SPARED)}
    for words in ("rev-parse HEAD", "symbolic-ref HEAD", "status --porcelain", "worktree list", "branch -a"):
        command = ["git", "--no-optional-locks", *words.split()]
        hashes[words] = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return hashes


@dataclass
class Programs:
    """Replace the programs of a round: write at once the files that they would write."""

    real: tuple[str, ...] = ("push",)  # words of programs that do run
    started: list[list[str]] = field(default_factory=list)  # command lines

    def __call__(self, words: Sequence[str], folder: Path, env: Mapping[str, str]) -> str:
        self.started.append(list(words))
        if set(self.real) & set(words):
            return STREAM(words, folder, env)
        small = Small(folder)
        if "update" in words:
            small.edit("data.dvc", "md5: ", "md5: 0")
            return ""
        small.write("build/dataset/dataset.json", '{"hash": "d"}')
        small.write("dvc.lock", "schema: '2.0'\n")
        small.write("build/model/weights", os.urandom(8).hex())
        return ""


class DownError(ConvoyError):
    """Any known error of a step."""
