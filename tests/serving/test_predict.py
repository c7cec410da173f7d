import csv
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from convoy.core.errors import RequestError
from convoy.export.onnx_model import OnnxModel
from convoy.serving.predict import predict
from convoy.serving.predictions import Wanted
from convoy.serving.predictions import write as write_as


def model(built):
    return OnnxModel(built.unverified, threads=1)


def show(predictions, kind="table", top=0, out=None, classes=("Bär", "cat|dog", "x")):
    return write_as(predictions, Wanted(kind, top, "convoy/7", classes, out))


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
        for prediction in predict(model(built), [folder])
    }
    assert list(answers) == ["a.jpg", "b.png", "deeper/no_suffix", "empty.png"]
    assert answers["a.jpg"].startswith("cannot be decoded")
    assert answers["empty.png"] == "is empty (0 bytes)"
    assert {answers["b.png"], answers["deeper/no_suffix"]} <= {"Bär", "cat|dog", "x"}


@pytest.mark.parametrize("suffix", ["jpg", "jif", "dib", "hif", "jxl", "heic", "svg"])
def test_a_file_of_a_folder_that_is_called_an_image_and_is_none_is_listed(built, folder, suffix):
    (folder / f"page.{suffix}").write_text("<html>")
    reasons = {prediction.path.name: prediction.reason for prediction in predict(model(built), [folder])}
    assert "web page" in reasons[f"page.{suffix}"]


def test_a_prediction_is_the_most_probable_class_of_the_model(built, folder):
    (prediction,) = predict(model(built), [folder / "b.png"])
    probabilities = model(built)(built.noisy(9, 1)[0][None])[0]
    assert prediction.label == prediction.classes[probabilities.argmax()]
    assert prediction.probability == probabilities.max()
    assert prediction.classes == model(built).classes
    assert np.array_equal(prediction.probabilities, probabilities)


def test_every_given_path_gets_a_prediction_or_a_reason_in_its_order(built, folder, tmp_path):
    (tmp_path / "void").mkdir()
    paths = [tmp_path / "nowhere.png", folder / "b.png", folder / "readme.txt", tmp_path / "void"]
    predictions = list(predict(model(built), paths))
    assert [prediction.path for prediction in predictions] == paths
    gone, good, text, void = [prediction.reason for prediction in predictions]
    assert gone == "cannot be read: No such file or directory"
    assert good == ""
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
    found = list(predict(model(built), [folder]))
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
    assert show(predict(model(built), [folder])) == 1
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
    assert show(predict(model(built), [folder, elsewhere.parent])) == 1
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
    scandir, open_ = os.scandir, Path.open

    def refuse(path, *words, **named):
        if Path(path).name in {"locked", "notes"}:  # root, as tests may run, reads everything
            raise PermissionError(13, "Permission denied")
        return (open_ if isinstance(path, Path) else scandir)(path, *words, **named)

    monkeypatch.setattr(os, "scandir", refuse)
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
    words = [sys.executable, "-c", command, "predict", str(path.parent), "--model", str(built.unverified)]
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
    assert show(predict(model(built), [Path()])) == 0
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
    (prediction,) = predict(model(built), [Path(f"/dev/fd/{read_end}")])
    os.close(read_end)
    assert prediction.reason == ""


def test_the_exit_code_is_1_if_a_file_has_no_prediction(built, folder, capsys):
    assert show(predict(model(built), [folder / "b.png"])) == 0
    path, label, probability = capsys.readouterr().out.split(" ")
    assert path == f"{folder / 'b.png'}:"
    assert label in {"Bär", "cat|dog", "x"}
    assert 0 < float(probability) <= 1
    assert show(predict(model(built), [folder])) == 1
    assert f"{folder / 'a.jpg'}: ERROR: cannot be decoded" in capsys.readouterr().out


def test_json_is_one_object_per_line(built, folder, capsys):
    assert show(predict(model(built), [folder]), "json") == 1
    broken, good, *_ = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert set(broken) == {"path", "error", "model"}
    assert set(good) == {"path", "class", "probability", "probabilities", "model"}
    assert good["model"] == "convoy/7"
    assert good["probability"] == max(good["probabilities"].values())


def test_nan_is_an_error(built, folder, monkeypatch):
    monkeypatch.setattr(OnnxModel, "__call__", lambda self, images_u8: images_u8[:, 0, 0] * float("nan"))
    (prediction,) = predict(model(built), [folder / "b.png"])
    assert prediction.reason == "the model outputs NaN"


COMMAND = """
import sys
sys.argv = ["convoy", "predict", *sys.argv[1:]]
from convoy.cli import main
try:
    main()
finally:
    print(sorted({"torch", "mlflow", "pyarrow", "scipy", "dvc"} & sys.modules.keys()), file=sys.stderr)
"""


def convoy(*words):
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )


def test_the_command_states_the_model_and_imports_neither_torch_nor_mlflow(built, folder):
    done = convoy(folder / "b.png", "--model", built.unverified, "--top", 2)
    assert done.returncode == 0, done.stderr
    first, imported = done.stderr.splitlines()
    assert first.startswith(f"{built.unverified}: 3 classes, sha256 ")
    assert imported == "[]"
    assert done.stdout.count(", ") == 1


def test_a_model_among_the_images_is_refused_with_the_command(built):
    done = convoy(built.unverified, "my photos")
    assert done.returncode == 2
    assert f"convoy predict 'my photos' --model {built.unverified}" in done.stderr


def packed(folder, kind, tmp_path):
    """Pack a folder; return the archive."""
    return Path(shutil.make_archive(str(tmp_path / "packed"), kind, folder))


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_an_archive_is_predicted_as_its_folder(built, folder, tmp_path, kind):
    archive = packed(folder, kind, tmp_path)
    in_folder = {str(each.path.relative_to(folder)): each for each in predict(model(built), [folder])}
    in_archive = {
        str(each.path.relative_to(archive)).removeprefix("./"): each
        for each in predict(model(built), [archive])
    }
    assert in_archive.keys() == in_folder.keys()
    for name, each in in_archive.items():
        assert np.array_equal(each.probabilities, in_folder[name].probabilities)
        assert bool(each.reason) == bool(in_folder[name].reason)


def test_archives_in_a_folder_are_searched(built, folder, tmp_path):
    inside = tmp_path / "delivery"
    inside.mkdir()
    shutil.copy(packed(folder, "zip", tmp_path), inside / "b.ZIP")
    write(inside / "a.zip", b"no archive")
    names = [each.path.relative_to(inside).as_posix() for each in predict(model(built), [inside])]
    assert sorted(names) == ["b.ZIP/a.jpg", "b.ZIP/b.png", "b.ZIP/deeper/no_suffix", "b.ZIP/empty.png"]


def test_what_was_read_of_a_damaged_archive_is_predicted_and_the_damage_is_a_reason(built, photo, tmp_path):
    for number in range(40):
        write(tmp_path / "photos" / f"{number}.png", photo)
    archive = packed(tmp_path / "photos", "tar", tmp_path)
    archive.write_bytes(archive.read_bytes()[:20_000])
    *good, damaged, last = predict(model(built), [archive, tmp_path / "photos" / "1.png"])
    assert len(good) == 4
    assert not any(each.reason for each in [*good, last])
    assert damaged.path == archive
    assert str(archive) in damaged.reason


def test_order_and_answers_do_not_depend_on_threads_and_tasks(built, tmp_path):
    for number, image_u8 in enumerate(built.noisy(9, 150)):
        Image.fromarray(image_u8[: 5 + number % 3]).save(tmp_path / f"{number:03}.png")
    alone = list(predict(model(built), [tmp_path], threads=1))
    assert [int(each.path.stem) for each in alone] == list(range(150))
    for each, other in zip(alone, predict(model(built), [tmp_path], threads=3), strict=True):
        assert each.path == other.path
        assert np.allclose(each.probabilities, other.probabilities, rtol=0, atol=1e-6)


def test_no_more_is_read_ahead_than_threads_need(built, photo, tmp_path, monkeypatch):
    """An archive is not unpacked into memory."""
    taken = []

    def endless(path, kind):
        for number in range(100_000):
            taken.append(number)
            yield f"{number}.png", photo

    monkeypatch.setattr("convoy.serving.predict.members", endless)
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04")
    predictions = predict(model(built), [tmp_path / "a.zip"], threads=2)
    assert next(predictions).path == tmp_path / "a.zip" / "0.png"
    predictions.close()
    assert len(taken) < 500


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_csv_has_a_column_per_class_or_per_rank(built, folder, tmp_path, capsys):
    assert show(predict(model(built), [folder]), "csv", out=tmp_path / "all.csv") == 1
    titles, broken, good, *_ = rows(tmp_path / "all.csv")
    assert titles == ["path", "class", "probability", "error", "model", "p_Bär", "p_cat|dog", "p_x"]
    assert broken[1:3] == ["", ""]
    assert broken[3].startswith("cannot be decoded")
    assert good[4] == "convoy/7"
    assert float(good[2]) == max(map(float, good[5:]))
    assert "4 files, 2 without a prediction" in capsys.readouterr().err
    show(predict(model(built), [folder / "b.png"]), "csv", top=2, out=tmp_path / "two.csv")
    titles, good = rows(tmp_path / "two.csv")
    assert titles[5:] == ["class_2", "probability_2"]
    assert float(good[2]) >= float(good[6])


def test_a_name_is_no_formula_to_a_spreadsheet(built, photo, tmp_path, monkeypatch):
    write(tmp_path / "=1+1.png", photo)
    monkeypatch.chdir(tmp_path)
    show(predict(model(built), [Path("=1+1.png")]), "csv", out=tmp_path / "a.csv")
    assert rows(tmp_path / "a.csv")[1][0] == "'=1+1.png"


def test_parquet_has_the_rows_of_csv(built, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("convoy.serving.predictions.ROWS", 3)
    show(predict(model(built), [folder]), "csv", out=tmp_path / "a.csv")
    show(predict(model(built), [folder]), "parquet", out=tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    titles, *lines = rows(tmp_path / "a.csv")
    assert table.column_names == titles
    assert table.column("path").to_pylist() == [line[0] for line in lines]
    assert table.column("probability").type == pa.float32()
    assert table.column("class").to_pylist() == [line[1] or None for line in lines]


def test_parquet_needs_a_file(built, folder):
    with pytest.raises(RequestError, match="--out"):
        show(predict(model(built), [folder]), "parquet")


def test_a_file_is_replaced_only_once_it_is_complete(built, folder, tmp_path):
    out = write(tmp_path / "a.csv", b"before")

    def broken():
        yield from predict(model(built), [folder])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        show(broken(), "csv", out=out)
    assert out.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a.csv"]
    with pytest.raises(RequestError, match="--out"):
        show(predict(model(built), [folder]), "csv", out=tmp_path / "nowhere" / "a.csv")


def test_a_table_lists_the_most_probable_classes(built, folder, capsys):
    show(predict(model(built), [folder / "b.png"]), top=2)
    first, second = capsys.readouterr().out.split(": ")[1].split(", ")
    assert float(first.split()[-1]) >= float(second.split()[-1])


def test_lines_reach_a_pipe_while_the_bar_is_in_a_terminal(built, folder):
    """As `convoy predict photos/ --json | jq` runs: standard error is the terminal, standard output is not."""
    master, terminal = os.openpty()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(folder / "b.png"), "--model", str(built.unverified), "--json"],
        stdout=subprocess.PIPE,
        stderr=terminal,
        check=True,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    os.close(terminal)
    os.close(master)
    assert json.loads(done.stdout)["path"] == str(folder / "b.png")
