"""Give `champion` back to the version that had it before, in one command."""

from convoy.core import contract
from convoy.core.errors import RequestError
from convoy.registry import artifacts, log
from convoy.registry.alias import Moved, move
from convoy.registry.client import CHAMPION, Registry, RegistryError, Version


def rollback(reason: str, to: str = "") -> Moved:
    """Move `champion` back: to the version before, as the log has it, or to a given one.

    Args:
        reason: in words, for the log.
        to: number of a version; empty for the one before.

    Raises:
        RequestError: there is nothing to go back to, or no such version, or an experiment asks.
        RegistryError: the store does not answer, has not the version's file any more, or another process moves the alias.
    """
    registry = Registry.open()
    number = registry.aliases().get(CHAMPION, "")
    if not number:
        raise RequestError(
            f"{registry.model} at {registry.address} has no champion, so there is nothing to go back from. "
            "`convoy register` and `convoy promote` make the first one."
        )
    version = registry.version(to.removeprefix(f"{registry.model}/")) if to else _before(registry, number)
    if version.number == number:
        raise RequestError(f"{version} is the champion already; name another: convoy rollback --to VERSION")
    if not artifacts.has_file(registry, version):
        raise RegistryError(
            f"{contract.VERIFIED} of {version} is not in the store any more, so it cannot serve; nothing was moved. "
            f"Choose another: {_others(registry, version, number)}"
        )
    return move(registry, version, expected=_seen(registry, number), kind="rollback", reason=reason)


def _before(registry: Registry, number: str) -> Version:
    """Find the champion before this one."""
    champions = log.stack(log.history(registry, number), number)
    if len(champions) < 2:
        raise RequestError(
            f"{registry.model}/{number} is the first champion, as far as the promotion log goes back, so there is "
            f"none to go back to. Name a version: {_others(registry, None, number)}"
        )
    before = champions[-2]
    try:
        return registry.version(before)
    except RequestError as error:
        raise RegistryError(
            f"{registry.model}/{before}, the champion before {number}, was deleted; nothing was moved. "
            f"Name another: convoy rollback --to VERSION (before it: {', '.join(champions[-3::-1]) or 'none'})"
        ) from error


def _seen(registry: Registry, number: str) -> Version:
    """Name the champion that was seen, also where it does not exist: a rollback mends an alias that points nowhere."""
    try:
        return registry.version(number)
    except RequestError:
        return Version(registry.model, number, "", "", "", 0, {})


def _others(registry: Registry, lacking: Version | None, champion: str) -> str:
    """Say what to type to go to other versions, newest first."""
    left_out = {champion, lacking.number if lacking else ""}
    numbers = [one.number for one in reversed(registry.versions()) if one.number not in left_out]
    if not numbers:
        return "there is no other version; `convoy register` makes one"
    return f"convoy rollback --to {numbers[0]}" + (f" (or {', '.join(numbers[1:6])})" if numbers[1:] else "")
