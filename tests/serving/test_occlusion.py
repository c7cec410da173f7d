"""The heat map of a model whose answer depends on a known part of the image."""

import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from fastapi.testclient import TestClient
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from convoy.core import contract
from convoy.core import params as params_file
from convoy.images.resize import Geometry
from convoy.serving.model import open_model
from convoy.serving.occlusion import GRAY, OutOfTime, heat_map
from convoy.serving.service import create_app
from convoy.serving.settings import ServeParams

PX = 16
SHIPPED = params_file.default_at(ServeParams, [])


def write_model(path, crop_share=1.0):
    """A model that outputs, as the probability of `bright`, the mean of the pixels in rows 4 to 7 and columns 8 to 11."""
    constants = {
        "from": np.array([4, 8]), "to": np.array([8, 12]), "sides": np.array([1, 2]), "all": np.array([1, 2, 3]),
        "white": np.array(255, np.float32), "one": np.array(1, np.float32),
    }  # fmt: skip
    margin = round((PX / crop_share - PX) / 2)
    constants["from"], constants["to"] = constants["from"] + margin, constants["to"] + margin
    nodes = [
        helper.make_node("Slice", ["image", "from", "to", "sides"], ["part"]),
        helper.make_node("Cast", ["part"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values", "all"], ["mean"], keepdims=1),
        helper.make_node("Div", ["mean", "white"], ["share"]),
        helper.make_node("Flatten", ["share"], ["bright"]),
        helper.make_node("Sub", ["one", "bright"], ["dark"]),
        helper.make_node("Concat", ["bright", "dark"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "part",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    properties = {
        contract.CLASSES: json.dumps(["bright", "dark"]), contract.IMAGE_PX: str(PX), contract.VERSION: "1",
        contract.FIT: "squash" if crop_share == 1 else "crop", contract.CROP_SHARE: str(crop_share),
    }  # fmt: skip
    helper.set_model_props(model, properties)
    onnx.save(model, path)
    return open_model(str(path))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture
def client(served):
    params = ServeParams.model_validate(SHIPPED | {"threads": 1})
    with TestClient(create_app(served, params)) as client:
        yield client


def white():
    image_u8 = np.full((PX, PX, 3), 255, np.uint8)
    image_u8[12:] = GRAY
    return image_u8


def png(image_u8):
    stream = io.BytesIO()
    Image.fromarray(image_u8).save(stream, format="PNG")
    return stream.getvalue()


def test_the_drop_is_where_the_answer_comes_from(served):
    found = heat_map(served, white(), grid=4)
    assert (found.label, found.probability) == ("bright", 1.0)
    assert found.drops.shape == (4, 4)
    whole = 1 - GRAY / 255
    # A patch is twice as wide as a cell: of neighbours, half of it covers the part, of diagonal ones a quarter.
    expected = np.zeros((4, 4))
    expected[:3, 1:] = np.outer([0.5, 1, 0.5], [0.5, 1, 0.5]) * whole
    assert found.drops == pytest.approx(expected, abs=1e-5)
    other = heat_map(served, white(), "dark", grid=4)
    assert other.probability == 0
    assert other.drops == pytest.approx(-expected, abs=1e-5)


def test_a_model_that_crops_gets_the_square_that_it_sees(tmp_path):
    cropping = write_model(tmp_path / "model.onnx", crop_share=0.5)
    found = heat_map(cropping, np.kron(white(), np.ones((2, 2, 1), np.uint8)), grid=4)
    assert found.drops.argmax() == heat_map(cropping, white(), grid=4).drops.argmax()
    assert found.drops.max() > 0.2


def test_the_work_ends_at_the_deadline_and_small_squares_have_small_maps(served):
    with pytest.raises(OutOfTime):
        heat_map(served, white(), deadline=0.0)
    assert heat_map(served, white(), grid=14).drops.shape == (14, 14)


def test_the_route_answers_with_the_map_and_refuses_what_is_wrong(client, served):
    answer = client.post(
        "/occlusion?grid=4&class=dark", content=png(white()), headers={"content-type": "image/png"}
    )
    assert answer.status_code == 200
    content = answer.json()
    assert (content["class"], content["probability"], content["model"]) == ("dark", 0.0, served.public_name)
    assert min(min(row) for row in content["drops"]) == pytest.approx(GRAY / 255 - 1, abs=1e-5)
    assert content["request_id"] == answer.headers["x-request-id"]
    for query, word in (("grid=99", "from 2 to 14"), ("grid=x", "from 2 to 14"), ("class=cat", "GET /model")):
        refused = client.post(f"/occlusion?{query}", content=png(white()))
        assert refused.status_code == 422
        assert word in refused.json()["error"]["reason"]
    assert client.post("/occlusion", content=b"no image").status_code == 415
    files = [("file", ("a", png(white()))), ("file", ("b", png(white())))]
    assert client.post("/occlusion", files=files).json()["error"]["code"] == "several_images"


def test_one_map_is_computed_at_a_time_and_none_takes_longer_than_a_request_may(served, monkeypatch):
    entered, go = threading.Event(), threading.Event()

    def slow(*words):
        entered.set()
        assert go.wait(30)
        return heat_map(*words)

    monkeypatch.setattr("convoy.serving.occlusion.heat_map", slow)
    params = ServeParams.model_validate(SHIPPED | {"threads": 1, "timeout_s": 0.2})
    with TestClient(create_app(served, params)) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/occlusion", content=png(white()))
        assert entered.wait(30)
        refused = client.post("/occlusion", content=png(white()))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "busy")
        assert refused.headers["retry-after"] == "1"
        time.sleep(0.3)  # longer than serve.timeout_s
        go.set()
        late = first.result()
        assert (late.status_code, late.json()["error"]["code"]) == (503, "timed_out")
        assert "smaller `grid`" in late.json()["error"]["reason"]


def test_the_document_describes_both_paths(client):
    paths = client.get("/openapi.json").json()["paths"]
    occlusion, seen = paths["/occlusion"]["post"], paths["/seen"]["post"]
    assert {one["name"] for one in occlusion["parameters"]} == {"class", "grid"}
    stated = occlusion["responses"]["200"]["content"]["application/json"]["schema"]["properties"]
    assert set(stated) == set(client.post("/occlusion?grid=2", content=png(white())).json())
    assert set(seen["responses"]["200"]["content"]) == {"image/png"}
    assert "image/jpeg" in seen["requestBody"]["content"]


def test_the_square_that_the_network_sees_is_a_png(client):
    image_u8 = np.kron(white(), np.ones((3, 3, 1), np.uint8))
    answer = client.post("/seen", content=png(image_u8))
    assert answer.headers["content-type"] == "image/png"
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(answer.content))), Geometry(PX, "squash")(image_u8)
    )
