"""What people see in the MLflow UI: training runs side by side, with their figures, pictures and report."""

import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from playwright.sync_api import FrameLocator, Page, expect

from browser import close_notices, keep, opened
from clones import Clone, free_port, runs
from convoy.tracking import ui

pytestmark = pytest.mark.pipeline

BASELINE = "convnet · lr 0.03 · 10 epochs"
NAMES = (*(f"lr-{lr} · lenet5 · lr {lr} · 2 epochs · weight_decay 5e-05" for lr in ("0.1", "0.02")), BASELINE)
"""Newest first, as the table shows them."""


TABLE_PX = 1660  # width of a window that shows the columns up to the data

TRAINING_SIDE = "Model registry"
"""Stands in the navigation of *Model training*, not in that of *GenAI*."""


@pytest.fixture(scope="module")
def served(compared: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[Run]]]:
    """The address that `convoy ui` prints, and the runs in its store, newest first."""
    clone = compared.copy(tmp_path_factory.mktemp("ui") / "clone")
    words = ("convoy", "ui", "--port", str(free_port()))
    server = clone.start(*words, PYTHONPATH=str(clone.folder / "src"))
    try:
        assert server.stdout
        output = ""
        while not (address := re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+#\S+", output)):
            line = server.stdout.readline()
            assert line, f"`convoy ui` ended: {output}"
            output += line
        yield address[0], runs(clone)
    finally:
        output = clone.stop(server, signal.SIGINT)  # Ctrl-C
    assert (server.returncode, output.strip()) == (0, "The server is stopped.")


def text(number: float) -> str:
    """Write a number as a browser does: all its digits, no `.0`."""
    return f"{number:.0f}" if number == int(number) else repr(number)


def test_the_ui_opens_on_training_runs_with_the_columns_that_matter_first(
    served,
):
    address, stored = served
    with opened(address) as page:
        expect(page.get_by_role("link", name=BASELINE)).to_be_visible()
        assert tuple(page.locator("[col-id='attributes.`Run Name`'] a").all_inner_texts()) == NAMES
        expect(page.get_by_text(TRAINING_SIDE)).to_be_visible()
        close_notices(page)
        page.set_viewport_size({"width": TABLE_PX, "height": 460})
        data = page.locator("[role=gridcell][col-id='tags.`convoy.data`']")
        expect(data).to_have_text([run.data.tags["convoy.data"] for run in stored])
        keep(page, "mlflow-runs", 460, TABLE_PX)
        headers = page.locator("[role=columnheader][col-id*='`']").evaluate_all(
            "cells => cells.map(cell => [cell.getBoundingClientRect().left, cell.getAttribute('col-id')])"
        )
        columns = [name for _, name in sorted(headers)]
        wanted = [ui.RUN_NAME, *(name for name in ui.COLUMNS_PX if name in columns)]
        assert columns == wanted
        assert wanted[1:3] == ["metrics.`test/accuracy`", "metrics.`deploy/accuracy`"]
        assert len({run.data.tags[ui.COLOUR] for run in stored}) == len(stored)
        for run in stored:
            for metric in ("test/accuracy", "deploy/accuracy", "best/val_loss"):
                cell = page.locator(f".ag-row[row-id='{run.info.run_id}'] [col-id='metrics.`{metric}`']")
                assert cell.inner_text() == text(run.data.metrics[metric]), f"{run.info.run_name}: {metric}"
        expect(page.get_by_role("button", name=ui.VIEW)).to_be_visible()


def test_charts_show_the_curves_and_results_that_the_runs_measured(
    served,
    monkeypatch,
):
    address, stored = served
    server, token, _ = re.split(r"/\?token=|#", address, maxsplit=2)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)  # as programs log in
    client = MlflowClient(server)
    with opened(address) as page:
        page.set_viewport_size(
            {"width": 1600, "height": 2400}
        )  # MLflow draws the cards that are on the screen
        page.get_by_role("link", name=BASELINE).wait_for()
        page.locator("label", has=page.locator("input[value=CHART]")).click()
        epochs = sum(int(run.data.params["train.epochs"]) for run in stored)
        for metric in ui.CURVES:
            curves = {name: points for name, *points in plot(page, metric, ".scatterlayer .point", epochs)}
            for run in stored:
                points = client.get_metric_history(run.info.run_id, metric)
                logged = [[point.step for point in points], [point.value for point in points]]
                assert curves[run.info.run_name] == logged, f"{metric} of {run.info.run_name}"
        for metric in ui.BARS:
            [[_, values, ids]] = plot(page, metric, ".barlayer .point", len(stored))
            measured = {run.info.run_id: run.data.metrics[metric] for run in stored}
            assert dict(zip(ids, values, strict=True)) == measured


def plot(page: Page, metric: str, mark: str, count: int) -> list[Any]:
    """Wait until a card has drawn its marks; give name, x and y of its curves, or of its bars."""
    card = page.locator("[data-testid=experiment-view-compare-runs-card]").filter(has_text=metric).first
    expect(card.locator(mark)).to_have_count(count)
    return card.locator(".js-plotly-plot").evaluate(
        "plot => plot.data.map(one => [one.name ?? null, Array.from(one.x), Array.from(one.y)])"
    )


def test_runs_stand_side_by_side_with_what_differs(served):
    address, stored = served
    chosen = [run for run in stored if run.info.run_name != BASELINE]
    with opened(address) as page:
        for run in chosen:
            page.locator(f".ag-row[row-id='{run.info.run_id}'] input[type=checkbox]").first.check()
        page.get_by_role("button", name="Compare").click()
        expect(page.get_by_text("Comparing 2 Runs from 1 Experiment")).to_be_visible()
        page.get_by_text("Visualizations").click()
        for switch in page.get_by_role("switch").all()[:2]:  # show only what differs, of params and metrics
            switch.click()
        page.get_by_text("Comparing 2 Runs from 1 Experiment").scroll_into_view_if_needed()
        names = cells(page, "Run Name:")
        expected = [run for name in names for run in chosen if run.info.run_name == name]
        assert len(expected) == 2
        assert cells(page, "train.lr") == [run.data.params["train.lr"] for run in expected]
        assert page.get_by_text("seed", exact=True).count() == 0, "what does not differ is hidden"
        figures = page.get_by_role("link", name="deploy/accuracy", exact=True).evaluate(BESIDE)
        assert [float(figure) for figure in figures] == [
            round(run.data.metrics["deploy/accuracy"], 3) for run in expected
        ]


BESIDE = """
link => {
  const title = link.parentElement, grid = title.closest(".du-bois-light-collapse-item");
  const beside = [...grid.querySelectorAll("div")].filter(
    one => one !== title && one.style.position === "absolute" && one.style.top === title.style.top
  );
  return beside.sort((a, b) => parseFloat(a.style.left) - parseFloat(b.style.left)).map(one => one.innerText);
}
"""
"""Reads a line of the table of metrics, whose cells are placed by their offsets."""


def cells(page: Page, title: str) -> list[str]:
    """Read a row of a table after the cell that names it."""
    row = page.get_by_role("row").filter(has=page.get_by_text(title, exact=True)).last
    return [text.strip() for text in row.locator("td").all_inner_texts()]


def test_a_run_shows_its_figures_pictures_and_report(served):
    address, stored = served
    [run] = [run for run in stored if run.info.run_name == BASELINE]
    with opened(address) as page:
        page.get_by_role("link", name=BASELINE).click()
        expect(page.get_by_role("heading", name=BASELINE)).to_be_visible()
        title = page.get_by_role("link", name="test/accuracy", exact=True)
        figure = text(run.data.metrics["test/accuracy"])
        expect(page.get_by_role("row").filter(has=title).get_by_text(figure, exact=True)).to_be_visible()
        page.get_by_role("tab", name="Artifacts").click()
        page.get_by_text("evaluation", exact=True).click()
        for name, folder in (("curves.png", ""), ("network.png", ""), ("confusion.png", "evaluation/")):
            page.get_by_text(name, exact=True).first.click()
            picture = page.locator(f"img[alt='{folder}{name}']")
            expect(picture).to_be_visible()
            assert picture.evaluate("picture => picture.naturalWidth") > 300, name
        page.get_by_text("report.html", exact=True).first.click()
        check_report(page.frame_locator("iframe"), run)
        keep(page, "mlflow-evaluation-report")
        page.get_by_text("evaluation", exact=True).click()  # closes the folder
        page.get_by_text("dataset", exact=True).click()
        page.get_by_text("report.html", exact=True).first.click()
        check_data_report(page.frame_locator("iframe"), run)
        keep(page, "mlflow-data-report")


def check_report(report: FrameLocator, run: Run) -> None:
    """Look for the measured accuracy, in words, and for the picture of the confusions."""
    images, accuracy = (run.data.metrics[f"test/{name}"] for name in ("images", "accuracy"))
    expect(report.locator("body")).to_contain_text(f"of {images:,.0f} images classified")
    expect(report.locator("body")).to_contain_text(f"{100 * accuracy:.2f}")
    assert report.locator("img").first.evaluate("picture => picture.naturalWidth") > 300


def check_data_report(report: FrameLocator, run: Run) -> None:
    """Look for the number of images and the classes in the report of the data that the run was trained on."""
    expect(report.locator("body")).to_contain_text("1,797")
