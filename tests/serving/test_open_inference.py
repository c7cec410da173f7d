"""The Open Inference Protocol v2, as KServe and Triton clients speak it."""

import base64
import json
import struct

import numpy as np
import pytest

import fixed_models
from services import CLASSES

INFER = "/v2/models/convoy/infer"


def tensor(numbers, **changes):
    pixels_u8 = np.stack([fixed_models.image_u8(number) for number in numbers])
    given = {
        "name": "image",
        "shape": list(pixels_u8.shape),
        "datatype": "UINT8",
        "data": pixels_u8.ravel().tolist(),
    }
    return given | changes


def outputs(answer):
    return {output["name"]: output for output in answer.json()["outputs"]}


def test_the_server_and_the_model_describe_themselves(client):
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json()["live"] is True
    assert client.get("/v2/health/ready").json()["ready"] is True
    assert client.get("/v2/models/convoy/ready").json() == {"name": "convoy", "ready": True}
    model = client.get("/v2/models/convoy").json()
    assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert model["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}
    assert "versions" not in model


@pytest.mark.parametrize(
    "path", ["/v2/models/other", "/v2/models/convoy/versions/7", "/v2/models/other/ready", "/v2/nothing"]
)
def test_another_model_or_version_is_an_error_of_the_protocol(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize("nested", [False, True])
def test_pixels_are_answered(client, nested):
    data = np.stack([fixed_models.image_u8(n) for n in (0, 2)])
    given = tensor([0, 2], data=data.tolist() if nested else data.ravel().tolist())
    answer = client.post(INFER, json={"id": "42", "inputs": [given]})
    assert answer.status_code == 200
    assert (answer.json()["id"], answer.json()["model_name"]) == ("42", "convoy")
    assert outputs(answer)["class"] == {
        "name": "class",
        "datatype": "BYTES",
        "shape": [2],
        "data": ["Bär", "x"],
    }
    probabilities = outputs(answer)["probabilities"]
    assert (probabilities["datatype"], probabilities["shape"]) == ("FP32", [2, 3])
    assert probabilities["data"] == pytest.approx([0.9, 0.05, 0.05, 0.15, 0.15, 0.7])


def test_only_requested_outputs_are_sent(client):
    answer = client.post(INFER, json={"inputs": [tensor([1])], "outputs": [{"name": "class"}]})
    assert outputs(answer) == {"class": {"name": "class", "datatype": "BYTES", "shape": [1], "data": ["cat"]}}


def test_encoded_images_are_decoded(client):
    images = [fixed_models.png(1), fixed_models.png(0)]
    data = [base64.b64encode(image).decode() for image in images]
    for shape, given in (([2], data), ([2, 1], [[text] for text in data])):
        tensor = {"name": "image", "shape": shape, "datatype": "BYTES", "data": given}
        assert outputs(client.post(INFER, json={"inputs": [tensor]}))["class"]["data"] == ["cat", "Bär"]


@pytest.mark.parametrize("datatype", ["UINT8", "BYTES"])
def test_binary_tensors_go_in_and_out(client, datatype):
    if datatype == "UINT8":
        shape, binary = [2, 8, 8, 3], np.stack([fixed_models.image_u8(n) for n in (0, 2)]).tobytes()
    else:
        images = [fixed_models.png(0), fixed_models.png(2)]
        shape, binary = [2], b"".join(struct.pack("<I", len(image)) + image for image in images)
    given = {
        "name": "image",
        "shape": shape,
        "datatype": datatype,
        "parameters": {"binary_data_size": len(binary)},
    }
    head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    length = {"Inference-Header-Content-Length": str(len(head)), "content-type": "application/octet-stream"}
    answer = client.post(INFER, content=head + binary, headers=length)
    assert answer.status_code == 200
    end = int(answer.headers["inference-header-content-length"])
    described = {output["name"]: output for output in json.loads(answer.content[:end])["outputs"]}
    size = described["probabilities"]["parameters"]["binary_data_size"]
    probabilities = np.frombuffer(answer.content[end : end + size], "<f4").reshape(2, 3)
    assert [CLASSES[index] for index in probabilities.argmax(axis=1)] == ["Bär", "x"]
    assert answer.content[end + size :] == b"\x04\0\0\0B\xc3\xa4r\x01\0\0\0x"


DAMAGED = {
    "not JSON": b"{",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "no inputs": {},
    "two inputs": {"inputs": [tensor([0]), tensor([0])]},
    "name": {"inputs": [tensor([0], name="x")]},
    "datatype": {"inputs": [tensor([0], datatype="FP32")]},
    "shape": {"inputs": [tensor([0], shape=[1, 8, 8, 4])]},
    "negative": {"inputs": [tensor([0], shape=[-1, 8, 8, 3])]},
    "true": {"inputs": [tensor([0], shape=[True, 8, 8, 3])]},
    "too few": {"inputs": [tensor([0], data=[1, 2, 3])]},
    "ragged": {"inputs": [tensor([0], data=[[1, 2], [3]])]},
    "256": {"inputs": [tensor([0], data=[256] * 192)]},
    "huge": {"inputs": [tensor([0], data=[10**400] * 192)]},
    "fractions": {"inputs": [tensor([0], data=[0.5] * 192)]},
    "text": {"inputs": [tensor([0], data="0" * 192)]},
    "nothing": {"inputs": [tensor([0], data=None)]},
    "empty": {"inputs": [tensor([0], data=[])]},
    "base64": {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["?"]}]},
    "binary size": {"inputs": [tensor([0], parameters={"binary_data_size": 5})]},
    "output": {"inputs": [tensor([0])], "outputs": [{"name": "logits"}]},
    "outputs": {"inputs": [tensor([0])], "outputs": [1]},
    "parameters": {"inputs": [tensor([0])], "parameters": [1]},
    "flag": {"inputs": [tensor([0])], "parameters": {"binary_data_output": 1}},
    "id": {"inputs": [tensor([0])], "id": 7},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_request_that_breaks_the_protocol_is_an_error_of_the_protocol(client, name):
    body = DAMAGED[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(INFER, content=content, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}
    assert list(answer.json()) == ["error"]
    assert answer.json()["error"].endswith(".")


@pytest.mark.parametrize("length", ["-1", "x", "99999", "1.5"])
def test_a_wrong_length_of_the_json_is_refused(client, length):
    headers = {"inference-header-content-length": length}
    answer = client.post(INFER, content=json.dumps({"inputs": [tensor([0])]}).encode(), headers=headers)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


def test_limits_hold_for_tensors(start):
    client = start(max_files=2, max_pixels=60)
    answer = client.post(INFER, json={"inputs": [tensor([0, 1, 2])]})
    assert answer.status_code == 413
    assert "3 images, the limit is 2" in answer.json()["error"]
    answer = client.post(INFER, json={"inputs": [tensor([0])]})
    assert answer.status_code == 413
    assert "8 x 8 pixels, the limit is 60" in answer.json()["error"]


def test_an_image_that_cannot_be_decoded_is_named_by_its_number(client):
    data = [base64.b64encode(content).decode() for content in (fixed_models.png(0), b"<html>")]
    tensor = {"name": "image", "shape": [2], "datatype": "BYTES", "data": data}
    answer = client.post(INFER, json={"inputs": [tensor]})
    assert answer.status_code == 415
    assert answer.json()["error"].startswith("Image 1 of 2: ")
