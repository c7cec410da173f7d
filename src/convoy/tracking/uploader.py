"""The uploader: a process that delivers the journals of a repository to MLflow until nothing is left to do.

Stages start it (`outbox.start_uploader`); only the last command of a pipeline and `convoy sync` wait for it. A
store that fails is retried after a pause, and a last time when all writers are gone. What remains is left to
`convoy sync` or to the uploader of the next run.

This module imports no MLflow before the lock is held: a second uploader exits at once.
"""

import contextlib
import os
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from convoy.core import stage
from convoy.core.console import info
from convoy.core.errors import without_credentials
from convoy.repo import identity
from convoy.tracking import outbox, settings, store

if TYPE_CHECKING:
    from convoy.tracking.mlflow_writer import Delivery

LOCK_SECONDS = 2.0  # whoever checks whether an uploader is running holds the lock for a moment
NICENESS = 10  # a tenth of a core if training uses them all; at 19, a hundredth, starting takes minutes
POLL_SECONDS = 0.5  # each read of the journals costs training a little, and a waiting command half of this
BATCH_SECONDS = 2.0  # shortest time between two deliveries of a run that is being written
LONGEST_PAUSE_SECONDS = 30.0  # longest pause between two attempts at a failing store; the first is a second
REMOVED = ".removed-"  # prefix of a delivered journal's folder, which is removed as a whole or not at all


class Uploader:
    """Deliver the journals of an outbox."""

    def __init__(self, where: Path, lock: filelock.BaseFileLock, owner: str = "") -> None:
        """Deliver the outbox `where`; the caller holds `lock`, which is released at the end.

        `owner` is a process that will open runs; the uploader waits for it as for a writer.
        """
        self.where = where
        self._lock = lock
        self._owner = owner
        self._deliveries: dict[str, Delivery] = {}
        self._delivered_at: dict[str, float] = {}
        self._pauses: dict[str, tuple[float, float]] = {}  # journal or store: end and length, in seconds
        self._given_up: set[str] = set()
        self._searched: set[tuple[str, str]] = set()
        self._woken = self._wake_time()
        self._writers_alive = True

    def run(self) -> None:
        """Deliver until all writers are gone and nothing more can be delivered."""
        for left in self.where.glob(f"{REMOVED}*"):
            shutil.rmtree(left, ignore_errors=True)
        _log(f"started as process {os.getpid()}")
        if self._owner:
            self._prepare_store()
        while not self._try_exit():
            self.deliver_due()
            time.sleep(POLL_SECONDS)
        _log("nothing left to do")

    def _prepare_store(self) -> None:
        """Create the store before there are runs: MLflow takes seconds for the tables of a new one."""
        try:
            store.experiment(store.open_to_write(store.uri()), settings.experiment())
        except Exception as error:  # noqa: BLE001 (the first run tries again)
            _log(f"{without_credentials(store.uri())}: {store.explain(error)}")

    def deliver_due(self) -> None:
        """Read every journal, and deliver what is due."""
        if self._wake_time() != self._woken:
            self._woken = self._wake_time()
            self._pauses.clear()
            self._given_up.clear()
        self._writers_alive = identity.is_alive(self._owner)
        self._read_journals(close_orphans=True)
        if self._writers_alive:
            self._given_up.clear()
        for delivery in list(self._deliveries.values()):
            if not delivery.is_delivered():
                if self._is_due(delivery):
                    self._try(delivery)
            elif delivery.state.ended:
                self._remove(delivery)
            elif self._is_unpaused(delivery):
                self._try(delivery, heartbeat=True)

    def _read_journals(self, *, close_orphans: bool) -> None:
        """Read new entries, note whether a writer is alive, and end runs that were killed inside a stage."""
        from convoy.tracking.mlflow_writer import Delivery  # noqa: PLC0415 (seconds; see the module's docstring)

        paths = outbox.journals(self.where)
        for removed in self._deliveries.keys() - {path.name for path in paths}:
            self._deliveries.pop(removed).stop_sampling()
        for path in paths:
            delivery = self._deliveries.setdefault(path.name, Delivery(path))
            delivery.read_new()
            if not delivery.uri:  # its first entry was never written: its store is unknown
                del self._deliveries[path.name]
            elif delivery.is_alive():
                self._writers_alive = True
            elif (
                close_orphans
                and not delivery.state.ended
                and outbox.close_orphan(self.where, path, between_stages=False)
            ):
                delivery.read_new()

    def _is_due(self, delivery: "Delivery") -> bool:
        """Check whether to deliver new entries of a journal now."""
        name = delivery.folder.name
        if name in self._given_up:
            return False
        if not self._writers_alive:
            return True  # the last attempt, which no pause delays
        waited = time.monotonic() - self._delivered_at.get(name, 0.0)
        return self._is_unpaused(delivery) and (bool(delivery.state.ended) or waited > BATCH_SECONDS)

    def _is_unpaused(self, delivery: "Delivery") -> bool:
        """Check that the pauses of a journal and of its store are over."""
        keys = (delivery.folder.name, delivery.uri)
        return all(time.monotonic() >= self._pauses.get(key, (0.0, 0.0))[0] for key in keys)

    def _try(self, delivery: "Delivery", *, heartbeat: bool = False) -> None:
        """Deliver new entries or send a heartbeat; note a failure."""
        name = delivery.folder.name
        try:
            if heartbeat:
                if delivery.is_alive():
                    delivery.send_heartbeat()
                return
            delivery.deliver()
            self._end_abandoned(delivery)
        except store.ParentNotStored as parent:
            lost = str(parent) in self._given_up or str(parent) not in self._deliveries
            if not self._writers_alive and lost:
                self._given_up.add(name)
        except Exception as error:  # noqa: BLE001 (stores and artifact stores raise what their libraries do)
            self._pause(delivery, error)
        else:
            self._delivered_at[name] = time.monotonic()
            for key in (name, delivery.uri):
                self._pauses.pop(key, None)

    def _pause(self, delivery: "Delivery", error: Exception) -> None:
        """Postpone the journal that was refused, or all journals of a store that does not answer."""
        _log(f"{delivery.folder.name}: {delivery.note_failure(error)}")
        key = delivery.folder.name if store.refused(error) else delivery.uri
        pause = min(2 * self._pauses.get(key, (0.0, 0.5))[1], LONGEST_PAUSE_SECONDS)
        self._pauses[key] = (time.monotonic() + pause, pause)
        if not self._writers_alive:
            affected = {name for name, other in self._deliveries.items() if key in {name, other.uri}}
            for name in affected - self._given_up:
                self._deliveries[name].note_failure(error)
            self._given_up |= affected

    def _end_abandoned(self, delivery: "Delivery") -> None:
        """End dead runs in the experiment of a journal, once."""
        uri, name = delivery.uri, str(delivery.state.opened["experiment"])
        if (uri, name) in self._searched:
            return
        self._searched.add((uri, name))
        client = store.connect(uri)
        if experiment := client.get_experiment_by_name(name):
            store.end_abandoned(client, experiment.experiment_id, set(self._deliveries))

    def _remove(self, delivery: "Delivery") -> None:
        """Remove a delivered journal, unless its run has been resumed."""
        name = delivery.folder.name
        with outbox.locked(self.where):
            delivery.read_new()
            if not delivery.state.ended or not delivery.is_delivered():
                return
            removed = delivery.folder.with_name(f"{REMOVED}{name}")
            delivery.folder.rename(removed)
        del self._deliveries[name]
        delivery.stop_sampling()
        shutil.rmtree(removed, ignore_errors=True)
        _log(f"{name}: delivered")

    def _try_exit(self) -> bool:
        """Release the lock if all writers are gone and nothing is left except what was given up."""
        if self._writers_alive or self._has_work():
            return False
        if not self.where.is_dir():
            return True
        with outbox.locked(self.where):
            self._read_journals(close_orphans=False)  # what was opened or written meanwhile
            # Commands touch `wake` under the same lock: it is seen here, or they find the uploader's lock free.
            if self._writers_alive or self._has_work() or self._wake_time() != self._woken:
                return False
            self._lock.release()
        return True

    def _has_work(self) -> bool:
        """Check for a journal to deliver or remove that was not given up."""
        return any(
            name not in self._given_up and (delivery.state.ended or not delivery.is_delivered())
            for name, delivery in self._deliveries.items()
        )

    def _wake_time(self) -> float:
        path = self.where / outbox.WAKE
        return path.stat().st_mtime if path.exists() else 0.0


def _log(text: str) -> None:
    """Write a line to uploader.log, which is this process's output."""
    info(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}")


def main() -> None:
    """Deliver the outbox of the current folder, unless another process does.

    The command line may name a process; the uploader waits for it as for a writer.
    """
    where = Path.cwd() / "outbox"
    lock = outbox.uploader_lock(where)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except filelock.Timeout:
        return
    stage.silence_dependencies()
    # The uploader retries by itself, and reports each failure at once.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    _yield_cores()
    Uploader(where, lock, owner=sys.argv[1] if len(sys.argv) > 1 else "").run()


def _yield_cores() -> None:
    """Use only what training leaves of the cores.

    Where Linux groups processes by session, as on desktops and many servers, niceness counts only within
    a session, so the uploader's own session needs its own niceness.
    """
    os.nice(NICENESS)
    group = Path("/proc/self/autogroup")
    with contextlib.suppress(OSError):  # not Linux, no grouping, or a container without the permission
        group.write_text(str(NICENESS), encoding="ascii")


if __name__ == "__main__":
    main()
