"""Let one process at a time change the aliases, through nothing but MLflow's tags.

MLflow has no lock and no compare-and-set, on sqlite as on a server, but a tag of the registered
model is written whole and all tags are read at once. That is what Lamport's bakery needs
(Communications of the ACM 17(8), 1974): who wants the lock writes a tag of its own, "choosing";
reads all tags; writes a ticket one higher than any it saw; and waits until nobody who chooses
or has a lower ticket is left. One who comes later sees that ticket and takes a higher one.

A contender that is dead must not count. On the same machine its process says so at once; of
another machine its tag must have stood unchanged for `LEASE_S` on the watcher's own clock. So
whoever waits renews its tag, and whoever holds the lock looks, before the alias moves, that its
own tag still stands and is younger than that.
"""

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil

from convoy.core.console import info
from convoy.registry.client import Registry, RegistryError
from convoy.repo import identity

PREFIX = "convoy.lock."
LEASE_S = 60.0
"""How long a tag of another machine must stand unchanged before its owner counts as dead, in seconds."""

RENEW_S = LEASE_S / 4
"""Age at which an own tag is written anew, in seconds."""

SAFE_S = LEASE_S / 2
"""Age of an own tag from which nothing is done in its name: another machine may soon pass over it."""

WAIT_S = 5.0
"""How long a living process of this machine is waited for, in seconds; a move takes one."""

POLL_S = 0.1
SPEAK_S = 2.0


@dataclass(frozen=True)
class Claim:
    """Say who wants the lock; it is the value of a tag.

    Attributes:
        ticket: 0 while it is chosen.
        beat: how often the tag was renewed.
        host: name of the machine.
        boot: of the machine's system: a name may be given to several.
        namespace: of process numbers: a container has its own.
        process: `pid:start`.
        what: the lock is wanted for.
        since: moment of the first claim, UTC.
    """

    ticket: int
    beat: int
    host: str
    boot: str
    namespace: str
    process: str
    what: str
    since: str

    @classmethod
    def of_this_process(cls, what: str) -> "Claim":
        """Make a claim that is still choosing."""
        return cls(
            ticket=0,
            beat=0,
            host=identity.host(),
            boot=_boot(),
            namespace=_namespace(),
            process=identity.name(psutil.Process()),
            what=what,
            since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        )

    @classmethod
    def read(cls, text: str) -> "Claim | None":
        """Read a tag's value; None where Convoy did not write it so."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        """Name who and since when."""
        pid = self.process.partition(":")[0]
        return f"`{self.what}` of process {pid} on {self.host}, since {self.since}"

    def is_of_this_machine(self) -> bool:
        """Tell whether its process can be looked at from here."""
        return (self.host, self.boot, self.namespace) == (identity.host(), _boot(), _namespace())


class Lock:
    """Hold the lock of one registered model, or wait for it."""

    def __init__(self, registry: Registry, what: str) -> None:
        """Want the lock; `held` takes it and lets go of it."""
        self._registry = registry
        self._token = secrets.token_hex(4)
        self._claim = Claim.of_this_process(what)
        self._written = 0.0
        self._seen: dict[str, tuple[str, float]] = {}

    def check(self) -> None:
        """Make sure that the lock is still this process', and renew it: call it right before what it guards.

        Raises:
            RegistryError: it was lost; nothing may be done in its name any more.
        """
        if self._token not in self._tags() or time.monotonic() - self._written > SAFE_S:
            raise RegistryError(
                f"the lock on the aliases of {self._registry.model} was lost after "
                f"{time.monotonic() - self._written:.0f} s: this process or {self._registry.address} stood still. "
                "Nothing was moved; type the same command again."
            )
        self._renew()

    def take(self) -> None:
        """Wait for the lock.

        Raises:
            RegistryError: a living process of this machine holds it; with its name.
        """
        self._choose()
        began = spoke = time.monotonic()
        while blocker := self._blocker():
            token, claim = blocker
            now = time.monotonic()
            if claim.is_of_this_machine() and now - began > WAIT_S:
                raise RegistryError(
                    f"the aliases of {self._registry.model} are being changed: {claim} holds the lock. "
                    "Type the same command again when it has ended."
                )
            if now - spoke > SPEAK_S and not claim.is_of_this_machine():
                spoke = now
                left = LEASE_S - (now - self._seen[token][1])
                info(f"waiting for {claim}; if it is dead, the lock is free in {left:.0f} s")
            time.sleep(POLL_S)
            if time.monotonic() - self._written > SAFE_S:
                self._choose()  # others may have passed over the old ticket
            elif time.monotonic() - self._written > RENEW_S:
                self._renew()

    def release(self) -> None:
        """Let go; a store that does not answer keeps a tag that counts no more once this process is gone."""
        _OWN.discard(self._token)
        with suppress(RegistryError):
            self._remove(self._token)

    def _choose(self) -> None:
        """Take a ticket higher than any that is seen; again where that took so long that others may have given up."""
        _OWN.add(self._token)
        while True:
            began = time.monotonic()
            self._write(replace(self._claim, ticket=0))
            highest = max((claim.ticket for claim in self._others().values()), default=0)
            self._write(replace(self._claim, ticket=highest + 1))
            if time.monotonic() - began < SAFE_S:
                return
            self._remove(self._token)
            self._claim = replace(self._claim, ticket=0, beat=self._claim.beat + 1)

    def _blocker(self) -> tuple[str, Claim] | None:
        """Name one that comes before this process; those that are dead are cleared away.

        Raises:
            RegistryError: this process' own tag was taken for that of a dead one.
        """
        others = self._others(own_stands=True)
        for token, claim in others.items():
            if (claim.ticket, token) > (self._claim.ticket, self._token):
                continue  # it saw this process' ticket; one that still chooses, with ticket 0, may not have
            if not self._is_dead(token, claim):
                return token, claim
            self._remove(token)
        return None

    def _is_dead(self, token: str, claim: Claim) -> bool:
        if claim.is_of_this_machine():
            own = claim.process == self._claim.process
            return token not in _OWN if own else not identity.is_alive(claim.process)
        text = json.dumps(asdict(claim))
        if self._seen.get(token, ("", 0.0))[0] != text:
            self._seen[token] = (text, time.monotonic())
        return time.monotonic() - self._seen[token][1] > LEASE_S

    def _others(self, *, own_stands: bool = False) -> dict[str, Claim]:
        """Read the claims of others; what Convoy did not write is none."""
        tags = self._tags()
        if own_stands and self._token not in tags:
            raise RegistryError(
                f"the lock on the aliases of {self._registry.model} was taken from this process while it waited: it or "
                f"{self._registry.address} stood still. Nothing was moved; type the same command again."
            )
        claims = {token: Claim.read(text) for token, text in tags.items() if token != self._token}
        return {token: claim for token, claim in claims.items() if claim}

    def _tags(self) -> dict[str, str]:
        found = self._registry.registered()
        tags = dict(found.tags) if found else {}
        return {key.removeprefix(PREFIX): text for key, text in tags.items() if key.startswith(PREFIX)}

    def _renew(self) -> None:
        self._write(replace(self._claim, beat=self._claim.beat + 1))

    def _write(self, claim: Claim) -> None:
        began = time.monotonic()
        self._registry.ask(
            f"lock the aliases of {self._registry.model}",
            lambda: self._registry.client.set_registered_model_tag(
                self._registry.model, f"{PREFIX}{self._token}", json.dumps(asdict(claim))
            ),
        )
        # From before the call: watchers may count from the moment at which the store has it.
        self._claim, self._written = claim, began

    def _remove(self, token: str) -> None:
        self._registry.ask(
            f"unlock the aliases of {self._registry.model}",
            lambda: self._registry.client.delete_registered_model_tag(
                self._registry.model, f"{PREFIX}{token}"
            ),
        )


_OWN: set[str] = set()
"""Tokens that this process contends with now: another of its own is left from a store that did not answer."""


@contextmanager
def held(registry: Registry, what: str) -> Iterator[Lock]:
    """Hold the lock of a registered model, which must exist.

    Args:
        registry: names the model.
        what: the lock is wanted for, such as `promote convoy/7`; others are told.

    Raises:
        RegistryError: another process holds it, with its name and since when; or the store does not answer.
    """
    lock = Lock(registry, what)
    try:
        lock.take()
        yield lock
    finally:
        lock.release()


def _boot() -> str:
    """Name the running system: the kernel's id, or the moment at which it started."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.exists() else f"{psutil.boot_time():.0f}"


def _namespace() -> str:
    """Name the space in which process numbers count; empty where the system has only one."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 (no path that exists)
    except OSError:
        return ""
