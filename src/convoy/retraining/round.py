"""One round of retraining: take what is new, train, judge, let it serve or say why not, and report.

The order of the steps is what keeps the champion safe. Everything that can fail comes before the
alias moves: data and models are pushed, and the branch with their dvc.lock, so that a champion is
always one that others can restore. What comes after it is a tag and the proposal to merge.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from convoy.core import params
from convoy.core.console import info
from convoy.core.errors import ConvoyError
from convoy.gate.settings import GateParams
from convoy.registry import log, promote, register
from convoy.registry.client import CANDIDATE, CHAMPION, Registry, Version
from convoy.repo import git, identity
from convoy.retraining import outcome, prerequisites, processes, publish, trigger, worktree
from convoy.retraining.alone import Busy, alone
from convoy.retraining.decide import INPUTS, SOURCE, Decision, decide
from convoy.retraining.facts import DECIDED, Facts, Outcome
from convoy.retraining.processes import RoundError, Stopped
from convoy.retraining.shipment import Shipment
from convoy.retraining.trigger import Upstream

PAUSED = "checkpoints.time_budget_min"
"""Stands in the last words of a training that stopped because its time is over."""

RUNS_AGAIN = "The next round runs it again and resumes a training from its checkpoint."


class RoundPaused(RoundError):  # noqa: N818 (no error: the time budget is spent)
    """The training stopped at its time budget; the next round resumes it."""


def run(root: Path, *, push: bool) -> int:
    """Go through a round, and write build/retrain/verdict.json and report.md whatever came of it.

    Args:
        root: the caller's repository; of its files only build/retrain/ changes.
        push: whether commits, data and models leave this machine.

    Returns:
        The exit code: 0 promoted, kept, refused, nothing new, skipped; 1 a step failed or the round was
        stopped; 2 what it needs is not there.
    """
    return Round(root.resolve(), push=push).run()


class Round:
    """Hold what a round has found and done so far."""

    def __init__(self, root: Path, *, push: bool) -> None:
        """Begin; nothing is looked at yet."""
        self.root = root
        self.push = push
        self.facts = Facts(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", push=push, job=outcome.job_page())
        self.champion: Version | None = None
        self.began = time.monotonic()
        self.branch = f"retrain/{identity.mint_run_id()}"
        self.kept = False
        self.remote = ""

    def run(self) -> int:
        """Go through the steps, clean up, and report."""
        code = 1
        try:
            with _sigterm():
                verdict, reason = self._alone()
            code = 0
        except Busy as busy:
            verdict, reason, code = "skipped", f"{busy}.", 0
        except KeyboardInterrupt:
            verdict, reason = "paused", f"the round was stopped. {RUNS_AGAIN}"
        except RoundPaused as pause:
            verdict, reason, self.facts.log = "paused", str(pause), pause.log
        except ConvoyError as error:
            verdict, reason, code = "failed", str(error), error.exit_code
            self.facts.log = getattr(error, "log", "")
        except Exception as error:  # noqa: BLE001 (a bug must not keep the report from being written)
            traceback.print_exc()
            verdict, reason = "failed", f"{type(error).__name__}: {error}"
        self._report(verdict, reason, code)
        return code

    def _alone(self) -> tuple[Outcome, str]:
        with self.facts.step("prerequisites") as step:
            self.remote = prerequisites.check(self.root, push=self.push)
            self.facts.identity.commit = git.commit(self.root, "HEAD")
            if said := prerequisites.uncommitted(self.root):
                self.facts.hints.append(said)
            step.note = f"commit {self.facts.identity.commit[:10]}"
        with alone(self.root):
            outcome.clear(self.root)
            try:
                return self._in_worktree()
            finally:
                self._clean()

    def _in_worktree(self) -> tuple[Outcome, str]:
        with self.facts.step("worktree") as step:
            place = worktree.create(self.root)
            step.note = str(worktree.WORKTREE)
        with worktree.inside(self.root, place):
            with self.facts.step("look upstream") as step:
                now = trigger.look(place)
                self.facts.source = now.address
                if now.hint:
                    self.facts.hints.append(now.hint)
                state = "not what data.dvc has taken" if now.changed else "as data.dvc has it"
                step.note = f"{now.address or worktree.DATA}: {state}"
            with self.facts.step("decide") as step:
                decision = self._decide(now, place)
                step.note = decision.why
            if not decision.trains:
                return "nothing-new", f"{decision.why}."
            self.facts.trigger = decision.why
            self._train(place, now, decision)
            return self._judge_and_promote(place, now)

    def _decide(self, now: Upstream, place: Path) -> Decision:
        limits = params.section("gate", GateParams, place / params.PARAMS_FILE)
        registry = Registry.open()
        number = registry.aliases().get(CANDIDATE)
        # One that points nowhere is repaired by this round, which registers.
        candidate = next((one for one in registry.versions() if one.number == number), None)
        champion = registry.alias(CHAMPION)
        self.champion = champion
        self.facts.champion = self.facts.champion_before = str(champion or "")
        since = champion.created_ms if champion else 0
        if champion:
            moves = log.history(registry, champion.number)
            since = next((one.moment_ms for one in reversed(moves) if one.after == champion.number), since)
        return decide(now, candidate, champion, since, limits.max_champion_age_days)

    def _train(self, place: Path, now: Upstream, decision: Decision) -> None:
        env = {**os.environ, "PYTHONPATH": str(place / "src"), "DVC_NO_ANALYTICS": "1"}
        flags = ["--force"] if decision.aged else []
        if self.remote:
            with self.facts.step("ask the remote") as step:
                if said := publish.remote_answers(place):
                    if self.push:
                        raise RoundError(f"the DVC remote does not answer: {said}")
                    self.facts.hints.append(
                        f"The DVC remote did not answer ({said}); the round went on without it."
                    )
                else:
                    flags.append("--pull")
                step.note = said or "it answers"
        with self.facts.step("take the data") as step:
            names = worktree.pinned(place, has_remote=bool(self.remote))
            if now.changed:
                processes.stream([sys.executable, "-m", "dvc", "update", worktree.DATA], place, env)
            step.note = "new data" if now.changed else f"{', '.join(names) or worktree.DATA} as committed"
        with self.facts.step("commit the data") as step:
            # The model is to name the commit whose data.dvc it was made of.
            dated = git.ask(place, "show", "--no-patch", "--format=%cI", "HEAD")
            message = f"Take new data from {now.address}\n\nBy a round of retraining: {decision.why}."
            number = publish.commit(place, [worktree.DATA], message, dated=dated)
            step.note = f"commit {number[:10]}" if number else "nothing to commit"
        with self.facts.step("repro"):
            if decision.aged:
                outcome.forget_finished(self.root, self.champion)
            try:
                processes.stream([sys.executable, "pipelines/repro.py", *flags], place, env)
            except RoundError as error:
                raise _why_repro(error) from error
        with self.facts.step("commit the lock") as step:
            message = f"Retrain\n\nWhy: {decision.why}."
            number = publish.commit(place, ["dvc.lock", worktree.DATA], message)
            self.facts.identity.lock_commit = number
            step.note = f"commit {number[:10]}" if number else "nothing to commit"

    def _judge_and_promote(self, place: Path, now: Upstream) -> tuple[Outcome, str]:
        with self.facts.step("register") as step:
            candidate = register.register()
            outcome.describe(self.facts, candidate, place)
            step.note = str(candidate)
        with self.facts.step("judge") as step:
            judged = promote.judge(outcome.scratch(self.root) / "gate")
            self.facts.gate_result, self.facts.files = judged.judgement, judged.files
            outcome.compare_data(self.facts, self.champion, place, outcome.scratch(self.root))
            step.note = judged.judgement.verdict
        shipment = Shipment(self.root, place, self.facts, self.branch, self.push, self.remote)
        self.kept = shipment.leave()
        with self.facts.step("promote") as step:
            if promote.carry_out(judged):
                self.facts.champion = str(judged.candidate)
            self.kept = True  # a verdict was carried out: the branch says on what
            step.note = f"champion is {self.facts.champion or 'none'}"
        with self.facts.step("remember"):
            tags = {INPUTS: now.inputs, SOURCE: now.fingerprint}
            Registry.open().tag(judged.candidate, tags)
        if judged.judgement.verdict == "promote":
            self.facts.outcome, self.facts.seconds = "promoted", round(time.monotonic() - self.began, 2)
            shipment.propose()
        return DECIDED[judged.judgement.verdict], ""

    def _clean(self) -> None:
        """Leave the repository as it was; what came to an end keeps its branch."""
        worktree.remove(self.root)
        if self.facts.identity.branch and not self.kept:
            with suppress(RoundError):  # it was never made
                processes.git(self.root, "branch", "--quiet", "-D", self.facts.identity.branch)
            self.facts.identity.branch = ""

    def _report(self, verdict: Outcome, reason: str, code: int) -> None:
        facts = self.facts
        facts.outcome, facts.reason, facts.seconds = verdict, reason, round(time.monotonic() - self.began, 2)
        path = outcome.write(self.root, facts)
        head = facts.gate_result.reasons[0] if facts.gate_result and not reason else reason
        where = f"in step `{facts.incomplete_step}`: " if code else ""
        info(f"\n{verdict.upper()}  {where}{head}\nreport: {path}")


@contextmanager
def _sigterm() -> Iterator[None]:
    """Let SIGTERM end a round as Ctrl-C does, but tell them apart."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise Stopped

    before: Callable[[int, FrameType | None], object] | int | None = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _why_repro(error: RoundError) -> RoundError:
    """Find in a pipeline's last lines why it ended: what the stage said, before DVC and others repeat it."""
    lines = error.log.splitlines()
    start = next((at for at, line in enumerate(lines) if line.startswith("ERROR")), None)
    if start is None:
        return RoundError(f"the pipeline failed: {error}\n{RUNS_AGAIN}", error.log)
    rest = lines[start + 1 :]
    length = next((at for at, line in enumerate(rest) if not line.startswith(" ")), len(rest))
    said = "\n".join([lines[start].removeprefix("ERROR in "), *rest[:length]])
    if PAUSED in said and "spent" in said:
        return RoundPaused(f"{said}\nThe next round resumes the training, in the same run.", error.log)
    return RoundError(f"the pipeline failed: {said}\n{RUNS_AGAIN}", error.log)
