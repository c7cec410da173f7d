"""What a round of retraining found and did, as its report tells it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from convoy.gate.result import GateResult
from convoy.retraining.data_diff import Changes

Outcome = Literal["promoted", "kept", "refused", "nothing-new", "skipped", "failed"]


@dataclass(frozen=True)
class Step:
    """Name a step of the round and how long it took; a step that was not reached has none.

    Attributes:
        name: such as `look upstream`, as in `Facts.step`.
        seconds: of wall time.
        note: what came of it in a few words, such as `3 files changed`; may be empty.
    """

    name: str
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Delivery:
    """Say of one thing that leaves this machine whether it did.

    Attributes:
        what: in words that begin a line: `data and models`, `branch`, `pull request`.
        done: whether it is there now.
        where: the remote or the address, without credentials (an https:// one becomes a link);
            empty where it is nowhere.
        why: why it was not done, with the command that does it by hand; a remark where it was done.
    """

    what: str
    done: bool
    where: str = ""
    why: str = ""


@dataclass(frozen=True)
class Identity:
    """Name what the candidate was made of and what came of it; a part that there is not (yet) is empty.

    Attributes:
        commit: git commit whose code and params ran (HEAD of the caller).
        branch: branch of this round, `retrain/...`.
        lock_commit: commit on that branch which holds the final dvc.lock.
        data_md5: what was delivered, as DVC names it (`md5` of the out in data.dvc, with `.dir`).
        data_hash: as packed by prepare (`data_hash` of dataset.json, tag `convoy.data_hash`).
        params_hash: tag `convoy.params_hash` of the run.
        run_id: Convoy's id of the run.
        mlflow_run_id: MLflow's id of it.
        version: the registered version, such as `convoy/7`.
        onnx_sha256: of model.onnx.
        lock_sha256: of dvc.lock (tag `convoy.lock`).
    """

    commit: str = ""
    branch: str = ""
    lock_commit: str = ""
    data_md5: str = ""
    data_hash: str = ""
    params_hash: str = ""
    run_id: str = ""
    mlflow_run_id: str = ""
    version: str = ""
    onnx_sha256: str = ""
    lock_sha256: str = ""


@dataclass(frozen=True)
class Facts:
    """Hold everything that the report of a round says.

    Every field but the first four may be left out where the round did not get that far.

    Attributes:
        verdict: how the round ended.
        reason: why, in a sentence or two. For promoted, kept and refused it is `judgement.reasons[0]`
            (leave it empty: the report takes it from there). For failed it is the error's message, whole,
            several lines allowed; for nothing-new what was compared; for skipped who runs, and since when.
        started: when the round began, UTC, ISO 8601, such as `2026-11-23T22:10:05Z`.
        seconds: of wall time, the whole round.
        step: the step in which it ended, as named in `steps`; needed for failed, may be empty otherwise.
        log: the last lines of the step that failed (such as the end of `dvc repro`'s output); may be
            empty. Keep passwords out of it.
        trigger: why this round trained, such as `the data changed upstream` or `convoy/6 is 93 days
            old, more than gate.max_champion_age_days (90)`; empty where it did not.
        source: where the data come from, as data.dvc has it; without credentials.
        champion: the version that serves AFTER this round, such as `convoy/7`; empty where there is none.
        champion_before: the one that served before it; empty where there was none.
        override: the reason given to `--override`; empty as a rule.
        judgement: the gate's; None where none was made.
        changes: of the data, `changes.changes(champion's images, candidate's images, paths)`, and drawn by `retraining.pictures.draw`; None where
            the round did not get to compare them.
        energy: section `energy` of build/metrics/export.json in the worktree, joined with those of the other
            stages' files (`train_kwh`, `train_co2_kg`, `train_how` for each stage; `kwh`, `co2_kg`, `how` of
            all); {} where not metered.
        steps: in the order in which they ran, the one that failed included.
        identity: of the candidate.
        push: whether PUSH=1 was given.
        deliveries: what was to leave this machine, in order; empty where nothing was to.
        job: address of the CI job's page that has this report with its pictures; empty outside CI.
        hints: sentences on what to do next that only the round knows, put before the usual ones, in
            Markdown (put commands and names in backticks; they are not escaped).
    """

    verdict: Outcome
    reason: str
    started: str
    seconds: float
    step: str = ""
    log: str = ""
    trigger: str = ""
    source: str = ""
    champion: str = ""
    champion_before: str = ""
    override: str = ""
    judgement: GateResult | None = None
    changes: Changes | None = None
    energy: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    identity: Identity = field(default_factory=Identity)
    push: bool = False
    deliveries: tuple[Delivery, ...] = ()
    job: str = ""
    hints: tuple[str, ...] = ()
