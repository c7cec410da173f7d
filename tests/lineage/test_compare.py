"""Two runs side by side, and `convoy trace` as it is typed."""

import json

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from convoy import cli
from convoy.core.errors import RequestError
from small_pipeline import Small

FIRST = "20261123-100000-aaaaaa"
SECOND = "20261123-110000-bbbbbb"
FAILED = "20261124-090000-cccccc"


def mlflow_id(traced: Small, run_id: str) -> str:
    client = MlflowClient(f"sqlite:///{traced.folder}/mlflow.db")
    [run] = client.search_runs(["1"], f"tags.`convoy.run_id` = '{run_id}'")
    return run.info.run_id


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["trace", *words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_two_runs_are_compared_link_by_link(traced: Small) -> None:
    _, text = run(FIRST, SECOND)
    assert "B had changes that were not committed" in text
    assert "fit.lr  0.5 → 0.25" in text
    assert "test/accuracy  0.9 → 0.8  (-0.1)" in text
    assert "test/loss      (none) → 0.3" in text
    assert "system/cpu" not in text
    assert "data        the same" in text
    assert "WARNING" not in text


def test_runs_on_different_data_are_compared_with_a_plain_warning(traced: Small) -> None:
    _, text = run(FIRST, FAILED)
    assert "data        DIFFER: 1f1f1f1f1f1f → 2e2e2e2e2e2e" in text
    assert (
        "WARNING: the two were trained and measured on different data, so their metrics do not compare."
        in text
    )
    assert "one of them is not in this repository" in text


def test_one_delivery_packed_otherwise_has_the_same_test_images_unless_its_splits_differ(
    traced: Small,
) -> None:
    client = MlflowClient(f"sqlite:///{traced.folder}/mlflow.db")
    number = mlflow_id(traced, SECOND)
    client.set_tag(number, "convoy.data_hash", "3d" * 32)
    client.log_param(number, "data.image_px", "16")
    _, text = run(FIRST, SECOND)
    assert "the same delivery and the same test images, packed otherwise" in text
    assert "WARNING" not in text
    client.log_param(number, "data.splits.test", "0.4")
    _, text = run(FIRST, SECOND)
    assert "the same delivery, split otherwise" in text
    assert "WARNING" in text


def test_a_git_command_shows_what_two_commits_differ_in(traced: Small) -> None:
    traced.write("more.txt", "more\n")
    commit = traced.commit("more")
    client = MlflowClient(f"sqlite:///{traced.folder}/mlflow.db")
    client.set_tag(mlflow_id(traced, SECOND), "mlflow.source.git.commit", commit)
    compared = json.loads(run(FIRST, SECOND, "--json")[1])
    assert "+more" in traced.git(*compared["commit"]["diff"].split()[1:])


def test_a_name_of_several_runs_cannot_be_compared_and_lists_them(traced: Small) -> None:
    with pytest.raises(
        RequestError, match=rf"commit HEAD belongs to 2 runs. Name one of them: {SECOND}, {FIRST}"
    ):
        run("HEAD", FIRST)
    with pytest.raises(RequestError, match=r"commit HEAD~1 belongs to no run that is known"):
        run("HEAD~1", FIRST)


def test_json_holds_the_chain_of_every_run(traced: Small) -> None:
    answer = json.loads(run("HEAD", "--json")[1])
    assert answer["kind"] == "commit"
    assert [one["run_id"] for one in answer["runs"]] == [SECOND, FIRST]
    assert {link["name"] for link in answer["runs"][0]["chain"]} >= {"git commit", "data", "dvc.lock"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([FIRST, "--verify"], "--verify trains in a restored clone"),
        ([FIRST, SECOND, "--restore", "x"], "--restore takes one run"),
        ([FIRST, "--restore", "x", "--json"], "--restore prints no JSON"),
    ],
)
def test_options_that_do_not_go_together_are_refused(traced: Small, words: list[str], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        run(*words)


def test_help_teaches_with_examples() -> None:
    _, text = run("--help")
    assert "convoy trace champion" in text
    assert "--restore" in text
