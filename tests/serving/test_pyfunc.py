"""A logged model loads as an MLflow pyfunc that takes image files, in an environment without Convoy."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from convoy.core import contract, files
from convoy.core.errors import RequestError
from convoy.export.onnx_model import OnnxModel
from convoy.serving.pyfunc import ImageClassifier
from convoy.tracking import mlflow_writer, store


@pytest.fixture(scope="module")
def logged(verified, empty_store, tmp_path_factory):
    """The folder of a model that a run logged, as in the tracking store."""
    project, _ = verified
    home = tmp_path_factory.mktemp("logged")
    (home / "mlflow.db").write_bytes(empty_store.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
        patch.chdir(home)
        client = store.connect()
        run = client.create_run(client.create_experiment("convoy", artifact_location=str(home / "artifacts")))
        sha256 = files.sha256(project.model)
        source = home / "files"
        source.mkdir()
        for name in (contract.VERIFIED, contract.MODEL_CARD):
            (source / name).write_bytes((project.model.parent / name).read_bytes())
        model = mlflow_writer.log_model(client, run, source, sha256, [])
    return Path(model.artifact_location.removeprefix("file://"))


def png(image_u8):
    stream = io.BytesIO()
    Image.fromarray(image_u8).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture
def images(built, tmp_path):
    """Two images of different sizes, and a file of each."""
    first, second = built.noisy(9, 2)
    pixels = [first, second[:15]]
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, image_u8 in zip(paths, pixels, strict=True):
        path.write_bytes(png(image_u8))
    return pixels, paths


@pytest.fixture
def expected(verified, images):
    """The (2, K) probabilities of the verified graph."""
    return OnnxModel(verified[0].model).predict_mixed(images[0])


def test_every_form_of_input_gets_the_verified_answers(logged, images, expected):
    model = mlflow.pyfunc.load_model(str(logged))
    pixels, paths = images
    contents = [path.read_bytes() for path in paths]
    text = [base64.b64encode(content).decode() for content in contents]
    for given in (
        pd.DataFrame({"image": contents}),
        pd.DataFrame({"image": text}),
        pd.DataFrame({"image": list(pixels)}),
        pd.DataFrame({"image": [pixels[0].tolist(), pixels[1].tolist()]}),
        pd.DataFrame({"path": [str(path) for path in paths]}),
        pd.DataFrame({"image": [contents[0], None], "path": [None, str(paths[1])]}),
    ):
        answers = model.predict(given)
        assert answers["error"].isna().all()
        assert np.allclose(np.stack(answers["probabilities"]), expected, rtol=0, atol=1e-6)
        assert np.allclose(answers["probability"], expected.max(axis=1), rtol=0, atol=1e-6)
        assert [answers["class"][n] for n in range(2)] == [
            ("Bär", "cat|dog", "x")[k] for k in expected.argmax(axis=1)
        ]


def test_arrays_and_lists_are_taken_without_mlflow(verified, images, expected):
    model = ImageClassifier(OnnxModel(verified[0].model))
    pixels, paths = images
    for given in (
        [paths[0].read_bytes(), str(paths[1])],
        np.stack([pixels[0]] * 2),
        pixels[0],
        {"image": pixels},
    ):
        answers = model.predict(given)
        assert np.allclose(answers["probabilities"][0], expected[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (b"hello", "is not an image"),
        (b"", "is empty"),
        ("no base64!", "not base64"),
        (Path("nowhere.png"), "No such file"),
        (np.zeros((4, 4), np.uint8), r"\(H, W, 3\)"),
        (np.full((4, 4, 3), 300), "from 300 to 300"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (None, r"\(H, W, 3\)"),
    ],
)
def test_a_bad_row_gets_a_reason_and_the_others_their_answer(verified, images, expected, cell, reason):
    model = ImageClassifier(OnnxModel(verified[0].model))
    bad, good = model.predict({"image": [cell, images[1][0].read_bytes()]}).to_dict("records")
    assert pd.isna(bad["class"])
    assert pd.isna(bad["probability"])
    assert re.search(reason, bad["error"])
    assert good["probabilities"] == pytest.approx(expected[0].tolist(), abs=1e-6)


@pytest.mark.parametrize(("given", "fact"), [(pd.DataFrame({"picture": [b""]}), "picture"), (7, "int")])
def test_other_inputs_are_refused_with_what_is_taken(verified, given, fact):
    with pytest.raises(RequestError, match=fact) as caught:
        ImageClassifier(OnnxModel(verified[0].model)).predict(given)
    assert "`image`" in str(caught.value)
    assert "`path`" in str(caught.value)


SCORE = """
import sys
sys.path = [path for path in sys.path if not path.rstrip("/").endswith("src")]
sys.modules["torch"] = sys.modules["rich"] = None  # in no environment of a served model
from mlflow.pyfunc.scoring_server import load_model_with_mlflow_config, invocations
from mlflow.pyfunc import load_model
model = load_model(sys.argv[1])
answer = invocations(sys.stdin.read(), "application/json", model, model.metadata.get_input_schema())
assert answer.status == 200, answer.response
import convoy
assert convoy.__file__.startswith(sys.argv[1]), convoy.__file__
print(answer.response)
"""


def test_the_scoring_server_answers_with_the_code_that_the_model_brings(logged, images, expected):
    """As in the environment of `mlflow models serve`, `predict` and `build-docker`: nothing of Convoy is installed."""
    request = {
        "dataframe_split": {
            "columns": ["image"],
            "data": [[base64.b64encode(images[1][0].read_bytes()).decode()]],
        }
    }
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(logged)],
        input=json.dumps(request),
        text=True,
        capture_output=True,
        check=False,
        cwd=logged,
        env={name: text for name, text in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    [answer] = json.loads(done.stdout.splitlines()[-1])["predictions"]
    assert answer["probabilities"] == pytest.approx(expected[0].tolist(), abs=1e-6)


def test_the_example_and_the_requirements_are_those_of_the_input(logged):
    model = mlflow.pyfunc.load_model(str(logged))
    [answer] = model.predict(model.input_example).to_dict("records")
    assert pd.isna(answer["error"])
    assert {"pillow", "onnxruntime", "numpy", "pandas"} <= {
        line.split("=")[0] for line in (logged / "requirements.txt").read_text().split()
    }
