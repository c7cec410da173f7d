"""What `convoy why` foresees is what DVC says and does."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from dvc.repo import Repo

import pipeline_edits as of
from convoy.lineage.why import explain
from small_pipeline import Small

SITUATIONS = [
    of.nothing,
    of.a_param,
    of.a_code_file,
    of.the_network_s_spec,
    of.another_network,
    of.a_data_file_added,
    of.an_output_removed,
    of.an_output_changed,
    of.no_lock,
    of.another_command,
    of.two_at_once,
    of.frozen_and_changed_upstream,
    of.frozen_and_gone,
    of.an_input_missing,
    of.a_param_removed,
    of.data_changed_by_hand,
]


def by_dvc(small: Small, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[tuple[str, str]]]:
    """What `dvc status --json` lists: stage to the names and states of what changed."""
    monkeypatch.chdir(small.folder)
    with Repo() as repo:
        status: dict[str, list[Any]] = repo.status()
    found: dict[str, set[tuple[str, str]]] = {}
    for stage, entries in status.items():
        names = found.setdefault(stage, set())
        for entry in entries:
            if isinstance(entry, str):
                names.add(("cmd", entry))
                continue
            for name, state in {**entry.get("changed deps", {}), **entry.get("changed outs", {})}.items():
                names |= {(name, part) for part in ([state] if isinstance(state, str) else state)}
    return found


def by_convoy(small: Small) -> dict[str, set[tuple[str, str]]]:
    """The same of `convoy why`: a param stands for its section, as DVC compares whole sections."""
    found = {}
    for stage in explain(small.folder)["stages"]:
        names = set()
        for change in stage["changes"]:
            if change["kind"] == "param":
                names.add(("params.yaml", change["name"].split(".")[0]))
            elif change["kind"] == "command":
                names.add(("cmd", "changed command"))
            elif change["state"] != "replaced":
                names.add((change["name"], change["state"]))
        if names:
            found[stage["stage"]] = names
    return found


@pytest.mark.parametrize("change", SITUATIONS, ids=lambda change: change.__name__)
def test_what_changed_is_what_dvc_status_lists(
    small: Small, change: Callable[[Small], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(small)
    expected = by_dvc(small, monkeypatch)
    if (
        change is of.no_lock
    ):  # of.nothing is recorded, so of.nothing can differ: DVC lists every input, Convoy says so
        found = explain(small.folder)["stages"]
        assert {one["stage"] for one in found if one["never_ran"]} == set(expected)
        return
    assert by_convoy(small) == expected


@pytest.mark.parametrize(
    "change",
    [
        of.nothing,
        of.a_param,
        of.a_code_file,
        of.a_data_file_added,
        of.an_output_removed,
        of.an_output_changed,
        of.no_lock,
        of.another_command,
        of.frozen_and_changed_upstream,
        of.frozen_and_gone,
        of.an_input_missing,
        of.data_changed_by_hand,
        of.back_to_an_earlier_value,
        of.back_and_an_output_removed,
    ],
    ids=lambda change: change.__name__,
)
def test_dvc_repro_does_what_was_foreseen(small: Small, change: Callable[[Small], None]) -> None:
    change(small)
    foreseen = {one["stage"]: one["verdict"] for one in explain(small.folder)["stages"]}
    said = small.repro()
    ran = set(re.findall(r"Running stage '(.+?)'", said)) | {
        "data.dvc" for _ in re.findall(r"Importing", said) if foreseen["data.dvc"] == "runs"
    }
    cached = set(re.findall(r"Stage '(.+?)' is cached", said))
    by = {
        verdict: {name for name, one in foreseen.items() if one == verdict}
        for verdict in set(foreseen.values())
    }
    assert by.get("runs", set()) <= ran <= by.get("runs", set()) | by.get("perhaps", set()), said
    assert cached == by.get("cached", set()) - {"data.dvc"}, said
    assert ("ERROR" in said) == ("stops" in by), said
    if "stops" in by:
        assert not ran & by["stops"]
    for name in by.get("unchanged", set()):
        assert f"'{name}' didn't change" in said or "stops" in by, said
