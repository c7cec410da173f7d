"""The alias `champion` moves with an entry in the log, or not at all, whatever dies, and goes back along earlier champions."""

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from convoy.core.errors import ConvoyError, RequestError
from convoy.lineage import runs, trace
from convoy.registry import alias
from convoy.registry.alias import move, rollback
from convoy.registry.client import CHAMPION, Registry, RegistryError, Version
from convoy.registry.promote import Judged, carry_out, judge
from convoy.registry.register import register
from convoy.repo import identity
from convoy.tracking import lookup, settings, store, ui
from gate_results import gate_result
from registry_project import Mortal


def promote(project, to, expected, **more):
    move(project.registry, to, expected=expected, kind="promote", reason="better", **more)


def test_a_move_points_the_alias_and_leaves_an_entry_with_its_files(any_project, tmp_path):
    first, second = any_project.versions(2, files=False)
    promote(any_project, first, None)
    verdict = tmp_path / "verdict.json"
    verdict.write_text("{}")
    moved = move(
        any_project.registry, second, expected=first, kind="override", reason="requested", files=[verdict]
    )
    assert (any_project.champion(), moved.before, moved.to) == (second.number, first, second)
    (earlier, status, _), (name, _, tags) = any_project.entries()
    assert (earlier, name, status) == (f"promote {first}", f"override {second}", "FINISHED")
    facts = [tags[f"convoy.{key}"] for key in ("from", "to", "reason", "outcome")]
    assert facts == ["1", "2", "requested", "moved"]
    assert {"mlflow.user", "convoy.host"} <= set(tags)
    assert [entry.path for entry in any_project.client.list_artifacts(moved.entry)] == ["verdict.json"]


def test_a_decision_against_another_champion_moves_nothing(memory):
    first, second, third = memory.versions(3, files=False)
    promote(memory, first, None)
    promote(memory, second, first)
    for expected, name in ((first, "convoy/1"), (None, "none")):
        with pytest.raises(RegistryError, match=rf"was {name} when this was decided, and is convoy/2 now"):
            promote(memory, third, expected)
    assert memory.champion() == second.number
    assert len(memory.entries()) == 2


@pytest.mark.parametrize("name", ["DVC_STAGE", "DVC_EXP_NAME"])
def test_an_experiment_changes_no_alias(memory, tmp_path, monkeypatch, name):
    first, second = memory.versions(2)
    promote_all(memory, first, second)
    before = memory.registry.aliases()
    monkeypatch.setenv(name, "quick-fox")
    for command, attempt in (
        ("promote", lambda: judge(tmp_path)),
        ("promote", lambda: promote(memory, first, second)),
        ("rollback", lambda: rollback("")),
        ("register", register),
    ):
        with pytest.raises(RequestError, match=rf"`convoy {command}` does not .*\({name} is quick-fox\)"):
            attempt()
    assert memory.registry.aliases() == before


def test_a_reason_too_long_for_stores_and_a_second_promotion_are_refused(memory):
    [first] = memory.versions(1, files=False)
    with pytest.raises(RequestError, match=r"5,001 characters; at most 5,000"):
        move(memory.registry, first, expected=None, kind="override", reason="x" * 5001)
    promote(memory, first, None)
    with pytest.raises(RequestError, match=r"convoy/1 is already the champion"):
        promote(memory, first, first)


def test_an_alias_that_another_tool_moves_too_is_an_error(memory, monkeypatch):
    first, second = memory.versions(2, files=False)
    point = memory.registry.__class__.point

    def meddle(registry, alias, version):
        point(registry, alias, version)
        point(registry, alias, second)

    monkeypatch.setattr(memory.registry.__class__, "point", meddle)
    with pytest.raises(RegistryError, match=r"points to 2 right after it was moved to 1"):
        promote(memory, first, None)
    [(_, status, tags)] = memory.entries()
    assert (status, tags["convoy.outcome"]) == ("FAILED", "not moved: it points to 2")


def test_a_registry_that_dies_at_any_call_leaves_the_old_or_the_new_champion_and_a_true_log(memory, tmp_path):
    verdict = tmp_path / "verdict.json"
    verdict.write_text("{}")
    memory.client.page = 1000  # else every move would make more calls than the move before
    mortal = Mortal(memory.client)
    registry = Registry(mortal, "convoy")
    champion, *others = memory.versions(3, files=False)
    promote(memory, champion, None, files=[verdict])
    outcomes = set()
    for deaths in range(40):
        to = next(version for version in others if version != champion)
        mortal.left = deaths
        try:
            move(registry, to, expected=champion, kind="promote", reason="", files=[verdict])
        except RegistryError as error:
            text = str(error)
        else:
            text = ""
        died = mortal.dead
        mortal.revive()
        stands = memory.champion()
        assert stands in {champion.number, to.number}
        outcomes.add(stands == to.number)
        if not died:
            break
        assert "did not answer" in text or stands == to.number
        assert "is unchanged" not in text
        champion = to if stands == to.number else champion
        last = alias.history(memory.registry, stands)[-1]
        assert last.after == stands, "the log is true before open entries are closed"
    assert not died
    assert 12 < deaths < 39
    assert outcomes == {True, False}
    statuses = [(status, tags["convoy.to"]) for _, status, tags in memory.entries()]
    assert "RUNNING" not in dict(statuses), "the last move closed what the deaths left"
    assert [to for status, to in statuses if status == "FINISHED"][-1] == memory.champion()


def test_a_server_that_dies_in_a_move_does_not_hold_the_next(server_project, through):
    first, second, third = server_project.versions(3, files=False)
    promote(server_project, first, None)
    through.die_at("registered-models/alias")
    with pytest.raises(RegistryError, match=rf"(?s)unknown, it is {first} or {second}: .*trace champion"):
        promote(server_project, second, first)
    through.accept()
    assert server_project.registry.alias("champion") == second, "it did what it did not answer"
    promote(server_project, third, second)
    assert server_project.champion() == third.number
    moves = [(status, tags["convoy.to"]) for _, status, tags in server_project.entries()]
    assert moves == [("FINISHED", version.number) for version in (first, second, third)]


def promote_all(project, *versions):
    """Make versions champion, in order."""
    for version in versions:
        promote(project, version, project.registry.alias(CHAMPION))


def entries(*moves):
    """Make a log from moves such as `1>2` (promoted) and `2<1` (rolled back)."""
    made = []
    for number, text in enumerate(moves):
        before, kind, after = text[0].strip("<>"), "rollback" if "<" in text else "promote", text[-1]
        made.append(alias.Entry(str(number), str(number), kind, before, after, number))
    return made


@pytest.mark.parametrize(
    ("moves", "now", "champions"),
    [
        ([">1", "1>2", "2>3"], "3", "1 2 3"),
        ([">1", "1>2", "2>3", "3<2"], "2", "1 2"),
        ([">1", "1>2", "2>3", "3<2", "2<1"], "1", "1"),
        ([">1", "1>2", "2>3", "3<2", "2>4"], "4", "1 2 4"),
        ([">1", "1>2", "2>3", "3<1"], "1", "1"),
        ([">1", "1>2", "2<7"], "7", "1 7"),
        ([">1", "1>2", "2>3", "3<2", "2<1", "1<3"], "3", "1 2 3"),
        ([">1", "1>2", "2>3", "3<2", "2<1", "1<2"], "2", "1 2"),
        ([">1", "1>2", "2<1", "1>4", "4<2"], "2", "1 2"),
        ([">1", "1>2", "2>3", "3<7", "7<3"], "3", "1 2 3"),
        ([">1", "1>2", "2>1"], "1", "1 2 1"),
        ([">1", "1>2", "2>1", "1<1"], "1", "1"),
        ([">1", "1>2", "2>1", "1>3", "3<1"], "1", "1 2 1"),
        ([">1", "1>2", "2>1", "1<2"], "2", "1 2"),
        (["5>6"], "6", "5 6"),
        ([">1", "1>2"], "9", "1 2 9"),
        ([">1", "3>4"], "4", "1 3 4"),
        ([], "2", "2"),
        ([], "", ""),
    ],
)
def test_the_champions_are_stacked_as_they_were_promoted_and_rolled_back(moves, now, champions):
    assert " ".join(alias.champions(entries(*moves), now)) == champions


def test_rolling_back_twice_goes_two_back_and_then_there_is_nothing_left(memory):
    versions = memory.versions(3)
    promote_all(memory, *versions)
    moved = rollback("confuses 3 and 8")
    assert (moved.before, moved.to, memory.champion()) == (versions[2], versions[1], "2")
    assert rollback("").to == versions[0]
    with pytest.raises(RequestError, match=r"/1 is the first champion .*: convoy rollback --to 3 \(or 2\)"):
        rollback("")
    assert memory.champion() == "1"
    name, status, tags = memory.entries()[3]
    assert (name, status) == ("rollback convoy/2", "FINISHED")
    assert (tags["convoy.kind"], tags["convoy.from"], tags["convoy.to"]) == ("rollback", "3", "2")
    assert tags["convoy.reason"] == "confuses 3 and 8"


def test_a_given_version_needs_no_log_and_the_next_rollback_uses_it(server_project):
    first, second = server_project.versions(2)
    server_project.registry.point(CHAMPION, first)
    assert rollback("by hand", to="2").to == second
    assert rollback("", to=str(first)).to == first
    promote(server_project, second, first)
    assert rollback("slow").to == first
    assert server_project.champion() == first.number


def test_without_a_champion_nothing_is_rolled_back(memory):
    for _ in range(2):
        with pytest.raises(RequestError, match=r"convoy at memory has no champion"):
            rollback("")
        memory.versions(1)


def test_a_version_that_does_not_exist_or_serves_already_is_refused(memory):
    promote_all(memory, *memory.versions(2))
    with pytest.raises(RequestError, match=r"convoy has no version 9; versions: 1, 2"):
        rollback("", to="9")
    with pytest.raises(RequestError, match=r"convoy has no version last; versions: 1, 2"):
        rollback("", to="last")
    with pytest.raises(RequestError, match=r"convoy/2 is already the champion"):
        rollback("", to="2")


def test_a_version_whose_file_is_missing_does_not_become_champion(memory):
    versions = memory.versions(3)
    promote_all(memory, *versions)
    memory.stored(versions[1]).unlink()
    with pytest.raises(RegistryError, match=r"convoy/2 is no longer in the store.*: convoy rollback --to 1"):
        rollback("")
    assert memory.champion() == "3"
    assert rollback("", to="1").to == versions[0]


def test_a_previous_champion_that_was_deleted_is_reported_with_earlier_ones(memory):
    promote_all(memory, *memory.versions(4))
    memory.client.delete_model_version("convoy", "3")
    deleted = r"convoy/3, .* before 4, was deleted; .* --to VERSION \(earlier champions: 2, 1\)"
    with pytest.raises(RegistryError, match=deleted):
        rollback("")


def test_a_rollback_repairs_an_alias_that_points_nowhere(memory):
    first, second = memory.versions(2)
    promote_all(memory, first, second)
    memory.client.aliases["champion"] = "99"
    with pytest.raises(RegistryError, match=r"the alias champion of convoy at .* points to version 99"):
        memory.registry.alias(CHAMPION)
    assert rollback("the alias points nowhere").to == second
    assert memory.registry.alias(CHAMPION) == second


def test_a_deleted_log_is_reported_with_the_command_that_restores_it(memory):
    promote_all(memory, *memory.versions(2))
    memory.client.experiments["convoy promotions"].lifecycle_stage = "deleted"
    remedy = r"`convoy promotions`, .* was deleted. .*mlflow experiments restore --experiment-id 2"
    with pytest.raises(RegistryError, match=remedy):
        rollback("")
    assert memory.champion() == "2"


# The promotion log, which lets one process at a time move the alias


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


def version(number):
    return Version("convoy", str(number), "0" * 64, "", "", 0, {})


PARENT = identity.name(psutil.Process(os.getppid()))
"""Another living process."""


class Clock:
    """A clock that only sleeping moves; `then` is called meanwhile."""

    def __init__(self):
        self.now, self.then = 1000.0, lambda: None

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.then()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(alias, "time", clock)
    monkeypatch.setattr(alias, "POLL_S", 1.0)
    return clock


def open_entry(memory, after=9, **facts):
    """Leave an open entry as another, living process of this machine does; return MLflow's id of it."""
    move = f"move-{len(memory.client.runs)}"
    entry = alias.create(memory.registry, move, "promote", "", version(after), "")
    tags = {"convoy.owner": PARENT} | {f"convoy.{key}": str(text) for key, text in facts.items()}
    memory.client.get_run(entry.run).data.tags |= tags
    return entry.run


def outcomes(memory):
    return [(run.info.status, run.data.tags.get("convoy.outcome", "")) for run in memory.client.runs]


def promote_number(memory, number, before=0):
    promote(memory, version(number), version(before) if before else None)


def test_of_two_processes_that_move_at_once_one_wins_and_the_other_names_it(any_project, start_python):
    any_project.versions(2, files=False)
    movers = [start_python("-c", MOVER, str(number)) for number in (0, 1)]
    for mover in movers:
        assert mover.stdout.readline() == "ready\n"
    for mover in movers:
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
    monkeypatch.setattr(alias, "POLL_S", 0.001)
    monkeypatch.setattr(alias, "WAIT_S", 20.0)
    call = Registry.call

    def attempt(number, before, errors):
        try:
            promote_number(memory, number, before)
        except RegistryError as error:
            errors.append(str(error))

    def slow(*words):
        time.sleep(random.random() / 300)  # noqa: S311 (no secret)
        return call(*words)

    monkeypatch.setattr(Registry, "call", slow)
    for before in range(0, 60, 3):
        errors = []
        champion = int(memory.client.aliases.get("champion", "0"))
        with ThreadPoolExecutor(3) as threads:
            for number in (1, 2, 3):
                threads.submit(attempt, before + number, champion, errors)
        assert len(errors) == 2, errors
        assert int(memory.client.aliases["champion"]) in range(before + 1, before + 4)
    moves = alias.history(memory.registry, memory.client.aliases["champion"])
    assert [entry.before for entry in moves[1:]] == [entry.after for entry in moves[:-1]]
    assert len(moves) == 20


def test_a_living_process_is_named_with_what_it_does_and_since_when(memory, clock):
    open_entry(memory)
    pid = PARENT.partition(":")[0]
    owner = rf"`promote` of version 9 by process {pid} on {identity.host()} since 20\d\d-.* UTC"
    with pytest.raises(RegistryError, match=owner):
        promote_number(memory, 1)
    assert clock.now - 1000 == pytest.approx(alias.WAIT_S, abs=2)
    assert len(memory.client.runs) == 1, "no entry of its own"
    assert memory.client.aliases == {}


def test_a_process_that_ends_soon_is_waited_for(memory, clock):
    run = open_entry(memory)
    clock.then = lambda: memory.client.set_terminated(run, "FAILED")
    promote_number(memory, 1)
    assert memory.client.aliases == {"champion": "1"}


@pytest.mark.parametrize(
    "facts",
    [{"owner": identity.name(psutil.Process())}, {"owner": "999999999:1.0"}, {"machine": ""}],
    ids=["own, not closed", "of a dead process", "of an earlier Convoy"],
)
def test_open_entries_of_no_living_move_block_nobody(memory, clock, facts):
    open_entry(memory, **facts)
    promote_number(memory, 1)
    assert (outcomes(memory)[0][0], clock.now) == ("FAILED", 1000)


@pytest.mark.parametrize("facts", [{"host": "elsewhere"}, {"machine": "of the same name"}])
def test_an_open_entry_of_another_machine_is_waited_for_as_long_as_a_lease(memory, clock, capsys, facts):
    open_entry(memory, **facts)
    promote_number(memory, 1)
    assert alias.LEASE_S < clock.now - 1000 < alias.LEASE_S + 5
    assert outcomes(memory)[0][0] == "FAILED"
    assert "if it is dead, the wait ends in 57 s" in capsys.readouterr().out


def race(memory, monkeypatch, age_ms):
    """Let another process create its entry between the first look and the own entry."""
    create, others = alias.create, []

    def after_other(*words):
        monkeypatch.setattr(alias, "create", create)
        others.append(open_entry(memory))
        own = create(*words)
        memory.client.get_run(others[0]).info.start_time = own.moment_ms - age_ms
        return own

    monkeypatch.setattr(alias, "create", after_other)
    return others


def test_who_sees_an_older_entry_gives_up(memory, clock, monkeypatch):
    race(memory, monkeypatch, age_ms=1)
    with pytest.raises(RegistryError, match="another process is moving convoy's champion"):
        promote_number(memory, 1)
    assert clock.now == 1000
    assert outcomes(memory) == [("RUNNING", ""), ("FAILED", "not moved")]
    assert memory.client.aliases == {}


def test_who_sees_a_younger_entry_waits_for_it(memory, clock, monkeypatch):
    others = race(memory, monkeypatch, age_ms=-1)
    clock.then = lambda: memory.client.set_terminated(others[0], "FAILED")
    promote_number(memory, 1)
    assert clock.now > 1000
    assert memory.client.aliases == {"champion": "1"}


def test_a_younger_entry_that_was_already_moving_the_alias_wins(memory, clock, monkeypatch):
    others = race(memory, monkeypatch, age_ms=-1)

    def finish():
        memory.client.aliases["champion"] = "9"
        memory.client.set_terminated(others[0], "FINISHED")

    clock.then = finish
    with pytest.raises(RegistryError, match=r"is convoy/9 now \(`promote` of version 9 by process \d+ on "):
        promote_number(memory, 1)
    assert memory.client.aliases == {"champion": "9"}
    assert outcomes(memory)[1] == ("FAILED", "not moved")


@pytest.mark.parametrize("loss", ["closed by another", "stalled"])
def test_an_entry_that_others_may_take_for_dead_moves_nothing(memory, clock, monkeypatch, loss):
    def lose(entry, _):
        if loss == "stalled":
            clock.now += alias.SAFE_S + 1
        else:
            memory.client.set_terminated(entry.entry.run, "FAILED")

    monkeypatch.setattr(alias.Move, "attach", lose)
    with pytest.raises(RegistryError, match=r"was lost after \d+ s.* unchanged; run the same command again"):
        promote_number(memory, 1)
    assert memory.client.aliases == {}
    assert outcomes(memory) == [("FAILED", "not moved")]


def test_entries_that_were_left_open_are_closed_by_where_the_alias_points(memory, capsys):
    for before, after in (("", 1), ("1", 2), ("2", 3)):
        open_entry(memory, after, machine="", **{"from": before})
    memory.client.aliases["champion"] = "1"
    promote_number(memory, 4, before=1)
    assert outcomes(memory) == [
        ("FINISHED", "moved"),
        ("FAILED", "not moved"),
        ("FAILED", "not moved, or was moved since: it points to 1"),
        ("FINISHED", "moved"),
    ]
    assert "an earlier promote of convoy/1 was interrupted; the alias: moved" in capsys.readouterr().out
    assert [entry.after for entry in alias.history(memory.registry, "4")] == ["1", "4"]


def test_a_promotion_that_moves_nothing_completes_the_log_of_one_that_was_killed(memory):
    memory.client.aliases["champion"] = "1"
    judged = Judged(gate_result(), version(1), version(1), ())
    dead, living = open_entry(memory, 1, machine="", **{"from": ""}), open_entry(memory, 2)
    assert not carry_out(judged)
    assert memory.client.get_run(dead).info.status == "RUNNING", "a living one completes it"
    memory.client.set_terminated(living, "FAILED")
    assert not carry_out(judged)
    assert outcomes(memory)[0] == ("FINISHED", "moved")


def test_the_entry_of_a_living_process_is_left_open(memory, monkeypatch):
    close, others = alias.Move.close_abandoned, []

    def after_another_started(entry, champion):
        others.append(open_entry(memory))
        close(entry, champion)

    monkeypatch.setattr(alias.Move, "close_abandoned", after_another_started)
    promote_number(memory, 1)
    assert memory.client.get_run(others[0]).info.status == "RUNNING"


@pytest.mark.parametrize("order", [1, -1], ids=["twin after", "twin before"])
@pytest.mark.parametrize("status", ["RUNNING", "FAILED"])
def test_a_move_that_a_dying_store_recorded_twice_counts_once(memory, order, status):
    promote_number(memory, 1)
    run = memory.client.runs[0]
    tags = {key: text for key, text in run.data.tags.items() if key != "convoy.outcome"}
    twin = memory.client.create_run("1", run.info.start_time + order, tags)
    twin.info.status = status
    assert [entry.after for entry in alias.history(memory.registry, "1")] == ["1"]
    promote_number(memory, 2, before=1)
    assert [entry.after for entry in alias.history(memory.registry, "2")] == ["1", "2"]
    assert "RUNNING" not in dict(outcomes(memory))


def test_entries_record_who_moved_it_when_where_and_why_and_belong_to_one_model(memory):
    promote_number(memory, 1)
    [entry] = alias.history(memory.registry, "1")
    assert (entry.kind, entry.before, entry.after) == ("promote", "", "1")
    assert abs(entry.moment_ms / 1000 - time.time()) < 60
    assert (entry.host, entry.process) == (identity.host(), identity.name(psutil.Process()))
    tags = memory.client.runs[0].data.tags
    assert tags["convoy.reason"] == tags["mlflow.note.content"] == "better"
    reason = "recall of ![x](https://evil.example)"
    move(memory.registry, version(2), expected=version(1), kind="override", reason=reason)
    tags = memory.client.runs[1].data.tags
    assert tags["convoy.reason"] == reason
    assert "[" not in tags["mlflow.note.content"]  # Markdown, which MLflow renders
    assert tags["mlflow.user"]
    other = Registry(memory.client, "other")
    assert alias.history(other, "") == []


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
    with pytest.raises(ConvoyError) as absent:
        lookup.find(f"runs:/{'0' * 32}", ("weights",))
    assert "promote convoy/1" not in f"{unknown.value} {absent.value}"
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
