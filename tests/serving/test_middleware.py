"""What every request passes: id, token, limits, errors, log and metrics."""

import asyncio
import json

import pytest

import fixed_models
from convoy.serving import middleware, service
from services import post

TOKEN = "s3cret-token"  # noqa: S105 (of tests)


def test_a_sane_request_id_is_taken_over_and_any_other_replaced(client):
    assert (
        post(client, fixed_models.png(0), **{"x-request-id": "trace-7:a/b"}).json()["request_id"]
        == "trace-7:a/b"
    )
    seen = set()
    for odd in ("x" * 129, "a b", "<script>", ""):
        answer = post(client, fixed_models.png(0), **{"x-request-id": odd})
        assert answer.headers["x-request-id"] != odd
        seen.add(answer.headers["x-request-id"])
    assert len(seen) == 4


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer \xff"]
)
def test_a_request_without_the_token_is_refused(start, header):
    client = start(token=TOKEN)
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    for answer in (post(client, fixed_models.png(0), **headers), client.get("/model", headers=headers)):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "unauthorized"
        assert TOKEN not in answer.text


def test_the_token_opens_the_service_and_health_checks_need_none(start):
    client = start(token=TOKEN)
    for scheme in ("Bearer", "bearer"):
        assert post(client, fixed_models.png(0), authorization=f"{scheme} {TOKEN}").status_code == 200
    for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert client.get(path).status_code == 200


def test_an_error_of_the_service_is_an_answer_without_its_cause(start, caplog):
    client = start()

    async def fail(*_):
        raise RuntimeError("secret path /srv/models")

    client.app.state.answerer.answer = fail
    answer = post(client, fixed_models.png(0))
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "secret path" in caplog.text


def test_requests_are_logged_without_their_content(start):
    entries = []
    client = start(log=entries.append, token=TOKEN)
    headers = {"authorization": f"Bearer {TOKEN}", "x-request-id": "id-1"}
    post(client, fixed_models.png(1), query="?top_k=1", **headers)
    client.post("/predict", files={"file": ("private-name.png", b"<html>")}, headers=headers)
    client.get("/nothing")
    good, bad, refused = entries
    assert good.pop("ms") > 0
    assert good == {
        "level": "info",
        "event": "request",
        "request_id": "id-1",
        "method": "POST",
        "path": "/predict",
        "status": 200,
        "bytes": len(fixed_models.png(1)),
        "images": 1,
    }
    assert (bad["status"], bad["code"]) == (415, "not_an_image")
    assert (refused["status"], refused["code"], refused["path"]) == (401, "unauthorized", "/nothing")
    assert "private-name" not in str(entries)
    assert TOKEN not in str(entries)


def test_metrics_count_requests_classes_and_errors(start, served):
    client = start(min_confidence=0.5)
    for number in (1, 1, 0, 3):
        post(client, fixed_models.png(number))
    post(client, b"")
    client.post("/predict", files=[("f", ("a", fixed_models.png(0))), ("f", ("b", b"no image"))])
    client.get("/nothing")
    text = client.get("/metrics").text
    for line in (
        'convoy_requests_total{path="/predict",status="200"} 5.0',
        'convoy_requests_total{path="/predict",status="400"} 1.0',
        'convoy_requests_total{path="other",status="404"} 1.0',
        'convoy_request_seconds_count{path="/predict"} 6.0',
        'convoy_images_total{class="cat"} 3.0',
        'convoy_images_total{class="Bär"} 2.0',
        'convoy_images_refused_total{code="not_an_image"} 1.0',
        'convoy_images_refused_total{code="empty_body"} 1.0',
        "convoy_images_abstained_total 1.0",
        "convoy_queue_images 0.0",
        "convoy_degraded 0.0",
    ):
        assert f"\n{line}\n" in text
    assert f'run_id="fixed",sha256="{served.sha256}"' in text
    client.app.state.problem = "the registry does not answer"
    assert "\nconvoy_degraded 1.0\n" in client.get("/metrics").text


def test_bodies_that_are_held_count_until_their_answer(start, monkeypatch):
    monkeypatch.setattr(service, "BODIES", 1)
    client = start(max_body_mb=0.001)
    for _ in range(5):
        assert post(client, fixed_models.png(0)).status_code == 200
    front = client.app.middleware_stack
    assert front.held == 0
    front.held = 950
    answer = post(client, fixed_models.png(0))
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_bytes")
    assert answer.headers["retry-after"] == "1"
    assert front.held == 950


def test_origins_of_the_list_may_call_and_others_may_not(start):
    client = start(cors=["https://app.example.org"], token=TOKEN)
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = client.options("/predict", headers={"origin": "https://app.example.org", **ask})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://app.example.org"
    assert client.options("/predict", headers={"origin": "https://evil.example", **ask}).status_code == 400
    headers = {"origin": "https://app.example.org", "authorization": f"Bearer {TOKEN}"}
    answer = post(client, fixed_models.png(0), **headers)
    assert answer.headers["access-control-allow-origin"] == "https://app.example.org"
    assert "access-control-allow-origin" not in start().get("/healthz", headers=headers).headers


def test_a_body_that_arrives_too_slowly_ends_its_request(start, monkeypatch):
    monkeypatch.setattr(middleware, "BODY_S", 0.05)
    monkeypatch.setattr(middleware, "SWEEP_S", 0.01)
    client = start()
    head, never = [b"first part"], asyncio.Event()
    sent = []

    async def receive():
        if head:
            return {"type": "http.request", "body": head.pop(), "more_body": True}
        return await never.wait()

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []}
    client.portal.call(client.app, scope, receive, send)
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"]["code"] == "slow_body"
    assert client.app.middleware_stack.held == 0
    assert post(client, fixed_models.png(0)).status_code == 200
