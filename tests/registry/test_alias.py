"""The alias `champion` moves under a lock, with an entry in the log, or not at all."""

import contextlib
from pathlib import Path

import pytest

from convoy.core.errors import RequestError
from convoy.registry import log
from convoy.registry.alias import move
from convoy.registry.client import Registry, RegistryError, Version
from proxy import Proxy
from registry_project import Mortal, Shop


def promote(shop: Shop, to: Version, expected: Version | None, **more: object) -> None:
    move(shop.registry, to, expected=expected, kind="promote", reason="better", **more)


@pytest.mark.parametrize("backend", ["shop", "served_shop"])
def test_a_move_points_the_alias_and_leaves_an_entry_with_its_files(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    shop = request.getfixturevalue(backend)
    first, second = shop.versions(2, files=False)
    promote(shop, first, None)
    verdict = tmp_path / "verdict.json"
    verdict.write_text("{}")
    moved = move(shop.registry, second, expected=first, kind="override", reason="asked for", files=[verdict])
    assert (shop.champion(), moved.before, moved.to) == (second.number, first, second)
    assert shop.locks() == {}
    (one, status, _), (two, _, tags) = shop.entries()
    assert (one, two, status) == (f"promote {first}", f"override {second}", "FINISHED")
    assert (tags["convoy.from"], tags["convoy.to"], tags["convoy.reason"]) == ("1", "2", "asked for")
    assert tags["convoy.outcome"] == "moved"
    assert {"mlflow.user", "convoy.host"} <= set(tags)
    assert [entry.path for entry in shop.client.list_artifacts(moved.entry)] == ["verdict.json"]


def test_a_decision_against_another_champion_moves_nothing(shop: Shop) -> None:
    first, second, third = shop.versions(3, files=False)
    promote(shop, first, None)
    promote(shop, second, first)
    with pytest.raises(
        RegistryError,
        match=r"another was promoted since: champion was convoy/1 when this was decided, and is convoy/2 now",
    ):
        promote(shop, third, first)
    with pytest.raises(RegistryError, match=r"champion was none when this was decided, and is convoy/2 now"):
        promote(shop, third, None)
    assert shop.champion() == second.number
    assert len(shop.entries()) == 2
    assert shop.locks() == {}


def test_the_champion_is_not_promoted_again(shop: Shop) -> None:
    [first] = shop.versions(1, files=False)
    promote(shop, first, None)
    with pytest.raises(RequestError, match=r"convoy/1 is the champion already; there is nothing to move"):
        promote(shop, first, first)


@pytest.mark.parametrize("name", ["DVC_STAGE", "DVC_EXP_NAME"])
def test_an_experiment_moves_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    [first] = shop.versions(1, files=False)
    monkeypatch.setenv(name, "quick-fox")
    with pytest.raises(
        RequestError,
        match=rf"`convoy promote` does not work inside a DVC stage or experiment \({name} is quick-fox\)",
    ):
        promote(shop, first, None)
    assert shop.champion() == ""


def test_a_reason_that_stores_do_not_take_is_refused(shop: Shop) -> None:
    [first] = shop.versions(1, files=False)
    with pytest.raises(RequestError, match=r"the reason has 5,001 characters; stores take 5,000"):
        move(shop.registry, first, expected=None, kind="override", reason="x" * 5001)


def test_an_alias_that_something_else_moves_too_is_said(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = shop.versions(2, files=False)
    point = shop.registry.__class__.point

    def meddle(registry: object, alias: str, version: Version) -> None:
        point(registry, alias, version)
        point(registry, alias, second)

    monkeypatch.setattr(shop.registry.__class__, "point", meddle)
    with pytest.raises(RegistryError, match=r"points to 2 right after it was moved to 1: something else"):
        promote(shop, first, None)
    [(_, status, tags)] = shop.entries()
    assert (status, tags["convoy.outcome"]) == ("FAILED", "not moved: it points to 2")


def test_a_registry_that_dies_at_any_call_leaves_the_old_or_the_new_champion_and_a_true_log(
    shop: Shop, tmp_path: Path
) -> None:
    verdict = tmp_path / "verdict.json"
    verdict.write_text("{}")
    mortal = Mortal(shop.client)
    registry = Registry(mortal, "convoy")
    champion, *others = shop.versions(3, files=False)
    promote(shop, champion, None, files=[verdict])
    outcomes = set()
    for deaths in range(40):
        to = next(one for one in others if one != champion)
        mortal.die_after(deaths)
        try:
            move(registry, to, expected=champion, kind="promote", reason="", files=[verdict])
        except RegistryError as error:
            said = str(error)
        else:
            said = ""
        died = mortal.dead
        mortal.revive()
        stands = shop.champion()
        assert stands in {champion.number, to.number}
        outcomes.add(stands == to.number)
        if not died:
            break
        assert "did not answer" in said or stands == to.number
        assert "was not moved" not in said
        champion = to if stands == to.number else champion
        told = [entry for entry in log.history(shop.registry, stands) if entry.moved]
        assert told[-1].after == stands, "the log is true before anybody settles it"
    assert not died
    assert 12 < deaths < 39
    assert outcomes == {True, False}
    statuses = [(status, tags["convoy.to"]) for _, status, tags in shop.entries()]
    assert "RUNNING" not in dict(statuses), "the last move settled what the deaths left"
    assert [to for status, to in statuses if status == "FINISHED"][-1] == shop.champion()
    assert shop.locks() == {}, "what died left no lock behind"


@pytest.mark.parametrize("call", ["registered-models/alias", "runs/update"])
def test_a_server_that_dies_in_a_move_does_not_hold_the_next(
    served_shop: Shop, through: Proxy, tmp_path: Path, call: str
) -> None:
    shop = served_shop
    verdict = tmp_path / "verdict.json"
    verdict.write_text("{}")
    first, second, third = shop.versions(3, files=False)
    promote(shop, first, None)
    through.die_at(call)
    with contextlib.suppress(RegistryError):  # after `runs/update` the move is done, and says so
        promote(shop, second, first, files=[verdict])
    assert call in through.calls[-1]
    through.accept()
    assert shop.registry.alias("champion") == second, "it did what it did not answer"
    promote(shop, third, second)
    assert shop.champion() == third.number
    assert shop.locks() == {}
    moved = [tags["convoy.to"] for _, status, tags in shop.entries() if status == "FINISHED"]
    assert moved == [first.number, second.number, third.number]
    assert "RUNNING" not in {status for _, status, _ in shop.entries()}
