"""The local MLflow server answers its owner alone, and reads and creates artifacts in the repository alone."""

import asyncio
import json
from pathlib import Path
from urllib.parse import urlencode

import pytest

from convoy.tracking import ui_access

HOST = {"host": "127.0.0.1:5000"}


class Asked:
    """`OwnerOnly` in front of an application that answers 200 with the body that it got."""

    def __init__(self, client, *roots: Path) -> None:
        self.access = ui_access.OwnerOnly(self.application, client, roots, 5000)
        self.owner = HOST | {"cookie": f"theme=dark; convoy-ui-5000={self.access.token}"}

    async def application(self, scope, receive, send):
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-frame-options", b"DENY")]})
        await send({"type": "http.response.body", "body": body})

    def __call__(self, path, headers=None, body=b"", query=(), method="GET", kind="http"):
        """Give the status, headers and text of an answer."""
        sent = []
        parts = [
            {"type": "http.request", "body": body[:5], "more_body": True},
            {"type": "http.request", "body": body[5:]},
        ]
        if not body:
            parts = parts[1:]

        async def receive():
            return parts.pop(0)

        async def send(message):
            sent.append(message)

        named = [
            (key.encode(), value.encode())
            for key, value in (self.owner if headers is None else headers).items()
        ]
        scope = {"type": kind, "path": path, "headers": named, "method": method}
        asyncio.run(self.access({**scope, "query_string": urlencode(query).encode()}, receive, send))
        if kind != "http":
            return sent
        return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"].decode()


@pytest.fixture
def asked(client, workplace):
    return Asked(client, workplace / "mlartifacts", workplace / "mlruns")


@pytest.mark.parametrize("path", ["/", "/version", "/static-files/main.js", "/ajax-api/2.0/mlflow/runs/get"])
def test_every_path_requires_the_token_of_this_start(asked, client, workplace, path):
    other = Asked(client, workplace).owner["cookie"]
    wrong = (
        {},
        {"cookie": other},
        {"authorization": "Bearer x"},
        {"authorization": "Basic é"},
        {"cookie": "convoy-ui-5000="},
    )
    for headers in wrong:
        status, answered, text = asked(path, HOST | headers)
        assert (status, "make ui" in text, "MLFLOW_TRACKING_TOKEN" in text) == (403, True, True), headers
        assert answered[b"x-frame-options"] == b"SAMEORIGIN"
    assert asked("/", HOST, query={"token": "é"})[0] == 403
    assert asked(path, HOST, query={"token": asked.access.token})[0] == (200 if path == "/" else 403)
    for right in (asked.owner, HOST | {"authorization": f"Bearer {asked.access.token}"}):
        status, answered, text = asked(path, right)
        assert (status, text, answered[b"x-frame-options"]) == (200, "", b"DENY"), "of the application"
        assert b"frame-ancestors 'self'" in answered[b"content-security-policy"]


def test_the_printed_address_sets_a_cookie_for_this_site_alone_and_leads_away_from_itself(asked):
    status, headers, text = asked("/", HOST, query={"token": asked.access.token})
    assert (status, headers[b"cache-control"]) == (200, b"no-store")
    cookie, *rules = headers[b"set-cookie"].decode().split("; ")
    assert {"HttpOnly", "SameSite=Strict"} <= set(rules)
    assert 'location.replace("/" + location.hash)' in text
    assert asked.access.token not in text
    assert asked("/", HOST | {"cookie": cookie})[0] == 200


def test_pages_of_other_sites_and_names_are_refused_although_a_browser_sends_the_cookie(asked):
    for host in ("evil.example:5000", "127.0.0.1.evil.example:5000", "", "127.0.0.1"):
        assert asked("/", asked.owner | {"host": host})[0] == (403 if host != "127.0.0.1" else 200), host
    for origin in ("http://evil.example", "null", "http://127.0.0.1:6000"):
        assert asked("/graphql", asked.owner | {"origin": origin}, b"{}", method="POST")[0] == 403, origin
    forwarded = asked.owner | {"host": "localhost:8080", "origin": "http://localhost:8080"}
    assert asked("/graphql", forwarded, b'{"a": 1}', method="POST")[::2] == (200, '{"a": 1}')
    assert asked("/", kind="websocket") == [{"type": "websocket.close", "code": 1008}]


def test_locations_outside_the_repository_are_not_created(asked, workplace):
    (workplace / "mlartifacts").mkdir()
    (workplace / "mlartifacts/link").symlink_to("/srv")
    inside = workplace / "mlartifacts/7"
    outside = (
        *("/srv/x", "file:///srv/x", "FILE:///srv/x", "file:/srv/x", "//srv/x", "x", f"{inside}/../../.."),
        *(f"{inside}/%2e%2e/%2e%2e/%2e%2e", f"{workplace}/mlartifacts/link/x", "s3://bucket", "ftp://host/x"),
    )
    for route in ("/ajax-api/2.0/mlflow/experiments/create", "/api/2.0/mlflow/model-versions/create"):
        fields = ("artifact_location", "artifactLocation") if "experiments" in route else ("source",)
        for field in fields:
            for location in outside:
                body = json.dumps({"name": "a", field: location})
                for text in (body, json.dumps(body)):  # also as older clients send it
                    status, _, answer = asked(route, body=text.encode(), method="POST")
                    assert (status, location in answer, "mlartifacts" in answer) == (403, True, True)
            for location in (str(inside), inside.as_uri()):
                body = json.dumps({"name": "a", field: location})
                assert asked(route, body=body.encode(), method="POST")[::2] == (200, body)
        body = b'{"source": "models:/m-1", "artifact_location": ""}'
        assert asked(route, body=body, method="POST")[0] == 200
        assert asked(route, body=b"no JSON", method="POST")[0] == 200, "MLflow's own refusal"


def test_artifacts_outside_the_repository_are_not_read(asked, client, workplace):
    inside, outside = (
        client.create_run(client.create_experiment(name, (workplace / folder).as_uri())).info
        for name, folder in (("inside", "mlartifacts/1"), ("outside", "elsewhere"))
    )
    bucket = client.create_run(client.create_experiment("bucket", "s3://models/1")).info
    client.create_registered_model("m")
    for run in (inside, outside):
        client.create_model_version("m", f"{run.artifact_uri}/model", run.run_id)
    folder = Path(inside.artifact_uri.removeprefix("file://"))
    folder.mkdir(parents=True)
    (folder / "secret").symlink_to("/etc/passwd")
    api = "/ajax-api/2.0/mlflow"
    for path, query, expected in (
        ("/get-artifact", {"run_uuid": inside.run_id, "path": "a.png"}, 200),
        ("/get-artifact", {"run_uuid": outside.run_id, "path": "a.png"}, 403),
        ("/get-artifact", {"run_id": inside.run_id, "path": "secret"}, 403),
        ("/get-artifact", {"run_id": "unknown", "path": "a.png"}, 200),
        (f"{api}/artifacts/list", {"run_id": bucket.run_id}, 200),
        (f"{api}/artifacts/list", {"run_id": inside.run_id}, 200),
        (f"{api}/artifacts/list", {"run_id": outside.run_id}, 403),
        ("/model-versions/get-artifact", {"name": "m", "version": "1", "path": "a"}, 200),
        ("/model-versions/get-artifact", {"name": "m", "version": "2", "path": "a"}, 403),
        (f"{api}/get-trace-artifact", {"request_id": "tr-1"}, 403),
        (f"{api}/upload-artifact", {"run_uuid": inside.run_id, "path": "a"}, 403),
        ("/ajax-api/2.0/mlflow-artifacts/artifacts/1/a", {}, 403),
    ):
        assert asked(path, query=query)[0] == expected, (path, query)
    body = json.dumps({"runId": outside.run_id}).encode()
    assert asked(f"{api}/artifacts/list", body=body)[0] == 403, "MLflow reads the fields of a GET there, too"
    listing = json.dumps({"query": "{mlflowListArtifacts(input: {runId: 1}) {files}}"}).encode()
    assert asked("/graphql", body=listing, method="POST")[0] == 403
    tag = json.dumps({"key": "mlflow.artifactLocation", "value": "/srv"}).encode()
    assert asked("/api/2.0/mlflow/traces/tr-1/tags", body=tag, method="PATCH")[0] == 403


def test_the_models_of_runs_are_read_in_the_repository_alone(asked, client, workplace):
    for name, folder, expected in (("inside", "mlartifacts/1", 200), ("outside", "elsewhere", 403)):
        experiment_id = client.create_experiment(name, (workplace / folder).as_uri())
        model = client.create_logged_model(experiment_id).model_id
        path = f"/ajax-api/2.0/mlflow/logged-models/{model}/artifacts/files"
        assert asked(path, query={"artifact_file_path": "model.onnx"})[0] == expected
