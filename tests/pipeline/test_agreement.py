"""DVC and MLflow say the same of an experiment, to the last digit."""

import json
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from clones import Clone, runs

pytestmark = pytest.mark.pipeline

MEASURED = tuple(f"build/metrics/{stage}.json" for stage in ("train", "evaluate", "export"))
"""The metrics files of the stages that a run is made of."""

ONLY_CURVES = ("system/", "step/")
"""Beginnings of metrics that are watched while they happen; no stage writes a result of them."""


def answer(clone: Clone, *words: str) -> Any:
    return json.loads(clone.run("dvc", *words, "--json"))


def flat(nested: dict[str, Any], by: str, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        found |= flat(value, by, f"{name}{by}") if isinstance(value, dict) else {name: value}
    return found


def measured(files: dict[str, Any]) -> dict[str, float]:
    """Flatten what DVC read from the metrics files, numbers only, as MLflow names them."""
    found = {key: value for path in MEASURED for key, value in flat(files[path]["data"], "/").items()}
    return {key: value for key, value in found.items() if isinstance(value, (int, float))}


def by_experiment(clone: Clone) -> dict[str, Run]:
    """Map DVC's names to runs; the first run is what `main` holds."""
    return {run.data.tags.get("convoy.dvc_experiment", "main"): run for run in runs(clone)}


def results(run: Run) -> dict[str, float]:
    return {key: value for key, value in run.data.metrics.items() if not key.startswith(ONLY_CURVES)}


def test_dvc_exp_show_has_the_params_and_metrics_of_the_runs(compared):
    stored = by_experiment(compared)
    _, head = answer(compared, "exp", "show")
    experiments = {one["name"]: one for one in (head, *(one["revs"][0] for one in head["experiments"]))}
    assert experiments.keys() == stored.keys()
    for name, entry in experiments.items():
        run = stored[name]
        assert results(run) == measured(entry["data"]["metrics"]) | {"lr": run.data.metrics["lr"]}, name
        params = flat(entry["data"]["params"]["params.yaml"]["data"], ".")
        assert run.data.params == {key: str(params[key]) for key in run.data.params}, name
        assert {"seed", "network.name", "train.lr", "evaluate.batch_size", "export.latency_runs"} <= set(
            run.data.params
        )


def test_dvc_metrics_show_and_diff_give_the_figures_of_the_runs(compared):
    stored = by_experiment(compared)
    workspace = answer(compared, "metrics", "show")[""]["data"]
    assert results(stored["lr-0.1"]).items() >= measured(workspace).items()
    before, after = (stored[name].data.metrics for name in ("lr-0.02", "lr-0.1"))
    files = answer(compared, "metrics", "diff", "lr-0.02", "lr-0.1")
    changes = {
        key.replace(".", "/"): change
        for path in MEASURED
        for key, change in files[path].items()
        if isinstance(change["new"], (int, float)) and isinstance(change["old"], (int, float))
    }
    assert {"test/accuracy", "val/loss", "deploy/accuracy"} <= changes.keys()
    for key, change in changes.items():
        assert (change["old"], change["new"]) == (before[key], after[key]), key
        assert change["diff"] == after[key] - before[key], key


def test_dvc_plots_draw_the_curves_of_the_runs(compared):
    stored = by_experiment(compared)
    client = MlflowClient(f"sqlite:///{compared.folder}/mlflow.db")
    names = ("main", "lr-0.02", "lr-0.1")
    plots = answer(compared, "plots", "diff", *names)["data"]
    for metric in ("train/loss", "val/loss", "train/accuracy", "val/accuracy"):
        [plot] = plots[metric.partition("/")[2]]
        points = [point for point in plot["content"]["data"]["values"] if point["field"] == metric]
        for name in names:
            drawn = [(int(one["epoch"]), float(one[metric])) for one in points if one["rev"] == name]
            logged = client.get_metric_history(stored[name].info.run_id, metric)
            assert drawn == [(point.step, point.value) for point in logged], f"{metric} of {name}"
            assert len(drawn) == int(stored[name].data.params["train.epochs"])
