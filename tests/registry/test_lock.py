"""One process at a time changes the aliases; a dead one does not keep others out."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from convoy.registry import lock
from convoy.registry.client import RegistryError
from convoy.registry.lock import LEASE_S, Claim, held
from convoy.repo import identity
from registry_project import Mortal, Shop

HOLDER = """
import sys
from convoy.registry.lock import held
from convoy.registry.client import Registry
with held(Registry.open(), "promote convoy/9"):
    print("held", flush=True)
    sys.stdin.readline()
"""

MOVER = """
import sys
from convoy.core.errors import ConvoyError
from convoy.registry.alias import move
from convoy.registry.client import Registry
registry = Registry.open()
now, versions = registry.alias("champion"), registry.versions()
print("ready", flush=True)
sys.stdin.readline()
try:
    print(move(registry, versions[int(sys.argv[1])], expected=now, kind="promote", reason="").to)
except ConvoyError as error:
    print(error)
"""


def start(script: str, repository: Path, *words: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words],
        env={**os.environ, "PYTHONPATH": str(repository / "src")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    process.first = process.stdout.readline().strip()  # type: ignore[attr-defined] # kept with the process that it is of
    return process


def leave(shop: Shop, token: str, **other: object) -> None:
    """Leave a claim behind, as a process does that died."""
    claim = replace(Claim.of_this_process("promote convoy/9"), **{"ticket": 1, **other})
    shop.client.set_registered_model_tag("convoy", f"convoy.lock.{token}", json.dumps(asdict(claim)))


@pytest.fixture(autouse=True)
def model(shop: Shop) -> None:
    shop.registry.create()


class TrainingTimer:
    """A clock that only sleeping moves; `then` is what happens meanwhile."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.then: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.then()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> TrainingTimer:
    clock = TrainingTimer()
    monkeypatch.setattr(lock, "time", clock)
    monkeypatch.setattr(lock, "POLL_S", 1.0)
    return clock


@pytest.mark.parametrize("backend", ["shop", "served_shop"])
def test_of_two_processes_that_move_at_once_one_wins_and_the_other_is_told(
    backend: str, request: pytest.FixtureRequest, repository: Path
) -> None:
    shop = request.getfixturevalue(backend)
    shop.versions(2, files=False)
    movers = [start(MOVER, repository, str(number)) for number in (0, 1)]
    for mover in movers:
        assert mover.stdin
        mover.stdin.write("\n")
        mover.stdin.flush()
    said = [mover.communicate()[0].strip() for mover in movers]
    [winner] = [text for text in said if text == f"{shop.registry.model}/{shop.champion()}"]
    [told] = [text for text in said if text != winner]
    assert "another was promoted since" in told or "holds the lock" in told
    assert [status for _, status, _ in shop.entries()] == ["FINISHED"]
    assert shop.locks() == {}


def test_a_living_holder_is_named_with_what_it_does_and_since_when(
    shop: Shop, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "WAIT_S", 0.3)
    holder = start(HOLDER, repository)
    with (
        pytest.raises(
            RegistryError,
            match=rf"`promote convoy/9` of process {holder.pid} on {identity.host()}, since \d{{4}}-.* UTC holds the lock",
        ),
        held(shop.registry, "rollback"),
    ):
        pass
    holder.communicate("\n")
    with held(shop.registry, "rollback"):
        assert len(shop.locks()) == 1
    assert shop.locks() == {}


def test_a_holder_that_ends_soon_is_waited_for(shop: Shop, repository: Path) -> None:
    holder = start(HOLDER, repository)
    threading.Timer(0.5, lambda: holder.communicate("\n")).start()
    with held(shop.registry, "rollback"):
        assert holder.wait(10) == 0


def test_a_holder_that_was_killed_holds_nothing(shop: Shop, repository: Path) -> None:
    holder = start(HOLDER, repository)
    assert holder.first == "held"  # type: ignore[attr-defined] # kept with the process that it is of
    assert len(shop.locks()) == 1
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with held(shop.registry, "rollback"):
        assert len(shop.locks()) == 1
    assert shop.locks() == {}


def test_a_tag_that_this_process_could_not_remove_does_not_keep_it_out(shop: Shop) -> None:
    mortal = Mortal(shop.client)
    registry = shop.registry
    registry.client = mortal
    with held(registry, "first"):
        mortal.dead = True
    mortal.revive()
    assert len(shop.locks()) == 1
    with held(registry, "second"):
        pass
    assert shop.locks() == {}


@pytest.mark.parametrize("ticket", [0, 1])
def test_a_silent_holder_of_another_machine_is_waited_for_as_long_as_a_lease(
    shop: Shop, clock: TrainingTimer, ticket: int, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(shop, "a", host="elsewhere", ticket=ticket)
    began = clock.now
    with held(shop.registry, "rollback"):
        assert LEASE_S < clock.now - began < LEASE_S + 5
        assert "convoy.lock.a" not in shop.locks()
    said = capsys.readouterr().out
    assert "waiting for `promote convoy/9` of process" in said
    assert "on elsewhere, since " in said
    assert "if it is dead, the lock is free in 57 s" in said


def test_a_machine_of_the_same_name_is_another_machine(shop: Shop, clock: TrainingTimer) -> None:
    leave(shop, "a", boot="another", process="1:1.0")
    began = clock.now
    with held(shop.registry, "rollback"):
        assert clock.now - began > LEASE_S


def test_a_holder_of_another_machine_that_renews_its_tag_is_alive(shop: Shop, clock: TrainingTimer) -> None:
    leave(shop, "a", host="elsewhere")
    began = clock.now

    def live() -> None:
        age = clock.now - began
        if age > 3 * LEASE_S:
            shop.client.delete_registered_model_tag("convoy", "convoy.lock.a")
        elif age % 20 == 0:
            leave(shop, "a", host="elsewhere", beat=int(age))

    clock.then = live
    with held(shop.registry, "rollback"):
        assert clock.now - began > 3 * LEASE_S


def test_whoever_waits_renews_its_own_tag(shop: Shop, clock: TrainingTimer) -> None:
    leave(shop, "a", host="elsewhere")
    with held(shop.registry, "rollback"):
        [own] = shop.locks().values()
    assert json.loads(own)["beat"] == 3, "every quarter of a lease"


def test_a_later_ticket_waits_and_an_earlier_one_does_not(shop: Shop) -> None:
    with held(shop.registry, "rollback"):
        [own] = (json.loads(text) for text in shop.locks().values())
        assert own["ticket"] == 1
        leave(shop, "later", host="elsewhere", ticket=2)
        with_lock = lock.Lock(shop.registry, "third")
        with_lock._choose()
        assert with_lock._claim.ticket == 3
        assert with_lock._blocker()
        with_lock.release()


def test_a_lock_that_was_taken_away_says_so_before_anything_moves(shop: Shop) -> None:
    with held(shop.registry, "rollback") as mine:
        mine.check()
        [key] = shop.locks()
        shop.client.delete_registered_model_tag("convoy", key)
        with pytest.raises(
            RegistryError, match=r"the lock on the aliases of convoy was lost after .* Nothing"
        ):
            mine.check()


def test_a_holder_that_stood_still_does_nothing_in_the_name_of_an_old_lock(
    shop: Shop, clock: TrainingTimer
) -> None:
    with held(shop.registry, "rollback") as mine:
        clock.sleep(lock.SAFE_S - 1)
        mine.check()
        clock.sleep(lock.SAFE_S - 1)
        mine.check()
        clock.sleep(lock.SAFE_S + 1)
        with pytest.raises(RegistryError, match=r"was lost after 31 s: .* stood still"):
            mine.check()


def test_a_contender_that_chose_too_slowly_chooses_again(
    shop: Shop, clock: TrainingTimer, monkeypatch: pytest.MonkeyPatch
) -> None:
    contender = lock.Lock(shop.registry, "slow")
    write: Callable[[Claim], None] = contender._write
    slow = iter([lock.SAFE_S / 2 + 1] * 2)

    def write_slowly(claim: Claim) -> None:
        clock.sleep(next(slow, 0))
        write(claim)

    monkeypatch.setattr(contender, "_write", write_slowly)
    contender.take()
    [tag] = shop.locks().values()
    assert json.loads(tag)["beat"] == 1
    contender.release()


def test_a_contender_that_waits_and_stands_still_takes_a_later_ticket(
    shop: Shop, clock: TrainingTimer
) -> None:
    leave(shop, "a", host="elsewhere")
    contender = lock.Lock(shop.registry, "slow")

    def stand_still() -> None:
        clock.then = lambda: None
        leave(shop, "b", host="elsewhere", ticket=7)
        clock.now += LEASE_S

    clock.then = stand_still
    contender.take()
    assert contender._claim.ticket == 8
    contender.release()


def test_a_contender_whose_tag_was_cleared_while_it_waited_is_told(shop: Shop, clock: TrainingTimer) -> None:
    leave(shop, "a", host="elsewhere")

    def clear() -> None:
        for key in shop.locks().keys() - {"convoy.lock.a"}:
            shop.client.delete_registered_model_tag("convoy", key)

    clock.then = clear
    with (
        pytest.raises(RegistryError, match=r"was taken from this process while it waited"),
        held(shop.registry, "b"),
    ):
        pass


def test_a_tag_that_convoy_did_not_write_locks_nothing(shop: Shop) -> None:
    shop.client.set_registered_model_tag("convoy", "convoy.lock.note", "do not promote")
    with held(shop.registry, "rollback"):
        pass
