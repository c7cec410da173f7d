"""Two runs side by side, and `convoy trace` as it is typed."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from convoy import cli
from convoy.core.errors import RequestError
from convoy.repo import dvc
from small_pipeline import FAILED, FIRST, SECOND


def run(*words: str) -> str:
    result = CliRunner().invoke(cli.app, ["trace", *words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def compared(*words: str) -> dict[str, Any]:
    return json.loads(run(*words, "--json"))


def test_two_runs_are_compared_link_by_link(shared):
    result = compared(FIRST, SECOND)
    assert result["commit"]["dirty"] == [False, True]
    assert result["params"] == {"fit.lr": {"old": "0.5", "new": "0.25"}}
    metrics = {"test/accuracy": {"old": 0.9, "new": 0.8}, "test/loss": {"old": None, "new": 0.3}}
    assert result["metrics"] == metrics
    assert result["data"]["verdict"] == "same"
    text = run(FIRST, SECOND)
    assert "B had uncommitted changes" in text
    assert "fit.lr  0.5 → 0.25" in text
    assert "test/accuracy  0.9 → 0.8  (-0.1)" in text
    assert "test/loss      (none) → 0.3" in text
    assert "WARNING" not in text


def test_runs_on_different_data_are_compared_with_a_warning(shared):
    assert compared(FIRST, FAILED)["data"]["verdict"] == "other"
    text = run(FIRST, FAILED)
    assert "DIFFER: 1f1f1f1f1f1f → 2e2e2e2e2e2e" in text
    assert "WARNING" in text
    assert "not in this repository" in text


def test_a_delivery_packed_otherwise_has_the_same_test_images_unless_its_splits_differ(traced):
    client, number = traced.store, traced.run(SECOND).info.run_id
    traced.set_tags(SECOND, {"convoy.data_hash": "3d" * 32})
    client.log_param(number, "data.image_px", "16")
    assert compared(FIRST, SECOND)["data"]["verdict"] == "packed otherwise"
    assert "WARNING" not in run(FIRST, SECOND)
    client.log_param(number, "data.splits.test", "0.4")
    assert compared(FIRST, SECOND)["data"]["verdict"] == "other"
    assert f"convoy trace {SECOND} --restore ../other --trust-run-code" in run(FIRST, SECOND)


def test_the_files_of_two_deliveries_are_counted(traced):
    traced.write("source/c.txt", "c\n")
    traced.write("source/a.txt", "other\n")
    traced.remove("source/b.txt")
    traced.repro()
    md5 = dvc.required_outputs(traced.folder)["data"]
    traced.set_tags(SECOND, {"convoy.data_hash": "3d" * 32, "convoy.data_md5": md5})
    assert compared(FIRST, SECOND)["data"]["members"] == {"added": 1, "removed": 1, "changed": 1}


def test_a_git_command_shows_the_difference_of_two_commits(traced):
    traced.write("more.txt", "more\n")
    traced.set_tags(SECOND, {"mlflow.source.git.commit": traced.commit("more")})
    assert "+more" in traced.git(*compared(FIRST, SECOND)["commit"]["diff"].split()[1:])


def test_a_name_of_several_runs_cannot_be_compared_and_lists_them(shared):
    with pytest.raises(RequestError, match=rf"belongs to 2 runs.*{SECOND}, {FIRST}"):
        run("HEAD", FIRST)
    with pytest.raises(RequestError, match=r"commit HEAD~1 belongs to no run"):
        run("HEAD~1", FIRST)


def test_json_holds_the_chain_of_every_run(shared):
    answer = compared("HEAD")
    assert answer["kind"] == "commit"
    assert [run["run_id"] for run in answer["runs"]] == [SECOND, FIRST]
    assert {link["name"] for link in answer["runs"][0]["chain"]} >= {"git commit", "data", "dvc.lock"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([FIRST, "--verify"], "--verify needs --restore"),
        ([FIRST, "--trust-run-code"], "--trust-run-code needs --restore"),
        ([FIRST, SECOND, "--restore", "x"], "--restore takes one run"),
        ([FIRST, "--restore", "x", "--json"], "--restore prints no JSON"),
    ],
)
def test_options_that_do_not_go_together_are_refused(shared, words, reason):
    with pytest.raises(RequestError, match=reason):
        run(*words)
