"""`convoy demo`: the page in headless Chromium gives Python's answers, and nothing leaves its origin."""

import base64
import hashlib
import io
import re
import tarfile
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from playwright.sync_api import expect
from typer.testing import CliRunner

from browser import opened
from convoy import cli
from convoy.core.errors import RequestError, VerificationError
from convoy.export.onnx_model import OnnxModel
from convoy.images.decode import decode
from convoy.images.resize import Geometry
from convoy.serving import demo
from convoy.serving.model import open_model
from exported import Project
from pages import pictures, runtime, static  # noqa: F401 (a fixture)

IMAGES = 200
GAP = 1e-3

ANSWERS = """async images => {
  const { engine } = await import(new URL("page/demo.js", location));
  const answers = [];
  for (const image of images) {
    const bytes = Uint8Array.from(atob(image), letter => letter.charCodeAt(0));
    answers.push(Object.fromEntries((await engine.answer(new Blob([bytes]))).classes));
  }
  return answers;
}"""


@pytest.fixture(scope="module")
def models(verified, tmp_path_factory):
    """A verified model, and two with another geometry."""
    made = {"squash": verified[0].model}
    for fit in ("crop", "letterbox"):
        project = Project(tmp_path_factory.mktemp(fit))
        classes = {name: Project.noisy(n, 30) for n, name in enumerate(("cat", "dog", "x"))}
        made[fit] = project.export(classes, fit=fit).unverified
    return made


@pytest.fixture(scope="module")
def site(models, runtime, tmp_path_factory):  # noqa: F811
    """A server with a demo of each model."""
    folder = tmp_path_factory.mktemp("site")
    for fit, model in models.items():
        demo.build(str(model), folder / fit, runtime)
    with static(folder) as address:
        yield folder, address


def python_answers(path, images):
    """What `convoy predict` computes, and the names of classes."""
    model = OnnxModel(path, threads=1)
    pixels = [decode(content, background=model.background).image_u8 for content in images]
    return model.predict_mixed(pixels), model.classes


def ready(page):
    expect(page.locator("#model")).to_contain_text("loaded in")


@pytest.mark.parametrize(("fit", "count"), [("squash", IMAGES), ("crop", 40), ("letterbox", 40)])
def test_the_browser_gives_the_answers_of_python(site, models, fit, count):
    _, address = site
    images = [content for _, content in pictures(count)]
    expected, classes = python_answers(models[fit], images)
    with opened(f"{address}/{fit}/index.html") as page:
        ready(page)
        answers = page.evaluate(ANSWERS, [base64.b64encode(content).decode() for content in images])
    got = np.array([[answer[name] for name in classes] for answer in answers])
    assert got.shape == expected.shape == (count, len(classes))
    assert len(set(expected.argmax(axis=1))) > 1
    assert np.abs(got - expected).max() <= GAP
    assert (got.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_a_chosen_file_is_answered_with_bars_the_square_and_feature_maps(site, models, tmp_path):
    folder, address = site
    name, content = pictures(1)[0]
    (tmp_path / name).write_bytes(content)
    (expected,), classes = python_answers(models["squash"], [content])
    with opened(f"{address}/squash/index.html") as page:
        ready(page)
        expect(page.locator("#answer")).to_be_hidden()
        page.set_input_files("#file", tmp_path / name)
        best = int(expected.argmax())
        expect(page.locator("#class")).to_contain_text(f"{classes[best]} {100 * expected[best]:.1f} %")
        assert page.locator("#bars li").count() == len(classes)
        seen = page.evaluate(
            "() => { const one = document.getElementById('seen');"
            "return [...one.getContext('2d').getImageData(0, 0, one.width, one.height).data]; }"
        )
        maps = page.locator(".maps canvas")
        expect(maps).to_have_count(6)
        expect(page.locator("#explanation h3")).to_have_text("conv1: 6 maps, 10 × 10, after Conv, Relu")
        first = page.evaluate(
            "() => new Set(document.querySelector('.maps canvas').getContext('2d').getImageData(0, 0, 10, 10).data).size"
        )
        page.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"no image"})
        expect(page.get_by_role("alert")).to_contain_text("not an image")
    image_u8 = decode(content).image_u8
    square_u8 = Geometry(12, "squash")(image_u8)
    assert np.abs(np.array(seen).reshape(12, 12, 4)[..., :3] - square_u8.astype(int)).max() <= 1
    assert first > 10
    assert (folder / "squash" / "model.onnx").read_bytes() == models["squash"].read_bytes()


def test_a_drawing_and_a_photo_of_the_camera_are_answered(site):
    _, address = site
    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with opened(f"{address}/squash/index.html", *camera) as page:
        ready(page)
        page.get_by_role("button", name="Draw").click()
        box = page.locator("#sheet").bounding_box()
        page.mouse.move(box["x"] + 40, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + 200, box["y"] + 200)
        page.mouse.up()
        expect(page.locator("#details")).to_contain_text("280 × 280 pixels")
        page.get_by_role("button", name="Camera").click()
        page.get_by_role("button", name="Take photo").click()
        expect(page.locator("#details")).to_contain_text("640 × 480 pixels")


def test_golden_images_are_replayed_in_the_browser(site, models):
    _, address = site
    images = len(list((models["squash"].parent / "golden").glob("*.png")))
    with opened(f"{address}/squash/index.html") as page:
        ready(page)
        page.get_by_role("button", name="Replay").click()
        result = page.locator("#replayed")
        expect(result).to_contain_text(f"Same class for {images} of {images} golden images")
        expect(result).to_contain_text("within the limit of 0.0001")
        page.goto(f"{address}/crop/index.html")
        ready(page)
        expect(page.locator("#golden")).to_be_hidden()


def test_no_request_leaves_the_origin_of_the_page(site, tmp_path):
    folder, address = site
    name, content = pictures(1)[0]
    (tmp_path / "elsewhere.txt").write_text("reachable")
    written = b"".join(path.read_bytes() for path in (folder / "squash").glob("[!o]*/*"))
    assert not re.findall(rb"https?://(?!www.w3.org)", written + (folder / "squash/index.html").read_bytes())
    with static(tmp_path) as elsewhere, opened("about:blank") as page:
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"{address}/squash/index.html")
        ready(page)
        page.set_input_files("#file", {"name": name, "mimeType": "image/jpeg", "buffer": content})
        expect(page.locator("#bars li")).to_have_count(3)
        assert any(url.endswith(".wasm") for url in requests)
        outside = [url for url in requests if not url.startswith((f"{address}/squash/", "blob:", "data:"))]
        assert not outside
    with static(tmp_path) as elsewhere, opened(f"{address}/squash/index.html", strict=False) as page:
        ready(page)
        fetching = (
            f"fetch('{elsewhere}/elsewhere.txt', {{mode: 'no-cors'}}).then(() => 'sent', () => 'refused')"
        )
        assert page.evaluate(fetching) == "refused"
        assert page.workers[0].evaluate(fetching) == "refused"
        page.goto(f"{elsewhere}/elsewhere.txt")
        assert page.evaluate(fetching) == "sent"


def model_of(layers, kind=np.float32):
    """An ONNX graph of 3x3 convolutions with the given strides, each with a ReLU."""
    type_ = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes, constants, value, channels = [], [], "image_float", 3
    nodes.append(helper.make_node("Cast", ["image"], ["cast"], to=type_))
    nodes.append(helper.make_node("Transpose", ["cast"], [value], perm=[0, 3, 1, 2]))
    for n, stride in enumerate(layers):
        weight = np.full((2, channels, 3, 3), 0.1, kind)
        constants.append(onnx.numpy_helper.from_array(weight, f"deployable.network.conv{n}.weight"))
        nodes += [
            helper.make_node(
                "Conv", [value, constants[-1].name], [f"c{n}"], strides=[stride] * 2, pads=[1] * 4
            ),
            helper.make_node("Relu", [f"c{n}"], [f"r{n}"]),
        ]
        value, channels = f"r{n}", 2
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("Cast", ["flat"], ["probabilities"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "convoy",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", channels])],
        constants,
    )
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def test_the_first_the_middle_and_the_last_convolution_with_readable_maps_are_shown():
    seen, maps = demo.inner_values(model_of([1, 1, 2, 1, 2, 2, 2]), 32)
    assert seen is None
    assert [one.name for one in maps] == ["conv0", "conv3", "conv5"]
    assert maps[0] == demo.Map("r0", "conv0", ("Conv", "Relu"))
    assert [one.name for one in demo.inner_values(model_of([1, 2]), 32)[1]] == ["conv0", "conv1"]
    assert demo.inner_values(model_of([]), 32) == (None, [])
    assert demo.inner_values(model_of([1], np.float16), 32) == (None, [])


def test_appended_outputs_leave_the_answers_as_they_are(verified):
    content = verified[0].model.read_bytes()
    seen, maps = demo.inner_values(content, 12)
    assert (seen, [one.output for one in maps]) == ("pixels", ["relu"])
    plain = onnxruntime.InferenceSession(content)
    longer = onnxruntime.InferenceSession(content + demo.declared(["pixels", "relu"]))
    assert [one.name for one in longer.get_outputs()] == ["probabilities", "logits", "pixels", "relu"]
    image_u8 = Project.noisy(5, 1)[0][None]
    expected, got = (one.run(["probabilities"], {"image": image_u8})[0] for one in (plain, longer))
    assert (expected == got).all()


def test_another_tarball_is_refused_with_both_hashes(verified, tmp_path):
    other = tmp_path / "other.tgz"
    with tarfile.open(other, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("package/dist/ort.wasm.min.mjs"), io.BytesIO())
    with pytest.raises(VerificationError) as caught:
        demo.build(str(verified[0].model), tmp_path / "page", other)
    own = base64.b64encode(hashlib.sha512(other.read_bytes()).digest()).decode()
    assert own in str(caught.value)
    assert demo.INTEGRITY in str(caught.value)
    assert not (tmp_path / "page").exists()


def test_without_npm_the_error_names_both_ways_out(verified, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequestError) as caught:
        demo.build(str(verified[0].model), tmp_path / "page")
    assert "Install Node.js" in str(caught.value)
    assert f"npm pack onnxruntime-web@{demo.VERSION} && convoy demo" in str(caught.value)
    assert f"--runtime onnxruntime-web-{demo.VERSION}.tgz" in str(caught.value)


def test_what_npm_reports_is_in_the_error_without_credentials(verified, tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text(
        "#!/bin/sh\necho 'npm error 404 https://me:hush@example.org/onnxruntime-web' >&2\nexit 1\n"
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(RequestError) as caught:
        demo.build(str(verified[0].model), tmp_path / "page")
    assert "npm error 404" in str(caught.value)
    assert "--runtime" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_folder_with_other_files_is_refused_and_an_earlier_demo_replaced(verified, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_runtime_files", lambda tarball: dict.fromkeys(demo.RUNTIME, b""))
    page = tmp_path / "page"
    page.mkdir()
    (page / "thesis.txt").touch()
    with pytest.raises(RequestError, match=r"thesis\.txt"):
        demo.build(str(verified[0].model), page, tmp_path)
    (page / "thesis.txt").unlink()
    for _ in range(2):
        demo.build(str(verified[0].model), page, tmp_path)
    assert sorted(path.name for path in page.iterdir()) == [
        "demo.json", "golden", "index.html", "model.onnx", "onnxruntime", "outputs.pb", "page",
    ]  # fmt: skip
    with pytest.raises(RequestError, match="is a file"):
        demo.build(str(verified[0].model), page / "demo.json", tmp_path)
    with pytest.raises(RequestError, match="dvc repro"):
        demo.build(str(tmp_path / "no.onnx"), page, tmp_path)


def test_a_version_of_the_registry_is_named_by_its_number(verified, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_runtime_files", lambda tarball: dict.fromkeys(demo.RUNTIME, b""))
    champion = replace(open_model(str(verified[0].model)), name="convoy/7", version="7")
    monkeypatch.setattr(demo, "open_model", lambda source, **_: champion)
    facts = demo.build("champion", tmp_path / "page", tmp_path)
    assert facts["name"] == "convoy/7 of run run-7"
    assert facts["golden"]
    assert (tmp_path / "page/model.onnx").read_bytes() == verified[0].model.read_bytes()


def test_the_command_prints_where_the_page_is_and_how_to_open_it(verified, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_runtime_files", lambda tarball: dict.fromkeys(demo.RUNTIME, b"0" * 10**6))
    words = [
        "demo",
        str(tmp_path / "page"),
        "--model",
        str(verified[0].model),
        "--runtime",
        str(tmp_path / "x.tgz"),
    ]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    printed = " ".join(done.stdout.split())
    assert f"{tmp_path}/page (3 MB, with onnxruntime-web {demo.VERSION})" in printed
    assert f"python -m http.server 8080 --bind 127.0.0.1 --directory {tmp_path}/page" in printed
