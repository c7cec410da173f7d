"""Rounds of retraining on the small pipeline, with a registry and a gate that are scripted."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from convoy.core import files
from convoy.core.errors import ConvoyError
from convoy.gate.result import GateResult
from convoy.registry.client import CANDIDATE, CHAMPION, Version
from convoy.registry.log import Entry
from convoy.registry.promote import Judged
from convoy.retraining import outcome, round, worktree  # noqa: A004 (the module's name)
from convoy.tracking.run import now_ms
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
MOMENT = "2026-11-23T22:00:00+00:00"


def make(folder: Path) -> Small:
    """Commit the small pipeline, with what a round needs."""
    small = Small(folder)
    for name, text in PIPELINE.items():
        small.write(name, text)
    small.git("init", "-q", "-b", "main")
    small.git("config", "user.name", "test")
    small.git("config", "user.email", "test@example.invalid")
    small.dvc("init", "-q")
    small.dvc("import-url", "source", "data")
    small.edit("data.dvc", "frozen: true\n", "")
    small.commit("pipeline")
    return small


def judgement(verdict: str, candidate: Version, champion: Version | None) -> GateResult:
    """Make a result without comparing anything."""
    return GateResult(
        verdict=verdict,  # type: ignore[arg-type] # any of its words
        decision="better",
        champion_problem="",
        reasons=(f"to {verdict} is what the test says.",),
        candidate=str(candidate),
        champion=str(champion) if champion else None,
        candidate_sha256=candidate.sha256,
        champion_sha256=champion.sha256 if champion else None,
        data_hash="d" * 64,
        images=0,
        excluded={},
        candidate_share=None,
        champion_share=None,
        criteria=(),
        comparison=None,
        classes=(),
        flips=(),
        conditions={"moment": MOMENT},
    )


@dataclass
class Rounds:
    """Run rounds in a copy of the small pipeline, with a registry in memory.

    Attributes:
        verdict: of the gate.
        calls: calls of registry and gate, in order, with the commit of the worktree.
    """

    small: Small
    verdict: str = "promote"
    kept: list[Version] = field(default_factory=list)
    aliases_: dict[str, str] = field(default_factory=dict)
    moves: list[Entry] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.small.folder

    def run(self, *, push: bool = False) -> int:
        """Run a round; return its exit code."""
        self.calls.clear()
        return round.run(self.root, push=push)

    @property
    def result(self) -> dict[str, Any]:
        """verdict.json of the last round."""
        return files.read_json(self.root / "build/retrain/verdict.json")

    @property
    def report(self) -> str:
        return (self.root / "build/retrain/report.md").read_text(encoding="utf-8")

    def branches(self) -> list[str]:
        return [one for one in self.small.git("branch", "--format=%(refname:short)").split() if one != "main"]

    def champion(self) -> str:
        return self.aliases_.get(CHAMPION, "")

    # The fake registry and gate.

    def aliases(self) -> dict[str, str]:
        return dict(self.aliases_)

    def alias(self, alias: str) -> Version | None:
        return next((one for one in self.kept if one.number == self.aliases_.get(alias)), None)

    def versions(self) -> list[Version]:
        return list(self.kept)

    def tag(self, version: Version, tags: dict[str, str]) -> None:
        self.called("tag")
        at = int(version.number) - 1
        self.kept[at] = replace(self.kept[at], tags={**self.kept[at].tags, **tags})

    def register(self) -> Version:
        self.called("register")
        assert os.environ["CONVOY_REPOSITORY"] == str(self.root)
        sha256 = hashlib.sha256(Path("build/model/weights").read_bytes()).hexdigest()
        found = next((one for one in self.kept if one.sha256 == sha256), None)
        if found is None:
            number = str(len(self.kept) + 1)
            found = Version("convoy", number, sha256, f"run-{number}", f"mlflow-{number}", now_ms(), {})
            self.kept.append(found)
        self.aliases_[CANDIDATE] = found.number
        return found

    def judge(self, out: Path) -> Judged:
        self.called("judge")
        candidate = self.alias(CANDIDATE)
        assert candidate
        out.mkdir(parents=True)
        return Judged(
            judgement(self.verdict, candidate, self.alias(CHAMPION)), candidate, self.alias(CHAMPION), ()
        )

    def carry_out(self, judged: Judged) -> bool:
        self.called("promote")
        if judged.judgement.verdict != "promote":
            return False
        before, after = self.champion(), judged.candidate.number
        self.aliases_[CHAMPION] = after
        self.moves.append(Entry("run", "m", "promote", before, after, now_ms()))
        return True

    def called(self, what: str) -> None:
        number = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        self.calls.append((what, number.stdout.strip()))

    def grow_older(self, days: float) -> None:
        """Age everything in the registry."""
        past = int(days * 24 * 3600 * 1000)
        self.kept = [replace(one, created_ms=one.created_ms - past) for one in self.kept]
        self.moves = [replace(one, moment_ms=one.moment_ms - past) for one in self.moves]


def with_fakes(rounds: Rounds, patch: pytest.MonkeyPatch) -> Rounds:
    """Replace the registry and the gate by fakes."""
    patch.setattr(round.Registry, "open", lambda: rounds)
    patch.setattr(round.register, "register", rounds.register)
    patch.setattr(round.promote, "judge", rounds.judge)
    patch.setattr(round.promote, "carry_out", rounds.carry_out)
    patch.setattr(round.log, "history", lambda *_: rounds.moves)
    patch.setattr(outcome, "compare_data", lambda *_: None)
    patch.setattr(outcome, "forget_finished", lambda *_: None)
    return rounds


def started(original: Rounds, folder: Path, patch: pytest.MonkeyPatch) -> Rounds:
    shutil.copytree(original.root, folder / "repository", symlinks=True)
    copy = deepcopy(original)
    copy.small = Small(folder / "repository")
    patch.chdir(copy.root)
    return with_fakes(copy, outside_ci(patch))


def outside_ci(patch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in CI:
        patch.delenv(name, raising=False)
    return patch


def state(root: Path) -> dict[str, str]:
    """Hash every file of a caller that a round must not touch, with what git knows of it."""
    spared = (
        "build/retrain/",
        ".git/objects/",
        ".git/worktrees",
        ".dvc/cache/",
        ".dvc/tmp/",
        ".git/refs/",
        ".git/logs/",
    )
    names = (path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file())
    found = {
        name: hashlib.sha256((root / name).read_bytes()).hexdigest()
        for name in names
        if not name.startswith(spared)
    }
    for words in ("rev-parse HEAD", "symbolic-ref HEAD", "status --porcelain", "worktree list", "branch -a"):
        done = subprocess.run(
            ["git", "--no-optional-locks", *words.split()],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
        found[words] = done.stdout
    return found


@dataclass
class Programs:
    """Replace the programs of a round: write at once the files that they would write.

    Attributes:
        real: words of programs that do run.
        started: command lines.
    """

    real: tuple[str, ...] = ("push",)
    started: list[list[str]] = field(default_factory=list)

    def __call__(self, words: Sequence[str], folder: Path, env: Mapping[str, str]) -> str:
        self.started.append(list(words))
        if set(self.real) & set(words):
            return STREAM(words, folder, env)
        if "update" in words:
            text = (folder / "data.dvc").read_text(encoding="utf-8")
            (folder / "data.dvc").write_text(text.replace("md5: ", "md5: 0"), encoding="utf-8")
            return ""
        for name, text in (("build/dataset/dataset.json", '{"hash": "d"}'), ("dvc.lock", "schema: '2.0'\n")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "build/model").mkdir(parents=True, exist_ok=True)
        (folder / "build/model/weights").write_bytes(os.urandom(8))
        return ""


class DownError(ConvoyError):
    """Any known error of a step."""
