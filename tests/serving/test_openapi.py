"""Requests made from the OpenAPI document: no 5xx, and every answer keeps to its schema."""

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

import fixed_models
from convoy.serving.model import open_model
from convoy.serving.service import create_app
from services import serve_params

EXAMPLES = 20
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


def cut(image_and_end):
    image, end = image_and_end
    return image[: len(image) * end // 100]


IMAGES = st.integers(0, 3).map(fixed_models.png)
BODIES = st.one_of(IMAGES, st.tuples(IMAGES, st.integers(1, 99)).map(cut), st.binary(max_size=2000))
for kind in ("image/jpeg", "image/png", "image/webp", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, BODIES)


@pytest.fixture(scope="module")
def api(verified):
    """A service with a model that answers any image."""
    app = create_app(open_model(str(verified[0].model)), serve_params(threads=1))
    with TestClient(app):  # starts and stops its threads
        yield schemathesis.openapi.from_asgi("/openapi.json", app)


OPERATIONS = (
    "POST /predict",
    "POST /occlusion",
    "POST /seen",
    "POST /v2/models/{model}/infer",
    "POST /v2/models/{model}/versions/{version}/infer",
    "GET /v2/models/{model}",
    "GET /v2/models/{model}/versions/{version}",
    "GET /v2/models/{model}/ready",
    "GET /v2/models/{model}/versions/{version}/ready",
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
    "GET /model",
    "GET /drift",
)


def test_every_operation_is_tested(api):
    assert {result.ok().label for result in api.get_all_operations()} == set(OPERATIONS)


@pytest.mark.parametrize(
    ("label", "mode"),
    [
        *((label, GenerationMode.POSITIVE) for label in OPERATIONS),
        *(
            (label, GenerationMode.NEGATIVE) for label in (OPERATIONS[0], *OPERATIONS[3:5])
        ),  # others take anything
    ],
)
def test_every_answer_keeps_to_the_document(api, label, mode):
    [operation] = [result.ok() for result in api.get_all_operations() if result.ok().label == label]
    examples = EXAMPLES if label.startswith("POST") else 3

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    def check(case):
        case.call_and_validate(checks=CHECKS)

    check()
