"""The bill of materials of a model in CycloneDX 1.6 (an ML-BOM): model, data, packages and figures, for tools that audit them.

https://cyclonedx.org/docs/1.6/json. Nothing in it is an estimate of ours: a fact that is not known is left out.
"""

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from convoy.core import contract

SPEC = "1.6"

NAMESPACE = uuid.UUID("6c1f5a0e-0f0b-5c0c-9d0a-3f1e6a7b2c4d")
"""Of serial numbers: the same model has the same."""

MODEL, DATA = "model", "data"
"""References inside the document."""


def make(
    verification: Mapping[str, Any],
    data: Mapping[str, Any],
    licence: str | None,
    energy: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Build the document.

    Args:
        verification: content of verification.json.
        data: content of the evaluation's summary.json.
        licence: SPDX expression; None if it is unknown.
        energy: `kwh`, `co2_kg` and `how`; None if they are unknown.
    """
    model = verification["model"]
    packages = list(_packages(verification["versions"]))
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, model['sha256'])}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "convoy", "version": model["version"]}]},
            "component": _model(verification, data, licence, energy),
        },
        "components": [_data(model["identity"], data), *packages],
        "dependencies": [{"ref": MODEL, "dependsOn": [DATA, *(each["bom-ref"] for each in packages)]}],
    }


def _model(
    verification: Mapping[str, Any],
    data: Mapping[str, Any],
    licence: str | None,
    energy: Mapping[str, Any] | None,
) -> dict[str, Any]:
    model = verification["model"]
    considerations: dict[str, Any] = {
        "useCases": [
            f"Classification of images like those of the dataset into {len(data['classes'])} classes."
        ],
        "technicalLimitations": [
            "An image of anything else still gets one of the classes.",
            f"The figures hold for images like those of the {verification['split']} split.",
        ],
    }
    if energy:
        considerations["environmentalConsiderations"] = {"properties": _properties(energy, "convoy:energy:")}
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": MODEL,
        "name": data["network"],
        "version": model["identity"]["run_id"],
        "description": f"Image classifier, {model['file']}",
        "hashes": [{"alg": "SHA-256", "content": model["sha256"]}],
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "image classification",
                "architectureFamily": "convolutional neural network",
                "modelArchitecture": data["network"],
                "datasets": [{"ref": DATA}],
                "inputs": [{"format": model["input"]}],
                "outputs": [{"format": f"float32 [N, {len(data['classes'])}] {name}"} for name in OUTPUTS],
            },
            "quantitativeAnalysis": {"performanceMetrics": list(_metrics(verification, data))},
            "considerations": considerations,
        },
        "properties": _properties(model["identity"], "convoy:")
        + _properties(
            {"precision": model.get("precision", "fp32"), "classes": len(data["classes"])}, "convoy:"
        ),
    }
    if licence:
        component["licenses"] = [{"expression": licence}]
    return component


OUTPUTS = (contract.PROBABILITIES, contract.LOGITS)


def _metrics(verification: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    split = verification["split"]
    yield {
        "type": "accuracy",
        "value": str(verification["accuracy"]),
        "slice": split,
        "confidenceInterval": {
            "lowerBound": str(verification["accuracy_low"]),
            "upperBound": str(verification["accuracy_high"]),
        },
    }
    # Evaluation measured these of the FP32 network.
    for name in ("macro_f1", "ece") if verification["model"].get("precision") != "int8" else ():
        if data[split].get(name) is not None:
            yield {"type": name, "value": str(data[split][name]), "slice": split}


def _data(identity: Mapping[str, str], data: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the dataset; its hash is of the content: pixels, labels, splits, size and fit."""
    counts = {f"images:{split}": sum(images.values()) for split, images in data["counts"].items()}
    return {
        "type": "data",
        "bom-ref": DATA,
        "name": f"dataset {identity['data_hash'][:12]}",
        "data": [
            {
                "type": "dataset",
                "contents": {
                    "properties": _properties({"data_hash": identity["data_hash"]} | counts, "convoy:")
                },
            }
        ],
    }


def _packages(versions: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for name, version in versions.items():
        if name == "python":
            yield {"type": "platform", "bom-ref": "python", "name": "python", "version": version}
            continue
        url = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
        yield {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}


def _properties(values: Mapping[str, Any], prefix: str) -> list[dict[str, str]]:
    return [{"name": f"{prefix}{name}", "value": str(value)} for name, value in values.items()]
