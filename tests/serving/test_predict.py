import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("suffix", ["jpg", "jif", "dib", "hif", "jxl", "heic", "svg"])
def test_a_file_of_a_folder_that_is_called_an_image_and_is_none_is_listed(built, folder, suffix):
    (folder / f"page.{suffix}").write_text("<html>")
    reasons = {prediction.path.name: prediction.reason for prediction in predict(built.unverified, [folder])}
    assert "web page" in reasons[f"page.{suffix}"]
    with pytest.raises(RequestError):
        list(predict(folder / f"page.{suffix}", [folder]))


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


@pytest.fixture
def photo(built):
    """The bytes of a PNG."""
    stream = io.BytesIO()
    Image.fromarray(built.noisy(9, 1)[0]).save(stream, format="PNG")
    return stream.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def answers(built, folder):
    """Predict a folder; its paths without a prediction have their reason, the others an empty text."""
    found = list(predict(built.unverified, [folder]))
    assert len({each.path for each in found}) == len(found)
    return {each.path.relative_to(folder).as_posix(): each.reason or "" for each in found}


def test_links_that_stay_inside_a_folder_are_followed_without_end(built, photo, tmp_path):
    folder = tmp_path / "photos"
    write(folder / "2020" / "a.png", photo)
    write(folder / ".store" / "deep" / "b.png", photo)
    (folder / "linked.png").symlink_to("2020/a.png")
    (folder / "stored").symlink_to(folder / ".store")
    (folder / "2020" / "up").symlink_to(folder)
    (folder / ".store" / "deep" / "sideways").symlink_to(folder / "2020")
    (folder / "2020" / "crossed").symlink_to(folder / ".store")
    found = answers(built, folder)
    assert not any(found.values())
    assert {"2020/a.png", "linked.png", "stored/deep/b.png", "2020/crossed/deep/b.png"} <= found.keys()
    assert len(found) < 10


def test_links_out_of_the_folder_and_broken_ones_are_listed_and_the_rest_is_predicted(
    built, photo, tmp_path, capsys
):
    folder = tmp_path / "photos"
    write(folder / "z.png", photo)
    elsewhere = write(tmp_path / "elsewhere" / "c.png", photo)
    (folder / "album").symlink_to(elsewhere.parent)
    (folder / "c.png").symlink_to(elsewhere)
    (folder / "gone").symlink_to("nowhere")
    (folder / "itself").symlink_to("itself")
    assert show(predict(built.unverified, [folder]), as_json=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0].rpartition("/")[2] for line in lines] == [
        "album",
        "c.png",
        "gone",
        "itself",
        "z.png",
    ]
    for line, target in zip(lines, (elsewhere.parent, elsewhere, "nowhere", "itself"), strict=False):
        assert f"ERROR: is a link to {target}" in line
    assert "ERROR" not in lines[-1]
    assert show(predict(built.unverified, [folder, elsewhere.parent]), as_json=False) == 1
    assert f"{elsewhere}: " in capsys.readouterr().out


def test_a_linked_folder_that_is_given_by_name_is_searched(built, photo, tmp_path):
    write(tmp_path / "photos" / "a.png", photo)
    (tmp_path / "link").symlink_to("photos")
    assert answers(built, tmp_path / "link") == {"a.png": ""}


def test_unreadable_folders_and_files_and_what_is_no_file_are_listed(built, photo, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    for name in ("a.png", "locked/b.png", "notes", "z.png"):
        write(folder / name, photo)
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(folder)
        server.bind("socket")
    listdir, open_ = os.listdir, Path.open

    def refuse(path, *words, **named):
        if Path(path).name in {"locked", "notes"}:  # root, as tests may run, reads everything
            raise PermissionError(13, "Permission denied")
        return (listdir if path.is_dir() else open_)(path, *words, **named)

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    assert answers(built, folder) == {
        "a.png": "",
        "locked": "cannot be read: Permission denied",
        "notes": "cannot be read: Permission denied",
        "pipe": "is a pipe, a socket or a device",
        "socket": "is a pipe, a socket or a device",
        "z.png": "",
    }


def test_a_name_that_is_no_utf8_is_predicted_and_printed_escaped(built, photo, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/photos/\xe4\x1b[31m.png"))
    write(path, photo)
    command = "import sys; from convoy.cli import main; sys.argv[0] = 'convoy'; main()"
    words = [sys.executable, "-c", command, "predict", str(built.unverified), str(path.parent)]
    env = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(words, check=True, capture_output=True, env=env)
    assert done.stdout.startswith(rb"%s/\xe4<U+001B>[31m.png: " % os.fsencode(path.parent))
    done = subprocess.run([*words, "--json"], check=True, capture_output=True, env=env)
    answer = json.loads(done.stdout.decode())
    assert answer["path"] == str(path)
    assert os.fsencode(answer["path"]).endswith(b"\xe4\x1b[31m.png")


def test_a_name_is_no_command_to_a_ci_system(built, photo, tmp_path, monkeypatch, capsys):
    write(tmp_path / "::stop-commands::x.png", photo)
    write(tmp_path / "a\n::error::b.png", photo)
    write(tmp_path / "##[group]c.png", photo)
    monkeypatch.chdir(tmp_path)
    assert show(predict(built.unverified, [Path()]), as_json=False) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 3
    assert not any(line.lstrip().startswith("::") or "##[" in line for line in printed.splitlines())
    assert "stop-commands::x.png" in printed
    assert r"a\n::error::b.png" in printed


def test_of_a_large_file_that_is_no_image_only_the_start_is_read(built, photo, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    write(folder / "a.png", photo)
    for name, start in (("film", b"\0"), ("huge.png", photo), ("text.jpg", b"hello")):
        with write(folder / name, start).open("r+b") as file:
            file.truncate(12 * 2**30)  # takes no space
    reasons = answers(built, folder)
    assert reasons.keys() == {"a.png", "huge.png", "text.jpg"}
    assert reasons["huge.png"].startswith("is too large: more than 537,919,486 bytes")
    assert reasons["text.jpg"].startswith("is not an image")


def test_an_image_can_come_through_a_pipe(built, photo):
    read_end, write_end = os.pipe()
    os.write(write_end, photo)
    os.close(write_end)
    (prediction,) = predict(built.unverified, [Path(f"/dev/fd/{read_end}")])
    os.close(read_end)
    assert prediction.reason is None


def test_a_missing_model_is_reported_before_any_image_is_read(tmp_path):
    with pytest.raises(RequestError, match=r"model\.onnx does not exist"):
        predict(tmp_path / "model.onnx", [tmp_path])


@pytest.mark.parametrize("name", ["my cat.JPG", "photos"])
def test_a_left_out_model_is_named_with_the_command(name, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(RequestError) as caught:
        predict(tmp_path / name, [Path("b.png")])
    for fact in ("MODEL comes first", name, "convoy predict build/deploy/model.onnx", "b.png"):
        assert fact in str(caught.value)


def test_a_models_folder_is_no_model_and_its_file_is_named(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(RequestError, match=f"convoy predict {tmp_path}/model.onnx b.png$"):
        predict(tmp_path, [Path("b.png")])


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
