"""Damaged requests at `POST /predict` and the Open Inference Protocol: never a 5xx, and every error is one of the service's."""

import base64
import io
import json
import os
import random
import time

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from convoy.serving.model import open_model
from convoy.serving.service import create_app
from services import serve_params

SECONDS = float(os.environ.get("CONVOY_FUZZ_S", "300"))
"""Processor time of the slow test."""

CODES = {
    "bad_base64", "bad_json", "bad_multipart", "bad_request", "damaged_image", "empty_body", "no_image", "not_an_image",
    "too_many_images", "too_many_pixels", "truncated_image", "unsupported_content_type", "unsupported_image", "urls_not_allowed",
}  # fmt: skip
FORMATS = {
    "JPEG": {}, "PNG": {}, "WEBP": {}, "GIF": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}, "PPM": {}, "AVIF": {},
    "JPEG2000": {},
}  # fmt: skip
HOSTILE = [
    b"\0" * 8,
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xd8",
    b"\xff\xda",
    b"IHDR",
    b"--b",
    b"\r\n",
    b"{",
    b"[",
]


def images():
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        for height, width in ((9, 14), (40, 31))
    ]
    pictures += [pictures[0].convert(mode) for mode in ("L", "RGBA", "P", "CMYK", "I;16")]
    for picture in pictures:
        for format_, options in FORMATS.items():
            stream = io.BytesIO()
            try:
                picture.save(stream, format=format_, **options)
            except (OSError, ValueError):  # the format has no such mode
                continue
            yield stream.getvalue()


def damage(content, rng):
    """Change a few bytes, cut, repeat or insert a part."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                changed[at:] = b""
            case 2:
                changed[at:at] = changed[at : at + rng.randrange(1, 200)]
            case 3:
                changed[at : at + 4] = rng.choice(HOSTILE)
            case 4:
                changed[at : at + rng.randrange(1, 40)] = b""
            case _:
                changed[at : at + 4] = rng.randbytes(4)
    return bytes(changed)


def requests(rng, seeds):
    """Make a request: path, content type and body."""
    content = damage(rng.choice(seeds), rng)
    text = base64.b64encode(content).decode()
    kind = rng.randrange(8)
    if kind < 4:
        return "/predict", rng.choice(("image/jpeg", "image/png", "application/octet-stream", "")), content
    if kind == 4:
        body = (
            b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n%b\r\n--b--\r\n' % content
        )
        return (
            "/predict",
            "multipart/form-data; boundary=b",
            damage(body, rng) if rng.random() < 0.7 else body,
        )
    if kind == 5:
        body = json.dumps(
            rng.choice(({"image": text}, {"images": [text, text]}, {"url": "http://127.0.0.1/"}))
        ).encode()
        return "/predict", "application/json", damage(body, rng) if rng.random() < 0.5 else body
    shape = [1, 2, 2, 3] if kind == 6 else [1]
    tensor = {"name": "image", "datatype": "UINT8" if kind == 6 else "BYTES", "shape": shape}
    tensor["data"] = list(range(12)) if kind == 6 else [text]
    body = damage(json.dumps({"inputs": [tensor], "id": "1"}).encode(), rng)
    return "/v2/models/convoy/infer", "application/json", body


def fuzz(client, seconds, seed):
    """Send requests for some processor time; return how many had which status."""
    rng, seeds, counts = random.Random(seed), list(images()), {}  # noqa: S311 (repeatable)
    end = time.process_time() + seconds
    while time.process_time() < end:
        path, kind, body = requests(rng, seeds)
        answer = client.post(path, content=body, headers={"content-type": kind})
        counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
        shown = f"seed {seed}: {answer.status_code} for {path}, {kind}: {base64.b64encode(body).decode()}"
        assert answer.status_code in {200, 400, 413, 415, 422}, shown
        content = answer.json()
        if answer.status_code == 200:
            continue
        if path == "/predict":
            assert content["error"]["code"] in CODES, shown
            reason = content["error"]["reason"]
        else:
            reason = content["error"]
        assert not any(
            word in reason for word in ("0x", "Traceback", "/work", "site-packages", "PIL", "object at")
        ), shown
    return counts


@pytest.fixture(scope="module")
def service(verified):
    with TestClient(create_app(open_model(str(verified[0].model)), serve_params(threads=1))) as client:
        yield client


def test_a_second_of_damaged_requests(service):
    counts = fuzz(service, 1, seed=0)
    assert counts[200] > 10
    assert counts[415] + counts[422] > 10


@pytest.mark.slow
def test_minutes_of_damaged_requests(service):
    seed = random.SystemRandom().getrandbits(32)
    counts = fuzz(service, SECONDS, seed)
    print(f"seed {seed}: {counts}")
