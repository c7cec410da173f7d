"""Move the alias `champion`, forwards by a promotion or back by a rollback. Nothing else in Convoy moves it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from convoy.core import contract
from convoy.core.console import info
from convoy.core.errors import RequestError
from convoy.registry import log
from convoy.registry.client import (
    CHAMPION,
    TAG_CHARACTERS,
    ModelArtifacts,
    Registry,
    RegistryError,
    Version,
    refuse_inside_experiment,
)

Kind = Literal["promote", "rollback", "override"]


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
    with log.exclusive(registry, kind, expected.number if expected else "", to, reason.strip()) as entry:
        now = _require_expected(registry, expected, to)
        entry.close_abandoned(now)
        entry.attach(files)
        entry.check()
        actual = _point(registry, now, to)
        if actual != to.number:
            entry.close(f"{log.NOT_MOVED}: it points to {actual or 'nothing'}")
            raise RegistryError(
                f"the alias {CHAMPION} of {registry.model} points to {actual or 'nothing'} right after it was moved to "
                f"{to.number}: something else moves it too. Find out what, then run the same command again."
            )
        try:
            entry.close(log.MOVED)
        except RegistryError as error:
            info(f"{CHAMPION} is {to}; the next promote or rollback completes the log: {error}")
    return Moved(expected, to, kind, entry.entry.run)


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
    champions = log.champions(log.history(registry, number), number)
    if len(champions) < 2:
        raise RequestError(
            f"{registry.model}/{number} is the first champion in the promotion log, so there is no previous one. "
            f"Name a version: {_suggest(registry, {number})}"
        )
    previous = champions[-2]
    try:
        return registry.version(previous)
    except RequestError as error:
        raise RegistryError(
            f"{registry.model}/{previous}, the champion before {number}, was deleted; the champion is unchanged. "
            f"Name another: convoy rollback --to VERSION (earlier champions: {', '.join(champions[-3::-1]) or 'none'})"
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
        last = next((entry for entry in reversed(log.history(registry, now)) if entry.after == now), None)
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
            "Once the store answers, `convoy trace champion` shows it; the next promote or rollback completes the log."
        ) from error
