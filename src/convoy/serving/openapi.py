"""The OpenAPI document of the service: what `POST /predict` takes and answers, and the errors of every path."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from convoy.serving.open_inference import OUTPUTS

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer"}
FLAG: Schema = {"type": "boolean"}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1.0001}
BYTES: Schema = {"type": "string", "format": "binary"}
BASE64: Schema = {"type": "string", "contentEncoding": "base64"}

ERRORS = {
    400: "The body or a header is not valid.",
    401: "The token is missing or wrong.",
    408: "The body did not arrive in time.",
    413: "The body, an image or the number of images exceeds a limit.",
    415: "The content type or the content is none that is decoded.",
    422: "An image is damaged, or a value is out of range.",
    429: "Too much waits; the header Retry-After names the seconds until the next try.",
    503: "The request was not answered in time.",
}
PARAMETERIZED = {404: "There is no such model or version."}


def thing(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """Describe an object with these properties and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def listed(item: Schema) -> Schema:
    """Describe a list."""
    return {"type": "array", "items": item}


def ref(name: str) -> Schema:
    """Refer to a schema of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


ANSWER = {
    "class": TEXT,
    "probability": SHARE,
    "abstained": FLAG,
    "probabilities": {"type": "object", "additionalProperties": SHARE},
}
ORIGIN = {
    "model": TEXT,
    "version": TEXT,
    "run_id": TEXT,
    "ms": thing({"decode": NUMBER, "inference": NUMBER, "total": NUMBER}),
    "request_id": TEXT,
}
FAULT = {"code": TEXT, "reason": TEXT}
TENSOR = {"name": TEXT, "datatype": TEXT, "shape": listed(WHOLE)}

SCHEMAS: dict[str, Schema] = {
    "Prediction": thing({**ANSWER, **ORIGIN}),
    "Predictions": thing(
        {"predictions": listed({"anyOf": [thing(ANSWER), thing({"error": thing(FAULT)})]}), **ORIGIN}
    ),
    "Error": thing({"error": thing({"status": WHOLE, **FAULT}), "request_id": TEXT}),
    "Model": thing(
        {
            "model": TEXT,
            "version": TEXT,
            "run_id": TEXT,
            "sha256": TEXT,
            "providers": listed(TEXT),
            "classes": listed(TEXT),
            "input": thing({"image_px": WHOLE, "fit": TEXT, "background": TEXT, "pixels": TEXT}),
            "metadata": {"type": "object", "additionalProperties": TEXT},
            "verification": {"type": ["object", "null"]},
            "card": {"type": ["string", "null"]},
        }
    ),
    "ProtocolError": thing({"error": TEXT}),
    "ProtocolTensor": thing(TENSOR),
    "InferRequest": {
        "type": "object",
        "properties": {
            "id": TEXT,
            "inputs": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": {
                    "type": "object",
                    "properties": {
                        "name": {"const": "image"},
                        "datatype": {"enum": ["UINT8", "BYTES"]},
                        "shape": {
                            "type": "array",
                            "items": {"type": "integer", "minimum": 1},
                            "minItems": 1,
                            "maxItems": 4,
                        },
                        "data": {"type": "array"},
                        "parameters": {"type": "object"},
                    },
                    "required": ["name", "datatype", "shape"],
                },
            },
            "outputs": listed(
                {"type": "object", "properties": {"name": {"enum": list(OUTPUTS)}}, "required": ["name"]}
            ),
            "parameters": {"type": "object"},
        },
        "required": ["inputs"],
    },
    "InferResponse": thing(
        {
            "model_name": TEXT,
            "parameters": {"type": "object"},
            "outputs": listed(thing(TENSOR, {"data": {"type": "array"}, "parameters": {"type": "object"}})),
        },
        {"model_version": TEXT, "id": TEXT},
    ),
}

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")

PREDICT: dict[str, Any] = {
    "post": {
        "summary": "Classify images",
        "operationId": "predict",
        "parameters": [
            {
                "name": "top_k",
                "in": "query",
                "description": "classes of an answer; the default is serve.top_k",
                "schema": {"type": "integer", "minimum": 1, "maximum": 999_999},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                **{kind: {"schema": BYTES} for kind in IMAGE_TYPES},
                "multipart/form-data": {
                    "schema": thing({"file": {"type": "array", "items": BYTES, "minItems": 1}})
                },
                "application/json": {
                    "schema": {
                        "anyOf": [
                            thing({"image": BASE64}),
                            thing({"images": listed(BASE64)}),
                            thing({"url": {"type": "string", "format": "uri"}}),
                            thing({"urls": listed({"type": "string", "format": "uri"})}),
                        ]
                    }
                },
            },
        },
        "responses": {
            "200": {
                "description": "The class of the image; of several images a list, in which each has a class or an error.",
                "content": {
                    "application/json": {"schema": {"anyOf": [ref("Prediction"), ref("Predictions")]}}
                },
            }
        },
    }
}

V2_MODEL = thing(
    {
        "name": TEXT,
        "platform": TEXT,
        "inputs": listed(ref("ProtocolTensor")),
        "outputs": listed(ref("ProtocolTensor")),
    },
    {"versions": listed(TEXT)},
)
V2_READY = thing({"name": TEXT, "ready": FLAG})

ANSWERS: dict[str, Schema] = {
    "/healthz": thing({"status": TEXT}),
    "/readyz": thing({"status": {"enum": ["ready", "degraded"]}, "model": TEXT}, {"problem": TEXT}),
    "/model": ref("Model"),
    "/v2": thing({"name": TEXT, "version": TEXT, "extensions": listed(TEXT)}),
    "/v2/health/live": thing({"live": FLAG}),
    "/v2/health/ready": thing({"live": FLAG, "ready": FLAG}),
    "/v2/models/{model}": V2_MODEL,
    "/v2/models/{model}/versions/{version}": V2_MODEL,
    "/v2/models/{model}/ready": V2_READY,
    "/v2/models/{model}/versions/{version}/ready": V2_READY,
    "/v2/models/{model}/infer": ref("InferResponse"),
    "/v2/models/{model}/versions/{version}/infer": ref("InferResponse"),
}
"""Schema of the answer of each path."""


def document(app: FastAPI, *, needs_token: bool) -> dict[str, Any]:
    """Describe all paths: those that FastAPI knows, `POST /predict`, and the errors of each."""
    content = get_openapi(title=app.title, version=app.version, routes=app.routes)
    paths = content["paths"] = {"/predict": PREDICT, **content["paths"]}
    content["components"] = {"schemas": SCHEMAS}
    for path, operations in paths.items():
        for method, operation in operations.items():
            operations[method] = _with_responses(path, operation)
    paths["/metrics"]["get"]["responses"]["200"]["content"] = {"text/plain": {"schema": TEXT}}
    if needs_token:
        content["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        content["security"] = [{"token": []}]
    return content


def _with_responses(path: str, operation: Mapping[str, Any]) -> dict[str, Any]:
    """Add the schema of the answer, and the errors."""
    responses = dict(operation["responses"])
    if path in ANSWERS:
        ok = {"application/json": {"schema": ANSWERS[path]}}
        if path.endswith("/infer"):
            ok["application/octet-stream"] = {"schema": BYTES}
        responses["200"] = {"description": "The answer.", "content": ok}
    error = ref("ProtocolError" if path.startswith("/v2") else "Error")
    for status, reason in (ERRORS | (PARAMETERIZED if "{" in path else {})).items():
        responses[str(status)] = {"description": reason, "content": {"application/json": {"schema": error}}}
    described = {**operation, "responses": responses}
    if path.endswith("/infer"):
        body = {"application/json": {"schema": ref("InferRequest")}}
        described["requestBody"] = {"required": True, "content": body}
    return described
