import codecs
import json
import re
import tracemalloc
from collections import Counter

import pytest
from tests.deliveries import png_of

from convoy.core.errors import DataError
from convoy.data import lists
from convoy.data.labels import PATTERNS, propose
from convoy.data.layout import recognise
from convoy.data.list_paths import Index
from convoy.images.delivery import open_delivery


@pytest.fixture
def delivered(tmp_path):
    """Write a folder of images (their content is not looked at) and lists; return the delivery."""

    def write(images, lists):
        for name in images:
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        for name, text in lists.items():
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return open_delivery(tmp_path / "data")

    return write


def places(delivery, *arguments):
    """Return what is stated about each image: split and label, or why it is not used."""
    layout = recognise(delivery, *arguments)
    found = {
        name: layout.place(name) for name in delivery.names() if name.endswith((".jpg", ".png", ".JPEG"))
    }
    return {name: p.passed_over or p.reason or (p.split, p.label) for name, p in found.items()}


def notes(delivery, *arguments):
    return [found.text for found in recognise(delivery, *arguments).notes]


def refusal(delivery, *arguments):
    with pytest.raises(DataError) as caught:
        recognise(delivery, *arguments)
    return str(caught.value)


ABCD = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
CATS_AND_DOGS = dict(zip(ABCD, [(None, "cat"), (None, "cat"), (None, "dog"), (None, "dog")], strict=True))
UNLABELLED = "unlabelled image"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "path,label\na.jpg,cat\nb.jpg,cat\nc.jpg,dog\nd.jpg,dog\n"),
        ("labels.csv", "a.jpg,cat\nb.jpg,cat\nc.jpg,dog\nd.jpg,dog\n"),
        ("labels.csv", '\ufefffile name;class\r\n"a.jpg";"cat"\r\n"b.jpg";"cat"\r\n"c.jpg";dog\r\n\r\nd.jpg;dog\r\n'),
        ("labels.csv", "\ufeffimage,label\na.jpg,cat\nb.jpg,cat\nc.jpg,dog\nd.jpg,dog\n".encode("utf-16")),
        ("train.csv", "id,breed\na,cat\nb,cat\nc,dog\nd,dog\n"),
        ("labels.tsv", "filename\tlabel\na.jpg\tcat\nb.jpg\tcat\nc.jpg\tdog\nd.jpg\tdog\n"),
        ("_classes.csv", "filename, cat, dog\na.jpg, 1, 0\nb.jpg, 1, 0\nc.jpg, 0, 1\nd.jpg, 0, 1\n"),
        ("GroundTruth.csv", "image,cat,dog\na,1.0,0.0\nb,1.0,0.0\nc,0.0,1.0\nd,0.0,1.0\n"),
        ("sports.csv", "class id,filepaths,labels,size\n0,a.jpg,cat,9\n0,b.jpg,cat,9\n1,c.jpg,dog,9\n1,d.jpg,dog,9\n"),
        ("metadata.jsonl", "\n".join(json.dumps({"file_name": f"{n}.jpg", "label": c}) for n, c in zip("abcd", ["cat", "cat", "dog", "dog"], strict=True))),
        ("labels.json", json.dumps({"a.jpg": "cat", "b.jpg": "cat", "c.jpg": "dog", "d.jpg": "dog"})),
        ("labels.json", json.dumps([{"file": f"{n}.jpg", "label": c} for n, c in zip("abcd", ["cat", "cat", "dog", "dog"], strict=True)])),
        ("labels.txt", "# path label\na.jpg cat\nb.jpg cat\nc.jpg dog\nd.jpg dog\n"),
        (
            "_annotations.coco.json",
            json.dumps(
                {
                    "images": [{"id": n, "file_name": name} for n, name in enumerate(ABCD)],
                    "annotations": [{"image_id": n, "category_id": n // 2 + 1} for n in (0, 0, 1, 2, 3)],
                    "categories": [{"id": 0, "name": "pets"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
                }
            ),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.count(".") == 1 and " " not in value else "",
)  # fmt: skip
@pytest.mark.parametrize("label", ["auto", "csv"])
def test_lists_of_every_kind_state_the_classes(delivered, name, text, label):
    assert places(delivered(ABCD, {name: text}), "auto", label) == CATS_AND_DOGS


ROWS = "cat\n{}b,cat\n{}c,dog\n{}d,dog\n"


@pytest.mark.parametrize(
    ("folder", "list_", "written"),
    [
        ("images/", "labels.csv", "images/{}.jpg"),
        ("images/", "labels.csv", "{}.jpg"),
        ("images/", "labels.csv", "{}"),
        ("images/", "labels.csv", "./images/{}.jpg"),
        ("images/", "labels.csv", "images\\{}.jpg"),
        ("images/", "labels.csv", "IMAGES/{}.JPG"),
        ("images/", "meta/labels.csv", "../images/{}.jpg"),
        ("images/", "meta/labels.csv", "images/{}"),
        ("x/images/", "x/labels.csv", "images/{}.jpg"),
        ("images/", "labels.csv", "/home/me/images/{}.jpg"),
        ("images/", "labels.csv", "C:\\photos\\images\\{}.jpg"),
        ("images/", "labels.csv", "../../elsewhere/{}.jpg"),
    ],
)
def test_files_are_found_from_the_folder_of_the_list_or_by_their_unique_name(
    delivered, folder, list_, written
):
    images = [folder + name for name in ABCD]
    rows = [
        f"{written.format(n)},{label}" for n, label in zip("abcd", ["cat", "cat", "dog", "dog"], strict=True)
    ]
    delivery = delivered(images, {list_: "\n".join(["path,label", *rows])})
    assert list(places(delivery).values()) == list(CATS_AND_DOGS.values())
    absolute = written.startswith(("/", "C:"))
    assert (
        any(
            "rows that have absolute paths, and were found by the end of the path: 4," in text
            for text in notes(delivery)
        )
        == absolute
    )
    assert any("lead out of the delivery" in text for text in notes(delivery)) == written.startswith("../../")


@pytest.mark.parametrize(
    "suffix", ["jpe", "jfif", "tiff", "hif", "heic", "jpc", "j2c", "jpf", "avifs", "dcm"]
)
def test_a_list_may_leave_out_any_suffix_of_an_image(suffix):
    assert Index([f"images/0123.{suffix}"]).find("0123", "", None) == f"images/0123.{suffix}"


def test_splits_and_groups_are_columns_and_folders_fill_in_what_they_lack(delivered):
    text = "path,label,split,patient_id\na.jpg,cat,train,p1\nb.jpg,cat,test,p2\nc.jpg,dog,training,\nd.jpg,dog,TEST,p2\n"
    delivery = delivered(ABCD, {"labels.csv": text})
    layout = recognise(delivery)
    assert layout.delivered == ("train", "test")
    found = [(p.split, p.label, p.group) for p in map(layout.place, ABCD)]
    assert found == [
        ("train", "cat", "p1"),
        ("test", "cat", "p2"),
        ("train", "dog", None),
        ("test", "dog", "p2"),
    ]


def test_a_split_folder_of_which_no_image_is_listed_waits_for_a_prediction(delivered):
    images = ["train/a.jpg", "train/b.jpg", "train/c.jpg", "test/1.jpg", "test/2.jpg"]
    delivery = delivered(
        images,
        {"train.csv": "id,label\na,cat\nb,dog\nc,dog\n", "sample_submission.csv": "id,label\n1,cat\n2,cat\n"},
    )
    assert places(delivery) == {
        "train/a.jpg": ("train", "cat"), "train/b.jpg": ("train", "dog"), "train/c.jpg": ("train", "dog"),
        "test/1.jpg": UNLABELLED, "test/2.jpg": UNLABELLED,
    }  # fmt: skip
    assert recognise(delivery).delivered == ("train",)


def test_images_that_only_a_list_without_classes_names_wait_for_a_prediction(delivered):
    images = [f"images/{part}_{n}.jpg" for part in ("Train", "Test") for n in range(3)]
    delivery = delivered(
        images,
        {
            "train.csv": "image_id,healthy,rust\nTrain_0,1,0\nTrain_1,0,1\nTrain_2,0,1\n",
            "test.csv": "image_id\nTest_0\nTest_1\nTest_2\n",
        },
    )
    assert Counter(places(delivery).values()) == {
        UNLABELLED: 3,
        ("train", "healthy"): 1,
        ("train", "rust"): 2,
    }


def test_lists_named_like_splits_divide_the_images(delivered):
    images = [f"jpg/{n}.jpg" for n in range(6)]
    files = {
        "train.csv": "file,label\n0,cat\n1,dog\n2,dog\n",
        "val_list.csv": "file,label\n3,cat\n",
        "testLabels.csv": "file,label\n4,cat\n5,dog\n",
    }
    found = places(delivered(images, files))
    assert [split for split, _ in found.values()] == ["train"] * 3 + ["val"] + ["test"] * 2


def test_food_101_has_class_folders_and_lists_of_its_splits(delivered):
    images = [f"food-101/images/{label}/{n}.jpg" for label in ("pie", "soup") for n in range(4)]
    meta = {
        "food-101/meta/train.txt": "".join(f"{label}/{n}\n" for label in ("pie", "soup") for n in range(3)),
        "food-101/meta/test.txt": "pie/3\nsoup/3\n",
        "food-101/meta/classes.txt": "pie\nsoup\n",
    }
    delivery = delivered(images, meta)
    found = Counter(places(delivery).values())
    assert found == {("train", "pie"): 3, ("test", "pie"): 1, ("train", "soup"): 3, ("test", "soup"): 1}
    assert recognise(delivery).delivered == ("train", "test")
    assert set(places(delivery, "auto", "folder").values()) == {(None, "pie"), (None, "soup")}


def test_imagenet_has_class_folders_and_a_list_for_the_flat_validation_split(delivered):
    images = [f"train/{wnid}/{wnid}_{n}.JPEG" for wnid in ("n01440764", "n01443537") for n in range(3)]
    images += [f"val/ILSVRC2012_val_0000000{n}.JPEG" for n in range(2)]
    lines = "ILSVRC2012_val_00000000.JPEG n01443537\nILSVRC2012_val_00000001.JPEG n01440764\n"
    delivery = delivered(images, {"val_labels.txt": lines})
    assert Counter(places(delivery).values()) == {
        ("train", "n01440764"): 3, ("train", "n01443537"): 3, ("val", "n01440764"): 1, ("val", "n01443537"): 1,
    }  # fmt: skip
    assert recognise(delivery).delivered == ("train", "val")


def test_roboflow_has_a_list_in_each_split(delivered):
    images = [f"{part}/{n}_jpg.rf.0a.jpg" for part in ("train", "valid", "test") for n in range(2)]
    text = "filename, circle, square\n0_jpg.rf.0a.jpg, 1, 0\n1_jpg.rf.0a.jpg, 0, 1\n"
    delivery = delivered(images, {f"{part}/_classes.csv": text for part in ("train", "valid", "test")})
    assert set(places(delivery).values()) == {
        (split, label) for split in ("train", "val", "test") for label in ("circle", "square")
    }


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("filename, cat, dog\na.jpg, 1, 1\nb.jpg, 1, 0\nc.jpg, 0, 1\nd.jpg, 0, 1\n", ["several labels per image (a.jpg: cat, dog)"]),
        ("path,label\na.jpg,cat|dog\nb.jpg,cat\nc.jpg,dog\nd.jpg,dog\n", ["several labels per image in the column `label` (`cat|dog`)"]),
        ("image_name,tags\na,clear water\nb,clear road\nc,water road\nd,clear water road\n", ["several labels per image in the column `tags`"]),
        ("path,label\na.jpg,cat\na.jpg,dog\nb.jpg,cat\nb.jpg,dog\nc.jpg,dog\nd.jpg,dog\n", ["several labels for 2 of 4 images (a.jpg: cat, dog)"]),
        ("path,colour,shape\na.jpg,red,x\nb.jpg,red,y\nc.jpg,blue,x\nd.jpg,blue,y\n", ["unclear (`colour`, such as red; `shape`, such as x)", "-S data.columns.label=shape"]),
        ("path,label\ne.jpg,cat\nf.jpg,cat\ng.jpg,dog\nd.jpg,dog\n", ["names 4 files, and 3 of them are not delivered or not unique, such as e.jpg"]),
        ("path,label\na.jpg,\0\n", ["contains NUL bytes"]),
        (codecs.BOM_UTF16_LE + "path,label\na.jpg,cat\n".encode("utf-16-le") + b"x", ["byte order mark of utf-16", "truncated data"]),
        (codecs.BOM_UTF8 + b"path,label\na.jpg,caf\xe9\n", ["byte order mark of utf-8", "invalid continuation byte"]),
        ('path,label\na.jpg,cat\nb.jpg,"' + "x" * 200_000 + '"\n', ["cannot be read", "field larger than field limit"]),
    ],
)  # fmt: skip
def test_a_list_that_does_not_state_one_class_per_image_is_refused_with_the_reason(delivered, text, facts):
    message = refusal(delivered(ABCD, {"labels.csv": text}), "auto", "csv")
    assert [fact for fact in [*facts, "labels.csv"] if fact not in message] == [], message


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "category_id": n} for n in (1, 2)], "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}, "several categories for 1 of 1 images (a.jpg: cat, dog)"),
        ({"images": [{}], "annotations": [{"image_id": 1}], "categories": []}, "is no COCO annotation: KeyError"),
        ("[" * 100_000, "is no JSON"),
    ],
)  # fmt: skip
def test_a_coco_file_that_does_not_state_one_class_per_image_is_refused(delivered, content, fact):
    text = content if isinstance(content, str) else json.dumps(content)
    assert fact in refusal(delivered(ABCD, {"annotations.json": text}))


def test_a_column_of_captions_or_measurements_is_no_class(delivered):
    images = [f"{n}.jpg" for n in range(40)]
    text = "file_name,text\n" + "".join(f"{n}.jpg,a photo of thing {n}\n" for n in range(40))
    assert "holds no classes: 40 different values for 40 images" in refusal(
        delivered(images, {"metadata.csv": text})
    )


def test_faults_of_rows_are_counted_and_named_and_their_images_are_not_used(delivered):
    images = [f"{n}.jpg" for n in range(40)]
    rows = [f"{n}.jpg,{'cat' if n % 2 else 'dog'}" for n in range(37)]
    rows += ["37.jpg,", "38.jpg", "0.jpg,dog", "1.jpg,dog", "gone.jpg,cat", ",cat", f"2.jpg,{'x' * 300}"]
    delivery = delivered(images, {"labels.csv": "path,label\n" + "\n".join(rows)})
    unused = {name: place for name, place in places(delivery).items() if isinstance(place, str)}
    assert unused == {
        "1.jpg": "has two labels in labels.csv: cat, dog",
        "37.jpg": "has no label in labels.csv",
        "38.jpg": "has no label in labels.csv",
        "39.jpg": "is in no row of labels.csv",
    }
    assert sorted(notes(delivery)) == [
        "labels.csv: rows that name files that are not delivered: 1, such as gone.jpg",
        "labels.csv: rows that name no file: 1, such as row 43",
        "labels.csv: rows that repeat a file: 2, such as 0.jpg, 2.jpg",
    ]


def test_a_list_in_latin_1_is_read_and_pointed_out(delivered):
    text = "path,label\na.jpg,caf\xe9\nb.jpg,caf\xe9\nc.jpg,bar\nd.jpg,bar\n".encode("latin-1")
    delivery = delivered(ABCD, {"labels.csv": text})
    assert set(places(delivery).values()) == {(None, "café"), (None, "bar")}
    assert any("no UTF-8 and was read as Latin-1" in note for note in notes(delivery))


def test_a_name_that_fits_several_files_is_not_guessed(delivered):
    images = ["x/1.jpg", "y/1.jpg", "x/2.jpg", "y/3.jpg", "y/4.jpg"]
    delivery = delivered(images, {"labels.csv": "file,label\n1.jpg,cat\n2.jpg,cat\n3.jpg,dog\n4.jpg,dog\n"})
    found = places(delivery, "auto", "csv")
    assert found["x/1.jpg"] == found["y/1.jpg"] == "is in no row of labels.csv"
    assert "labels.csv: rows that fit several delivered files, and are not used: 1, such as 1.jpg" in notes(
        delivery, "auto", "csv"
    )
    by_path = delivered(
        [], {"labels.csv": "file,label\nx/1.jpg,cat\ny/1.jpg,dog\n2.jpg,cat\n3.jpg,dog\n4.jpg,dog\n"}
    )
    assert [label for _, label in places(by_path, "auto", "csv").values()] == [
        "cat",
        "cat",
        "dog",
        "dog",
        "dog",
    ]


def test_folders_and_a_list_of_other_classes_are_refused_and_each_can_be_chosen(delivered):
    images = [f"part_a/{n}.jpg" for n in range(4)] + [f"part_b/{n}.jpg" for n in range(4, 8)]
    text = "image_id,dx\n" + "".join(f"{n},{'nv' if n % 2 else 'mel'}\n" for n in range(8))
    delivery = delivered(images, {"metadata.csv": text})
    message = refusal(delivery)
    for fact in (
        "2 (part_a, part_b)",
        "metadata.csv has 2 (mel, nv)",
        "-S data.label=csv",
        "-S data.label=folder",
    ):
        assert fact in message
    assert set(places(delivery, "auto", "csv").values()) == {(None, "mel"), (None, "nv")}
    assert set(places(delivery, "auto", "folder").values()) == {(None, "part_a"), (None, "part_b")}


def test_a_list_that_repeats_the_folders_in_other_words_changes_nothing(delivered):
    images = [f"{wnid}/{n}.jpg" for wnid in ("n01", "n02") for n in range(4)]
    text = "path,label\n" + "".join(
        f"{name},{'tench' if name.startswith('n01') else 'goldfish'}\n" for name in images
    )
    assert set(places(delivered(images, {"labels.csv": text})).values()) == {(None, "n01"), (None, "n02")}


def test_a_list_of_something_else_beside_class_folders_changes_nothing(delivered):
    images = [f"{label}/{n}.jpg" for label in ("cat", "dog") for n in range(4)]
    text = (
        "file,camera\n"
        + "".join(f"{name},{'xy'[n % 2]}\n" for n, name in enumerate(images[:-1]))
        + f"{images[-1]},\n"
    )
    delivery = delivered(images, {"meta.csv": text, "names.json": '{"0": "cat", "1": "dog"}'})
    assert set(places(delivery).values()) == {(None, "cat"), (None, "dog")}


def test_groups_of_a_list_beside_class_folders_are_kept(delivered):
    images = [f"{label}/{n}.jpg" for label in ("cat", "dog") for n in range(2)]
    text = "file,patient_id\n" + "".join(f"{name},p{n}\n" for n, name in enumerate(images))
    layout = recognise(delivered(images, {"meta.csv": text + "x.jpg,p9\n"}))
    assert [layout.place(name).group for name in images] == ["p0", "p1", "p2", "p3"]


def test_several_labels_in_json_are_refused(delivered):
    rows = "\n".join(
        json.dumps({"file_name": name, "label": ["cat", "dog"][: n % 2 + 1]}) for n, name in enumerate(ABCD)
    )
    assert "several labels per image in the column `label` (`cat|dog`)" in refusal(
        delivered(ABCD, {"metadata.jsonl": rows})
    )


def test_splits_of_folders_and_a_list_must_agree(delivered):
    images = ["train/a.jpg", "train/b.jpg", "test/c.jpg", "test/d.jpg"]
    text = "path,label,split\ntrain/a.jpg,cat,train\ntrain/b.jpg,dog,test\ntest/c.jpg,cat,test\ntest/d.jpg,dog,test\n"
    message = refusal(delivered(images, {"labels.csv": text}))
    assert "train/b.jpg lies in the train split's folder, but labels.csv states test" in message


@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_lists_are_read_inside_archives(zipped, tarred, kind):
    files = {f"x/images/{n}.png": png_of(n) for n in range(4)}
    files["x/labels.csv"] = b"path,label\n0,cat\n1,cat\n2,dog\n3,dog\n"
    delivery = open_delivery(zipped(files) if kind == "zip" else tarred(files, "gz"))
    assert [label for _, label in places(delivery).values()] == ["cat", "cat", "dog", "dog"]


FILE_NAMES = {
    "cats and dogs": (["cat.0.jpg", "dog.12.jpg"], r"^(?P<label>[A-Za-z]+)\.\d", {"cat", "dog"}),
    "underscores": (["cat_001.jpg", "dog_002.jpg"], r"^(?P<label>[A-Za-z]+)[_-]\d+\.", {"cat", "dog"}),
    "nothing between": (["cat001.jpg", "dog7.jpg"], r"^(?P<label>[A-Za-z]+)\d+\.", {"cat", "dog"}),
    "ImageNet": (
        ["n01440764_10026.JPEG", "n01443537_7.JPEG"],
        r"^(?P<label>\w+)_\d+\.",
        {"n01440764", "n01443537"},
    ),
    "Oxford pets": (
        ["Abyssinian_1.jpg", "american_bulldog_100.jpg"],
        r"^(?P<label>\w+)_\d+\.",
        {"Abyssinian", "american_bulldog"},
    ),
    "Windows copies": (["my cat (1).jpg", "my dog (22).jpg"], None, {"my cat", "my dog"}),
    "number first": (["0001_cat.png", "2-dog.png"], None, {"cat", "dog"}),
    "first word": (["happy_man_3_x.jpg", "sad_woman_4_y.jpg"], None, {"happy", "sad"}),
    "last word": (["IMG_1a_cat.jpg", "IMG_1b_dog.jpg"], None, {"cat", "dog"}),
}


@pytest.mark.parametrize("names", FILE_NAMES)
def test_labels_in_file_names_are_refused_with_the_pattern_that_reads_them(delivered, names):
    examples, expected, labels = FILE_NAMES[names]
    images = [re.sub(r"\d(?=\D*$)", str(n), name) for name in examples for n in range(6)]
    images = list(dict.fromkeys(f"train/{name}" for name in images)) + [f"test1/{n}.jpg" for n in range(9)]
    delivery = delivered(images, {"sampleSubmission.csv": "id,label\n1,0\n"})
    message = refusal(delivery)
    (pattern,) = re.findall(r"label: '(.*)'", message)
    assert pattern in PATTERNS
    assert expected is None or pattern == expected
    assert "train (" in message
    assert "test1 (9)" in message
    found = places(delivery, "auto", pattern)
    assert {place[1] for name, place in found.items() if name.startswith("train/")} == labels
    assert {place for name, place in found.items() if name.startswith("test1/")} == {UNLABELLED}


def test_a_single_folder_of_names_with_classes_is_no_class(delivered):
    names = [f"{label}.{n}.jpg" for label in ("cat", "dog") for n in range(5)]
    assert r"label: '^(?P<label>[A-Za-z]+)\.\d'" in refusal(
        delivered([f"all_pets/{name}" for name in names], {})
    )


@pytest.mark.parametrize(
    "names",
    [
        [f"IMG_{n:04}.jpg" for n in range(20)],
        [f"{n}.jpg" for n in range(20)],
        [f"{kind}_{n}.jpg" for kind in ("IMG", "DSC") for n in range(9)],
        [f"caption-number-{n}-of-many.jpg" for n in range(20)],
        [f"{n:032x}.png" for n in range(1, 2000, 97)],
    ],
)
def test_no_pattern_is_proposed_without_evidence(names):
    assert propose(names) is None


def test_images_that_the_pattern_does_not_match_are_not_used_and_named(delivered):
    delivery = delivered(
        [f"{label}.{n}.jpg" for label in ("cat", "dog") for n in range(12)] + ["012.jpg"], {}
    )
    found = places(delivery, "auto", r"(?P<label>[a-z]+)\.\d")
    assert found.pop("012.jpg") == "has a name that data.label does not match"
    assert {label for _, label in found.values()} == {"cat", "dog"}
    message = refusal(delivery, "auto", "(?P<label>x+)_")
    for fact in ("(?P<label>x+)_", "matches no file name", "012.jpg", r"^(?P<label>[A-Za-z]+)\.\d"):
        assert fact in message


def test_without_lists_or_classes_the_ways_out_are_named(delivered):
    message = refusal(delivered([f"photos/{n}.jpg" for n in range(3)], {}), "auto", "csv")
    for fact in ("3 images", "photos (3)", "labels.csv", "-S data.label=csv", "one folder per class"):
        assert fact in message


def test_many_rows_are_read_in_bounded_time_and_memory(delivered):
    images = [f"{n}.jpg" for n in range(1000)]
    delivery = delivered(images, {})
    rows = "".join(f"/data/some/folder/{n % 1000}.jpg,{'cat' if n % 2 else 'dog'}\n" for n in range(10_000))
    (delivery.path / "labels.csv").write_text("path,label\n" + rows)
    tracemalloc.start()
    try:
        found = recognise(delivery)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(rows), "bytes"
    finally:
        tracemalloc.stop()
    assert found.place("7.jpg").label == "cat"
    assert any("rows that repeat a file: 9,000" in note.text for note in found.notes)


@pytest.mark.parametrize(
    "text", ["", "\n\n", "path,label\n", ",".join("x" * 100_000), bytes(range(1, 256)) * 9, '{"a":' * 9]
)
@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl", "labels.json", "labels.txt"])
def test_a_list_without_content_or_of_garbage_states_nothing(delivered, name, text):
    assert "nothing states the classes of its 4 images" in refusal(delivered(ABCD, {name: text}))


def test_a_split_that_is_unknown_is_named_in_a_column_of_splits(delivered):
    text = "path,label,split\na.jpg,cat,train\nb.jpg,cat,weird\nc.jpg,dog,train\nd.jpg,dog,\n"
    found = places(delivered(ABCD, {"labels.csv": text}))
    assert found["b.jpg"] == "has the unknown split `weird` in labels.csv"
    assert found["d.jpg"] == "has no split in labels.csv"


def test_a_single_folder_beside_an_unusable_list_is_no_class(delivered):
    images = [f"im/{n}.jpg" for n in range(9)]
    text = "file,cat,dog\n" + "".join(f"{n}.jpg,1,{n // 8}\n" for n in range(9))
    assert "several labels per image" in refusal(delivered(images, {"labels.csv": text}))


def test_a_list_above_the_limit_is_not_read(delivered, monkeypatch):
    monkeypatch.setattr(lists, "MAX_LIST_BYTES", 20)
    delivery = delivered(ABCD, {"labels.csv": "path,label\na.jpg,cat\nb.jpg,cat\nc.jpg,dog\n"})
    assert "labels.csv is not read: it has more than 20 bytes" in refusal(delivery)


def sheet(header, rows):
    return f"{header}\n" + "".join(f"{row}\n" for row in rows)


@pytest.mark.parametrize(
    ("header", "rows", "facts"),
    [
        (
            "file,breed,category",
            ["a,pug,dog", "b,tabby,cat", "c,pug,dog", "d,boxer,dog"],
            ["`breed`, such as pug", "`category`, such as dog"],
        ),
        (
            "file,category,breed",
            ["a,dog,pug", "b,cat,tabby", "c,dog,pug", "d,dog,boxer"],
            ["`breed`, such as pug", "`category`, such as dog"],
        ),
        (
            "file,cat,dog,width",
            ["a,1,0,20", "b,0,1,30", "c,1,0,20", "d,0,1,40"],
            ["`cat`, such as 1", "`width`, such as 20"],
        ),
    ],
)
def test_columns_that_state_different_things_are_named(delivered, header, rows, facts):
    message = refusal(delivered(ABCD, {"labels.csv": sheet(header, rows)}))
    assert [fact for fact in [*facts, "-S data.columns.label="] if fact not in message] == [], message


def test_a_header_may_lack_the_title_of_the_first_column(delivered):
    text = sheet("label,split", ["a.jpg,cat,train", "b.jpg,cat,train", "c.jpg,dog,train", "d.jpg,dog,test"])
    assert set(places(delivered(ABCD, {"labels.csv": text})).values()) == {
        ("train", "cat"),
        ("train", "dog"),
        ("test", "dog"),
    }


def test_a_mark_in_labels_joins_them_only_if_the_parts_are_labels(delivered):
    text = sheet("file,label", ['a,"Smith, J"', 'b,"Smith, J"', 'c,"Jones, K"', 'd,"Jones, K"'])
    assert set(places(delivered(ABCD, {"labels.csv": text})).values()) == {
        (None, "Smith, J"),
        (None, "Jones, K"),
    }


def test_the_column_of_the_images_is_the_column_with_the_most_of_them(delivered):
    """A number of the row may be the name of some image, too."""
    images = [f"{n}.jpg" for n in range(9, 19)]
    text = sheet("image,picture,label", [f"{n - 8},{n}.jpg,{'ab'[n % 2]}" for n in range(9, 19)])
    assert Counter(places(delivered(images, {"labels.csv": text})).values()) == {
        (None, "a"): 5,
        (None, "b"): 5,
    }


PARTS = [f"{part}/{n}.jpg" for part in ("train", "test") for n in range(4)]
ONE_HOT = "filename,cat,dog\n0.jpg,1,0\n1.jpg,0,1\n2.jpg,1,0\n3.jpg,0,1\n"
LONG = "file\n" + "0.jpg\n" * 300 + "x" * 200_000 + "\n"


@pytest.mark.parametrize("train", [ONE_HOT, None])
@pytest.mark.parametrize(
    ("test", "reason"),
    [
        (ONE_HOT.replace("1,0\n", "1,1\n"), "has several labels per image (0.jpg: cat, dog)"),
        (LONG.replace("\n", ",cat\n").replace("file,cat", "file,label"), "cannot be read after row 30"),
        (LONG, "cannot be read after row 30"),
    ],
)
def test_a_split_whose_list_is_unusable_is_refused_and_not_passed_over_as_unlabelled(
    delivered, train, test, reason
):
    images = PARTS if train else [name.replace("train/", f"train/{n % 2}/") for n, name in enumerate(PARTS)]
    texts = {"test/_classes.csv": test} | ({"train/_classes.csv": train} if train else {})
    message = refusal(delivered(images, texts))
    assert (
        f"such as test/0.jpg, have no class, since the list that names them is not usable: test/_classes.csv {reason}"
        in message
    )
    assert "remove the list" in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,label\na.jpg,\0\n", "test/labels.csv contains NUL bytes"),
        ("path,label\n" + "a.jpg,cat\n" * 7, "test/labels.csv is not read: it has more than"),
    ],
)
def test_a_list_that_is_not_read_is_pointed_out_beside_others(delivered, monkeypatch, text, reason):
    monkeypatch.setattr(lists, "MAX_LIST_BYTES", 80)
    found = notes(delivered(PARTS, {"train/_classes.csv": ONE_HOT, "test/labels.csv": text}))
    assert [note for note in found if note.startswith(reason)], found


def test_lists_beyond_the_limit_are_pointed_out(delivered, monkeypatch):
    monkeypatch.setattr(lists, "MAX_LISTS", 1)
    delivery = delivered(PARTS, {f"{part}/_classes.csv": ONE_HOT for part in ("train", "test")})
    assert "Of 2 lists the 1 nearest to the top are read; train/_classes.csv is beyond" in refusal(delivery)


def test_the_column_of_the_classes_is_stated(delivered):
    delivery = delivered(ABCD, {"labels.csv": "path,sex,species\na,m,cat\nb,f,cat\nc,m,dog\nd,m,dog\n"})
    assert places(delivery) == CATS_AND_DOGS
    assert "Classes are read from labels.csv (column `species`)" in delivery.notes


def test_a_list_of_other_classes_whose_names_fit_several_files_is_pointed_out_beside_class_folders(delivered):
    images = [f"{folder}/{n}.jpg" for folder in ("site1", "site2") for n in range(4)]
    rows = "".join(f"{n}.jpg,{'cat' if n % 2 else 'dog'}\n" for n in range(4))
    (note,) = notes(delivered(images, {"labels.csv": "path,label\n" + rows}))
    assert "labels.csv" in note
    assert "4 of them are not delivered or not unique" in note
    assert "not used" in note


def test_a_label_of_other_labels_and_a_word_for_nothing_are_pointed_out(delivered):
    texts = notes(delivered(ABCD, {"labels.csv": "path,label\na,cat\nb,dog\nc,cat dog\nd,NaN\n"}))
    assert any("words are labels themselves" in text and "1, such as cat dog" in text for text in texts)
    assert any("missing label: `NaN`" in text for text in texts)


def test_tiny_imagenet_has_class_folders_and_boxes_of_the_flat_validation_split(delivered):
    train = [f"train/{label}/images/{label}_{n}.JPEG" for label in ("n01", "n02") for n in range(3)]
    val = [f"val/images/val_{n}.JPEG" for n in range(4)]
    rows = "".join(f"val_{n}.JPEG\tn0{n % 2 + 1}\t0\t{n}\t62\t62\n" for n in range(4))
    found = places(delivered([*train, *val, "test/images/test_0.JPEG"], {"val/val_annotations.txt": rows}))
    assert found["val/images/val_1.JPEG"] == ("val", "n02")
    assert found["train/n01/images/n01_0.JPEG"] == ("train", "n01")
    assert found["test/images/test_0.JPEG"] == UNLABELLED


@pytest.mark.parametrize(
    ("column", "values", "splits"),
    [
        ("is_valid", ["False", "True"], ["train", "val"]),
        ("is_train", ["1", "0"], ["train", "test"]),
        ("isTest", ["no", "yes"], ["train", "test"]),
    ],
)
def test_a_column_of_yes_and_no_states_the_split(delivered, column, values, splits):
    rows = zip(ABCD, ("cat", "dog") * 2, [values[0]] * 2 + [values[1]] * 2, strict=True)
    text = f"path,label,{column}\n" + "".join(f"{','.join(row)}\n" for row in rows)
    found = places(delivered([*ABCD, "e.jpg"], {"labels.csv": f"{text}e.jpg,cat,?\n"}))
    assert "neither yes nor no (`?`)" in found.pop("e.jpg")
    assert [place[0] for place in found.values()] == [splits[0]] * 2 + [splits[1]] * 2


def test_a_list_that_names_no_delivered_image_is_named_with_its_first_row(delivered):
    images = [f"images/{n:05}.jpg" for n in range(4)]
    message = refusal(delivered(images, {"labels.csv": "id,label\n0,cat\n1,dog\n"}))
    assert "labels.csv names no delivered image; its first row is 0, cat" in message


FLAT = [f"images/{n:02}.jpg" for n in range(12)]
TRAIN_LIST = "image,label\n" + "".join(f"{n:02}.jpg,{'cat' if n % 2 else 'dog'}\n" for n in range(8))


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ("\0\1\2", "test.csv, the list of a split, is not usable: test.csv contains NUL bytes"),
        (
            "image,label\nelsewhere.jpg,cat\n",
            "the list of a split, is not usable: test.csv names no delivered image",
        ),
        (
            "image,p,q\n08.jpg,1,1\n09.jpg,1,0\n10.jpg,0,1\n",
            "the list that names them is not usable: test.csv has several labels",
        ),
    ],
)
def test_an_unusable_list_of_a_split_is_refused_where_no_folder_states_splits(delivered, test, reason):
    assert reason in refusal(delivered(FLAT, {"train.csv": TRAIN_LIST, "test.csv": test}))


def test_an_empty_list_of_a_split_is_pointed_out(delivered):
    found = recognise(delivered(FLAT, {"train.csv": TRAIN_LIST, "test.csv": ""}))
    assert "test.csv, named after the test split, names no delivered image" in str(found.notes)
