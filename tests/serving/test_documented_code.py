"""The code that the pages show for use without Convoy answers as `convoy predict` does, on every kind of file that it reads."""

import ast
import re
import runpy
import shutil

import numpy as np
import onnx
import pytest
from PIL import Image, ImageCms, ImageFile

from convoy.core import contract
from convoy.export.onnx_model import OnnxModel
from convoy.serving.predict import predict
from icc import ADOBE_RGB, CMYK, DISPLAY_P3, GRAY

PAGES = ("docs/deployment.md", "model_card.md")
WITHOUT_CONVOY = {"contextlib", "io", "json", "numpy", "onnxruntime", "PIL"}
PX = 24
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def noise(channels, dtype=np.uint8):
    most = np.iinfo(dtype).max
    return (
        np.random.default_rng(channels).integers(0, most, (PX, PX, channels), dtype, endpoint=True).squeeze()
    )


def rgb():
    return Image.fromarray(noise(3))


def rgba():
    return Image.fromarray(noise(4))


def upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


FILES = {
    "plain.jpg": (rgb, {}),
    "gray.png": (lambda: Image.fromarray(noise(1)), {}),
    "black_and_white.png": (lambda: Image.fromarray(noise(1)).convert("1"), {}),
    "transparent.png": (rgba, {}),
    "transparent.webp": (rgba, {"lossless": True}),
    "transparent_gray.png": (lambda: rgba().convert("LA"), {}),
    "transparent_color.png": (rgb, {"transparency": tuple(noise(3)[0, 0])}),
    "palette.png": (lambda: rgb().quantize(16), {}),
    "palette_transparent.png": (lambda: rgb().quantize(4), {"transparency": 2}),
    "palette.gif": (lambda: rgb().quantize(16), {}),
    "gray_16_bit.png": (lambda: Image.fromarray(noise(1, np.uint16)), {}),
    "gray_16_bit.tif": (lambda: Image.fromarray(noise(1, np.uint16)), {}),
    "gray_16_bit.ppm": (lambda: Image.fromarray(noise(1, np.uint16)), {}),
    "gray_16_bit_turned.png": (lambda: Image.fromarray(noise(1, np.uint16)), upright(5)),
    "cmyk.jpg": (lambda: rgb().convert("CMYK"), {}),
    "cmyk.tif": (lambda: Image.fromarray(noise(4), "CMYK"), {}),
    "lab.tif": (lambda: Image.fromarray(noise(3), "LAB"), {}),
    **{f"turned_{n}.jpg": (rgb, upright(n)) for n in range(2, 9)},
    "animated.gif": (rgb, {"save_all": True, "append_images": [Image.new("RGB", (PX, PX))]}),
    "animated.webp": (
        rgba,
        {"save_all": True, "lossless": True, "append_images": [Image.new("RGBA", (PX, PX))]},
    ),
    "animated.png": (rgba, {"save_all": True, "append_images": [Image.new("RGBA", (PX, PX))]}),
    "animated.avif": (rgb, {"save_all": True, "append_images": [Image.new("RGB", (PX, PX))]}),
    "plain.bmp": (rgb, {}),
    "plain.jp2": (rgb, {}),
    "plain.avif": (rgb, {}),
    "transparent.avif": (rgba, {}),
    "turned.avif": (rgb, upright(6)),
    "display_p3.jpg": (rgb, {"icc_profile": DISPLAY_P3}),
    "display_p3.avif": (rgb, {"icc_profile": DISPLAY_P3}),
    "adobe_rgb.tif": (rgb, {"icc_profile": ADOBE_RGB}),
    "adobe_rgb_transparent.png": (rgba, {"icc_profile": ADOBE_RGB}),
    "adobe_rgb_palette.png": (lambda: rgb().quantize(16), {"icc_profile": ADOBE_RGB}),
    "linear_gray.png": (lambda: Image.fromarray(noise(1)), {"icc_profile": GRAY}),
    "linear_gray_transparent.png": (lambda: rgba().convert("LA"), {"icc_profile": GRAY}),
    "cmyk_profile.jpg": (lambda: rgb().convert("CMYK"), {"icc_profile": CMYK}),
    "cmyk_profile.tif": (lambda: Image.fromarray(noise(4), "CMYK"), {"icc_profile": CMYK}),
    "lab_profile.tif": (lambda: Image.fromarray(noise(3), "LAB"), {"icc_profile": LAB}),
    "profile_of_another_space.png": (rgb, {"icc_profile": CMYK}),
}


@pytest.fixture(scope="module")
def code(repository, verified):
    """Take the code of each page, by its name; it reads `image.png`."""

    def compiled(page):
        folder = repository if page != "model_card.md" else verified[0].home / "deploy"
        blocks = re.findall(r"```python\n(.*?)```", (folder / page).read_text(encoding="utf-8"), re.DOTALL)
        [text] = [block for block in blocks if "mlflow" not in block]
        assert imported(text) <= WITHOUT_CONVOY
        text, files = re.subn(r'Image\.open\("[^"]+"\)', 'Image.open("image.png")', text)
        text, models = re.subn(r'InferenceSession\("[^"]+"\)', 'InferenceSession("model.onnx")', text)
        assert (files, models) == (1, 1)
        return text

    return {page: compiled(page) for page in PAGES}


def imported(text):
    nodes = list(ast.walk(ast.parse(text)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    assert names
    return {name.partition(".")[0] for name in names}


def test_every_page_with_such_code_is_compared(repository):
    pages = [
        "README.md",
        *(path.relative_to(repository).as_posix() for path in (repository / "docs").glob("*.md")),
    ]
    found = {
        page
        for page in pages
        if "Image.open("
        in re.sub(r"```bash.*?```", "", (repository / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    }
    assert found | {"model_card.md"} == set(PAGES)


def answers_as_predict_does(code, model, folder, name):
    """Compare the code of every page with `predict` on a file in `folder`, the current one."""
    (answer,) = predict(OnnxModel(model, threads=1), [folder / name])
    assert answer.reason == ""
    shutil.copy(folder / name, folder / "image.png")
    for page in PAGES:
        (folder / "use.py").write_text(code[page], encoding="utf-8")
        found = runpy.run_path("use.py")
        assert found["probabilities"][0] == pytest.approx(answer.probabilities, abs=1e-6), f"{page} on {name}"
    return answer


@pytest.mark.parametrize("name", FILES)
def test_the_code_of_every_page_answers_as_predict_does(code, verified, name, tmp_path, monkeypatch):
    make, options = FILES[name]
    make().save(tmp_path / name, **options)
    shutil.copy(verified[0].model, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # as it is after the test
    answers_as_predict_does(code, verified[0].model, tmp_path, name)


@pytest.mark.parametrize(
    "name", ["transparent.png", "transparent_gray.png", "palette_transparent.png", "transparent.webp"]
)
def test_the_code_uses_the_background_of_the_model(code, verified, name, tmp_path, monkeypatch):
    make, options = FILES[name]
    make().save(tmp_path / name, **options)
    graph = onnx.load(verified[0].model)
    next(entry for entry in graph.metadata_props if entry.key == contract.BACKGROUND).value = "#102030"
    onnx.save(graph, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    answer = answers_as_predict_does(code, tmp_path / "model.onnx", tmp_path, name)
    (white,) = predict(OnnxModel(verified[0].model, threads=1), [tmp_path / name])
    assert not np.array_equal(white.probabilities, answer.probabilities)


@pytest.mark.parametrize(
    "name", ["photo.jpg", "photo.png", "photo.gif", "photo.bmp", "photo.ppm", "photo.tif"]
)
def test_the_code_reads_truncated_files_as_predict_does(code, verified, name, tmp_path, monkeypatch):
    """The last row of a high image is missing: less than a percent."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2560, PX, 3), np.uint8))
    (picture.quantize(64) if name.endswith("gif") else picture).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: -max(20, len(content) // 300)])
    shutil.copy(verified[0].model, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    answers_as_predict_does(code, verified[0].model, tmp_path, name)
