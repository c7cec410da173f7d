"""Move the alias `champion`, forwards by a promotion or back by a rollback. Nothing else in Convoy moves it.

Each move is an entry in the promotion log: an MLflow run in an experiment of its own. The log is also the lock.

An entry is RUNNING from before the alias moves until the outcome is known: FINISHED, the alias moved; FAILED, it did
not. An entry left RUNNING by a process or store that died is closed by the next move: where the alias points shows
whether it moved.

MLflow has neither locks nor compare-and-set, on sqlite as on a server, but an entry that was created is seen by every
later search. So a process creates its entry first and then reads the open entries of others: of two processes, the
second to create its entry sees the other's. A process that sees an older open entry gives up; one that sees a younger
entry waits until that process gives up or, if it was already past this point, has moved the alias. Clocks decide only
which of two gives up.

Entries of dead processes do not count. On this machine the process is looked up; an entry of another machine counts as
dead after `LEASE_S` on the reader's own clock. So right before the alias moves, its entry must still be open and younger
than half of that.
"""

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import psutil
from mlflow.entities import Experiment, Run

from convoy.core import contract, escaping
from convoy.core.console import info
from convoy.core.errors import RequestError
from convoy.registry.client import (
    CHAMPION,
    TAG_CHARACTERS,
    ModelArtifacts,
    Registry,
    RegistryError,
    Version,
    refuse_inside_experiment,
)
from convoy.repo import identity
from convoy.tracking import settings, store
from convoy.tracking.run import now_ms

SUFFIX = " promotions"

MOVE = "convoy.move"
MODEL = "convoy.model"
FROM = "convoy.from"
TO = "convoy.to"
REASON = "convoy.reason"
OUTCOME = "convoy.outcome"
MACHINE = "convoy.machine"
NOTE = "mlflow.note.content"

MOVED = "moved"
NOT_MOVED = "not moved"

LEASE_S = 60.0  # for which an entry of another machine must stay open before its process counts as dead
SAFE_S = LEASE_S / 2  # age of an own entry at which others may soon count it as dead: it moves nothing
WAIT_S = 5.0  # for which a living process is waited for; a move takes a second
POLL_S = 0.1
REPORT_S = 2.0

Kind = Literal["promote", "rollback", "override"]

_MAKING: set[str] = set()
"""Moves that this process is making; another open entry of this process is left from a store that did not answer."""


@dataclass(frozen=True)
class Entry:
    """A move of `champion` between two versions' numbers; `before` is empty if there was no champion.

    Attributes:
        run: MLflow's id of the entry.
        move: its own id; a store that died may have made two runs of a move.
        moment_ms: milliseconds since 1970, UTC.
        status: MLflow's status of the run.
        process: `pid:start`.
        machine: boot and process namespace; a host name may be given to several machines.
    """

    run: str
    move: str
    kind: str
    before: str
    after: str
    moment_ms: int
    host: str = ""
    status: str = "FINISHED"
    process: str = ""
    machine: str = ""

    @property
    def owner(self) -> str:
        """Name the command, process, host and start."""
        since = datetime.fromtimestamp(self.moment_ms / 1000, UTC)
        pid = self.process.partition(":")[0]
        return f"`{self.kind}` of version {self.after} by process {pid} on {self.host} since {since:%Y-%m-%d %H:%M:%S} UTC"

    def moved(self, champion: str) -> bool:
        """Whether the alias did move; `champion` is the version that it points to now."""
        return self.status == "FINISHED" or (self.status == "RUNNING" and champion == self.after)

    def outcome(self, champion: str) -> str:
        """Derive the outcome of an entry that was left open from where the alias points now."""
        if champion == self.after:
            return MOVED
        if champion == self.before:
            return NOT_MOVED
        return f"{NOT_MOVED}, or was moved since: it points to {champion or 'nothing'}"


@dataclass(frozen=True)
class Moved:
    """A completed move of the champion; `entry` is MLflow's id of the log's entry."""

    before: Version | None
    to: Version
    kind: Kind
    entry: str


def move(
    registry: Registry,
    to: Version,
    *,
    expected: Version | None,
    kind: Kind,
    reason: str,
    files: Sequence[Path] = (),
) -> Moved:
    """Point `champion` to a version, with an entry in the promotion log that gets kind, reason and files.

    Of `expected`, the champion that the decision was made against, only the number counts.

    Raises:
        RequestError: it is the champion already, the reason is too long, or DVC runs this process.
        RegistryError: another process moves the alias, another version was promoted since, or the store stopped
            answering; the message says whether the alias moved, as far as that is known.
    """
    refuse_inside_experiment(kind if kind != "override" else "promote")
    if len(reason) > TAG_CHARACTERS:
        raise RequestError(
            f"the reason has {len(reason):,} characters; at most {TAG_CHARACTERS:,} can be stored. Shorten it, or link to "
            "a page."
        )
    _require_expected(registry, expected, to)
    entry = Move(registry)
    with entry.exclusive(kind, expected.number if expected else "", to, reason.strip()):
        now = _require_expected(registry, expected, to)
        entry.close_abandoned(now)
        entry.attach(files)
        entry.check()
        actual = _point(registry, now, to)
        if actual != to.number:
            entry.close(f"{NOT_MOVED}: it points to {actual or 'nothing'}")
            raise RegistryError(
                f"the alias {CHAMPION} of {registry.model} points to {actual or 'nothing'} right after it was moved to "
                f"{to.number}: something else moves it too. Find out what, then run the same command again."
            )
        try:
            entry.close(MOVED)
        except RegistryError as error:
            info(f"{CHAMPION} is {to}; the next promote or rollback completes the log: {error}")
    return Moved(expected, to, kind, entry.entry.run)


def complete_log(registry: Registry) -> None:
    """Close the entries that dead processes left open, unless a living one is moving the alias, which does that.

    Raises:
        RegistryError: the store does not answer, or does not take it.
    """
    own = Move(registry)
    if own.is_alone():
        own.close_abandoned(registry.aliases().get(CHAMPION, ""))


def rollback(reason: str, to: str = "") -> Moved:
    """Move `champion` back to a version, by default to the previous champion, as the log has it.

    Raises:
        RequestError: there is nothing to go back to, or no such version, or DVC runs this process.
        RegistryError: the store does not answer or has lost the version's file, or another process moves the alias.
    """
    registry = Registry.open()
    number = registry.aliases().get(CHAMPION, "")
    if not number:
        raise RequestError(
            f"{registry.model} at {registry.address} has no champion, so there is nothing to roll back. "
            "`convoy register` and `convoy promote` make the first one."
        )
    version = registry.version(to.removeprefix(f"{registry.model}/")) if to else _previous(registry, number)
    if version.number == number:
        raise RequestError(f"{version} is already the champion; name another: convoy rollback --to VERSION")
    if not ModelArtifacts.of(registry, version).has_model:
        raise RegistryError(
            f"{contract.VERIFIED} of {version} is no longer in the store, so it cannot serve; the champion is unchanged. "
            f"Choose another version: {_suggest(registry, {number, version.number})}"
        )
    try:
        champion = registry.version(number)
    except RequestError:  # deleted: a rollback repairs an alias that points nowhere
        champion = Version(registry.model, number, "", "", "", 0, {})
    return move(registry, version, expected=champion, kind="rollback", reason=reason)


def _previous(registry: Registry, number: str) -> Version:
    """Find the previous champion."""
    stack = champions(history(registry, number), number)
    if len(stack) < 2:
        raise RequestError(
            f"{registry.model}/{number} is the first champion in the promotion log, so there is no previous one. "
            f"Name a version: {_suggest(registry, {number})}"
        )
    previous = stack[-2]
    try:
        return registry.version(previous)
    except RequestError as error:
        raise RegistryError(
            f"{registry.model}/{previous}, the champion before {number}, was deleted; the champion is unchanged. "
            f"Name another: convoy rollback --to VERSION (earlier champions: {', '.join(stack[-3::-1]) or 'none'})"
        ) from error


def _suggest(registry: Registry, excluded: set[str]) -> str:
    """Give the command that rolls back to another version, newest first."""
    numbers = [version.number for version in reversed(registry.versions()) if version.number not in excluded]
    if not numbers:
        return "there is no other; `convoy register` adds versions"
    return f"convoy rollback --to {numbers[0]}" + (f" (or {', '.join(numbers[1:6])})" if numbers[1:] else "")


def _require_expected(registry: Registry, expected: Version | None, to: Version) -> str:
    """Refuse a decision that was made against another champion than the present; return the number of the present."""
    now, number = registry.aliases().get(CHAMPION, ""), expected.number if expected else ""
    if now == to.number == number:
        raise RequestError(f"{to} is already the champion; nothing to do.")
    if now != number:
        last = next((entry for entry in reversed(history(registry, now)) if entry.after == now), None)
        raise RegistryError(
            f"another version was promoted since: {CHAMPION} was {expected or 'none'} when this was decided, and is "
            f"{f'{registry.model}/{now}' if now else 'none'} now{f' ({last.owner})' if last else ''}. The champion is "
            "unchanged; run the same command again to decide against the present champion."
        )
    return now


def _point(registry: Registry, before: str, to: Version) -> str:
    """Move the alias and read it back; if the store stops answering, the log's entry stays open for the next command."""
    try:
        registry.point(CHAMPION, to)
        return registry.aliases().get(CHAMPION, "")
    except RegistryError as error:
        raise RegistryError(
            f"whether {CHAMPION} moved is unknown, it is {f'{to.model}/{before}' if before else 'none'} or {to}: {error}\n"
            "Once the store answers, `convoy trace champion` shows it; the next promote or rollback completes the "
        ) from error


# The promotion log


class Move:
    """The move that this process makes; while its entry is open, no other process moves the alias."""

    entry: Entry

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.id = secrets.token_hex(8)
        self.is_pending = False
        """Whether there is an entry and the alias has certainly not moved."""
        self._began = 0.0
        self._first_seen: dict[str, float] = {}  # open entry of another machine to monotonic time

    @contextmanager
    def exclusive(self, kind: str, before: str, to: Version, reason: str) -> Iterator[None]:
        """Write that the alias is about to move, and let no other process move it meanwhile.

        Errors before `check` close the entry; after it the caller does.

        Raises:
            RegistryError: another process is moving the alias; names it. Or the store does not answer.
        """
        _MAKING.add(self.id)
        try:
            self._wait()
            self._began = time.monotonic()
            self.entry = create(self.registry, self.id, kind, before, to, reason)
            self.is_pending = True
            self._wait(self.entry)
            yield
        except BaseException:  # Ctrl-C as well: an open entry keeps others waiting
            if self.is_pending:
                with suppress(RegistryError):  # the next move closes the entry
                    self.close(NOT_MOVED)
            raise
        finally:
            _MAKING.discard(self.id)

    def attach(self, files: Sequence[Path]) -> None:
        """Add files, such as the verdict, to the entry."""
        client = self.registry.client

        def write() -> None:
            repository = store.artifacts(
                client.tracking_uri, client.get_run(self.entry.run).info.artifact_uri
            )
            for path in files:
                repository.log_artifact(str(path))

        self.registry.call("write the verdict into the promotion log", write)

    def check(self) -> None:
        """Make sure that the entry still counts: call this right before the alias moves.

        Raises:
            RegistryError: another process may have taken this process for dead.
        """
        run = self.registry.call("read the promotion log", self.registry.client.get_run, self.entry.run)
        age_s = time.monotonic() - self._began
        if run.info.status != "RUNNING" or age_s > SAFE_S:
            raise RegistryError(
                f"the right to move {self.registry.model}'s champion was lost after {age_s:.0f} s: this process or "
                f"{self.registry.address} stalled. The champion is unchanged; run the same command again."
            )
        self.is_pending = False

    def close_abandoned(self, champion: str) -> None:
        """Close the entries that dead processes left open, by the version's number that the alias points to now."""
        for entry in filter(self._is_dead, self._others()):
            outcome = entry.outcome(champion)
            self.close(outcome, entry)
            info(
                f"an earlier {entry.kind} of {self.registry.model}/{entry.after} was interrupted; the alias: {outcome}"
            )

    def close(self, outcome: str, entry: Entry | None = None) -> None:
        """Close an entry, by default the own entry, with its outcome: `moved`, `not moved`, or why that is unknown."""
        run, client, action = (entry or self.entry).run, self.registry.client, "write into the promotion log"
        self.registry.call(action, client.set_tag, run, OUTCOME, outcome)
        status = "FINISHED" if outcome == MOVED else "FAILED"
        self.registry.call(action, client.set_terminated, run, status)

    def _wait(self, own: Entry | None = None) -> None:
        """Wait until no other living process has an open entry; for those of other machines only without an own entry."""
        began = reported = time.monotonic()
        while other := next((entry for entry in self._others() if not self._is_dead(entry)), None):
            now = time.monotonic()
            is_older = own and (other.moment_ms, other.run) < (own.moment_ms, own.run)
            if is_older or ((own or _is_local(other)) and now - began > WAIT_S):
                raise RegistryError(
                    f"another process is moving {self.registry.model}'s champion: {other.owner}. Run the same command "
                    "again when it has ended."
                )
            if now - reported > REPORT_S and not _is_local(other):
                reported = now
                left = LEASE_S - (now - self._first_seen[other.run])
                info(f"waiting for {other.owner}; if it is dead, the wait ends in {left:.0f} s")
            time.sleep(POLL_S)

    def is_alone(self) -> bool:
        """Whether no other living process has an open entry."""
        return all(map(self._is_dead, self._others()))

    def _others(self) -> list[Entry]:
        return [entry for entry in _entries(self.registry, "RUNNING") if entry.move != self.id]

    def _is_dead(self, entry: Entry) -> bool:
        if not entry.machine:  # of an earlier Convoy, whose moves another lock kept apart
            return True
        if not _is_local(entry):
            now = time.monotonic()
            return now - self._first_seen.setdefault(entry.run, now) > LEASE_S
        if entry.process == identity.name(psutil.Process()):
            return entry.move not in _MAKING
        return not identity.is_alive(entry.process)


def create(registry: Registry, move: str, kind: str, before: str, to: Version, reason: str) -> Entry:  # noqa: PLR0917 (as in the log)
    """Create an open entry; if the store does not take it, nothing may move."""
    process = identity.process_tags()
    tags = {
        MOVE: move,
        MODEL: registry.model,
        contract.KIND: kind,
        FROM: before,
        TO: to.number,
        REASON: reason,
        NOTE: escaping.prose(reason),  # MLflow shows it as Markdown
        MACHINE: _machine(),
        contract.ONNX_SHA256: to.sha256,
        contract.OWNER: identity.name(psutil.Process()),
        **{key: process[key] for key in ("mlflow.user", contract.HOST, contract.VERSION)},
    }

    def write() -> Run:
        return registry.client.create_run(_experiment(registry), now_ms(), tags, f"{kind} {to}")

    return _entry(registry.call("write the move into the promotion log, before which nothing moves", write))


def history(registry: Registry, champion: str) -> list[Entry]:
    """Read the moves that happened, oldest first; the present champion's number decides about entries left open."""
    moves: dict[str, Entry] = {}
    for entry in _entries(registry):
        if entry.moved(champion):
            moves.setdefault(entry.move, entry)
    return list(moves.values())


def champions(entries: Sequence[Entry], champion: str) -> list[str]:
    """List the champions as a stack, the present last: a rollback goes to the version before it.

    A promotion puts its version on top. A rollback removes all above its version; a rollback to a version that an
    earlier rollback removed puts back what is up to it. Moves missing from the log, made by hand or by another tool,
    count as promotions.
    """
    stack: list[str] = []
    removed: list[str] = []

    def put(number: str) -> None:
        if number and stack[-1:] != [number]:
            stack.append(number)
            removed.clear()

    for entry in entries:
        put(entry.before)
        if entry.kind != "rollback":
            put(entry.after)
        elif entry.after in stack[:-1]:
            removed.append(stack.pop())
            while stack[-1] != entry.after:
                removed.append(stack.pop())
        elif entry.after in removed:
            while stack[-1:] != [entry.after]:
                stack.append(removed.pop())
        else:
            stack[-1:] = [entry.after]
            removed.clear()
    put(champion)
    return stack


def _entries(registry: Registry, status: str = "") -> list[Entry]:
    """Read the entries of this registered model, oldest first."""
    name, action = settings.experiment() + SUFFIX, "read the promotion log"
    experiment = registry.call(action, registry.client.get_experiment_by_name, name)
    if experiment is None:
        return []
    _require_active(experiment)
    query = f"tags.`{MODEL}` = '{registry.model}'" + (
        f" and attributes.status = '{status}'" if status else ""
    )
    pages = store.all_pages(
        lambda token: registry.client.search_runs(
            [experiment.experiment_id], query, page_token=token, order_by=["attributes.start_time ASC"]
        )
    )
    return registry.call(action, lambda: list(map(_entry, pages)))


def _entry(run: Run) -> Entry:
    tags = run.data.tags
    return Entry(
        run=str(run.info.run_id),
        move=tags[MOVE],
        kind=tags[contract.KIND],
        before=tags.get(FROM, ""),
        after=tags[TO],
        moment_ms=int(run.info.start_time or 0),
        host=tags.get(contract.HOST, ""),
        status=run.info.status,
        process=tags.get(contract.OWNER, ""),
        machine=tags.get(MACHINE, ""),
    )


def _experiment(registry: Registry) -> str:
    """Find or create the experiment of the log."""
    tags = {
        settings.LOG: "promotions",
        NOTE: "Moves of the alias champion, a run per move. Written by Convoy.",
    }
    experiment = store.experiment(registry.client, settings.experiment() + SUFFIX, tags)
    _require_active(experiment)
    return str(experiment.experiment_id)


def _require_active(experiment: Experiment) -> None:
    if experiment.lifecycle_stage != "active":
        raise RegistryError(
            f"the experiment `{experiment.name}`, which is the promotion log, was deleted. Restore it: "
            f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        )


def _is_local(entry: Entry) -> bool:
    """Whether the process of an entry can be looked up from here."""
    return (entry.host, entry.machine) == (identity.host(), _machine())


def _machine() -> str:
    """Identify the running system and the namespace of its process numbers: a container has its own."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    system = boot.read_text(encoding="ascii").strip() if boot.exists() else f"{psutil.boot_time():.0f}"
    try:
        return f"{system} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 (no path that exists)
    except OSError:  # systems without namespaces
        return system
