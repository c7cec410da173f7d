"""Images that a model is not sure of are kept for labelling, each once, at most so many."""

import io
import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from convoy.core.errors import RequestError
from convoy.data.layout import recognise
from convoy.images.delivery import open_delivery
from convoy.serving.uncertain import UncertainImages, folder_name

CLASSES = ("cat", "a/b", "..")
SERVED = SimpleNamespace(model=SimpleNamespace(classes=CLASSES))


def image(shade):
    return np.full((6, 5, 3), shade, np.uint8)


def encoded(shade, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(image(shade)).save(stream, format=kind)
    return stream.getvalue()


def probabilities(*best):
    """Rows whose most probable class is that of their number, modulo 3."""
    rows = np.zeros((len(best), 3), np.float32)
    for n, probability in enumerate(best):
        rows[n] = (1 - probability) / 2
        rows[n, n % 3] = probability
    return rows


def kept(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_uncertain_images_are_kept_as_they_were_sent_in_folders_of_their_class(tmp_path):
    observer = UncertainImages(tmp_path / "kept", 0.6, 10)
    contents = [encoded(1), encoded(2, "JPEG"), None, encoded(4, "WEBP")]
    observer([image(1), image(2), image(3), image(4)], probabilities(0.5, 0.4, 0.41, 0.9), contents, SERVED)
    names = kept(tmp_path / "kept")
    assert [name.partition("-")[0] for name in names] == ["%2E./0.410", "a%2Fb/0.400", "cat/0.500"]
    assert [name.rpartition(".")[2] for name in names] == ["png", "jpg", "png"]
    assert (tmp_path / "kept" / names[1]).read_bytes() == contents[1]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "kept" / names[0])), image(3))


def test_each_image_is_kept_once_also_by_a_service_that_starts_again(tmp_path):
    for _ in range(2):
        observer = UncertainImages(tmp_path, 0.6, 10)
        for _ in range(2):
            observer([image(1)], probabilities(0.5), [encoded(1)], SERVED)
    assert len(kept(tmp_path)) == 1


def test_no_more_than_the_most_are_kept(tmp_path, caplog):
    for start in (0, 5):
        observer = UncertainImages(tmp_path, 0.6, 3)
        for shade in range(start, start + 5):
            observer([image(shade)], probabilities(0.5), [encoded(shade)], SERVED)
    assert len(kept(tmp_path)) == 3
    assert "keep_max = 3" in caplog.text


def test_data_use_reads_the_folder_as_classes(tmp_path):
    observer = UncertainImages(tmp_path, 0.9, 100)
    for shade in range(8):
        observer([image(shade)] * 2, probabilities(0.5, 0.5), [encoded(shade), encoded(shade + 100)], SERVED)
    delivery = open_delivery(tmp_path)
    layout = recognise(delivery)
    assert {layout.place(name).label for name in delivery.names()} == {"cat", "a%2Fb"}


@pytest.mark.parametrize("label", ["../../etc", "/etc", "..", ".hidden", "a\0b", "c\\d", "100%"])
def test_no_class_leads_out_of_the_folder(label, tmp_path):
    name = folder_name(label)
    assert "/" not in name
    assert "\0" not in name
    assert not name.startswith(".")
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()


def test_a_folder_that_cannot_be_written_is_refused_with_the_key(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"serve\.keep_uncertain"):
        UncertainImages(tmp_path / "file" / "kept", 0.5, 10)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RequestError, match="Permission denied"):
        UncertainImages(tmp_path, 0.5, 10)
