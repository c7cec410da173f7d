"""What the MLflow UI shows first: the training runs, with the columns that people decide by.

MLflow 3.17 keeps the state of its runs table in two places: as a named view in a tag of the experiment
(`mlflow.sharedViewState.<id>`, opened from the *Views* menu or by the address' `viewStateShareKey`), and
per browser in its local storage. A view from a tag is forgotten when one goes to a run and back, and
whether training runs or GenAI pages are shown stands in the address or in local storage only. So the
view is kept in the tag, which serves every server, and `convoy ui`'s own server gives it to the browser.
"""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

NAME = "Convoy"
ID = "convoy"
TAG = f"mlflow.sharedViewState.{ID}"

RUN_NAME = "attributes.`Run Name`"
CREATED = "runDateAndNestInfo"
DURATION = "duration"

COLUMNS_PX = {
    "metrics.`test/accuracy`": 105,
    "metrics.`deploy/accuracy`": 120,
    "metrics.`best/val_loss`": 105,
    "metrics.`deploy/latency_ms_p50`": 165,
    "metrics.`energy/kwh`": 95,
    "metrics.`train/seconds`": 120,
    "params.`network.name`": 110,
    "params.`train.lr`": 75,
    "params.`train.epochs`": 100,
    "tags.`convoy.data_hash`": 130,
    "tags.`convoy.dvc_experiment`": 170,
}
"""Columns in order, by MLflow's names, with their widths in pixels. Those that no run has are left out by MLflow."""

CURVES = ("val/loss", "val/accuracy", "train/loss")
BARS = ("test/accuracy", "deploy/latency_ms_p50", "train/seconds")
"""Charts that stand first: a line by epoch and a bar per run; of those that no run has, MLflow shows none."""

SECTIONS = ("What matters first", "Model metrics", "System metrics")
"""Of charts: ours, and two of MLflow's, which expects them; it adds one per prefix for all other metrics."""

CHARTED = 10
"""Runs that MLflow's charts show unless told otherwise: the newest."""

COLOUR = "mlflow.runColor"
COLOURS = (
    *("#1f77b4", "#e8743b", "#2e8b57", "#c23b5a", "#7b61c4"),
    *("#8c6d46", "#d6539b", "#6b7785", "#a8a032", "#23a6b8"),
)
"""As many as there are runs in a chart, to be told apart on white."""

MLFLOWS_COLUMNS = ["attributes.`Source`", "attributes.`Models`", "attributes.`Dataset`"]
"""What MLflow shows where nobody chose: a browser that kept these has chosen nothing."""


def state() -> dict[str, Any]:
    """Describe table and charts as MLflow's UI keeps them: columns, their order and widths, newest run first."""
    return {
        "isAccordionReordered": True,
        "compareRunSections": [
            {"uuid": f"{ID} {name}", "name": name, "display": True, "isReordered": True, "deleted": False}
            for name in SECTIONS
        ],
        "compareRunCharts": [_chart(name, "LINE") for name in CURVES]
        + [_chart(name, "BAR") for name in BARS],
        "selectedColumns": list(COLUMNS_PX),
        "columnOrder": [RUN_NAME, CREATED, *COLUMNS_PX, DURATION],
        "columnWidths": {RUN_NAME: 225, CREATED: 140, **COLUMNS_PX},
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
    }


def _chart(metric: str, kind: str) -> dict[str, Any]:
    chart: dict[str, Any] = {"uuid": f"{ID} {metric}", "type": kind, "metricKey": metric}
    chart |= {"metricSectionId": f"{ID} {SECTIONS[0]}", "deleted": False, "isGenerated": False}
    if kind == "LINE":
        chart |= {"xAxisKey": "step", "yAxisKey": "metric", "scaleType": "linear", "xAxisScaleType": "linear"}
        chart |= {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}
    return chart | {"runsCountToCompare": CHARTED}


def keep(client: "MlflowClient", experiment_id: str) -> None:
    """Keep the view as *Convoy* in the experiment's menu *Views*, unless it stands there already; colour runs."""
    value = json.dumps({"name": NAME, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state())})
    if client.get_experiment(experiment_id).tags.get(TAG) != value:
        client.set_experiment_tag(experiment_id, TAG, value)
    colour(client, experiment_id)


def colour(client: "MlflowClient", experiment_id: str) -> None:
    """Give the newest runs, which charts show, a colour each; one that has a colour keeps it.

    MLflow derives a colour from a run's id, so two of the runs that are compared may get the same.
    """
    newest = client.search_runs([experiment_id], max_results=CHARTED, order_by=["attributes.start_time DESC"])
    taken = {run.data.tags.get(COLOUR) for run in newest}
    free = [one for one in COLOURS if one not in taken]
    for run in reversed(newest):
        if COLOUR not in run.data.tags and free:
            client.set_tag(run.info.run_id, COLOUR, free.pop(0))


def path(experiment_id: str) -> str:
    """Give the part of the address, after a server's, that opens the view on any MLflow server."""
    return f"{runs(experiment_id)}?viewStateShareKey={ID}&workflowType=machine_learning"


def runs(experiment_id: str) -> str:
    """Give the part of the address that opens an experiment's training runs."""
    return f"/#/experiments/{experiment_id}/runs"


def remembered(experiment_id: str) -> dict[str, Any]:
    """List what a browser should hold in its local storage, by MLflow's keys: the table, the side, no assistant."""
    return {
        f'MLflowLocalStorage-1.1-ExperimentPage-["{experiment_id}"]-ReactComponentState': state(),
        "mlflow.workflowType_v1": "machine_learning",
        # Its panel opens once by itself and covers a third of the page; its button stays.
        "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,
    }
