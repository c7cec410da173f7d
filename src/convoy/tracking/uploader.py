"""Go through the journals of an outbox again and again until there is nothing left to do.

A store that fails is tried again after a while, and once more when nobody writes any more.
What remains is left to `convoy sync` or to the courier of the next run.
"""

import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

from filelock import BaseFileLock

from convoy.core.console import info
from convoy.core.errors import without_credentials
from convoy.repo import identity
from convoy.tracking import alive, outbox, settings, store
from convoy.tracking.mlflow_writer import Delivery, Waiting

LOOK_SECONDS = 0.5
"""How often journals are looked at: each look costs training a little, and whoever waits at the end half of it."""

BATCH_SECONDS = 2.0
"""Shortest time between two deliveries from a run that goes on: few calls with many points."""

LONGEST_PAUSE_SECONDS = 30.0
"""Longest pause between two tries of what fails; the first is a second."""

REMOVED = ".removed-"
"""Beginning of the name under which a delivered journal's folder is removed, as a whole or not at all."""


class Rounds:
    """Deliver what is in an outbox."""

    def __init__(self, where: Path, lock: BaseFileLock, owner: str = "") -> None:
        """Take up an outbox.

        Args:
            where: the folder.
            lock: held; let go of in the end.
            owner: a process to which runs will belong that are not open yet.
        """
        self.where = where
        self._lock = lock
        self._owner = owner
        self._deliveries: dict[str, Delivery] = {}
        self._delivered_at: dict[str, float] = {}
        self._pauses: dict[str, tuple[float, float]] = {}
        self._given_up: set[str] = set()
        self._swept: set[tuple[str, str]] = set()
        self._woken = self._wake()
        self._living = True

    def run(self) -> None:
        """Go round until nobody writes and nothing can be delivered."""
        for left in self.where.glob(f"{REMOVED}*"):
            shutil.rmtree(left, ignore_errors=True)
        _log(f"at work as process {os.getpid()}")
        if self._owner:
            self._prepare()
        while not self._leaves():
            self.round()
            time.sleep(LOOK_SECONDS)
        _log("nothing left to do")

    def _prepare(self) -> None:
        """Have the store ready before there are runs: MLflow takes seconds to make the tables of a new one."""
        try:
            store.make_file(store.uri())
            store.experiment(store.connect(), settings.experiment())
        except Exception as error:  # noqa: BLE001 (it is tried again with the first run)
            _log(f"{without_credentials(store.uri())}: {store.explain(error)}")

    def round(self) -> None:
        """Look at every journal, and deliver what is due."""
        if self._wake() != self._woken:
            self._woken = self._wake()
            self._pauses.clear()
            self._given_up.clear()
        self._look()
        for delivery in list(self._deliveries.values()):
            if delivery.is_delivered():
                if delivery.state.ended:
                    self._remove(delivery)
                elif self._is_over(delivery):
                    self._try(delivery, beat=True)
            elif self._is_due(delivery):
                self._try(delivery)

    def _look(self) -> None:
        """Read what is new; end a run that was killed inside a stage."""
        found = outbox.journals(self.where)
        for gone in self._deliveries.keys() - {path.name for path in found}:
            self._deliveries.pop(gone).stop()
        self._living = identity.is_alive(self._owner)
        for path in found:
            delivery = self._deliveries.setdefault(path.name, Delivery(path))
            delivery.look()
            if not delivery.uri:  # its first entry was never written: there is nowhere to deliver to
                del self._deliveries[path.name]
            elif delivery.is_alive():
                self._living = True
            elif not delivery.state.ended and outbox.close_orphan(self.where, path, between_stages=False):
                delivery.look()
        if self._living:
            self._given_up.clear()

    def _is_due(self, delivery: Delivery) -> bool:
        """Tell whether to send from a journal that holds more than was sent."""
        name = delivery.folder.name
        if name in self._given_up:
            return False
        if not self._living:
            return True  # the last try, which no pause puts off
        waited = time.monotonic() - self._delivered_at.get(name, 0.0)
        return self._is_over(delivery) and (bool(delivery.state.ended) or waited > BATCH_SECONDS)

    def _is_over(self, delivery: Delivery) -> bool:
        """Tell whether the pauses of a journal and of its store are over."""
        keys = (delivery.folder.name, delivery.uri)
        return all(time.monotonic() >= self._pauses.get(key, (0.0, 0.0))[0] for key in keys)

    def _try(self, delivery: Delivery, *, beat: bool = False) -> None:
        """Deliver, or say that a run lives; note what fails."""
        name = delivery.folder.name
        try:
            if beat:
                if delivery.is_alive():
                    delivery.beat()
                return
            delivery.deliver()
            self._sweep(delivery)
        except Waiting as parent:
            if not self._living and (str(parent) in self._given_up or str(parent) not in self._deliveries):
                self._given_up.add(name)
        except Exception as error:  # noqa: BLE001 (stores and artifact stores raise what their libraries do)
            self._failed(delivery, error)
        else:
            self._delivered_at[name] = time.monotonic()
            for key in (name, delivery.uri):
                self._pauses.pop(key, None)

    def _failed(self, delivery: Delivery, error: Exception) -> None:
        """Put off the journal that was refused, or all of a store that does not answer."""
        _log(f"{delivery.folder.name}: {delivery.fail(error)}")
        key = delivery.folder.name if store.refused(error) else delivery.uri
        pause = min(2 * self._pauses.get(key, (0.0, 0.5))[1], LONGEST_PAUSE_SECONDS)
        self._pauses[key] = (time.monotonic() + pause, pause)
        if not self._living:
            same = {name for name, one in self._deliveries.items() if key in {name, one.uri}}
            for name in same - self._given_up:
                self._deliveries[name].fail(error)
            self._given_up |= same

    def _sweep(self, delivery: Delivery) -> None:
        """End dead runs in the experiment of a journal, once."""
        place = (delivery.uri, str(delivery.state.opened["experiment"]))
        if place in self._swept:
            return
        self._swept.add(place)
        client = store.connect(delivery.uri)
        if found := client.get_experiment_by_name(place[1]):
            alive.end_abandoned(client, found.experiment_id, set(self._deliveries))

    def _remove(self, delivery: Delivery) -> None:
        """Remove a journal that is delivered, unless its run goes on by now."""
        name = delivery.folder.name
        with outbox.held(self.where):
            delivery.look()
            if not delivery.state.ended or not delivery.is_delivered():
                return
            gone = delivery.folder.with_name(f"{REMOVED}{name}")
            delivery.folder.rename(gone)
        del self._deliveries[name]
        delivery.stop()
        shutil.rmtree(gone, ignore_errors=True)
        _log(f"{name}: delivered")

    def _leaves(self) -> bool:
        """Leave if nobody writes and nothing is left but what was given up; new journals find the lock free."""
        if self._living or self._has_more():
            return False
        if not self.where.is_dir():
            return True
        with outbox.held(self.where):
            self._look_again()
            # Whoever wakes holds the same lock: seen here, or the courier's lock is free by then.
            if self._living or self._has_more() or self._wake() != self._woken:
                return False
            self._lock.release()
        return True

    def _look_again(self) -> None:
        """Look for what was opened or written since the round, without ending anything."""
        for path in outbox.journals(self.where):
            delivery = self._deliveries.setdefault(path.name, Delivery(path))
            delivery.look()
            if not delivery.uri:
                del self._deliveries[path.name]
            elif delivery.is_alive():
                self._living = True

    def _has_more(self) -> bool:
        """Tell whether something is to be delivered or removed that was not given up."""
        return any(
            name not in self._given_up and (one.state.ended or not one.is_delivered())
            for name, one in self._deliveries.items()
        )

    def _wake(self) -> float:
        path = self.where / outbox.WAKE
        return path.stat().st_mtime if path.exists() else 0.0


def _log(text: str) -> None:
    """Write a line to courier.log, which is this process's output."""
    info(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}")
