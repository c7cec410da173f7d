"""Bodies of requests: kinds, limits, and what is wrong with them."""

import base64
import http.server
import io
import os
import sys
import tempfile
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

import fixed_models
from convoy.core.params import default_at
from convoy.images.decode import MAX_PIXELS
from convoy.serving import addresses
from convoy.serving.answers import Refusal
from convoy.serving.settings import ServeParams
from services import post

NOISE_U8 = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
STREAM = io.BytesIO()
Image.fromarray(NOISE_U8).save(STREAM, format="JPEG")
JPEG = STREAM.getvalue()

ADDRESS = "https://images.example.org/a.png"


def error(answer, status):
    assert answer.status_code == status, answer.text
    found = answer.json()["error"]
    assert found["status"] == status
    assert found["reason"].endswith(".")
    return found


def test_a_body_above_the_limit_is_refused_before_it_is_read(start):
    client = start(max_body_mb=0.001)
    found = error(post(client, bytes(1001)), 413)
    assert found["code"] == "body_too_large"
    assert "1,001 bytes" in found["reason"]
    assert "limit is 1,000" in found["reason"]

    assert post(client, fixed_models.png(0)).status_code == 200


def test_a_body_without_a_stated_length_is_read_no_further_than_the_limit(start):
    client = start(max_body_mb=0.001)
    received, sent = [], []

    async def receive():
        received.append(300)
        return {"type": "http.request", "body": bytes(300), "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []}
    client.portal.call(client.app, scope, receive, send)
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]
    assert sum(received) == 1200


def test_more_images_than_allowed_are_refused(start):
    client = start(max_files=2)
    files = [("file", ("a", fixed_models.png(0)))] * 3
    found = error(client.post("/predict", files=files), 413)
    assert "3 images, the limit is 2" in found["reason"]
    assert len(client.post("/predict", files=files[:2]).json()["predictions"]) == 2
    texts = [base64.b64encode(fixed_models.png(0)).decode()] * 3
    assert error(client.post("/predict", json={"images": texts}), 413)["code"] == "too_many_images"


def test_an_image_of_too_many_pixels_is_refused_unread(start):
    client = start(max_pixels=63)
    found = error(post(client, fixed_models.png(0)), 413)
    assert (found["code"], "8 x 8 pixels, the limit is 63" in found["reason"]) == ("too_many_pixels", True)


def bomb(width, height):
    """Make a PNG of a few hundred bytes that declares many pixels."""

    def chunk(kind, content):
        body = kind + content
        return len(content).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)

    head = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


def test_decompression_bombs_are_refused(client):
    assert error(post(client, bomb(60_000, 60_000)), 413)["code"] == "too_many_pixels"
    assert error(post(client, bomb(2**31 - 1, 2**31 - 1)), 413)["code"] == "too_many_pixels"
    stream = io.BytesIO()
    Image.new("1", (9_000, 9_944)).save(
        stream, format="TIFF", compression="group4"
    )  # 89.5 million pixels in a few KB
    assert MAX_PIXELS < 9_000 * 9_944
    assert len(stream.getvalue()) < 200_000
    assert error(post(client, stream.getvalue()), 413)["code"] == "too_many_pixels"


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"", "image/jpeg", 400, "empty_body"),
        (b"x", "text/html", 415, "unsupported_content_type"),
        (b"x", "text/plain", 415, "unsupported_content_type"),
        (b"no image at all", "image/jpeg", 415, "not_an_image"),
        (b"<svg xmlns=''></svg>", "image/svg+xml", 415, "unsupported_image"),
        (JPEG[:300], "image/jpeg", 422, "damaged_image"),
        (JPEG[:900], "image/jpeg", 422, "truncated_image"),
        (b"{", "application/json", 400, "bad_json"),
        (b"[" * 100_000, "application/json", 400, "bad_json"),
        (b"\xff\xfe", "application/json", 400, "bad_json"),
        (b"[]", "application/json", 422, "bad_request"),
        (b'{"image": 5}', "application/json", 422, "bad_request"),
        (b'{"image": "aGk=", "x": 1}', "application/json", 422, "bad_request"),
        (b'{"images": "aGk="}', "application/json", 422, "bad_request"),
        (b'{"images": []}', "application/json", 400, "no_image"),
        (b'{"image": "?"}', "application/json", 422, "bad_base64"),
        (b'{"image": "\xc3\xa4"}', "application/json", 422, "bad_base64"),
        (b'{"image": ""}', "application/json", 422, "damaged_image"),
        (b"x", "multipart/form-data", 400, "bad_multipart"),
        (b"x", "multipart/form-data; boundary=b", 400, "bad_multipart"),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 400, "no_image"),
        (b"x", "multipart/form-data; boundary=" + "b" * 300, 400, "bad_multipart"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value)[:30],
)
def test_what_is_wrong_with_a_body_is_named(client, content, kind, status, code):
    assert error(post(client, content, kind), status)["code"] == code


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "1e3", "\u0663", "9999999"])
def test_a_wrong_number_of_classes_is_refused(client, text):
    assert (
        error(client.post("/predict", params={"top_k": text}, content=fixed_models.png(0)), 422)["code"]
        == "bad_parameter"
    )


def test_the_number_of_classes_is_chosen_by_query_or_params(start):
    client = start(top_k=1)
    assert list(post(client, fixed_models.png(1)).json()["probabilities"]) == ["cat"]
    assert list(post(client, fixed_models.png(1), query="?top_k=2").json()["probabilities"]) == ["cat", "Bär"]
    assert len(post(client, fixed_models.png(1), query="?top_k=99").json()["probabilities"]) == 3


def test_an_answer_abstains_below_the_least_confidence(start):
    client = start(min_confidence=0.5)
    assert post(client, fixed_models.png(3)).json()["abstained"] is True
    assert post(client, fixed_models.png(1)).json()["abstained"] is False


def test_a_full_queue_is_answered_with_429(start, served):
    entered, go = threading.Event(), threading.Event()

    def wait(*_):
        entered.set()
        assert go.wait(20)

    client = start(threads=1, max_queue=2, max_files=2, observers=[wait])
    post(client, fixed_models.png(0))
    assert entered.wait(20)  # the only thread is busy
    waiting = [threading.Thread(target=post, args=(client, fixed_models.png(0))) for _ in range(2)]
    for thread in waiting:
        thread.start()
    answerer = client.app.state.answerer
    for _ in range(2000):
        if answerer.waiting == 2:
            break
        threading.Event().wait(0.005)
    answer = post(client, fixed_models.png(0))
    go.set()
    for thread in waiting:
        thread.join()
    assert error(answer, 429)["code"] == "queue_full"
    assert "2 images wait, the limit is 2" in answer.text
    assert answer.headers["retry-after"] == "1"


def test_a_request_that_is_not_answered_in_time_gets_503(start):
    entered, go = threading.Event(), threading.Event()

    def wait(*_):
        entered.set()
        assert go.wait(20)

    client = start(threads=1, timeout_s=0.05, observers=[wait])
    post(client, fixed_models.png(0))
    assert entered.wait(20)
    answer = post(client, fixed_models.png(0))
    go.set()
    found = error(answer, 503)
    assert (found["code"], "0.05 s" in found["reason"]) == ("timed_out", True)


def test_large_bodies_are_parsed_too(client):
    stream = io.BytesIO()
    pixels_u8 = np.random.default_rng(0).integers(0, 1, (300, 300, 3), np.uint8)
    Image.fromarray(pixels_u8).save(stream, format="BMP")
    assert len(stream.getvalue()) > 2**16
    text = base64.b64encode(stream.getvalue()).decode()
    assert client.post("/predict", json={"image": text}).json()["class"] == "Bär"
    answer = client.post("/predict", files=[("a", ("a", stream.getvalue()))] * 2)
    assert [each["class"] for each in answer.json()["predictions"]] == ["Bär", "Bär"]


def test_an_address_is_fetched_only_where_that_is_allowed(start, monkeypatch):
    fetched = []

    def fetch(url, most_bytes, seconds):
        fetched.append((url, most_bytes, seconds))
        return fixed_models.png(1)

    monkeypatch.setattr(addresses, "fetch", fetch)
    found = error(start().post("/predict", json={"url": ADDRESS}), 422)
    assert (found["code"], "serve.allow_urls" in found["reason"]) == ("urls_not_allowed", True)
    assert not fetched
    client = start(allow_urls=True)
    assert client.post("/predict", json={"url": ADDRESS}).json()["class"] == "cat"
    assert len(client.post("/predict", json={"urls": [ADDRESS] * 2}).json()["predictions"]) == 2
    assert fetched == [(ADDRESS, 20_000_000, 10)] * 3


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/a.png",
        "http://",
        "http://user:secret@example.org/a.png",
        "http://127.0.0.1/a.png",
        "http://localhost:8000/metrics",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[fe80::1%25eth0]/",
        "http://0.0.0.0/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://host.invalid/a.png",
        "http://example.org:99999/",
    ],
)
def test_addresses_inside_the_network_are_refused(url):
    with pytest.raises(Refusal) as caught:
        addresses.fetch(url, 1000, 5)
    assert caught.value.status == 422
    assert caught.value.code in {"bad_address", "fetch_failed"}
    if not any(part in url for part in ("99999", "invalid", "eth0")):
        assert caught.value.code == "bad_address"


class Server:
    """A web server on this machine that answers with what a test gives it."""

    def __init__(self, answers):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                status, headers, content = answers[self.path]
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def web():
    answers = {}
    server = Server(answers)
    yield server.url, answers
    server.server.shutdown()
    server.server.server_close()


def test_what_an_address_answers_is_bounded_and_redirects_are_checked(web, monkeypatch):
    url, answers = web
    answers["/a.png?b=1"] = (200, {}, b"content")
    answers["/large"] = (200, {}, bytes(2000))
    answers["/gone"] = (404, {}, b"")
    answers["/loop"] = (302, {"Location": "/loop"}, b"")
    answers["/moved"] = (302, {"Location": "/a.png?b=1"}, b"")
    answers["/inside"] = (302, {"Location": "http://169.254.169.254/"}, b"")
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    assert addresses.fetch(f"{url}/a.png?b=1", 1000, 5) == b"content"
    assert addresses.fetch(f"{url}/moved", 1000, 5) == b"content"
    for path, status, words in (
        ("/large", 413, "more than 1,000 bytes"),
        ("/gone", 422, "status 404"),
        ("/loop", 422, "redirects more than 3 times"),
        ("/inside", 422, "not public"),
    ):
        with pytest.raises(Refusal, match=words) as caught:
            addresses.fetch(url + path, 1000, 5)
        assert caught.value.status == status


def test_the_shipped_settings_are_valid():
    params = ServeParams.model_validate(default_at(ServeParams, []))
    assert params.allow_urls is False
    assert params.max_pixels == MAX_PIXELS


WRITTEN = []
"""Files that were opened for writing while `watching` is set."""

watching = threading.Event()


def hook(event, arguments):
    if not watching.is_set():
        return
    if (
        event == "open"
        and isinstance(arguments[2], int)
        and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    ):
        WRITTEN.append(arguments[0])
    elif event.startswith("tempfile."):
        WRITTEN.append(event)


def test_uploads_never_touch_the_disk(client):
    sys.addaudithook(hook)
    stream = io.BytesIO()
    Image.fromarray(np.zeros((1200, 1200, 3), np.uint8)).save(stream, format="BMP")
    assert (
        len(stream.getvalue()) > 4 * 2**20
    )  # form parsers of web frameworks write parts of more than 1 MB to files
    watching.set()
    try:
        answers = [
            post(client, stream.getvalue(), "image/bmp"),
            client.post(
                "/predict", files=[("a", ("a.bmp", stream.getvalue())), ("b", ("b.png", fixed_models.png(1)))]
            ),
            client.post("/predict", json={"image": base64.b64encode(stream.getvalue()).decode()}),
        ]
        seen = list(WRITTEN)
        with tempfile.TemporaryFile():
            pass
    finally:
        watching.clear()
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert not seen
    assert WRITTEN  # the hook works
