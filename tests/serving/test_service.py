"""The routes of the service, called in this process; the model's answers are known beforehand."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

import fixed_models
from convoy.serving.model import open_model
from services import CLASSES, post


def test_a_body_that_is_an_image_is_answered(client, served):
    answer = post(client, fixed_models.png(1))
    assert answer.status_code == 200
    content = answer.json()
    assert content["class"] == "cat"
    assert content["probability"] == pytest.approx(0.8)
    assert content["abstained"] is False
    assert next(iter(content["probabilities"])) == "cat"
    assert content["probabilities"] == pytest.approx({"cat": 0.8, "Bär": 0.1, "x": 0.1})
    assert (content["model"], content["version"], content["run_id"]) == (served.public_name, "", "fixed")
    assert content["request_id"] == answer.headers["x-request-id"]
    assert set(content["ms"]) == {"decode", "inference", "total"}


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "BMP", "TIFF"])
def test_the_content_decides_the_format(client, format_):
    stream = io.BytesIO()
    Image.fromarray(fixed_models.image_u8(2)).save(stream, format=format_, lossless=True)
    for kind in ("image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded", ""):
        assert post(client, stream.getvalue(), kind).json()["class"] == "x"


def test_several_files_are_answered_in_their_order_and_a_bad_one_does_not_stop_the_rest(client):
    images = [("a", fixed_models.png(0)), ("b", b"<html>"), ("c", fixed_models.png(2))]
    answer = client.post("/predict", files=[("file", (name, content)) for name, content in images])
    assert answer.status_code == 200
    first, bad, last = answer.json()["predictions"]
    assert (first["class"], last["class"]) == ("Bär", "x")
    assert bad["error"]["code"] == "not_an_image"
    assert "web page" in bad["error"]["reason"]
    single = client.post("/predict", files={"file": ("a", fixed_models.png(1))}).json()
    assert single["class"] == "cat"


def test_json_with_base64_is_answered(client):
    text = base64.b64encode(fixed_models.png(2)).decode()
    assert client.post("/predict", json={"image": text}).json()["class"] == "x"
    assert client.post("/predict", json={"image": f"data:image/png;base64,{text}"}).json()["class"] == "x"
    [answer] = client.post("/predict", json={"images": [text]}).json()["predictions"]
    assert answer["class"] == "x"


def test_health_and_the_model_are_described(client, served):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "model": served.public_name}
    client.app.state.problem = "convoy/8 failed its verification"
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert answer.json()["problem"] == "convoy/8 failed its verification"
    model = client.get("/model").json()
    assert model["classes"] == CLASSES
    assert model["sha256"] == served.sha256
    assert model["input"]["image_px"] == 8
    assert model["card"] is None


def test_health_is_answered_to_head(client):
    answer = client.head("/healthz")
    assert answer.status_code == 200
    assert client.head("/predict").status_code == 405


def test_a_replaced_model_answers_the_next_request(client, served, tmp_path):
    path = fixed_models.write_onnx(tmp_path / "model.onnx", CLASSES, ["x"] * 4)
    assert post(client, fixed_models.png(0)).json()["class"] == "Bär"
    client.app.state.served = open_model(str(path))
    content = post(client, fixed_models.png(0)).json()
    assert (content["class"], content["model"]) == ("x", "model.onnx"), "no folder of this machine"


def test_observers_see_every_batch(start, served):
    seen = []
    client = start(observers=[lambda *batch: seen.append(batch)])
    post(client, fixed_models.png(3))
    client.__exit__(None, None, None)
    [(images_u8, probabilities, contents, model)] = seen
    assert np.array_equal(images_u8[0], fixed_models.image_u8(3))
    assert probabilities.shape == (1, 3)
    assert contents == [fixed_models.png(3)]
    assert model is served


def test_unknown_paths_and_methods_are_answered_as_other_errors(client):
    for answer, status in ((client.get("/nothing"), 404), (client.get("/predict"), 405)):
        assert answer.status_code == status
        assert answer.json()["error"]["status"] == status
        assert json.loads(answer.content)["request_id"] == answer.headers["x-request-id"]
