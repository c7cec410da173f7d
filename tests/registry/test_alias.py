"""The alias `champion` moves with an entry in the log, or not at all, and goes back along earlier champions."""

import pytest

from convoy.core.errors import RequestError
from convoy.registry import log
from convoy.registry.alias import move, rollback
from convoy.registry.client import CHAMPION, Registry, RegistryError
from convoy.registry.promote import judge
from convoy.registry.register import register
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
    assert (tags["convoy.from"], tags["convoy.to"], tags["convoy.reason"]) == ("1", "2", "requested")
    assert tags["convoy.outcome"] == "moved"
    assert {"mlflow.user", "convoy.host"} <= set(tags)
    assert [entry.path for entry in any_project.client.list_artifacts(moved.entry)] == ["verdict.json"]


def test_a_decision_against_another_champion_moves_nothing(memory):
    first, second, third = memory.versions(3, files=False)
    promote(memory, first, None)
    promote(memory, second, first)
    with pytest.raises(
        RegistryError, match=r"champion was convoy/1 when this was decided, and is convoy/2 now"
    ):
        promote(memory, third, first)
    with pytest.raises(RegistryError, match=r"champion was none when this was decided, and is convoy/2 now"):
        promote(memory, third, None)
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
        message = (
            rf"`convoy {command}` does not work inside a DVC stage or experiment \({name} is quick-fox\)"
        )
        with pytest.raises(RequestError, match=message):
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
        mortal.die_after(deaths)
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
        last = log.history(memory.registry, stands)[-1]
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
        made.append(log.Entry(str(number), str(number), kind, before, after, number))
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
    assert " ".join(log.champions(entries(*moves), now)) == champions


def test_rolling_back_twice_goes_two_back_and_then_there_is_nothing_left(memory):
    versions = memory.versions(3)
    promote_all(memory, *versions)
    moved = rollback("confuses 3 and 8")
    assert (moved.before, moved.to, memory.champion()) == (versions[2], versions[1], "2")
    assert rollback("").to == versions[0]
    with pytest.raises(
        RequestError, match=r"convoy/1 is the first champion .*: convoy rollback --to 3 \(or 2\)"
    ):
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
    with pytest.raises(
        RegistryError, match=r"model.onnx of convoy/2 is no longer in the store.*: convoy rollback --to 1"
    ):
        rollback("")
    assert memory.champion() == "3"
    assert rollback("", to="1").to == versions[0]


def test_a_previous_champion_that_was_deleted_is_reported_with_earlier_ones(memory):
    promote_all(memory, *memory.versions(4))
    memory.client.delete_model_version("convoy", "3")
    with pytest.raises(
        RegistryError,
        match=r"convoy/3, the champion before 4, was deleted; .* --to VERSION \(earlier champions: 2, 1\)",
    ):
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
    experiment = memory.client.get_experiment_by_name("convoy promotions")
    experiment.lifecycle_stage = "deleted"
    with pytest.raises(
        RegistryError,
        match=rf"`convoy promotions`, .* was deleted. .*mlflow experiments restore --experiment-id {experiment.experiment_id}",
    ):
        rollback("")
    assert memory.champion() == "2"
