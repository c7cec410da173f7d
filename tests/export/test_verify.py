import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from convoy.core import files
from convoy.core.errors import VerificationError
from convoy.export import latency, verify
from convoy.export.settings import ExportParams
from convoy.export.verify import prove

LIMITS = ExportParams(max_label_flips=0, max_probability_gap=1e-4, latency_runs=10)


@pytest.fixture
def prove_here(monkeypatch):
    """Prove in this process, which has torch, and without timing: return the refusal, empty where there is none."""
    figures = {"latency_ms_p50": 1.0, "latency_ms_p95": 2.0, "images_per_second": 3.0}
    timed = {"image_px": 12, "runs": 10, "threads": 1, "batch": 32, "onnx": figures, "eager": figures}
    monkeypatch.setattr(latency, "measure", lambda *_: timed)
    monkeypatch.setattr(verify, "_refuse_torch", lambda: None)

    def prove_project(project, **limits):
        home = project.home
        try:
            prove(
                home / "deploy",
                home / "model",
                home / "data",
                home / "evaluation",
                LIMITS.model_copy(update=limits),
            )
        except VerificationError as error:
            assert not project.model.exists()
            return str(error)
        assert project.model.is_file()
        return ""

    return prove_project


def test_a_faithful_graph_is_proven_and_gets_its_name_unchanged(built, proved):
    project, outcome = proved
    assert outcome.message == ""
    assert not project.unproven.exists()
    assert project.model.read_bytes() == built.unproven.read_bytes()
    verification = files.read_json(project.home / "deploy" / "verification.json")
    assert verification["model"]["sha256"] == hashlib.sha256(project.model.read_bytes()).hexdigest()
    assert verification["model"]["identity"]["run_id"] == "run-7"


def test_the_proof_never_imports_torch(proved):
    project, outcome = proved
    assert outcome.torch is False
    assert files.read_json(project.home / "deploy" / "verification.json")["torch_imported"] is False


def test_the_proof_refuses_a_process_that_has_imported_torch(built):
    assert torch
    home = built.home
    with pytest.raises(VerificationError, match=r"torch is imported .*export\.py prove"):
        prove(home / "deploy", home / "model", home / "data", home / "evaluation", LIMITS)


def test_the_reported_figures_cover_the_whole_test_split(proved):
    project, outcome = proved
    deploy = outcome.metrics["deploy"]
    summary = files.read_json(project.home / "evaluation" / "summary.json")
    assert deploy["accuracy"] == summary["test"]["accuracy"]
    assert deploy["label_flips"] == 0
    assert 0 <= deploy["max_probability_gap"] < 1e-5
    assert deploy["size_mb"] == project.model.stat().st_size / 1e6
    for kind in ("", "eager_"):
        assert deploy[f"{kind}latency_ms_p95"] >= deploy[f"{kind}latency_ms_p50"] > 0
        assert deploy[f"{kind}images_per_second"] > 0
    checks = files.read_json(project.home / "deploy" / "verification.json")["checks"]
    assert checks[0]["images"] == summary["test"]["images"] > 20
    assert [check["check"] for check in checks[1:]] == [
        *(f"batches of {size}" for size in (1, 2, 7, 64)),
        "odd image sizes, raw against packed",
    ]


def test_the_control_notices_a_mean_that_is_off_by_one_step_of_a_pixel(proved):
    control = files.read_json(proved[0].home / "deploy" / "verification.json")["negative_control"]
    assert control["caught"] is True
    assert control["mean_shift"] == pytest.approx(1 / 255)
    assert control["probability_gap"] > control["max_probability_gap"]


def test_the_code_on_the_model_card_runs_and_names_a_class(proved, tmp_path):
    project, _ = proved
    card = (project.home / "deploy" / "model_card.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) == 6
    shutil.copy(project.model, tmp_path / "model.onnx")
    Image.fromarray(project.noisy(5, 1)[0]).save(tmp_path / "image.png")
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    label, probability = said.stdout.rsplit(" ", 1)
    assert label in {"Bär", "cat|dog", "x"}
    assert 1 / 3 <= float(probability) <= 1


def test_the_model_card_keeps_class_names_inside_their_cells(proved):
    card = (proved[0].home / "deploy" / "model_card.md").read_text(encoding="utf-8")
    (row,) = [line for line in card.splitlines() if line.startswith("| cat")]
    assert row.startswith("| cat\\|dog | ")
    assert row.replace("\\|", "").count("|") == 7


def test_a_graph_that_answers_otherwise_is_refused_with_its_worst_image(project):
    project.model.write_bytes(b"an older proof's")
    _shift_mean(project.unproven, 0.1)
    outcome = project.prove()
    assert outcome.message.startswith(
        "VerificationError: the exported graph does not answer as it was measured."
    )
    assert "whole test split from delivered files" in outcome.message
    assert "export.max_probability_gap is 0.0001" in outcome.message
    paths = pq.read_table(project.home / "evaluation" / "predictions.parquet").column("path").to_pylist()
    assert outcome.message.split("Worst image: ")[1].splitlines()[0] in paths
    assert "  expected " in outcome.message
    assert project.unproven.is_file()
    assert sorted(path.name for path in (project.home / "deploy").iterdir()) == ["model.unverified.onnx"]


def test_a_flip_is_allowed_only_when_params_allow_it(project, prove_here):
    predictions = project.home / "evaluation" / "predictions.parquet"
    table = pq.read_table(predictions).to_pydict()
    # Two classes of the first image change places: one flip, with a gap that the loose limit allows.
    first = table["probabilities"][0]
    order = np.argsort(first)
    first[order[-1]], first[order[-2]] = first[order[-2]], first[order[-1]]
    classes = files.read_json(project.home / "evaluation" / "summary.json")["classes"]
    table["predicted"][0] = classes[int(order[-2])]
    pq.write_table(pa.table(table), predictions)
    refused = prove_here(project, max_probability_gap=0.999)
    assert "1 of" in refused
    assert f"Worst image: {table['path'][0]}" in refused
    assert prove_here(project, max_label_flips=1, max_probability_gap=0.999) == ""


def test_a_graph_that_answers_with_nan_is_refused(project, prove_here):
    _shift_mean(project.unproven, float("nan"))
    message = prove_here(project, max_probability_gap=1.0, max_label_flips=1000)
    assert "largest probability gap is inf" in message
    assert "no numbers (NaN)" in message


def test_limits_that_forgive_everything_are_no_proof(project, prove_here):
    message = prove_here(project, max_probability_gap=1.0, max_label_flips=1000)
    assert message.startswith("The proof has no power: a graph whose mean is off by 1,")
    assert "export.max_label_flips: 0" in message
    assert not project.model.exists()


def test_a_test_image_that_is_no_longer_delivered_is_named(project, prove_here):
    path = pq.read_table(project.home / "evaluation" / "predictions.parquet").column("path")[4].as_py()
    (project.home / "data" / path).unlink()
    message = prove_here(project)
    assert (
        f"1 of {_test_images(project)} test images are no longer delivered, the first being {path}" in message
    )
    assert "dvc repro" in message


def test_a_test_image_that_changed_since_it_was_prepared_is_named(project, prove_here):
    path = pq.read_table(project.home / "evaluation" / "predictions.parquet").column("path")[4].as_py()
    Image.new("RGB", (9, 9), "red").save(project.home / "data" / path)
    message = prove_here(project)
    assert f"no longer the file that was prepared, the first being {path}" in message


def test_predictions_that_contradict_themselves_are_refused(project, prove_here):
    predictions = project.home / "evaluation" / "predictions.parquet"
    table = pq.read_table(predictions).to_pydict()
    table["probabilities"][2] = table["probabilities"][2][::-1]
    table["predicted"] = ["x"] * len(table["predicted"])
    pq.write_table(pa.table(table), predictions)
    assert "contradicts itself: the predicted class of" in prove_here(project)


def test_what_is_missing_is_named_with_the_command_that_makes_it(project, prove_here):
    (project.home / "evaluation" / "summary.json").unlink()
    message = prove_here(project)
    assert "summary.json does not exist. Measure the model first: dvc repro evaluate" in message
    project.unproven.unlink()
    message = prove_here(project)
    assert "there is nothing to prove. Build it: dvc repro export" in message


def test_a_graph_of_other_classes_is_refused(project, prove_here):
    graph = onnx.load(project.unproven)
    (classes,) = [entry for entry in graph.metadata_props if entry.key == "convoy.classes"]
    classes.value = json.dumps(["a", "b", "c"])
    onnx.save(graph, project.unproven)
    assert "answers with the classes a, b, c;" in prove_here(project)


def test_proving_again_leaves_what_was_proven_alone(proved):
    project, _ = proved
    message = project.prove().message
    assert "model.unverified.onnx does not exist, so there is nothing to prove" in message
    assert project.model.is_file()
    assert (project.home / "deploy" / "verification.json").is_file()


def test_an_archive_is_proven_as_the_folder_is(project, prove_here):
    packed = shutil.make_archive(str(project.home / "packed"), "gztar", project.home / "data")
    shutil.rmtree(project.home / "data")
    shutil.move(packed, project.home / "data")
    assert prove_here(project) == ""


def test_two_classes_of_flat_gray_images_are_proven_with_letterbox(empty, prove_here):
    """Gray leaves the statistics without spread and the answers without contrast: the control must still work."""
    grays = [np.full((7 + n % 3, 20, 3), n, np.uint8) for n in range(0, 200, 2)]
    empty.take({"dark": grays[:50], "light": grays[50:]}, fit="letterbox")
    assert prove_here(empty) == ""


def test_cropped_images_are_proven(empty, prove_here):
    empty.take({name: empty.noisy(n, 15) for n, name in enumerate("ab")}, fit="crop")
    assert prove_here(empty) == ""


def _shift_mean(model, shift):
    graph = onnx.load(model)
    (mean,) = [one for one in graph.graph.initializer if one.name == "deployable.mean"]
    mean.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(mean) + np.float32(shift), mean.name))
    onnx.save(graph, model)


def _test_images(project):
    return files.read_json(project.home / "evaluation" / "summary.json")["test"]["images"]
