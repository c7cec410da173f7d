"""Move the alias `champion`. Nothing else in Convoy does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from convoy.core.console import info
from convoy.core.errors import RequestError
from convoy.registry import log
from convoy.registry.client import (
    CHAMPION,
    Registry,
    RegistryError,
    Version,
    refuse_inside_experiment,
)
from convoy.registry.lock import held

Kind = Literal["promote", "rollback", "override"]


@dataclass(frozen=True)
class Moved:
    """State a move that happened.

    Attributes:
        before: the version that was champion; None where none was.
        to: the version that is champion now.
        kind: why it moved.
        entry: MLflow's id of the log's entry.
    """

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
    """Let `champion` point to a version, under the lock, with an entry in the log.

    Args:
        registry: that has the version.
        to: the version.
        expected: the champion that the decision was made against; only its number counts.
        kind: of the log's entry.
        reason: in words, for the log.
        files: for the log, such as the verdict.

    Raises:
        RequestError: it is the champion already, or an experiment asks.
        RegistryError: another process moves it, another was promoted since, or the store stopped answering; the message
            says whether the alias moved, as far as that is known.
    """
    refuse_inside_experiment(kind if kind != "override" else "promote")
    log.check_reason(reason)
    with held(registry, f"{kind} {to}") as lock:
        now = registry.aliases().get(CHAMPION, "")
        for sentence in log.wait_until_uploaded(registry, now):
            info(sentence)
        _insist(registry, now, expected, to)
        intent = log.intend(registry, kind, now, to, reason=reason, files=files)
        try:
            lock.check()
        except RegistryError:
            log.end(registry, intent, log.NOT_MOVED)
            raise
        stands = _point(registry, now, to)
        if stands != to.number:
            log.end(registry, intent, f"{log.NOT_MOVED}: it points to {stands or 'nothing'}")
            raise RegistryError(
                f"the alias {CHAMPION} of {registry.model} points to {stands or 'nothing'} right after it was moved to "
                f"{to.number}: something else moves it too. Find out what does, then type the same command again."
            )
        try:
            log.end(registry, intent, log.MOVED)
        except RegistryError as error:
            info(f"{CHAMPION} is {to}; the log will say so after the next promote or rollback: {error}")
    return Moved(expected, to, kind, intent.run)


def _insist(registry: Registry, now: str, expected: Version | None, to: Version) -> None:
    """Refuse a decision that was made against another champion than there is."""
    wanted = expected.number if expected else ""
    if now == to.number == wanted:
        raise RequestError(f"{to} is the champion already; there is nothing to move.")
    if now != wanted:
        there = f"{registry.model}/{now}" if now else "none"
        raise RegistryError(
            f"another was promoted since: {CHAMPION} was {expected or 'none'} when this was decided, and is {there} now. "
            "Nothing was moved; type the same command again to decide against that one."
        )


def _point(registry: Registry, before: str, to: Version) -> str:
    """Move the alias and read it back.

    Raises:
        RegistryError: the store refused or stopped answering; the entry in the log stays open for the next command.
    """
    try:
        registry.point(CHAMPION, to)
        return registry.aliases().get(CHAMPION, "")
    except RegistryError as error:
        raise RegistryError(
            f"whether {CHAMPION} moved is not known, it is {f'{to.model}/{before}' if before else 'none'} or {to}: {error}\n"
            "Once the store answers: `convoy trace champion` says which; the next promote or rollback completes the log."
        ) from error
