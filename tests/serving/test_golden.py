"""`convoy verify`: golden images replayed against files and servers that answer right, wrong, or not at all."""

import hashlib
import io
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import fixed_models
from convoy.cli import app
from convoy.core import files, yaml
from convoy.core.errors import DataError, RequestError, VerificationError
from convoy.export.onnx_model import OnnxModel
from convoy.serving import golden
from convoy.serving.model import open_model

CLASSES = ["cat", "dog", "eel"]
TOKEN = "let-me-in"  # noqa: S105 (of a server in this process)


@pytest.fixture
def deploy(tmp_path):
    """A model of three classes with three golden images."""
    fixed_models.write_onnx(tmp_path / "model.onnx", CLASSES, CLASSES)
    images = []
    for number, name in enumerate(CLASSES):
        content = fixed_models.png(number)
        path = tmp_path / f"golden/{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        probabilities = [0.9 if other == name else 0.05 for other in CLASSES]
        sha256 = hashlib.sha256(content).hexdigest()
        images.append({"file": path.name, "sha256": sha256, "class": name, "probabilities": probabilities})
    facts = {"classes": CLASSES, "max_probability_gap": 1e-4, "background": "white", "images": images}
    files.write_json(tmp_path / "golden/golden.json", facts)
    return tmp_path


def convoy(*words, **env):
    result = CliRunner().invoke(app, ["verify", *map(str, words)], env=env)
    return result.exit_code, result.output


@pytest.fixture
def server(deploy):
    """A server of the model by both protocols; `status`, `body` and `token` change what it answers, `seen` has its requests."""
    model = OnnxModel(deploy / "model.onnx")
    state = SimpleNamespace(status=200, body=None, token="", seen=[])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            url = urlsplit(self.path)
            state.seen.append((url.path, self.headers["Content-Type"]))
            if url.path == "/predict":
                assert parse_qs(url.query) == {"top_k": ["3"]}
                image_u8 = np.asarray(Image.open(io.BytesIO(content)))
                row = model(image_u8[None])[0].tolist()
                answer = {"class": "…", "probabilities": dict(zip(CLASSES, row, strict=True))}
            else:
                [tensor] = json.loads(content)["inputs"]
                assert (tensor["name"], tensor["datatype"]) == ("image", "UINT8")
                image_u8 = np.array(tensor["data"], np.uint8).reshape(tensor["shape"])
                output = {"name": "probabilities", "data": model(image_u8).reshape(-1).tolist()}
                answer = {"outputs": [output]}
            status = state.status
            if state.token and self.headers["Authorization"] != f"Bearer {state.token}":
                status, answer = 401, {"error": {"status": 401, "reason": "token required"}}
            body = json.dumps(state.body or answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if 300 <= status < 400:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            state.seen.append((self.path, self.headers["Authorization"]))
            self.send_error(404)

        def log_message(self, *_):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{listening.server_port}"
    yield state
    listening.shutdown()
    listening.server_close()


def test_a_faithful_file_passes_with_a_line_per_image(deploy):
    code, output = convoy(deploy / "model.onnx")
    assert code == 0
    for number, name in enumerate(CLASSES):
        [line] = [line for line in output.splitlines() if line.startswith(f"{number:02}.png")]
        assert line.split()[1:3] == [name, name]
        assert line.endswith("passed")
    assert "3 of 3 golden images are answered as measured" in output


def test_another_class_or_a_gap_fails_with_exit_code_1(deploy, tmp_path):
    fixed_models.write_onnx(tmp_path / "wrong/model.onnx", CLASSES, ["cat", "eel", "eel"])
    code, output = convoy(tmp_path / "wrong/model.onnx", "--golden", deploy / "golden")
    assert code == 1
    assert "2 of 3 golden images" in output
    assert "FAILED: another class" in output
    fixed_models.write_onnx(tmp_path / "near/model.onnx", CLASSES, CLASSES, certainty=0.899)
    code, output = convoy(tmp_path / "near/model.onnx", "--golden", deploy / "golden", "--json")
    assert code == 1
    content = json.loads(output)
    assert (content["images"], content["passed"], content["limit"]) == (3, 0, 1e-4)
    assert content["largest_gap"] == pytest.approx(1e-3, rel=0.01)
    assert [image["answered"] for image in content["results"]] == CLASSES


def test_open_model_refuses_what_answers_differently(deploy, tmp_path):
    model = OnnxModel(deploy / "model.onnx")
    golden.check(golden.replay(golden.of_model(model), deploy / "golden"), "convoy/7")
    wrong = fixed_models.write_onnx(tmp_path / "wrong.onnx", CLASSES, ["cat", "eel", "eel"])
    replayed = golden.replay(golden.of_model(OnnxModel(wrong)), deploy / "golden")
    with pytest.raises(VerificationError, match=r"convoy/8 .* 1 of 3 .*01\.png: class eel, expected dog"):
        golden.check(replayed, "convoy/8")


def recorded(deploy):
    """Write the verification of the model; return the model."""
    path = deploy / "model.onnx"
    content = {"model": {"file": "model.onnx", "sha256": files.sha256(path)}}
    files.write_json(deploy / "verification.json", content)
    return path


def test_a_model_is_opened_only_if_it_answers_its_golden_images(deploy):
    path = recorded(deploy)
    assert open_model(str(path)).name == str(path)
    fixed_models.write_onnx(path, CLASSES, ["cat", "eel", "eel"])
    recorded(deploy)
    with pytest.raises(
        VerificationError, match=r"model\.onnx does not answer 1 of 3 golden images .*01\.png"
    ):
        open_model(str(path))
    fixed_models.write_onnx(deploy / "model.int8.onnx", CLASSES, ["eel", "eel", "eel"])
    assert open_model(str(deploy / "model.int8.onnx")), "golden images are those of model.onnx"


def test_when_time_is_short_some_golden_images_are_replayed(deploy, monkeypatch):
    answer = golden.of_model(OnnxModel(deploy / "model.onnx"))
    monkeypatch.setattr(golden, "LEAST_IMAGES", 2)
    assert len(golden.replay(answer, deploy / "golden", 0)) == 2
    assert len(golden.replay(answer, deploy / "golden")) == 3


def test_a_model_of_other_classes_is_compared_with_nothing(deploy, tmp_path):
    other = fixed_models.write_onnx(tmp_path / "other.onnx", ["cat", "dog"], ["cat", "dog", "dog"])
    code, output = convoy(other, "--golden", deploy / "golden")
    assert code == 1
    assert "the answer lacks eel (3 classes)" in output


@pytest.mark.parametrize("path", ["", "/", "/predict", "/v2/models/convoy", "/v2/models/convoy/versions/7"])
def test_a_server_passes_by_either_protocol(deploy, server, path):
    code, output = convoy(f"{server.url}{path}", "--golden", deploy / "golden")
    assert (code, "3 of 3" in output) == (0, True), output
    v2 = path.startswith("/v2")
    assert server.seen == [(f"{path}/infer", "application/json") if v2 else ("/predict", "image/png")] * 3


def test_a_token_is_sent_from_the_environment(deploy, server):
    server.token = TOKEN
    words = (server.url, "--golden", deploy / "golden")
    assert convoy(*words, CONVOY_SERVE_TOKEN=TOKEN)[0] == 0
    result = CliRunner().invoke(app, ["verify", *map(str, words)], env={"CONVOY_SERVE_TOKEN": ""})
    assert "status 401 Unauthorized: token required" in str(result.exception)
    assert "serve.token_env" in str(result.exception)


def test_params_name_the_variable_of_the_token(deploy, server, tmp_path, monkeypatch):
    server.token = TOKEN
    shutil.copy(Path(__file__).parents[2] / "params.yaml", tmp_path)
    yaml.update(tmp_path / "params.yaml", {"serve.token_env": "CAMERA_TOKEN"})
    monkeypatch.chdir(tmp_path)
    words = (server.url, "--golden", deploy / "golden")
    assert convoy(*words, CAMERA_TOKEN=TOKEN)[0] == 0


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"status": 302}, r"status 302 Found"),
        ({"status": 503, "body": {"error": {"reason": "not ready"}}}, r"status 503 .*: not ready"),
        ({"body": ["no object"]}, r"no JSON object"),
        ({"body": {"class": "cat"}}, r"not what the protocol requires \(KeyError"),
    ],
)
def test_a_server_that_answers_nothing_usable_is_an_error_with_its_cause(deploy, server, change, cause):
    vars(server).update(change)
    with pytest.raises(golden.ServerError, match=cause):
        golden.verify(server.url, deploy / "golden", as_json=False)
    assert {path for path, _ in server.seen} == {"/predict"}, "no token is taken to another address"


def test_a_server_that_is_not_there_is_an_error_with_the_remedy(deploy):
    with pytest.raises(golden.ServerError, match=r"does not answer: .*refused.*convoy serve"):
        golden.verify("http://127.0.0.1:9", deploy / "golden", as_json=False)


def test_golden_images_that_are_missing_or_changed_are_refused(deploy, tmp_path):
    facts = files.read_json(deploy / "golden/golden.json")
    (deploy / "golden/01.png").write_bytes(fixed_models.png(0))
    with pytest.raises(DataError, match=r"01\.png has other bytes"):
        golden.load(deploy / "golden")
    (deploy / "golden/01.png").unlink()
    with pytest.raises(DataError, match=r"01\.png does not exist"):
        golden.load(deploy / "golden")
    (tmp_path / "secret").write_bytes(b"x")
    for change in ({"file": "../secret"}, {"file": "/etc/passwd"}, {"probabilities": [1.0]}):
        damaged = facts | {"images": [facts["images"][0] | change]}
        files.write_json(deploy / "golden/golden.json", damaged)
        with pytest.raises(DataError, match="is damaged"):
            golden.load(deploy / "golden")
    files.write_json(deploy / "golden/golden.json", facts | {"images": []})
    with pytest.raises(RequestError, match=r"lists no images.*export\.golden_images"):
        golden.load(deploy / "golden")
    files.write_json(deploy / "golden/golden.json", {"images": []})
    with pytest.raises(DataError, match="KeyError"):
        golden.load(deploy / "golden")
    with pytest.raises(RequestError, match=r"golden\.json does not exist.*--golden FOLDER"):
        golden.load(tmp_path / "nowhere")
