import functools
import hashlib
import http.server
import json
import re
import threading
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

import array_sets_made as made
from convoy.cli import app
from convoy.commands import known_sets
from convoy.commands.data import check, use
from convoy.commands.known_sets import KNOWN_SETS, PublishedFile
from convoy.core import yaml
from convoy.core.errors import DataError, RequestError
from convoy.images.delivery import open_delivery
from small_pipeline import Small

dvc_runs = pytest.mark.pipeline
"""Each start of DVC takes a second."""

GRAY = (
    (made.pictures(60, 28, 1, channels=1), [n % 10 for n in range(60)]),
    (
        made.pictures(20, 28, 2, channels=1),
        [n % 10 for n in range(20)],
    ),
)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def end_headers(self):
        self.send_header("ETag", '"1"')
        super().end_headers()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder that a server on the loopback interface publishes, and its address."""
    folder = tmp_path_factory.mktemp("served")
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def published(served, known, contents):
    """Publish a set's files on loopback; the addresses keep their last part."""
    folder, base = served
    files = []
    for file, content in zip(known.files, contents, strict=True):
        name = urlsplit(file.address).path.rpartition("/")[2]
        (folder / name).write_bytes(content)
        files.append(
            PublishedFile(f"{base}/{name}", file.algorithm, hashlib.new(file.algorithm, content).hexdigest())
        )
    return replace(known, files=tuple(files))


@pytest.fixture
def fashion(served):
    return published(served, KNOWN_SETS["fashion-mnist"], made.mnist(*GRAY).values())


@pytest.fixture
def mnist(served):
    return published(served, KNOWN_SETS["mnist"], [made.npz(*GRAY)])


@pytest.fixture(scope="module")
def empty_repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("known") / "repository"
    root.mkdir()
    Small(root).init()
    Small(root).dvc("init", "-q")
    return root


@pytest.mark.parametrize("known", KNOWN_SETS.values(), ids=KNOWN_SETS)
def test_every_set_has_https_or_a_checksum_of_full_length_and_facts(known):
    assert known.files
    for file in known.files:
        assert urlsplit(file.address).scheme in ("http", "https")
        assert re.fullmatch(r"[0-9a-f]+", file.checksum)
        assert len(file.checksum) == hashlib.new(file.algorithm).digest_size * 2
    assert known.content
    assert known.licence
    assert re.fullmatch(r"[\d.]+ [MG]B", known.size)
    assert not known.classes or len(known.classes) == 10


def test_the_list_has_every_set_with_size_and_licence():
    shown = CliRunner().invoke(app, ["data", "use", "--list"])
    assert shown.exit_code == 0
    for known in KNOWN_SETS.values():
        assert re.search(
            rf"^{known.name} .*{re.escape(known.size)} .*{re.escape(known.licence)}",
            shown.stdout,
            re.MULTILINE,
        )


@pytest.mark.parametrize(
    ("typed", "meant"), [("cifar-10", "cifar10"), ("MNIST", "mnist"), ("fashion_mnist", "fashion-mnist")]
)
def test_a_name_that_is_nearly_a_set_names_it(typed, meant, empty_repository):
    with pytest.raises(RequestError, match=f"{typed} does not exist; .*convoy data use {meant}$"):
        use(typed, empty_repository)


def test_files_are_downloaded_with_their_class_names_and_checked(fashion, tmp_path):
    known_sets.download(fashion, tmp_path / "data")
    labels = {place.label for place in open_delivery(tmp_path / "data").places.values()}
    assert labels == set(KNOWN_SETS["fashion-mnist"].classes)
    assert "T-shirt/top" in labels
    wrong = replace(fashion, files=(*fashion.files[:3], replace(fashion.files[3], checksum="0" * 32)))
    with pytest.raises(
        DataError, match=r"t10k-labels-idx1-ubyte.gz has the md5 [0-9a-f]{32}; 0{32} is published"
    ):
        known_sets.download(wrong, tmp_path / "second")


def test_a_server_that_does_not_answer_or_never_ends_is_named(fashion, tmp_path, monkeypatch):
    gone = replace(fashion, files=(replace(fashion.files[0], address=fashion.files[0].address + ".xz"),))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz.xz cannot be fetched: .*File not found"):
        known_sets.download(gone, tmp_path / "data")
    monkeypatch.setattr(known_sets, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz sends more than 1,000 bytes"):
        known_sets.download(fashion, tmp_path / "second")


@dvc_runs
def test_sets_by_name_replace_the_data_and_a_wrong_checksum_restores_them(
    empty_repository, fashion, mnist, settings, monkeypatch
):
    root = empty_repository
    monkeypatch.chdir(root)
    sets = {"mnist": mnist, "fashion-mnist": fashion}
    lines = "\n".join(use("mnist", root, sets, settings()))
    entry = yaml.read(root / "data.dvc")
    assert entry["deps"][0]["path"] == mnist.address
    assert "frozen" not in entry
    for fact in (mnist.address, "CC BY-SA 3.0", "checksum as published", "dvc repro"):
        assert fact in lines
    found, _ = check(root / "data", settings(image_px=28))
    assert found["classes"] == [str(n) for n in range(10)]
    assert sum(found["counts"]["test"].values()) == 20

    before = (root / "data.dvc").read_bytes(), (root / "data").read_bytes()
    wrong = replace(mnist, files=(replace(mnist.files[0], checksum="f" * 64),))
    with pytest.raises(
        DataError, match=rf"has the sha256 {mnist.files[0].checksum}; f+ is published.*\n.*still imports http"
    ):
        use("mnist", root, {"mnist": wrong}, settings())
    assert ((root / "data.dvc").read_bytes(), (root / "data").read_bytes()) == before
    assert not list((root / ".dvc" / "tmp").glob("convoy-*"))

    lines = "\n".join(use("fashion-mnist", root, sets, settings()))
    entry = yaml.read(root / "data.dvc")
    assert "deps" not in entry
    for fact in ("4 files of http", "MIT", "checksums as published", "dvc push", f"before: {mnist.address}"):
        assert fact in lines
    assert json.loads(Small(root).dvc("status", "--json")) == {}
    assert open_delivery(root / "data").kind == "IDX files"

    (root / "mnist").mkdir()
    for name, content in made.cifar_binary(
        (made.pictures(30), [n % 3 for n in range(30)]), (made.pictures(3), [0, 1, 2])
    ).items():
        (root / "mnist" / name).parent.mkdir(exist_ok=True)
        (root / "mnist" / name).write_bytes(content)
    assert "convoy data use ./mnist" in "\n".join(use("mnist", root, sets, settings()))
    use("./mnist", root, sets, settings())
    assert yaml.read(root / "data.dvc")["deps"][0]["path"] == "mnist"
    assert open_delivery(root / "data").kind == "CIFAR (binary)"


def test_the_trees_of_the_archives_are_recognised(folder, settings):
    """EuroSAT, Imagenette, Food-101, DTD and Caltech-256 as their archives hold them."""
    trees = {
        "eurosat": ("2750/{}/{}_{}.jpg", ["AnnualCrop", "Forest"]),
        "caltech256": ("256_ObjectCategories/{}/{}_{}.jpg", ["001.ak47", "257.clutter"]),
        "food101": ("food-101/images/{}/{}{}.jpg", ["apple_pie", "waffles"]),
        "dtd": ("dtd/images/{}/{}_{}.jpg", ["banded", "zigzagged"]),
        "imagenette": ("imagenette2-160/train/{}/{}_{}.JPEG", ["n01440764", "n02102040"]),
    }
    for name, (path, classes) in trees.items():
        files = {
            path.format(label, label, n): made.png(image)
            for label in classes
            for n, image in enumerate(made.pictures(9, 16, seed=hash_of(label)))
        }
        if name == "imagenette":
            files |= {
                key.replace("/train/", "/val/").replace("_", "_val_"): made.png(
                    made.pictures(1, 16, seed=hash_of(key))[0]
                )
                for key in files
                if key.endswith("_0.JPEG")
            }
            files["imagenette2-160/noisy_imagenette.csv"] = b"path,noisy_labels_0\n"
        if name == "food101":
            files |= dict.fromkeys(
                (f"food-101/meta/{text}.txt" for text in ("classes", "labels", "train")), b"apple_pie/0\n"
            )
            files |= {
                "food-101/meta/train.json": b'{"apple_pie": ["apple_pie/0"]}',
                "food-101/README.txt": b"x",
            }
        if name == "dtd":
            files |= {"dtd/labels/train1.txt": b"banded/banded_0.jpg\n", "dtd/imdb/imdb.mat": b"MATLAB 5.0"}
        found, _ = check(folder(files, name), settings(image_px=16))
        assert found["classes"] == classes


def hash_of(text):
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
