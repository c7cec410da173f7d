"""The server as a process: its start, its log, its end, and what is thrown at its socket."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest

import convoy
import fixed_models
from convoy.core.errors import RequestError
from convoy.serving import telemetry
from services import CERTAINTY, CLASSES, PREDICTIONS

SOURCE = str(Path(convoy.__file__).parents[1])


ANY = "0.0.0.0"  # noqa: S104 (the only address besides loopback that every machine has)


class Process:
    """`convoy serve` on a free port."""

    def __init__(self, folder, *options, **env):
        model = fixed_models.write_onnx(folder / "model.onnx", CLASSES, PREDICTIONS, certainty=CERTAINTY)
        command = [sys.executable, "-m", "convoy", "serve", "--model", str(model), "--port", "0", *options]
        self.log = folder / "errors.log"  # a pipe's reader would keep lines that came with the first
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": SOURCE} | env,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        while not (address := re.match(r".*http://[\d.]+:(\d+)\n", self.log.read_text())):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        self.said, self.port = address[0], int(address[1])

    def post(self, content):
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("POST", "/predict", content, {"Content-Type": "image/png"})
        with closing(connection):
            return json.load(connection.getresponse())

    def raw(self, content):
        """Send bytes and return what is answered until the connection is closed."""
        with closing(socket.create_connection(("127.0.0.1", self.port), timeout=30)) as connection:
            connection.sendall(content)
            return read_all(connection)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.finish()

    def finish(self):
        """Wait for the end; return what was printed, and what after the address to standard error."""
        output, _ = self.process.communicate(timeout=30)
        return output, self.log.read_text().removeprefix(self.said)


def read_all(connection):
    parts = []
    with suppress(ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.fixture(scope="module")
def start():
    """Start servers; those that a test leaves behind are killed."""
    started = []

    def start_one(*arguments, **env):
        started.append(Process(*arguments, **env))
        return started[-1]

    yield start_one
    for each in started:
        each.process.kill()
        each.process.communicate()


@pytest.fixture(scope="module")
def server(start, tmp_path_factory):
    return start(tmp_path_factory.mktemp("server"))


@pytest.mark.parametrize(
    "path",
    [
        "/page/../../../../etc/passwd",
        "/page/%2e%2e/%2e%2e/params.yaml",
        "/page/..%2f..%2fmodel.onnx",
        "/page//etc/passwd",
        "//etc/passwd",
        "/%2fetc%2fpasswd",
        "/page/%00",
        "/../model.onnx",
        "/v2/models/..%2f..%2fmodel.onnx",
    ],
)
def test_no_path_leads_to_a_file(server, path):
    answer = server.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"root:" not in answer
    assert b"onnx" not in answer.partition(b"\r\n\r\n")[2].replace(b"..%2f..%2fmodel.onnx", b"").replace(
        b"../../model.onnx", b""
    )


@pytest.mark.parametrize(
    "content",
    [
        b"\0" * 100 + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
    ids=range(6),
)
def test_what_is_not_http_ends_its_connection_alone(server, content):
    answer = server.raw(content)
    assert not answer or re.match(rb"HTTP/1\.1 4\d\d ", answer)
    assert server.post(fixed_models.png(1))["class"] == "cat"


def test_a_head_without_an_end_is_refused(server):
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=30)) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX-Long: ")
        answer = b""
        with suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(b"a" * 10_000)
        answer = read_all(connection)
    assert not answer or answer.startswith(b"HTTP/1.1 431")
    assert server.post(fixed_models.png(1))["class"] == "cat"


def test_a_request_in_flight_is_answered_when_the_service_is_stopped(start, tmp_path):
    started = start(tmp_path)
    content = fixed_models.png(1)
    head = (
        "POST /predict HTTP/1.1\r\nHost: x\r\nX-Request-ID: last\r\nExpect: 100-continue\r\nContent-Length: "
    )
    with closing(socket.create_connection(("127.0.0.1", started.port), timeout=30)) as connection:
        connection.sendall(f"{head}{len(content)}\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")  # the request is being read
        started.process.send_signal(signal.SIGTERM)
        refused = False
        while not refused:
            try:
                socket.create_connection(("127.0.0.1", started.port), timeout=30).close()
            except ConnectionRefusedError:
                refused = True
            except ConnectionResetError:  # it was queued when the socket was closed
                continue
        connection.sendall(content)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["class"] == "cat"
    output, errors = started.finish()
    assert started.process.returncode == 0, errors
    [line] = map(json.loads, output.splitlines())
    assert (line["event"], line["request_id"], line["status"]) == ("request", "last", 200)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", line["time"])
    assert errors == ""


@pytest.mark.parametrize(
    ("options", "token", "warns"),
    [((), "", False), (("--host", ANY), "", True), (("--host", ANY), "t", False)],
)
def test_a_service_without_a_token_that_others_reach_states_so(start, tmp_path, options, token, warns):
    _, errors = start(tmp_path, *options, CONVOY_SERVE_TOKEN=token).stop()
    assert ("CONVOY_SERVE_TOKEN is not set" in errors) is warns


def test_a_taken_port_is_named_with_another(tmp_path):
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "convoy", "serve", "--model", "no.onnx", "--port", str(port)]
        env = os.environ | {"PYTHONPATH": SOURCE}
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 2
    assert f"port {port} of 127.0.0.1 is taken" in done.stderr
    assert f"--port {port + 1}" in done.stderr


def test_an_address_of_another_machine_is_refused(tmp_path):
    command = [sys.executable, "-m", "convoy", "serve", "--model", "no.onnx", "--host", "192.0.2.1"]
    env = os.environ | {"PYTHONPATH": SOURCE}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "192.0.2.1" in done.stderr
    assert "--host 127.0.0.1" in done.stderr


def test_tracing_without_its_packages_names_the_extra(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.asgi", None)
    with pytest.raises(RequestError, match=r"convoy\[otel\]"):
        telemetry.traced(None)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    app = object()
    assert telemetry.traced(app)[0] is app
