"""`convoy ui` shows the same view on every MLflow server, or refuses with the remedy."""

import json
import os
import re
import signal
import socket
import sys
import webbrowser

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from playwright.sync_api import expect

from browser import keep, opened
from clones import free_port
from convoy.core.errors import NetworkError, RequestError
from convoy.tracking import store, ui

PRINTED = re.compile(r"http://127\.0\.0\.1:\d+/\?token=(?P<token>[\w-]+)#\S+")
"""The address of the local view."""


def test_the_view_is_kept_once_and_again_where_it_has_changed(client, monkeypatch):
    experiment_id = client.create_experiment("convoy")
    ui.share_view(client, experiment_id)
    kept = client.get_experiment(experiment_id).tags[ui.TAG]
    assert json.loads(kept)["name"] == "Convoy"
    assert json.loads(json.loads(kept)["state"]) == ui.view_state()
    assert len(kept) < 5000, "MLflow takes no more in a tag"
    client.set_experiment_tag(experiment_id, ui.TAG, "of an older Convoy")
    ui.share_view(client, experiment_id)
    assert client.get_experiment(experiment_id).tags[ui.TAG] == kept
    monkeypatch.setattr(client, "set_experiment_tag", lambda *_: pytest.fail("nothing has changed"))
    ui.share_view(client, experiment_id)


def test_the_runs_that_charts_show_have_a_colour_each(client):
    experiment_id = client.create_experiment("convoy")
    runs = [client.create_run(experiment_id, start_time=1000 + number).info.run_id for number in range(12)]
    client.set_tag(runs[-1], ui.COLOUR, ui.COLOURS[0])
    for _ in range(2):
        ui.share_view(client, experiment_id)
        colours = [client.get_run(run).data.tags.get(ui.COLOUR) for run in runs]
        assert colours[:2] == [None, None], "not among those that charts show"
        assert colours[-1] == ui.COLOURS[0]
        assert set(colours[2:]) == set(ui.COLOURS)


def test_a_taken_port_is_refused_with_one_that_is_free(workplace):
    with socket.socket() as other:
        other.bind((ui.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RequestError, match=f"port {port} is taken") as caught:
            ui.show(port, browser=False)
        named = int(re.findall(r"make ui PORT=(\d+)", str(caught.value))[0])
        assert f"convoy ui --port {named}" in str(caught.value)
        assert f"process {os.getpid()} (" in str(caught.value), "what listens"
        with socket.socket() as free:
            free.bind((ui.HOST, named))
    assert not (workplace / "outbox").exists(), "nothing was begun"


def test_a_server_that_does_not_answer_is_named_with_the_remedy(workplace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(NetworkError, match=r"ada:\*\*\*@127.0.0.1:9 does not answer: .+") as caught:
        ui.show(5000, browser=False)
    assert "set MLFLOW_TRACKING_URI to a store that answers" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_local_server_shows_the_columns_that_matter_first(client, start_python):
    experiment_id = store.experiment(client, "convoy").experiment_id
    for number in range(2):
        run = client.create_run(experiment_id, 1000 + number, run_name=f"training {number}").info.run_id
        for metric, figure in (("step/loss", 1.0), ("train/seconds", 5.0), ("test/accuracy", 0.5)):
            client.log_metric(run, metric, figure)
        client.log_param(run, "train.lr", 0.1)
        client.set_tag(run, "convoy.data", f"digits-{number} b9657c7")
    server = start_python("-c", "from convoy.cli import main; main()", "ui", "--port", str(free_port()))
    try:
        address = next(filter(None, (re.search(PRINTED, line) for line in server.stdout)))
        with opened(address[0]) as page:
            expect(page.get_by_role("link", name="training 1")).to_be_visible()
            assert address["token"] not in page.url, "it would stay in the history of the browser"
            keep(page, "local-view")
            names = page.locator("[col-id='attributes.`Run Name`'] a").all_inner_texts()
            assert names == ["training 1", "training 0"], "the newest first"
            expect(page.get_by_text("Model registry")).to_be_visible()
            headers = page.locator("[role=columnheader][col-id*='`']").evaluate_all(
                "cells => cells.map(cell => [cell.getBoundingClientRect().left, cell.getAttribute('col-id')])"
            )
            shown = (
                "metrics.`test/accuracy`",
                "metrics.`train/seconds`",
                "params.`train.lr`",
                "tags.`convoy.data`",
            )
            assert [name for _, name in sorted(headers)] == [ui.RUN_NAME, *shown]
            expect(page.get_by_text("digits-1 b9657c7")).to_be_visible()
            for run in client.search_runs([experiment_id]):
                page.locator(f".ag-row[row-id='{run.info.run_id}'] input[type=checkbox]").first.check()
            page.get_by_role("button", name="Compare").click()
            opened_on = page.locator(".du-bois-light-select-selection-item")
            expect(opened_on.filter(has_text="test/accuracy")).to_be_visible()
            assert not opened_on.filter(has_text="step/loss").count(), "the first that was logged"
            check_that_others_get_nothing(page, address[0], client)
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)


def check_that_others_get_nothing(page, address, client):
    """Attack as another user of the machine does: make MLflow read and write where a link leads."""
    server = address.partition("/?")[0]
    attack = {"name": "attack", "artifact_location": "/srv/shared"}
    create = f"{server}/ajax-api/2.0/mlflow/experiments/create"
    refused = requests.post(create, json=attack, timeout=30)
    assert (refused.status_code, "make ui" in refused.text) == (403, True)
    start_page = requests.get(server, timeout=30)
    assert (start_page.status_code, start_page.headers["x-frame-options"]) == (403, "SAMEORIGIN")
    own = page.context.request.post(create, data=attack)
    assert (own.status, "/srv/shared is outside" in own.text()) == (403, True)
    assert client.get_experiment_by_name("attack") is None
    program = MlflowClient(server)
    with pytest.raises(MlflowException, match="MLFLOW_TRACKING_TOKEN"):
        program.search_experiments()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_TOKEN", re.search(PRINTED, address)["token"])
        assert [found.name for found in program.search_experiments()] == ["convoy", "Default"]


def test_a_server_elsewhere_shows_the_view_at_the_printed_address(workplace, server, monkeypatch, capsys):
    name = "shown elsewhere"
    params = (workplace / "params.yaml").read_text()
    (workplace / "params.yaml").write_text(params.replace("experiment: convoy", f"experiment: {name}"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    client = MlflowClient(server)
    run = client.create_run(client.create_experiment(name), run_name="a training").info.run_id
    client.log_metric(run, "test/accuracy", 0.75)
    ui.show(free_port(), browser=True)  # not opened: this is no terminal
    [address] = re.findall(rf"{server}/#\S+", capsys.readouterr().out)
    with opened(address) as page:
        header = page.locator("[role=columnheader][col-id='metrics.`test/accuracy`']")
        expect(header).to_be_visible()
        expect(page.get_by_role("link", name="a training")).to_be_visible()
        expect(page.get_by_role("button", name=ui.VIEW)).to_be_visible()


@pytest.mark.parametrize(
    ("terminal", "display", "system", "wanted", "opens"),
    [
        (True, ":0", "linux", True, True),
        (True, "", "darwin", True, True),
        (True, "", "linux", True, False),
        (False, ":0", "linux", True, False),
        (True, ":0", "linux", False, False),
    ],
)
def test_a_browser_opens_only_where_it_would_be_seen(terminal, display, system, wanted, opens, monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr(webbrowser, "open", seen.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    ui._open("http://127.0.0.1:5000", wanted=wanted)
    assert seen == ["http://127.0.0.1:5000"] * opens


def test_the_arguments_of_the_browser_hold_no_token(workspace, monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr(webbrowser, "open", seen.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("DISPLAY", ":0")
    link = workspace / "build/ui.html"
    for token in ("first", "second"):
        ui._open(f"http://127.0.0.1:5000/?token={token}#/x", wanted=True, link=link)
        assert f"/?token={token}#/x" in link.read_text()
        assert link.stat().st_mode & 0o777 == 0o600
    assert seen == [link.as_uri()] * 2
