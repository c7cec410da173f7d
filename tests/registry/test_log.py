"""The promotion log is true whatever died, lets one process at a time move the alias, and is not taken for trainings."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil
import pytest

from convoy.core.errors import ConvoyError, RequestError
from convoy.lineage import runs, trace
from convoy.registry import log
from convoy.registry.alias import move
from convoy.registry.client import Registry, RegistryError, Version
from convoy.registry.register import register
from convoy.repo import identity
from convoy.tracking import lookup, settings, store, ui

MOVER = """
import os, sys
from convoy.core.errors import ConvoyError
from convoy.registry.alias import move
from convoy.registry.client import Registry
registry = Registry.open()
now, versions = registry.alias("champion"), registry.versions()
print(os.getpid(), flush=True)
sys.stdin.readline()
try:
    print(move(registry, versions[int(sys.argv[1])], expected=now, kind="promote", reason="").to)
except ConvoyError as error:
    print(error)
"""


def start(script, repository, *words):
    """Start a process and wait for its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words],
        env={**os.environ, "PYTHONPATH": str(repository / "src")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline().strip() == str(process.pid)
    return process


def version(number):
    return Version("convoy", str(number), "0" * 64, "", "", 0, {})


PARENT = identity.name(psutil.Process(os.getppid()))
"""A living process that is not this one."""


class Clock:
    """A clock that only sleeping moves; `then` is called meanwhile."""

    def __init__(self):
        self.now = 1000.0
        self.then: Callable[[], None] = lambda: None

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.then()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(log, "time", clock)
    monkeypatch.setattr(log, "POLL_S", 1.0)
    return clock


def open_entry(memory, after=9, **facts):
    """Leave an open entry as another, living process of this machine does; return MLflow's id of it."""
    move = f"move-{len(memory.client.runs)}"
    entry = log.create(memory.registry, move, "promote", "", version(after), "")
    tags = {"convoy.owner": PARENT} | {f"convoy.{key}": str(text) for key, text in facts.items()}
    memory.client.get_run(entry.run).data.tags |= tags
    return entry.run


def status(memory, run):
    return str(memory.client.get_run(run).info.status)


def outcomes(memory):
    return [(run.info.status, run.data.tags.get("convoy.outcome", "")) for run in memory.client.runs]


def promote(memory, number, before=0):
    expected = version(before) if before else None
    return move(memory.registry, version(number), expected=expected, kind="promote", reason="better")


def test_of_two_processes_that_move_at_once_one_wins_and_the_error_of_the_other_names_it(
    any_project, repository
):
    any_project.versions(2, files=False)
    movers = [start(MOVER, repository, str(number)) for number in (0, 1)]
    for mover in movers:
        assert mover.stdin
        mover.stdin.write("\n")
        mover.stdin.flush()
    printed = [mover.communicate()[0].strip() for mover in movers]
    champion = f"{any_project.registry.model}/{any_project.champion()}"
    assert printed.count(champion) == 1, printed
    winner = printed.index(champion)
    assert f"by process {movers[winner].pid} on {identity.host()} since 20" in printed[1 - winner]
    statuses = [status for _, status, _ in any_project.entries()]
    assert (statuses.count("FINISHED"), "RUNNING" in statuses) == (1, False)


def test_of_many_threads_that_move_at_once_one_wins(memory, monkeypatch):
    """Their log has more entries than a page of the store."""
    monkeypatch.setattr(log, "POLL_S", 0.001)
    monkeypatch.setattr(log, "WAIT_S", 20.0)
    call = Registry.call

    def attempt(number, before, errors):
        try:
            promote(memory, number, before)
        except RegistryError as error:
            errors.append(str(error))

    def slow(*words):
        time.sleep(random.random() / 300)  # noqa: S311 (no secret)
        return call(*words)

    monkeypatch.setattr(Registry, "call", slow)
    for before in range(0, 60, 3):
        errors = []
        champion = int(memory.client.aliases.get("champion", "0"))
        threads = [
            threading.Thread(target=attempt, args=(before + number, champion, errors)) for number in (1, 2, 3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(errors) == 2, errors
        assert int(memory.client.aliases["champion"]) in range(before + 1, before + 4)
    moves = log.history(memory.registry, memory.client.aliases["champion"])
    assert [entry.before for entry in moves[1:]] == [entry.after for entry in moves[:-1]]
    assert len(moves) == 20


def test_a_living_process_is_named_with_what_it_does_and_since_when(memory, clock):
    open_entry(memory)
    pid = PARENT.partition(":")[0]
    owner = rf"`promote` of version 9 by process {pid} on {identity.host()} since 20\d\d-.* UTC"
    with pytest.raises(RegistryError, match=owner):
        promote(memory, 1)
    assert clock.now - 1000 == pytest.approx(log.WAIT_S, abs=2)
    assert len(memory.client.runs) == 1, "no entry of its own"
    assert memory.client.aliases == {}


def test_a_process_that_ends_soon_is_waited_for(memory, clock):
    run = open_entry(memory)
    clock.then = lambda: memory.client.set_terminated(run, "FAILED")
    promote(memory, 1)
    assert memory.client.aliases == {"champion": "1"}


@pytest.mark.parametrize(
    "facts",
    [{"owner": identity.name(psutil.Process())}, {"owner": "999999999:1.0"}, {"machine": ""}],
    ids=["own, not closed", "of a dead process", "of an earlier Convoy"],
)
def test_open_entries_of_no_living_move_block_nobody(memory, clock, facts):
    run = open_entry(memory, **facts)
    promote(memory, 1)
    assert (status(memory, run), clock.now) == ("FAILED", 1000)


@pytest.mark.parametrize("facts", [{"host": "elsewhere"}, {"machine": "of the same name"}])
def test_an_open_entry_of_another_machine_is_waited_for_as_long_as_a_lease(memory, clock, capsys, facts):
    run = open_entry(memory, **facts)
    promote(memory, 1)
    assert log.LEASE_S < clock.now - 1000 < log.LEASE_S + 5
    assert status(memory, run) == "FAILED"
    assert "if it is dead, the wait ends in 57 s" in capsys.readouterr().out


def race(memory, monkeypatch, age_ms):
    """Let another process create its entry between the first look and the own entry."""
    create, others = log.create, []

    def after_other(*words):
        monkeypatch.setattr(log, "create", create)
        others.append(open_entry(memory))
        own = create(*words)
        memory.client.get_run(others[0]).info.start_time = own.moment_ms - age_ms
        return own

    monkeypatch.setattr(log, "create", after_other)
    return others


def test_who_sees_an_older_entry_gives_up(memory, clock, monkeypatch):
    race(memory, monkeypatch, age_ms=1)
    with pytest.raises(RegistryError, match="another process is moving convoy's champion"):
        promote(memory, 1)
    assert clock.now == 1000
    assert outcomes(memory) == [("RUNNING", ""), ("FAILED", "not moved")]
    assert memory.client.aliases == {}


def test_who_sees_a_younger_entry_waits_for_it(memory, clock, monkeypatch):
    others = race(memory, monkeypatch, age_ms=-1)
    clock.then = lambda: memory.client.set_terminated(others[0], "FAILED")
    promote(memory, 1)
    assert clock.now > 1000
    assert memory.client.aliases == {"champion": "1"}


def test_a_younger_entry_that_was_already_moving_the_alias_wins(memory, clock, monkeypatch):
    others = race(memory, monkeypatch, age_ms=-1)

    def finish():
        memory.client.aliases["champion"] = "9"
        memory.client.set_terminated(others[0], "FINISHED")

    clock.then = finish
    with pytest.raises(RegistryError, match=r"is convoy/9 now \(`promote` of version 9 by process \d+ on "):
        promote(memory, 1)
    assert memory.client.aliases == {"champion": "9"}
    assert outcomes(memory)[1] == ("FAILED", "not moved")


@pytest.mark.parametrize("loss", ["closed by another", "stalled"])
def test_an_entry_that_others_may_take_for_dead_moves_nothing(memory, clock, monkeypatch, loss):
    def lose(entry, _):
        if loss == "stalled":
            clock.now += log.SAFE_S + 1
        else:
            memory.client.set_terminated(entry.entry.run, "FAILED")

    monkeypatch.setattr(log.Move, "attach", lose)
    with pytest.raises(RegistryError, match=r"was lost after \d+ s.* unchanged; run the same command again"):
        promote(memory, 1)
    assert memory.client.aliases == {}
    assert outcomes(memory) == [("FAILED", "not moved")]


def test_entries_that_were_left_open_are_closed_by_where_the_alias_points(memory, capsys):
    for before, after in (("", 1), ("1", 2), ("2", 3)):
        open_entry(memory, after, machine="", **{"from": before})
    memory.client.aliases["champion"] = "1"
    promote(memory, 4, before=1)
    assert outcomes(memory) == [
        ("FINISHED", "moved"),
        ("FAILED", "not moved"),
        ("FAILED", "not moved, or was moved since: it points to 1"),
        ("FINISHED", "moved"),
    ]
    assert "an earlier promote of convoy/1 was interrupted; the alias: moved" in capsys.readouterr().out
    assert [entry.after for entry in log.history(memory.registry, "4")] == ["1", "4"]


def test_the_entry_of_a_living_process_is_left_open(memory, monkeypatch):
    close, others = log.Move.close_abandoned, []

    def after_another_started(entry, champion):
        others.append(open_entry(memory))
        close(entry, champion)

    monkeypatch.setattr(log.Move, "close_abandoned", after_another_started)
    promote(memory, 1)
    assert status(memory, others[0]) == "RUNNING"


@pytest.mark.parametrize("order", [1, -1], ids=["twin after", "twin before"])
@pytest.mark.parametrize("status", ["RUNNING", "FAILED"])
def test_a_move_that_a_dying_store_recorded_twice_counts_once(memory, order, status):
    promote(memory, 1)
    run = memory.client.runs[0]
    tags = {key: text for key, text in run.data.tags.items() if key != "convoy.outcome"}
    twin = memory.client.create_run("1", run.info.start_time + order, tags)
    twin.info.status = status
    assert [entry.after for entry in log.history(memory.registry, "1")] == ["1"]
    promote(memory, 2, before=1)
    assert [entry.after for entry in log.history(memory.registry, "2")] == ["1", "2"]
    assert "RUNNING" not in dict(outcomes(memory))


def test_entries_record_who_moved_it_when_where_and_why_and_belong_to_one_model(memory):
    promote(memory, 1)
    [entry] = log.history(memory.registry, "1")
    assert (entry.kind, entry.before, entry.after) == ("promote", "", "1")
    assert abs(entry.moment_ms / 1000 - time.time()) < 60
    assert (entry.host, entry.process) == (identity.host(), identity.name(psutil.Process()))
    tags = memory.client.runs[0].data.tags
    assert tags["convoy.reason"] == tags["mlflow.note.content"] == "better"
    assert tags["mlflow.user"]
    other = Registry(memory.client, "other")
    assert log.history(other, "") == []


def test_the_log_is_not_taken_for_trainings(project):
    run = project.train()
    entry = move(project.registry, register(), expected=None, kind="promote", reason="").entry
    known = runs.open_records(settings.uri(), project.folder)
    latest = {record.mlflow_run_id for record in known.latest(50)}
    assert (entry in latest, run.info.run_id in latest) == (False, True)
    found, _ = trace.look(project.registry.version("1").sha256, project.folder)
    assert [record.mlflow_run_id for record in found.records] == [run.info.run_id]
    with pytest.raises(RequestError) as unknown:
        trace.look("nothing", project.folder)
    assert "promote convoy/1" not in str(unknown.value)
    with pytest.raises(ConvoyError) as absent:
        lookup.find(f"runs:/{'0' * 32}", ("weights",))
    assert "promote convoy/1" not in str(absent.value)
    assert run.info.run_id in str(absent.value)


def test_the_ui_opens_on_trainings_and_colours_no_entry_of_the_log(project):
    run = project.train()
    [only] = project.versions(1, files=False)
    entry = move(project.registry, only, expected=None, kind="promote", reason="").entry
    experiment = store.experiment(store.connect(), settings.experiment()).experiment_id
    path = ui._prepare_store(settings.uri())
    assert experiment == run.info.experiment_id
    assert f"/experiments/{experiment}/" in path
    assert ui.COLOUR not in project.client.get_run(entry).data.tags
    assert ui.COLOUR in project.client.get_run(run.info.run_id).data.tags
