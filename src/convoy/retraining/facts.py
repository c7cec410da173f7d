"""The record of one round of retraining: its outcome, its timed steps and everything that its report shows."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from convoy.core.console import info
from convoy.gate.result import GateResult, Verdict
from convoy.retraining.data_diff import Changes

Outcome = Literal["promoted", "kept", "refused", "nothing-new", "skipped", "paused", "failed"]
"""How a round ends. `paused`: stopped by its time budget or a signal, and continued by the next round."""

DECIDED: Mapping[Verdict, Outcome] = {"promote": "promoted", "keep": "kept", "refuse": "refused"}
"""Outcome of a round that reached a verdict."""


@dataclass
class Step:
    """Record one step of a round: its name, seconds of wall time, and its result in a few words."""

    name: str
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Delivery:
    """Record whether one thing left this machine.

    Attributes:
        what: subject of a line: `data and models`, `branch`, `pull request`.
        done: whether it is there now.
        where: the remote or the address, without credentials (an https:// address becomes a link); else empty.
        why: why it was not done, with the command that does it by hand; a remark where it was done.
    """

    what: str
    done: bool
    where: str = ""
    why: str = ""


@dataclass
class Identity:
    """Hold the ids that lead from the data to the candidate; empty until they exist.

    Attributes:
        commit: git commit whose code and params ran (HEAD of the caller).
        branch: branch of this round, `retrain/...`; empty where there is no such branch (any more).
        lock_commit: commit on that branch that holds the final dvc.lock; empty where nothing changed.
        data_md5: the delivery as DVC names it (`md5` of the out in data.dvc, with `.dir`).
        data_hash: the packed dataset (`data_hash` of dataset.json, tag `convoy.data_hash`).
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


@dataclass
class Facts:
    """Record a round while it runs; verdict.json and report.md are written from it.

    Attributes:
        started: when the round began, UTC, ISO 8601, such as `2026-11-23T22:10:05Z`.
        push: whether PUSH=1 was given.
        outcome: how the round ended; `failed` until it did.
        reason: why, in a sentence or two; several lines allowed. Empty for an outcome of the gate, whose reasons are in `gate_result`.
        seconds: of wall time, the whole round.
        log: the last lines of the failed step, such as the end of `dvc repro`'s output. Without credentials.
        trigger: why this round trained, such as `the data changed upstream`; empty where it did not.
        source: where the data come from, as data.dvc has it; without credentials.
        champion: the version that serves now, such as `convoy/7`; empty where there is none.
        champion_before: the version that served when the round began.
        gate_result: the verdict with its figures; None before it is reached.
        changes: difference between the champion's images and the candidate's; None before they are compared.
        energy: sections `energy` of build/metrics/*.json joined (`train_kwh`, `train_co2_kg`, `train_how` for each
            stage; `kwh`, `co2_kg`, `how` of all); {} where not metered.
        files: verdict.html and the figures of the gate, and the figure of relabelled images.
        steps: in the order in which they ran, a failed one included.
        deliveries: what was to leave this machine, in order.
        job: address of the CI job's page that has this report with its figures; empty outside CI.
        hints: what to do next, as far as only the round can tell; Markdown, not escaped; shown before the usual advice.
    """

    started: str
    push: bool
    outcome: Outcome = "failed"
    reason: str = ""
    seconds: float = 0.0
    log: str = ""
    trigger: str = ""
    source: str = ""
    champion: str = ""
    champion_before: str = ""
    gate_result: GateResult | None = None
    changes: Changes | None = None
    energy: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    steps: list[Step] = field(default_factory=list)
    identity: Identity = field(default_factory=Identity)
    deliveries: list[Delivery] = field(default_factory=list)
    job: str = ""
    hints: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Time a step and print its line; a step that fails is recorded too."""
        step, began, complete = Step(name), time.monotonic(), False
        self.steps.append(step)
        try:
            yield step
            complete = True
        finally:  # after Ctrl-C too: the report names the step
            step.seconds = round(time.monotonic() - began, 2)
            text = step.note if complete else "failed"
            info(f"[retrain] {name:<16} {step.seconds:7.1f} s  {text}".rstrip())

    @property
    def incomplete_step(self) -> str:
        """Name the step in which the round failed or paused; empty where it ended as it should."""
        return self.steps[-1].name if self.steps and self.outcome in ("failed", "paused") else ""
