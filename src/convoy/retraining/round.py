"""One round of retraining: take new data, train, compare, promote or explain why not, and report.

The order of the steps keeps the champion safe. Everything that can fail comes before the alias moves: data and models
are pushed, and the branch with their dvc.lock, so that others can always restore a champion. What comes after it is a
tag and the proposal to merge.
"""

import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import psutil

from convoy.core import contract, files, params, yaml
from convoy.core.console import info
from convoy.core.errors import ConvoyError, RequestError, listed, without_credentials
from convoy.gate.settings import GateParams
from convoy.registry import alias, promote, register
from convoy.registry.client import CANDIDATE, CHAMPION, Registry, Version
from convoy.repo import dvc, git, identity, locks, packing
from convoy.retraining import outcome, publish, report, trigger, worktree
from convoy.retraining.outcome import DECIDED, Outcome, RoundRecord
from convoy.retraining.publish import REMOTE, Publication
from convoy.retraining.trigger import Decision, Upstream, decide
from convoy.retraining.worktree import RoundError, Stopped
from convoy.tracking import outbox, stages, store
from convoy.tracking.journal import state

RUNS_AGAIN = "The next round runs it again and resumes a training from its checkpoint."


class RoundPaused(RoundError):  # noqa: N818 (no error: the time budget is spent)
    """The training stopped at its time budget; the next round resumes it."""


def run(root: Path, *, push: bool) -> int:
    """Run a round, and write build/retrain/verdict.json and report.md whatever its outcome.

    Of the caller's files only build/retrain/ changes. With `push`, commits, data and models leave this machine.

    Returns:
        The exit code: 0 promoted, kept, refused, nothing new, skipped; 1 a step failed or the round was stopped; 2 a
        prerequisite is missing.
    """
    return Round(root.resolve(), push=push).run()


class Round:
    """A round, with what it has found and done so far."""

    def __init__(self, root: Path, *, push: bool) -> None:
        self.root = root
        self.push = push
        self.record = RoundRecord(
            f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", push=push, job=publish.job_page()
        )
        self.champion: Version | None = None
        self.began = time.monotonic()
        self.branch = f"retrain/{identity.mint_run_id()}"
        self.keep_branch = False
        self.dvc_remote = ""

    def run(self) -> int:
        """Run the steps, clean up, and report."""
        code = 1
        try:
            with _sigterm_as_interrupt():
                result, reason = self._exclusive()
            code = 0
        except KeyboardInterrupt:
            result, reason = "paused", f"the round was stopped. {RUNS_AGAIN}"
        except RoundPaused as pause:
            result, reason, self.record.log = "paused", str(pause), pause.log
        except ConvoyError as error:
            result, reason, code = "failed", str(error), error.exit_code
            self.record.log = getattr(error, "log", "")
        except Exception as error:  # noqa: BLE001 (a bug must not keep the report from being written)
            traceback.print_exc()
            result, reason = "failed", f"{type(error).__name__}: {error}"
        self._report(result, reason, code)
        return code

    def _exclusive(self) -> tuple[Outcome, str]:
        with self.record.step("prerequisites") as step:
            self.dvc_remote = check_prerequisites(self.root, push=self.push)
            self.record.identity.commit = git.commit(self.root, "HEAD")
            self.record.uncommitted = _uncommitted_params(self.root)
            if self.record.uncommitted:
                info("\n".join(report.uncommitted(self.record)))
            if hint := _uncommitted(self.root):
                self.record.hints.append(hint)
            step.note = f"commit {self.record.identity.commit[:10]}"
        with ExitStack() as stack:
            try:
                stack.enter_context(exclusive(self.root))
            except locks.AlreadyRunning as running:
                return "skipped", f"another round runs in this repository: {running}."
            report.clear(self.root)
            try:
                return self._in_worktree()
            finally:
                self._clean()

    def _in_worktree(self) -> tuple[Outcome, str]:
        with self.record.step("worktree") as step:
            tree = worktree.create(self.root)
            step.note = str(worktree.WORKTREE)
        with worktree.inside(self.root, tree):
            with self.record.step("look upstream") as step:
                self.record.hints += packing.refresh(tree)
                upstream = trigger.look(tree)
                self.record.source = upstream.address
                if upstream.hint:
                    self.record.hints.append(upstream.hint)
                change = "changed since data.dvc was written" if upstream.changed else "unchanged"
                step.note = f"{upstream.address or worktree.DATA}: {change}"
            with self.record.step("decide") as step:
                decision = self._decide(upstream, tree)
                step.note = decision.why
            if not decision.trains:
                return "nothing-new", f"{decision.why}."
            self.record.trigger = decision.why
            self._train(tree, upstream, decision)
            return self._judge_and_promote(tree, upstream)

    def _decide(self, upstream: Upstream, tree: Path) -> Decision:
        limits = params.section("gate", GateParams, tree / params.PARAMS_FILE)
        registry = Registry.open()
        number = registry.aliases().get(CANDIDATE)
        # A candidate that was deleted is replaced by this round, which registers.
        candidate = next((version for version in registry.versions() if version.number == number), None)
        self.champion = champion = registry.alias(CHAMPION)
        self.record.champion = self.record.champion_before = str(champion or "")
        since_ms = 0
        if champion:
            moves = reversed(alias.history(registry, champion.number))
            became = (move.moment_ms for move in moves if move.after == champion.number)
            since_ms = next(became, champion.created_ms)
        return decide(upstream, candidate, champion, since_ms, limits.max_champion_age_days)

    def _train(self, tree: Path, upstream: Upstream, decision: Decision) -> None:
        env = worktree.pipeline_environment(tree)
        flags = ["--force"] if decision.aged else []
        if self.dvc_remote:
            with self.record.step("check the remote") as step:
                reason = dvc.check_remote(tree)
                if reason and self.push:
                    raise RoundError(f"the DVC remote does not answer: {reason}")
                if reason:
                    self.record.hints.append(f"The DVC remote did not answer ({reason}); it was not used.")
                else:
                    flags.append("--pull")
                step.note = reason or "it answers"
        with self.record.step("take the data") as step:
            names = worktree.checkout_pinned(tree, has_remote=bool(self.dvc_remote))
            if upstream.changed:
                worktree.stream([sys.executable, "-m", "dvc", "update", worktree.DATA], tree, env)
            step.note = (
                "new data" if upstream.changed else f"{', '.join(names) or worktree.DATA} as committed"
            )
        with self.record.step("commit the data") as step:
            # The model names this commit, whose data.dvc it was made from.
            date = git.query(tree, "show", "--no-patch", "--format=%cI", "HEAD")
            message = f"Take new data from {upstream.address}\n\nBy a round of retraining: {decision.why}."
            number = publish.commit(tree, [worktree.DATA], message, date=date)
            step.note = f"commit {number[:10]}" if number else "nothing to commit"
        with self.record.step("repro"):
            if decision.aged:
                outcome.forget_finished(self.root, self.champion)
            try:
                worktree.stream([sys.executable, "pipelines/repro.py", *flags], tree, env)
            except RoundError as error:
                reason = _stage_error(error.log) or str(error)
                if _is_paused():
                    pause = f"{reason}\nThe next round resumes the training, in the same run."
                    raise RoundPaused(pause, error.log) from error
                raise RoundError(f"the pipeline failed: {reason}\n{RUNS_AGAIN}", error.log) from error
        with self.record.step("commit the lock") as step:
            message = f"Retrain\n\nWhy: {decision.why}."
            number = publish.commit(tree, ["dvc.lock", worktree.DATA], message)
            self.record.identity.lock_commit = number
            step.note = f"commit {number[:10]}" if number else "nothing to commit"

    def _judge_and_promote(self, tree: Path, upstream: Upstream) -> tuple[Outcome, str]:
        with self.record.step("register") as step:
            candidate = register.register()
            outcome.describe(self.record, candidate, tree)
            step.note = str(candidate)
        with self.record.step("judge") as step:
            judged = promote.judge(report.scratch(self.root) / "gate")
            self.record.gate_result, self.record.files = judged.judgement, judged.files
            outcome.compare_data(self.record, self.champion, tree, report.scratch(self.root))
            step.note = judged.judgement.verdict
        publication = Publication(self.root, tree, self.record, self.branch, self.push, self.dvc_remote)
        self.keep_branch = publication.publish()
        with self.record.step("promote") as step:
            if promote.carry_out(judged):
                self.record.champion = str(judged.candidate)
            self.keep_branch = True  # it shows what the verdict is about
            step.note = f"champion is {self.record.champion or 'none'}"
        with self.record.step("remember"):
            tags = {contract.RETRAIN_INPUTS: upstream.inputs, contract.RETRAIN_SOURCE: upstream.fingerprint}
            Registry.open().tag(judged.candidate, tags)
        if judged.judgement.verdict == "promote":
            self.record.outcome, self.record.seconds = "promoted", round(time.monotonic() - self.began, 2)
            publication.propose()
        return DECIDED[judged.judgement.verdict], ""

    def _clean(self) -> None:
        """Leave the repository as it was, apart from the branch of a verdict."""
        worktree.remove(self.root)
        if self.record.identity.branch and not self.keep_branch:
            with suppress(git.GitError):  # it was never created
                git.run(self.root, "branch", "--quiet", "-D", self.record.identity.branch)
            self.record.identity.branch = ""

    def _report(self, result: Outcome, reason: str, code: int) -> None:
        record = self.record
        record.outcome, record.reason = result, reason
        record.seconds = round(time.monotonic() - self.began, 2)
        path = report.write(self.root, record)
        head = record.gate_result.reasons[0] if record.gate_result and not reason else reason
        where = f"in step `{record.incomplete_step}`: " if code else ""
        info(f"\n{result.upper()}  {where}{head}\nreport: {path}")


def check_prerequisites(root: Path, *, push: bool) -> str:
    """Refuse a round that cannot succeed, before it does anything; return DVC's remote, empty if it has none.

    Raises:
        RequestError: names everything that is missing.
    """
    dvc.check_repository(root)
    if reason := git.no_commit(root):
        raise RequestError(f"{root} has no git commit for a round to start from: {reason}")
    name, url = dvc.default_remote(root)
    remote = f"{name} ({without_credentials(url)})" if name else ""
    if url.startswith(("http://", "https://")) and not dvc.verifies(root, name):
        raise RequestError(
            f"DVC takes what the remote {remote} delivers over HTTP without comparing it with its md5: whoever controls the "
            f"server or the way there could exchange images or models. Type: dvc remote modify {name} verify true, then "
            "commit .dvc/config"
        )
    required = [
        (
            os.environ.get("MLFLOW_TRACKING_URI"),
            "MLFLOW_TRACKING_URI: address of the MLflow server with the registry; export MLFLOW_TRACKING_URI=https://…",
        ),
        (
            remote,
            "a DVC remote: keeps data and models between runners. dvc remote add --default store s3://…",
        ),
        (
            git.query(root, "remote", "get-url", REMOTE),
            f"a git remote `{REMOTE}`: receives the branch. git remote add {REMOTE} URL",
        ),
        (
            not os.environ.get("GITHUB_ACTIONS") or shutil.which("gh"),
            "gh: GitHub's command line, which opens the pull request. https://cli.github.com",
        ),
    ]
    if push and (missing := [f"  {line}" for present, line in required if not present]):
        lines = "\n".join(missing)
        raise RequestError(
            f"PUSH=1 requires:\n{lines}\nWithout PUSH=1 a round stays on this machine (docs/retraining.md)."
        )
    return remote


@contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Hold the repository's lock for rounds, which the system releases when the process dies.

    Raises:
        AlreadyRunning: another round runs, or the pipeline of a killed round.
    """
    with locks.exclusive(root / worktree.FOLDER / "lock"):
        if pid := _surviving_pipeline(root / worktree.WORKTREE):
            raise locks.AlreadyRunning(
                f"the pipeline of a killed round still runs as process {pid}; wait for it, or run `kill {pid}`"
            )
        yield


def _surviving_pipeline(tree: Path) -> int | None:
    """Find a process that runs the pipeline in the worktree."""
    for process in psutil.process_iter() if tree.exists() else ():
        with suppress(psutil.Error, OSError):
            folder = Path(process.cwd())
            if folder.is_relative_to(tree) and any("repro" in word for word in process.cmdline()[:4]):
                return int(process.pid)
    return None


def _uncommitted(root: Path) -> str:
    """Describe uncommitted changes, which are not part of a round; empty if there are none."""
    # Without the option, git would refresh the caller's index.
    changed = git.query(root, "--no-optional-locks", "status", "--porcelain", "--", ".").splitlines()
    if not changed:
        return ""
    names = listed([f"`{line[3:]}`" for line in changed], 3)
    return f"Uncommitted changes in this working tree ({names}) were not part of the round: it starts from the commit."


def _uncommitted_params(root: Path) -> dict[str, tuple[str, str]]:
    """Map the keys in which params.yaml differs from the commit to both values as YAML; `absent` stands for none.

    A file that cannot be read is a difference too, under its own name.
    """
    name = params.PARAMS_FILE.name
    committed = git.contents(root, [f"HEAD:./{name}"]).get(f"HEAD:./{name}")
    path = root / name
    if committed is None or not path.is_file() or committed == path.read_bytes():
        return {}
    try:
        before, now = params.flatten(yaml.load(committed.decode())), params.flatten(yaml.read(path))
    except (ConvoyError, UnicodeDecodeError) as error:
        return {name: ("readable", f"cannot be read: {error!s:.200}")}
    keys = [key for key in {**before, **now} if before.get(key, ...) != now.get(key, ...)]

    def shown(values: dict[str, object], key: str) -> str:
        return yaml.inline(values[key]) if key in values else "absent"

    return {key: (shown(before, key), shown(now, key)) for key in keys}


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a round as Ctrl-C does, but distinguish the two."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise Stopped

    before: Callable[[int, FrameType | None], object] | int | None = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_paused() -> bool:
    """Whether the pipeline in the current folder ended because a training spent its time budget: its run is SCHEDULED."""
    reference = stages.RUNS / "train.json"
    if not reference.exists():
        return False
    run_id = str(files.read_json(reference)["run_id"])
    status = state(outbox.folder() / run_id).ended
    if not status:  # its journal was uploaded and removed
        with suppress(Exception):  # the store does not answer: the pipeline failed, as far as is known
            stored = store.find(run_id)
            status = stored.info.status if stored else ""
    return status == "SCHEDULED"


def _stage_error(output: str) -> str:
    """Extract the error of a stage from a pipeline's last lines, before DVC repeats it; empty if there is none."""
    lines = output.splitlines()
    start = next((at for at, line in enumerate(lines) if line.startswith("ERROR")), None)
    if start is None:
        return ""
    rest = lines[start + 1 :]
    length = next((at for at, line in enumerate(rest) if not line.startswith(" ")), len(rest))
    return "\n".join([lines[start].removeprefix("ERROR in "), *rest[:length]])
