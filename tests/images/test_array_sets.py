import gzip
import hashlib
import json
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

import array_sets_made as made
from convoy.core.errors import DataError
from convoy.data.prepare import prepare
from convoy.images.decode import decode
from convoy.images.delivery import Place, open_delivery

NAMES = made.NAMES
TRAIN = (made.pictures(12, seed=1), [n % 3 for n in range(12)])
TEST = (made.pictures(6, seed=2), [n % 3 for n in range(6)])
GRAY = (
    (made.pictures(12, 28, 3, channels=1), [n % 3 for n in range(12)]),
    (made.pictures(6, 28, 4, channels=1), [0, 1, 2] * 2),
)


def decoded(path):
    """Every image of a delivery with its place; checks that names, files and places agree."""
    delivery = open_delivery(path)
    files = dict(delivery.files())
    assert sorted(files) == sorted(delivery.names()) == sorted(delivery.places)
    return {name: (delivery.places[name], decode(content).image_u8) for name, content in files.items()}


def expected(train, test, names=NAMES):
    """Digest of the pixels of each image with the split and class that the arrays state."""
    rows = [
        (split, names[label], image)
        for split, part in (("train", train), ("test", test))
        for image, label in zip(*part, strict=True)
    ]
    return sorted((split, label, digest(image)) for split, label, image in rows)


def digest(image_u8):
    rgb = image_u8 if image_u8.ndim == 3 else np.repeat(image_u8[..., None], 3, axis=2)
    return hashlib.sha256(rgb.tobytes()).hexdigest()


def found(path):
    return sorted((place.split, place.label, digest(image_u8)) for place, image_u8 in decoded(path).values())


@pytest.fixture
def class_folders(folder):
    def write(train, test, names=NAMES):
        files = {}
        for split, (images_u8, labels) in (("train", train), ("test", test)):
            for n, (image_u8, label) in enumerate(zip(images_u8, labels, strict=True)):
                files[f"{split}/{names[label].replace('/', '-')}/{n}.png"] = made.png(image_u8)
        return folder(files, "class-folders")

    return write


@pytest.mark.parametrize(
    "make", [made.cifar_pickles, made.cifar_100_pickles, made.cifar_binary, made.cifar_100_binary]
)
@pytest.mark.parametrize("container", ["folder", "zipped", "tarred"])
def test_cifar_is_read_from_a_folder_a_zip_and_a_tar(make, container, request):
    path = request.getfixturevalue(container)(make(TRAIN, TEST))
    assert found(path) == expected(TRAIN, TEST)
    assert open_delivery(path).kind.startswith("CIFAR")


def test_paths_are_stable_and_name_split_class_batch_and_number(tarred):
    places = open_delivery(tarred(made.cifar_pickles(TRAIN, TEST))).places
    assert places["train/airplane/data_batch_1-00003.ppm"] == Place("train", "airplane")
    assert places["train/cat%2Fdog/data_batch_2-00001.ppm"] == Place("train", "cat/dog")
    assert places["test/frog/test_batch-00005.ppm"] == Place("test", "frog")


def test_cifar_that_python_3_pickled_again_is_read(folder):
    assert found(folder(made.cifar_pickles(TRAIN, TEST, dump=made.python3))) == expected(TRAIN, TEST)
    protocol_2 = made.cifar_pickles(TRAIN, TEST, dump=lambda value: pickle.dumps(value, protocol=2))
    assert found(folder(protocol_2, "second")) == expected(TRAIN, TEST)


def test_a_prepared_array_set_has_the_dataset_of_the_same_images_as_files(
    tarred, class_folders, settings, tmp_path
):
    names = ["airplane", "cat", "frog"]
    train, test = (made.pictures(60, seed=5), [n % 3 for n in range(60)]), TEST
    params = settings(image_px=32)
    hashes = set()
    for path in (
        tarred(made.cifar_pickles(train, test, names)),
        tarred(made.cifar_binary(train, test, names), "xz"),
        class_folders(train, test, names),
    ):
        prepare(path, params, tmp_path / "dataset")
        facts = json.loads((tmp_path / "dataset" / "dataset.json").read_text())
        assert facts["counts"]["test"] == {"airplane": 2, "cat": 2, "frog": 2}
        assert sum(facts["counts"]["val"].values()) > 0
        hashes.add(facts["hash"])
    assert len(hashes) == 1


def test_images_of_an_array_set_are_read_again_for_verification(tarred):
    delivery = open_delivery(tarred(made.cifar_pickles(TRAIN, TEST)))
    contents = {name: content for name, content in delivery.files() if name.startswith("test/")}
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    again = dict(delivery.images(sha256, "read", 18))
    assert sorted(digest(image_u8) for image_u8 in again.values()) == sorted(
        digest(image_u8) for image_u8 in TEST[0]
    )
    with pytest.raises(DataError, match=r"1 of 6 images have changed .* dvc repro"):
        list(delivery.images(sha256 | {next(iter(sha256)): "0" * 64}, "read", 18))


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("container", ["folder", "zipped", "tarred"])
def test_idx_files_are_read_packed_or_not(gz, container, request):
    path = request.getfixturevalue(container)(made.mnist(*GRAY, gz=gz))
    assert found(path) == expected(*GRAY, names="012")
    assert "train/2/train-images-idx3-ubyte-00011.pgm" in open_delivery(path).places


def test_idx_files_in_other_usual_places_are_read(folder):
    raw = {
        f"MNIST/raw/{name}": content
        for gz in (True, False)
        for name, content in made.mnist(*GRAY, gz=gz).items()
    }
    assert found(folder(raw, "torchvision")) == expected(*GRAY, names="012")
    dotted = {name.replace("-idx", ".idx"): content for name, content in made.mnist(*GRAY, gz=False).items()}
    assert found(folder(dotted, "kaggle")) == expected(*GRAY, names="012")
    named = made.mnist(*GRAY) | {"classes.txt": b"T-shirt/top\nTrouser\nBag\n"}
    assert found(folder(named, "named")) == expected(*GRAY, names=["T-shirt/top", "Trouser", "Bag"])


def test_emnist_is_upright_and_its_mapping_names_the_classes(zipped):
    files = made.mnist(*GRAY, prefix="gzip/emnist-letters-", parts=("train", "test"))
    path = zipped(files | {"gzip/emnist-letters-mapping.txt": b"0 48\n1 65 97\n2 66 98\n"})
    turned = [(images_u8.transpose(0, 2, 1), labels) for images_u8, labels in GRAY]
    assert found(path) == expected(*turned, names=["0", "Aa", "Bb"])


def test_files_that_are_not_read_and_turned_images_are_noted(folder):
    cifar = open_delivery(folder(made.cifar_pickles(TRAIN, TEST), "cifar"))
    assert cifar.names()
    assert cifar.notes == ["Files that are not read: cifar-10-batches-py/readme.html"]
    emnist = open_delivery(
        folder(made.mnist(*GRAY, prefix="emnist-digits-", parts=("train", "test")), "emnist")
    )
    assert emnist.names()
    assert [note for note in emnist.notes if "turned upright" in note] == emnist.notes != []


def test_several_sets_of_idx_files_are_refused_by_name(zipped):
    files = made.mnist(*GRAY, prefix="gzip/emnist-letters-") | made.mnist(*GRAY, prefix="gzip/emnist-digits-")
    with pytest.raises(
        DataError, match=r"2 sets of IDX files \(emnist-digits, emnist-letters\).*into a folder"
    ):
        open_delivery(zipped(files))


@pytest.mark.parametrize("below", ["", "data/", "a/b/"])
def test_a_folder_that_holds_only_a_set_is_read_as_the_set_alone_is(below, folder, tarred):
    packed = tarred(made.cifar_pickles(TRAIN, TEST)).read_bytes()
    row = [made.png(image_u8) for image_u8 in TRAIN[0]]
    arrays = {f"{below}{name}": content for name, content in made.mnist(*GRAY).items()}
    assert found(folder({f"{below}mnist.npz": made.npz(*GRAY)}, "npz")) == expected(*GRAY, names="012")
    assert found(folder({f"{below}cifar.tar.gz": packed}, "cifar")) == expected(TRAIN, TEST)
    assert found(folder(arrays, "idx")) == expected(*GRAY, names="012")
    rows = decoded(folder({f"{below}x.parquet": made.parquet(row, TRAIN[1])}, "rows"))
    assert [digest(image_u8) for _, image_u8 in rows.values()] == [digest(image_u8) for image_u8 in TRAIN[0]]
    tar = made.webdataset({f"{n}": {"png": png, "cls": b"%d" % TRAIN[1][n]} for n, png in enumerate(row)})
    assert len(decoded(folder({f"{below}shard.tar": tar}, "shards"))) == len(row)


def test_several_npz_files_in_a_folder_are_refused_with_the_path_of_the_first(folder, pets):
    sets = {f"sets/{name}.npz": made.npz(*GRAY) for name in ("a", "b")}
    with pytest.raises(
        DataError, match=r"2 sets of NumPy arrays.*sets/a\.npz, sets/b\.npz.*data/sets/a\.npz$"
    ):
        open_delivery(folder(sets))
    assert open_delivery(folder(pets | sets, "beside")).kind == "folder"


def test_arrays_of_an_npz_file_are_read(tmp_path):
    (tmp_path / "mnist.npz").write_bytes(made.npz(*GRAY))
    assert found(tmp_path / "mnist.npz") == expected(*GRAY, names="012")
    (tmp_path / "colours.npz").write_bytes(made.npz(TRAIN, TEST))
    assert found(tmp_path / "colours.npz") == expected(TRAIN, TEST, names="012")


def test_class_names_may_hold_what_folders_cannot(folder):
    names = ["a/b", "..", ".net", "100%", "", "Ä\\x"]
    part = (made.pictures(6, seed=7), list(range(6)))
    with pytest.raises(DataError, match="label 4"):
        found(folder(made.cifar_pickles(part, TEST, names)))
    names[4] = " x\ny"
    places = decoded(folder(made.cifar_pickles(part, part, names), "named"))
    assert {place.label for place, _ in places.values()} == set(names)
    assert not [path for path in places if path.count("/") != 2 or "/." in path or "\n" in path]


class _Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = {
    "os.system": (pickle.dumps(_Runs(os.system, "touch /tmp/x")), "runs `posix.system`"),
    "eval": (pickle.dumps(_Runs(eval, "1 + 1"), protocol=2), "runs `__builtin__.eval`"),
    "getattr": (b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.", "runs `builtins.getattr`"),
    "numpy's own loader": (b"\x80\x02cnumpy\nload\n(U\x01xtR.", "runs `numpy.load`"),
    "instance": (b"(ios\nsystem\n.", "opcode b'i'"),
    "objects": (pickle.dumps({"data": np.array([{}], object)}), "dtype `O8`"),
    "text protocol": (b"(dp0\nS'a'\np1\nI1\ns.", "opcode b'd'"),
    "declared 10 GB": (b"\x80\x02}(U\x04dataT\xff\xff\xff\xffx", "damaged or truncated"),
    "declared 2**63": (b"\x80\x04\x8e" + b"\xff" * 8, "damaged or truncated"),
    "memo at 4 billion": (b"\x80\x02}r\xff\xff\xff\xff.", "no array `data`"),
    "lists of lists": (b"\x80\x02" + b"]" * 30_000 + b".", "more than 20,000 opcodes"),
    "tuples as keys": (b"\x80\x02}(" + b")" + b"\x85" * 15_000 + b"K\x01u.", "damaged or truncated"),
    "shared tuples": (
        b"\x80\x02}(" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 3000 + b"K\x01u.",
        "damaged or truncated",
    ),
    "no dictionary": (made.python2([1]), "of a list, not of a dictionary"),
    "empty": (b"", "damaged or truncated"),
    "half": (made.python2(made.batch(*TRAIN))[:20_000], "damaged or truncated"),
    "no data": (made.python2({"labels": [1]}), "no array `data`; it has labels"),
    "shape": (
        made.python2(made.batch(*TRAIN)).replace(b"(K\x0c", b"(J\xff\xff\xff\x7f", 1),
        "declares the shape",
    ),
    "negative shape": (
        made.python2(made.batch(*TRAIN)).replace(b"(K\x0c", b"(J\xf4\xff\xff\xff", 1),
        "declares the shape",
    ),
    "other width": (made.python2({"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]}), r"shape \(2, 5\)"),
    "too few labels": (made.python2(made.batch(TRAIN[0], TRAIN[1][:-2])), "12 images and 10 labels"),
    "labels of text": (made.python2(made.batch(TRAIN[0], ["a"] * 12)), "no list of whole numbers"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_or_damaged_pickle_is_refused_by_name_and_not_run(case, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("convoy.images.pickles.MAX_OPCODES", 20_000)
    content, reason = HOSTILE[case]
    files = made.cifar_pickles(TRAIN, TEST) | {"cifar-10-batches-py/data_batch_2": content}
    data = folder(files)
    before = sorted(tmp_path.rglob("*"))
    tracemalloc.start()
    with pytest.raises(DataError, match=f"data_batch_2 .*{reason}"):
        found(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 * 2**20
    assert sorted(tmp_path.rglob("*")) == before


def test_a_label_out_of_range_is_refused_with_its_number(folder, tarred):
    wrong = (TRAIN[0], [*TRAIN[1][:-1], 3])
    for files in (made.cifar_pickles(wrong, TEST), made.cifar_binary(wrong, TEST)):
        with pytest.raises(
            DataError, match=r"image 5 of .*data_batch_2.* label 3, .* index of the 3 class names"
        ):
            open_delivery(tarred(files))
    with pytest.raises(DataError, match=r"image 11 of train-images.* label 3, .* index of the 3 class names"):
        open_delivery(folder(made.mnist((GRAY[0][0], wrong[1]), GRAY[1]) | {"classes.txt": b"a\nb\nc"}))


def _damaged(part, change):
    files = made.mnist(*GRAY, gz=False)
    name = f"train-{part}"
    return {f"{name}.gz" if change(b"")[:2] == b"\x1f\x8b" else name: change(files.pop(name))} | files


IDX = "images-idx3-ubyte"
DAMAGED = {
    "truncated": (_damaged(IDX, lambda content: content[:-1]), r"12 items, 9,408 bytes, and has 9,407: truncated"),
    "too long": (_damaged(IDX, lambda content: content + b"x"), r"has 9,409: truncated or damaged"),
    "wrong magic": (_damaged(IDX, lambda content: b"\x89PNG" + content[4:]), "starts with 89504e47"),
    "floats": (_damaged(IDX, lambda content: b"\0\0\x0d\x03" + content[4:]), "starts with 00000d03"),
    "empty": (_damaged(IDX, lambda _: b""), "starts with nothing"),
    "no pixels": (_damaged(IDX, lambda _: b"\0\0\x08\x03" + struct.pack(">3I", 12, 0, 28)), r"shape \(12, 0, 28\)"),
    "fewer labels": (_damaged("labels-idx1-ubyte", lambda _: made.idx(np.zeros(11, np.uint8))), "12 images.* 11 labels"),
    "labels are images": (_damaged("labels-idx1-ubyte", lambda _: made.idx(GRAY[0][0])), "labels are whole numbers"),
    "gz truncated": (_damaged(IDX, lambda content: gzip.compress(content)[:2000]), "truncated"),
    "gz bomb": (
        _damaged(IDX, lambda _: gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 2_000_000, 28, 28) + bytes(10**7))),
        "2,000,000 items, .* decompression bomb",
    ),
    "declared 10 GB": (
        _damaged("labels-idx1-ubyte", lambda _: gzip.compress(b"\0\0\x08\x01\xff\xff\xff\xff")),
        "decompression bomb",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_idx_files_are_refused_with_their_numbers(case, folder):
    files, reason = DAMAGED[case]
    with pytest.raises(DataError, match=f"train-.*{reason}"):
        found(folder(files))


def test_a_binary_batch_that_is_truncated_is_refused(folder):
    files = made.cifar_binary(TRAIN, TEST)
    files["cifar-10-batches-bin/data_batch_2.bin"] = files["cifar-10-batches-bin/data_batch_2.bin"][:-1]
    with pytest.raises(DataError, match=r"data_batch_2.bin is truncated.* 3,073 bytes"):
        open_delivery(folder(files))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x_train": np.array([{}], object)}, "x_train.npy holds Python objects"),
        (
            {"x_train": GRAY[0][0].astype(np.float32)},
            r"x_train.npy is an array of float32 with the shape \(12, 28, 28\)",
        ),
        ({"x_train": np.asfortranarray(GRAY[0][0])}, "by columns.*ascontiguousarray"),
        ({"y_train": np.zeros(11, np.uint8)}, "12 images, .* 11 labels"),
        ({"y_train": np.zeros((12, 3), np.uint8)}, "labels are whole numbers"),
    ],
)
def test_odd_numpy_arrays_are_refused(change, reason, tmp_path):
    arrays = {
        "x_train": GRAY[0][0],
        "y_train": np.array(GRAY[0][1], np.uint8),
        "x_test": GRAY[1][0],
        "y_test": np.array(GRAY[1][1]),
    }
    np.savez(tmp_path / "x.npz", **arrays | change)
    with pytest.raises(DataError, match=reason):
        open_delivery(tmp_path / "x.npz")


@pytest.mark.parametrize("header", [b"{'shape': (1,", b"'''", b"(" * 4000, b"\\xff" * 9, b"{'descr': '<u1'}"])
def test_an_npy_header_that_is_no_dictionary_of_a_shape_is_refused(header, folder):
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with pytest.raises(DataError, match=r"x_train.npy is no NPY file, or its header is damaged"):
        open_delivery(folder({"x_train.npy": content, "y_train.npy": content}))


def test_an_npy_header_that_declares_more_than_it_has_is_refused(folder):
    files = {
        "x_train.npy": b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 28, 28), }".ljust(117)
        + b"\n",
        "y_train.npy": b"",
    }
    with pytest.raises(DataError, match=r"x_train.npy declares the shape \(9999999999, 28, 28\)"):
        open_delivery(folder(files))


def test_arrays_without_labels_and_arrays_beside_images_are_refused(folder):
    files = {name: content for name, content in made.mnist(*GRAY).items() if "labels" not in name}
    with pytest.raises(DataError, match=r"images-idx3-ubyte.gz states no labels"):
        open_delivery(folder(files, "unlabelled"))
    mixed = made.mnist(*GRAY) | {"cat/1.png": made.png(TRAIN[0][0])}
    with pytest.raises(DataError, match=r"IDX files and image files too \(cat/1.png\)"):
        open_delivery(folder(mixed, "mixed"))


def test_only_a_test_part_is_refused(folder):
    files = {name: content for name, content in made.mnist(*GRAY).items() if name.startswith("t10k")}
    with pytest.raises(DataError, match=r"only a test split \(t10k-images-idx3-ubyte.gz\)"):
        open_delivery(folder(files))
