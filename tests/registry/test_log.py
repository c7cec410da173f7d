"""The promotion log tells what happened, whatever died, and is not taken for trainings."""

from pathlib import Path

import pytest

from convoy.core.errors import ConvoyError, RequestError
from convoy.lineage import runs, trace
from convoy.registry import log
from convoy.registry.alias import move
from convoy.registry.client import Version
from convoy.registry.register import register
from convoy.tracking import lookup, settings, ui, view
from registry_project import Shop


def intend(shop: Shop, before: str, to: Version) -> log.Intent:
    return log.intend(shop.registry, "promote", before, to, reason="better", files=[])


def statuses(shop: Shop) -> list[tuple[str, str]]:
    return [(status, tags.get("convoy.outcome", "")) for _, status, tags in shop.entries()]


def test_an_entry_that_was_left_open_is_settled_by_where_the_alias_stands(shop: Shop) -> None:
    first, second, third = shop.versions(3, files=False)
    intend(shop, "", first)
    intend(shop, "1", second)
    intend(shop, "2", third)
    said = log.wait_until_uploaded(shop.registry, "1")
    assert statuses(shop) == [
        ("FINISHED", "moved"),
        ("FAILED", "not moved"),
        ("FAILED", "not moved, or was moved since: it points to 1"),
    ]
    assert said[0] == "an earlier `promote convoy/1` was broken off: the alias had moved"
    assert log.wait_until_uploaded(shop.registry, "1") == []


def test_a_move_settles_what_an_earlier_one_left_and_says_so(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = shop.versions(2, files=False)
    intend(shop, "", first)
    move(shop.registry, second, expected=None, kind="promote", reason="")
    assert statuses(shop) == [("FAILED", "not moved"), ("FINISHED", "moved")]
    assert "an earlier `promote convoy/1` was broken off: the alias had not moved" in capsys.readouterr().out


def test_a_move_that_a_dying_store_wrote_down_twice_counts_once(shop: Shop) -> None:
    first, second = shop.versions(2, files=False)
    done = intend(shop, "", first)
    log.end(shop.registry, done, log.MOVED)
    entry = shop.client.get_run(done.run)
    twin = {key: text for key, text in entry.data.tags.items() if key != "convoy.outcome"}
    shop.client.create_run(entry.info.experiment_id, tags=twin)
    move(shop.registry, second, expected=None, kind="promote", reason="")
    told = log.history(shop.registry, "2")
    assert [(one.after, one.moved) for one in told] == [("1", True), ("2", True)]


def test_entries_say_who_moved_it_when_where_and_why(shop: Shop) -> None:
    [first] = shop.versions(1, files=False)
    move(shop.registry, first, expected=None, kind="override", reason="ä reason")
    [entry] = log.history(shop.registry, "1")
    assert (entry.kind, entry.before, entry.after, entry.reason) == ("override", "", "1", "ä reason")
    assert entry.moment_ms > first.created_ms - 1000
    assert entry.user
    assert entry.host


def test_another_model_s_moves_are_not_this_one_s(shop: Shop) -> None:
    [first] = shop.versions(1, files=False)
    move(shop.registry, first, expected=None, kind="promote", reason="")
    shop.registry.client.create_registered_model("other")
    other = type(shop.registry)(shop.client, "other")
    assert log.history(other, "") == []


def test_the_log_is_not_taken_for_trainings(shop: Shop) -> None:
    run = shop.train()
    version = register()
    entry = move(shop.registry, version, expected=None, kind="promote", reason="").entry
    known = runs.open_records(settings.uri(), shop.folder)
    assert entry not in {record.mlflow_run_id for record in known.latest(50)}
    assert run.info.run_id in {record.mlflow_run_id for record in known.latest(50)}
    found, _ = trace.look(version.sha256, shop.folder)
    assert [record.mlflow_run_id for record in found.records] == [run.info.run_id]
    with pytest.raises(RequestError) as unknown:
        trace.look("nothing", shop.folder)
    assert "promote convoy/1" not in str(unknown.value)
    with pytest.raises(ConvoyError) as absent:
        lookup.find(f"runs:/{'0' * 32}", ("weights",))
    assert "promote convoy/1" not in str(absent.value)
    assert run.info.run_id in str(absent.value)


def test_the_ui_opens_on_trainings_and_colours_no_entry_of_the_log(shop: Shop, tmp_path: Path) -> None:
    run = shop.train()
    [version] = shop.versions(1, files=False)
    entry = move(shop.registry, version, expected=None, kind="promote", reason="").entry
    experiment, path = ui._prepared()
    assert experiment == run.info.experiment_id
    assert f"/experiments/{experiment}/" in path
    assert view.COLOUR not in shop.client.get_run(entry).data.tags
    assert view.COLOUR in shop.client.get_run(run.info.run_id).data.tags
