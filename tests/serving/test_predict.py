import json
import subprocess
import sys

import pytest
from PIL import Image

from convoy.core.errors import RequestError
from convoy.export.onnx_model import OnnxModel
from convoy.serving.predict import predict, show


@pytest.fixture
def folder(built, tmp_path):
    """Two images, one without a suffix; one broken; a text; what a system leaves behind."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    (folder / "__MACOSX").mkdir()
    first, second = built.noisy(9, 2)
    Image.fromarray(first).save(folder / "b.png")
    Image.fromarray(second).save(folder / "deeper" / "no_suffix", format="JPEG")
    (folder / "a.jpg").write_bytes((folder / "deeper" / "no_suffix").read_bytes()[:200])
    (folder / "readme.txt").write_text("no image")
    (folder / "empty.png").touch()
    (folder / "__MACOSX" / "._b.png").write_text("resource fork")
    return folder


def test_a_folder_is_walked_by_content_and_one_bad_file_does_not_stop_the_rest(built, folder):
    answers = {
        prediction.path.relative_to(folder).as_posix(): prediction.reason or prediction.label
        for prediction in predict(built.unverified, [folder])
    }
    assert list(answers) == ["a.jpg", "b.png", "deeper/no_suffix", "empty.png"]
    assert answers["a.jpg"].startswith("cannot be decoded")
    assert answers["empty.png"] == "is empty (0 bytes)"
    assert {answers["b.png"], answers["deeper/no_suffix"]} <= {"Bär", "cat|dog", "x"}


def test_a_prediction_is_the_most_probable_class_of_the_model(built, folder):
    (prediction,) = predict(built.unverified, [folder / "b.png"])
    model = OnnxModel(built.unverified)
    probabilities = model(built.noisy(9, 1)[0][None])[0]
    assert prediction.label == model.classes[probabilities.argmax()]
    assert list(prediction.probabilities) == list(model.classes)
    assert list(prediction.probabilities.values()) == pytest.approx(probabilities, abs=1e-6)


def test_every_given_path_gets_a_prediction_or_a_reason_in_its_order(built, folder, tmp_path):
    (tmp_path / "void").mkdir()
    paths = [tmp_path / "nowhere.png", folder / "b.png", folder / "readme.txt", tmp_path / "void"]
    predictions = list(predict(built.unverified, paths))
    assert [prediction.path for prediction in predictions] == paths
    gone, good, text, void = [prediction.reason for prediction in predictions]
    assert gone == "cannot be read: No such file or directory"
    assert good is None
    assert text.startswith("is not an image in a supported format")
    assert void == "contains no images"


def test_a_missing_model_is_reported_before_any_image_is_read(tmp_path):
    with pytest.raises(RequestError, match=r"model\.onnx does not exist"):
        predict(tmp_path / "model.onnx", [tmp_path])


def test_the_exit_code_is_1_if_a_file_has_no_prediction(built, folder, capsys):
    assert show(predict(built.unverified, [folder / "b.png"]), as_json=False) == 0
    path, label, probability = capsys.readouterr().out.split(" ")
    assert path == f"{folder / 'b.png'}:"
    assert label in {"Bär", "cat|dog", "x"}
    assert 0 < float(probability) <= 1
    assert show(predict(built.unverified, [folder]), as_json=False) == 1
    assert f"{folder / 'a.jpg'}: ERROR: cannot be decoded" in capsys.readouterr().out


def test_json_is_one_object_per_line(built, folder, capsys):
    assert show(predict(built.unverified, [folder]), as_json=True) == 1
    broken, good, *_ = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert set(broken) == {"path", "error"}
    assert set(good) == {"path", "class", "probability", "probabilities"}
    assert good["probability"] == max(good["probabilities"].values())


def test_nan_is_an_error(built, folder, monkeypatch):
    monkeypatch.setattr(OnnxModel, "__call__", lambda self, images_u8: images_u8[:, 0, 0] * float("nan"))
    (prediction,) = predict(built.unverified, [folder / "b.png"])
    assert prediction.reason == "the model outputs NaN"


def test_predicting_imports_no_torch():
    code = "import sys, convoy.serving.predict; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
