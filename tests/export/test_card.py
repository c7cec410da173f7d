"""The model card with its header for model hubs, and the bill of materials: known facts only."""

import pytest

from convoy.core import contract, files, yaml
from convoy.export import bom, card
from convoy.export.card import without_header
from exported import LIMITS

ENERGY = {"kwh": 0.00123, "co2_kg": 0.00058, "how": "estimated"}


@pytest.fixture
def written(verified, tmp_path):
    """Write card and bill of materials of the verified project anew; return the text and the document."""
    project, _ = verified

    def write(energy=None, **changes):
        deploy = tmp_path / "deploy"
        deploy.mkdir(exist_ok=True)
        path = project.home / "deploy" / contract.VERIFICATION
        (deploy / contract.VERIFICATION).write_bytes(path.read_bytes())
        card.write(deploy, project.home / "evaluation", LIMITS.model_copy(update=changes), energy)
        return (deploy / "model_card.md").read_text(encoding="utf-8"), files.read_json(deploy / "bom.json")

    return write


def test_the_header_is_what_model_hubs_read(written, verified):
    text, _ = written(licence="Apache-2.0")
    header = yaml.load(text.split("---\n")[1])
    assert (header["pipeline_tag"], header["library_name"]) == ("image-classification", "onnx")
    assert header["license"] == "apache-2.0"
    [model] = header["model-index"]
    assert model["name"] == "miniature"
    [result] = model["results"]
    verification = files.read_json(verified[0].home / "deploy/verification.json")
    assert result["metrics"] == [{"type": "accuracy", "value": verification["accuracy"]}]
    assert result["dataset"] == {
        "type": f"dataset {'d' * 12}",
        "name": f"dataset {'d' * 12}",
        "split": "test",
    }
    assert without_header(text).startswith("# `miniature`, 3 classes")
    assert without_header("# no header\n---\n") == "# no header\n---\n"


def test_names_in_the_header_are_neither_yaml_nor_markup(verified):
    summary = files.read_json(verified[0].home / "evaluation/summary.json")
    verification = files.read_json(verified[0].home / "deploy/verification.json")
    name = '![x](https://evil.example)\n"y": 🙂 <b>'
    text = card.render(verification, {"split": "test"} | summary | {"network": name})
    header = text.split("---\n")[1]
    assert "evil.example" not in header
    assert "<b>" not in header
    assert yaml.load(header)["model-index"][0]["name"] == name


def test_the_card_states_use_licence_energy_and_limits_as_far_as_they_are_known(written):
    text, _ = written(ENERGY, licence="MIT")
    assert "into the 3 classes below. No other use was measured" in text
    assert "Licence: <code>MIT</code>" in text or "Licence: `MIT`" in text
    assert "Energy: 0.0012 kWh and 0.00058 kg CO2 for preparing, training, evaluating and exporting" in text
    assert "(estimated)" in text
    assert "Calibration: expected calibration error 0." in text
    assert "convoy verify URL|FILE" in text
    unknown, _ = written()
    assert "Licence: not stated (`export.licence`)" in unknown
    assert "Energy: not metered" in unknown
    assert "license:" not in unknown


def test_the_bill_of_materials_names_model_data_packages_and_figures(written, verified):
    _, document = written(ENERGY, licence="Apache-2.0")
    verification = files.read_json(verified[0].home / "deploy/verification.json")
    assert (document["bomFormat"], document["specVersion"], document["version"]) == ("CycloneDX", "1.6", 1)
    model = document["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [{"alg": "SHA-256", "content": verification["model"]["sha256"]}]
    assert model["licenses"] == [{"expression": "Apache-2.0"}]
    [accuracy, *others] = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert accuracy == {
        "type": "accuracy",
        "value": str(verification["accuracy"]),
        "slice": "test",
        "confidenceInterval": {
            "lowerBound": str(verification["accuracy_low"]),
            "upperBound": str(verification["accuracy_high"]),
        },
    }
    assert {metric["type"] for metric in others} == {"macro_f1", "ece"}
    environment = model["modelCard"]["considerations"]["environmentalConsiderations"]["properties"]
    assert {"name": "convoy:energy:kwh", "value": "0.00123"} in environment
    data, *packages = document["components"]
    assert data["type"] == "data"
    properties = {each["name"]: each["value"] for each in data["data"][0]["contents"]["properties"]}
    assert properties["convoy:data_hash"] == "d" * 64
    assert int(properties["convoy:images:test"]) == verification["checks"][0]["images"]
    versions = {each["name"]: each["version"] for each in packages}
    assert versions == verification["versions"]
    urls = [each["purl"] for each in packages if each["type"] == "library"]
    assert f"pkg:pypi/onnxruntime@{versions['onnxruntime']}" in urls
    references = [model["bom-ref"], data["bom-ref"], *(each["bom-ref"] for each in packages)]
    assert len({*references}) == len(references)
    [edge] = document["dependencies"]
    assert {edge["ref"], *edge["dependsOn"]} == {*references}


def test_what_is_unknown_is_left_out_and_equal_models_have_equal_documents(written):
    _, first = written()
    _, second = written()
    assert first == second
    model = first["metadata"]["component"]
    assert "licenses" not in model
    assert "environmentalConsiderations" not in model["modelCard"]["considerations"]
    assert first["serialNumber"].startswith("urn:uuid:")


def test_figures_of_the_fp32_network_are_not_those_of_its_int8_copy(verified):
    summary = {"split": "test"} | files.read_json(verified[0].home / "evaluation/summary.json")
    verification = files.read_json(verified[0].home / "deploy/verification.json")
    assert "of the FP32 network" not in card.render(verification, summary)
    verification["model"]["precision"] = "int8"
    assert "precision and recall below, are of the FP32 network" in card.render(verification, summary)
    metrics = bom.make(verification, summary, None, None)["metadata"]["component"]["modelCard"][
        "quantitativeAnalysis"
    ]
    assert [metric["type"] for metric in metrics["performanceMetrics"]] == ["accuracy"]


def keys(value):
    """List every key of a document."""
    if isinstance(value, dict):
        yield from value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        yield from keys(each)


def test_every_key_is_one_of_the_specification(written):
    """Those of CycloneDX 1.6 that the document uses; its JSON schema accepts the document as of the commit that wrote this."""
    _, document = written(ENERGY, licence="Apache-2.0")
    specified = (
        "$schema bomFormat specVersion serialNumber version metadata components dependencies tools component type name bom-ref "
        "description hashes alg content modelCard modelParameters approach task architectureFamily modelArchitecture datasets ref "
        "inputs outputs format quantitativeAnalysis performanceMetrics value slice confidenceInterval lowerBound upperBound "
        "considerations useCases technicalLimitations environmentalConsiderations properties licenses expression data contents purl "
        "dependsOn"
    )
    assert set(keys(document)) == set(specified.split())
    assert bom.SPEC == "1.6"
