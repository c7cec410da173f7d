"""One study on disk: its trials, who runs them, and what becomes of those whose process died.

`sweeps/<name>/` holds `study.journal` (Optuna's, which its own tools read too), `request.json`,
and a log per trial. Locks are the system's, which takes them from a process that dies.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.pruners import MedianPruner
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import FrozenTrial, Trial, TrialState

from convoy.core import stage
from convoy.core.errors import TrainingError
from convoy.sweep.request import Request
from convoy.sweep.suggest import suggest

FOLDER = "sweeps"
JOURNAL = "study.journal"
REQUEST = "request.json"

AGAIN_OF, KILLED, WORKER, REASON, RUN, EPOCHS = "again_of", "killed", "worker", "reason", "run", "epochs"
"""What trials carry besides Optuna's own: number of the lost one that it repeats, workers that died of it, process,
why it failed, Convoy's run id, epochs that it shall train."""

LIVES = 2
"""Workers that may die while they try the same values, before it is taken that these are the cause."""

JUDGES = 5
"""Completed trials before any is pruned: the median of fewer says little."""

DIED = "its process died twice, perhaps out of memory"


class Study:
    """Hand out trials to workers, and take their results."""

    def __init__(self, folder: Path, request: Request) -> None:
        """Open the study in `folder`, or start it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.request = request
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal = JournalFileBackend(str(folder / JOURNAL), MendingLock(folder / JOURNAL))
        self._asking = FileLock(folder / "ask.lock")
        with self._asking:
            self.optuna = optuna.create_study(
                storage=JournalStorage(journal),
                study_name=request.name,
                direction=request.direction,
                load_if_exists=True,
                sampler=RandomSampler(),  # never asked: `suggest` chooses
                pruner=MedianPruner(n_startup_trials=JUDGES, n_warmup_steps=request.sweep.warmup_epochs),
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock of the one process that leads workers.

        Raises:
            TrainingError: another process sweeps this study.
        """
        lock, owner = FileLock(self.folder / "sweep.lock"), self.folder / "owner"
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            pid = owner.read_text(encoding="utf-8") if owner.exists() else "unknown"
            raise TrainingError(
                f"{self.request.name} is being swept already, by process {pid}. Wait for it, stop it by Ctrl-C, or look: "
                "convoy sweep --trials 0"
            ) from error
        try:
            owner.write_text(str(os.getpid()), encoding="utf-8")
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def trials(self) -> list[FrozenTrial]:
        """Read all trials, by number."""
        return self.optuna.get_trials(deepcopy=False)

    def ask(self, target: int) -> Trial | None:
        """Begin a trial: one that was lost before, else a new one.

        Returns:
            The trial, or None where `target` trials are begun or done, or every combination was tried.
        """
        with self._asking:
            trials = self.trials()
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            if len(begun(trials)) >= target:
                return None
            space = self.request.space
            if not waiting:
                values = suggest(
                    space,
                    trials,
                    seed=self.request.seed,
                    index=len(begun(trials)),
                    direction=self.request.direction,
                    present=self.request.present(),
                )
                if values is None:
                    return None
                self.optuna.enqueue_trial(values)
            trial = self.optuna.ask({one.key: one.distribution for one in space})
            trial.set_user_attr(WORKER, os.getpid())
            return trial

    def recover(self, alive: Sequence[int] | None = None) -> list[int]:
        """Fail the running trials of dead processes, and set their values aside to be tried again.

        Only for the process that holds `alone`, which knows its workers.

        Args:
            alive: process ids of workers that are at work; None where a whole sweep ended, which is no
                fault of the trials.

        Returns:
            Numbers of the trials that were lost.
        """
        lost = []
        with self._asking:  # no trial is between its beginning and the name of its worker
            trials = self.trials()
            for trial in trials:
                if trial.state != TrialState.RUNNING or trial.user_attrs.get(WORKER) in (alive or ()):
                    continue
                lost.append(trial.number)
                killed = trial.user_attrs.get(KILLED, 0) + (alive is not None)
                values = trial.params or trial.system_attrs.get("fixed_params", {})
                again = any(one.user_attrs.get(AGAIN_OF) == trial.number for one in trials)
                if killed < LIVES and not again:
                    self.optuna.enqueue_trial(values, {AGAIN_OF: trial.number, KILLED: killed})
                # After it, not before: a death in between must not lose the values.
                self.optuna.tell(trial.number, state=TrialState.FAIL)
        return lost


class MendingLock(BaseJournalFileLock):
    """Lock a journal for one writer, and cut off half a line that a dead one left, which Optuna would not read."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._lock = FileLock(journal.with_suffix(".lock"))

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        with self._journal.open("r+b") as file:
            content = file.read() if _torn(self._journal) else b"\n"
            if not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()


def folder_of(request: Request) -> Path:
    """Name the folder of a request's study, in the repository."""
    return stage.repository() / FOLDER / request.name


def begun(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Leave out the trials that are yet to begin, and those that were lost and are tried again."""
    again = {trial.user_attrs.get(AGAIN_OF) for trial in trials}
    return [trial for trial in trials if trial.state != TrialState.WAITING and trial.number not in again]


def _torn(journal: Path) -> bool:
    """Tell whether a file ends in the middle of a line, reading its last byte alone."""
    with journal.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
