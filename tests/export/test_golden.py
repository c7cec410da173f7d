"""Golden images: which test images are chosen, whatever order they arrive in, and what is written of them."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from convoy.core import files
from convoy.export import golden
from convoy.export.golden import GoldenImages, turns
from convoy.export.onnx_model import OnnxModel
from convoy.images.decode import Decoded, decode

CLASSES = ("a", "b", "c")
SURE = np.array([0.9, 0.06, 0.04], np.float32)
TIE = np.array([0.5001, 0.4999, 0.0], np.float32)


def decoded(lost=0.0, kind="JPEG"):
    return Decoded(np.zeros((4, 5, 3), np.uint8), "RGB", kind, lost)


def chosen(offers, labels=(0,) * 4, count=1, folder=None):
    images = GoldenImages(np.array(labels), count, 1e-6)
    for row, content, image, probabilities in offers:
        images.offer(row, content, image, probabilities)
    images.write(folder, CLASSES, "white")
    return files.read_json(folder / "golden.json")


def test_classes_take_turns_and_no_image_is_a_candidate_twice():
    labels = np.array([0, 0, 0, 0, 1, 0, 2, 1, 0, 0])
    planned = turns(labels, 6)
    by_turn = {turn: [row for row, at in planned.items() if at == turn] for turn in planned.values()}
    assert [labels[rows[0]] for _, rows in sorted(by_turn.items())] == [0, 1, 2, 0, 1, 0]
    assert by_turn[0] == [0, 3, 9]
    assert by_turn[1] == [4]
    assert turns(labels, 99).keys() == set(range(10))
    assert turns(labels, 0) == {}


@pytest.mark.parametrize(
    ("offers", "expected"),
    [
        ({0: (b"x", 0.0, SURE), 1: (b"y", 0.0, SURE)}, b"x"),
        ({0: (b"x" * 70_000, 0.0, SURE), 1: (b"y" * 66_000, 0.0, SURE)}, b"y"),
        ({0: (b"x", 0.2, SURE), 1: (b"y" * 99_000, 0.0, SURE)}, b"y"),
        ({0: (b"x", 0.0, TIE), 1: (b"y" * 99_000, 0.1, SURE)}, b"y"),
    ],
    ids=["first", "smaller", "whole", "no tie"],
)
def test_the_best_candidate_is_chosen_in_whatever_order_they_arrive(tmp_path, offers, expected):
    listed = [(row, content, decoded(lost), answer) for row, (content, lost, answer) in offers.items()]
    for order in (listed, listed[::-1]):
        facts = chosen(order, folder=tmp_path)
        assert [image["file"] for image in facts["images"]] == ["00.jpg"]
        assert (tmp_path / "00.jpg").read_bytes()[:1] == expected


def test_all_files_together_are_a_few_megabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(golden, "MOST_BYTES", 100)
    sizes = [60, 50, 40]
    offers = [(row, bytes(size), decoded(), SURE) for row, size in enumerate(sizes)]
    facts = chosen(offers, labels=(0, 1, 2), count=3, folder=tmp_path)
    assert [(tmp_path / image["file"]).stat().st_size for image in facts["images"]] == [60, 40]


def test_a_row_of_an_array_is_written_as_a_png_of_its_pixels(tmp_path):
    image_u8 = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    facts = chosen([(0, b"P6 5 4 255 ", Decoded(image_u8, "RGB", "PPM"), SURE)], folder=tmp_path)
    assert facts["note"].startswith("PNG of the pixels")
    assert facts["images"][0]["file"] == "00.png"
    assert np.array_equal(decode((tmp_path / "00.png").read_bytes()).image_u8, image_u8)


def test_an_export_writes_delivered_files_under_neutral_names_with_the_answers_of_the_graph(verified):
    project, _ = verified
    folder = project.home / "deploy/golden"
    facts = files.read_json(folder / "golden.json")
    assert facts["classes"] == ["Bär", "cat|dog", "x"]
    assert (facts["max_probability_gap"], facts["background"]) == (1e-4, "white")
    delivered = {path.read_bytes(): path for path in (project.home / "data").rglob("*.png")}
    model = OnnxModel(project.model)
    labels = []
    for n, image in enumerate(facts["images"]):
        assert image["file"] == f"{n:02}.png"
        content = (folder / image["file"]).read_bytes()
        labels.append(delivered[content].parent.name)
        pixels_u8 = np.asarray(Image.open(io.BytesIO(content)))
        expected = model(pixels_u8[None])[0]
        assert np.abs(np.array(image["probabilities"]) - expected).max() < 1e-6
        assert image["class"] == model.classes[expected.argmax()]
    assert len(labels) == 30
    assert {labels.count(name) for name in facts["classes"]} == {10}
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["golden.json", *(image["file"] for image in facts["images"])]
    )
    assert "Bär" not in json.dumps([image["file"] for image in facts["images"]])


def test_without_golden_images_there_is_no_folder(tmp_path):
    (tmp_path / "golden").mkdir()
    images = GoldenImages(np.zeros(4, np.int64), 0, 1e-4)
    images.offer(0, b"x", decoded(), SURE)
    assert images.write(tmp_path / "golden", CLASSES, "white") == 0
    assert not (tmp_path / "golden").exists()


def test_golden_images_of_an_earlier_export_are_removed(project):
    stale = project.home / "deploy/golden"
    stale.mkdir()
    (stale / "99.jpg").write_bytes(b"old")
    project.verify()
    assert not (stale / "99.jpg").exists()
    assert (stale / "29.png").exists()
