"""Lists and folders as published data sets have them, a few images each: classes and splits are read, or refused with a remedy."""

import json
from collections import Counter

import pytest

from convoy.core.errors import DataError
from convoy.data.layout import recognise
from convoy.data.settings import ColumnParams
from convoy.images.delivery import open_delivery

WNIDS = ("n01440764", "n01443537", "n01484850")
BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
PETS = [f"{breed}_{n}" for breed in ("Abyssinian", "beagle", "great_pyrenees") for n in range(1, 7)]
FOOD = [f"{dish}/{n}" for dish in ("apple_pie", "sushi") for n in range(100, 106)]
PEOPLE = [f"{n:06d}.jpg" for n in range(1, 13)]
MAT = b"MATLAB 5.0 MAT-file" + bytes(100)
UNLABELLED = "unlabelled image"


@pytest.fixture
def found(tmp_path):
    """Write a delivery and count what is stated about its images."""

    def read(images, lists, *arguments, **columns):
        for name, content in {**dict.fromkeys(images, b"\xff\xd8\xff"), **lists}.items():
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        params = ColumnParams.model_validate(
            dict.fromkeys(("path", "label", "split", "group"), "auto") | columns
        )
        layout = recognise(open_delivery(tmp_path / "data"), *arguments or ("auto",), columns=params)
        places = map(layout.place, images)
        read.notes = "\n".join(note.text for note in layout.notes)
        return Counter(p.passed_over or p.reason or (p.split, p.label) for p in places)

    return read


def lines(rows, header=""):
    return header + "".join(f"{row}\n" for row in rows)


def each(split, labels, count):
    return {(split, label): count for label in labels}


def birds(paths):
    return {
        "images.txt": lines(f"{n} {path}" for n, path in enumerate(paths, 1)),
        "image_class_labels.txt": lines(f"{n} {1 + (n > 6)}" for n in range(1, 13)),
        "train_test_split.txt": lines(f"{n} {n % 2}" for n in range(1, 13)),
        "classes.txt": lines(f"{n} {name}" for n, name in enumerate(BIRDS, 1)),
        "bounding_boxes.txt": lines(f"{n} 60.0 27.0 325.0 304.0" for n in range(1, 13)),
    }


def pets():
    def row(pet):
        return f"{pet} {['Abyssinian', 'beagle', 'great_pyrenees'].index(pet.rpartition('_')[0]) + 1} {1 if pet[0].isupper() else 2} {pet[-1]}"

    return {
        "annotations/list.txt": "#Image CLASS-ID SPECIES BREED ID\n" + lines(map(row, PETS)),
        "annotations/trainval.txt": lines(row(pet) for pet in PETS if pet[-1] < "5"),
        "annotations/test.txt": lines(row(pet) for pet in PETS if pet[-1] >= "5"),
    }


def imagenet():
    images = [f"CLS-LOC/train/{w}/{w}_{n}.JPEG" for w in WNIDS for n in range(4)]
    images += [f"CLS-LOC/val/ILSVRC2012_val_{n:08d}.JPEG" for n in range(6)]
    return images + [f"CLS-LOC/test/ILSVRC2012_test_{n:08d}.JPEG" for n in range(5)]


def signs():
    images = [f"Final_Training/Images/{c:05d}/{n:05d}_00000.ppm" for c in range(2) for n in range(4)]
    return images + [f"Final_Test/Images/{n:05d}.ppm" for n in range(4)]


ROI = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
ATTRIBUTES = "5_o_Clock_Shadow Bald Male"
PLACES = [f"data_large/{place[0]}/{place}/{n}.jpg" for place in ("alley", "bakery") for n in range(4)]
PLACES += [f"val_large/Places365_val_{n}.jpg" for n in range(4)]
PLACES_LISTS = {
    "places365_train_standard.txt": lines(f"/{place[0]}/{place}/{n}.jpg {'ab'.index(place[0])}" for place in ("alley", "bakery") for n in range(4)),
    "places365_val.txt": lines(f"Places365_val_{n}.jpg {n % 2}" for n in range(4)),
    "categories_places365.txt": "/a/alley 0\n/b/bakery 1\n",
}  # fmt: skip
READ = {
    "ImageNet: boxes of the flat validation split": (
        imagenet(),
        {
            "LOC_val_solution.csv": lines(
                [f"ILSVRC2012_val_{n:08d},{WNIDS[n % 3]} 85 1 499 272 {f'{WNIDS[n % 3]} 1 2 3 4 ' * (n % 2)}" for n in range(6)],
                "ImageId,PredictionString\n",
            ),
            "LOC_synset_mapping.txt": lines(f"{w} fish, animal" for w in WNIDS),
        },
        {**each("train", WNIDS, 4), **each("val", WNIDS, 2), UNLABELLED: 5},
    ),
    "ImageNet: numbers of the classes that are folders": (
        imagenet(),
        {
            "train.txt": lines(f"{w}/{w}_{n}.JPEG {WNIDS.index(w)}" for w in WNIDS for n in range(4)),
            "val.txt": lines(f"ILSVRC2012_val_{n:08d}.JPEG {n % 3}" for n in range(6)),
        },
        {**each("train", WNIDS, 4), **each("val", WNIDS, 2), UNLABELLED: 5},
    ),
    "CUB-200: lists that are joined by number": (
        [f"images/{bird}/{n}.jpg" for bird in BIRDS for n in range(6)],
        birds([f"{bird}/{n}.jpg" for bird in BIRDS for n in range(6)]),
        {**each("train", BIRDS, 3), **each("test", BIRDS, 3)},
    ),
    "CUB-200 without class folders": (
        [f"CUB/images/{n}.jpg" for n in range(12)],
        {f"CUB/{name}": text for name, text in birds([f"{n}.jpg" for n in range(12)]).items()},
        {**each("train", BIRDS, 3), **each("test", BIRDS, 3)},
    ),
    "Food-101: a list of paths per class": (
        [f"images/{path}.jpg" for path in FOOD],
        {
            f"meta/{split}.json": json.dumps({dish: [p for p in FOOD if p.startswith(dish) and (p[-1] < "4") == (split == "train")] for dish in ("apple_pie", "sushi")})
            for split in ("train", "test")
        },
        {**each("train", ("apple_pie", "sushi"), 4), **each("test", ("apple_pie", "sushi"), 2)},
    ),
    "GTSRB: semicolons, and numbers without zeros": (
        signs(),
        {
            **{f"Final_Training/Images/{c:05d}/GT-{c:05d}.csv": lines([f"{n:05d}_00000.ppm;29;30;5;6;24;25;{c}" for n in range(4)], ROI) for c in range(2)},
            "GT-final_test.csv": lines([f"{n:05d}.ppm;53;54;6;5;48;49;{n % 2}" for n in range(4)], ROI),
        },
        {**each("train", ("00000", "00001"), 4), **each("test", ("00000", "00001"), 2)},
    ),
    "GTSRB: pictures of the classes beside the splits": (
        [*(f"Train/{c}/{n}_{c}.png" for c in range(2) for n in range(4)), *(f"Test/{n}.png" for n in range(4)), "Meta/a.png", "Meta/b.png"],
        {
            "Train.csv": lines([f"27,{c},Train/{c}/{n}_{c}.png" for c in range(2) for n in range(4)], "Width,ClassId,Path\n"),
            "Test.csv": lines([f"53,{n % 2},Test/{n}.png" for n in range(4)], "Width,ClassId,Path\n"),
            "Meta.csv": "Path,ClassId,ShapeId\nMeta/a.png,0,0\nMeta/b.png,1,0\n",
        },
        {**each("train", "01", 4), **each("test", "01", 2), "has no split, unlike other images of the lists": 2},
    ),
    "Places365: words beside the split in the names of lists": (
        [*PLACES, *(f"test_large/Places365_test_{n}.jpg" for n in range(4))],
        PLACES_LISTS | {"places365_test.txt": lines(f"Places365_test_{n}.jpg" for n in range(4))},
        {**each("train", "01", 4), **each("val", "01", 2), UNLABELLED: 4},
    ),
    "HAM10000: a table without a suffix": (
        [f"part_{n % 2 + 1}/ISIC_{n:07d}.jpg" for n in range(6)],
        {"HAM10000_metadata": lines([f"HAM_{n // 2},ISIC_{n:07d},{('nv', 'mel')[n % 2]},histo,vidir" for n in range(6)], "lesion_id,image_id,dx,dx_type,dataset\n")},
        each(None, ("nv", "mel"), 3),
    ),
    "HAM10000: tabs": (
        [f"part_{n % 2 + 1}/ISIC_{n:07d}.jpg" for n in range(6)],
        {"HAM10000_metadata.tab": lines([f"HAM_{n // 2}\tISIC_{n:07d}\t{('nv', 'mel')[n % 2]}\thisto\tvidir" for n in range(6)], "lesion_id\timage_id\tdx\tdx_type\tdataset\n")},
        each(None, ("nv", "mel"), 3),
    ),
    "FGVC Aircraft: labels of several words": (
        [f"images/{n:07d}.jpg" for n in range(8)],
        {f"images_family_{split}.txt": lines(f"{n:07d} {('Boeing 707', 'A310')[n % 2]}" for n in own) for split, own in (("trainval", range(6)), ("test", (6, 7)))},
        {**each("train", ("Boeing 707", "A310"), 3), **each("test", ("Boeing 707", "A310"), 1)},
    ),
    "iNaturalist: COCO, whose numbers are folders": (
        [f"{split}2019/Plants/{c}/{n}{split}.jpg" for split in ("train", "val") for c in (1, 2) for n in range(3)],
        {
            f"{split}2019.json": json.dumps({
                "images": [{"id": 10 * c + n, "file_name": f"{split}2019/Plants/{c}/{n}{split}.jpg"} for c in (1, 2) for n in range(3)],
                "annotations": [{"image_id": 10 * c + n, "category_id": c} for c in (1, 2) for n in range(3)],
                "categories": [{"id": c, "name": f"Quercus {c}"} for c in (1, 2)],
            })
            for split in ("train", "val")
        },
        {**each("train", "12", 3), **each("val", "12", 3)},
    ),
    "a list of labels and a list of splits": (
        [f"x/{n}.jpg" for n in range(6)],
        {"labels.csv": lines([f"{n}.jpg,{'ab'[n % 2]}" for n in range(6)], "file,label\n"), "partition.csv": lines([f"{n}.jpg,{n // 2}" for n in range(6)], "image_id,partition\n")},
        {**each("train", "ab", 1), **each("val", "ab", 1), **each("test", "ab", 1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_the_lists_of_published_sets_state_classes_and_splits(found, name):
    images, lists, expected = READ[name]
    assert found(images, lists) == expected


CARS = [f"cars_{split}/{n:05d}.jpg" for split in ("train", "test") for n in range(6)]
REFUSED = {
    "Oxford-IIIT Pet: columns of numbers": (
        [f"images/{pet}.jpg" for pet in PETS],
        pets(),
        ["annotations/list.txt", "`2`, such as 1; `3`, such as 1; `4`, such as 1", "by number", "-S data.columns.label=", r"`label: '^(?P<label>\w+)_\d+\.'`"],
    ),
    "Stanford Cars: corners beside the class": (
        CARS,
        {f"anno_{split}.csv": lines(f"{n:05d}.jpg,39,116,569,375,{n % 2 + 1}" for n in range(6)) for split in ("train", "test")},
        ["anno_train.csv", "`6`, such as 1", "-S data.columns.label=6"],
    ),
    "Stanford Cars: MATLAB": (CARS, {"devkit/cars_train_annos.mat": MAT}, ["devkit/cars_train_annos.mat", "MATLAB", "labels.csv"]),
    "Stanford Cars: a single folder": (CARS[:6], {"cars_train_annos.mat": MAT}, ["cars_train_annos.mat", "labels.csv"]),
    "Flowers-102: MATLAB": ([f"jpg/image_{n:05d}.jpg" for n in range(9)], {"imagelabels.mat": MAT, "setid.mat": MAT}, ["imagelabels.mat, setid.mat", "labels.csv"]),
    "SVHN: images inside MATLAB": ([], {"train_32x32.mat": MAT, "test_32x32.mat": MAT}, ["contains no images", "test_32x32.mat", "x_train.npy"]),
    "CelebA: attributes as text": (
        [f"img_align_celeba/{name}" for name in PEOPLE],
        {
            "list_attr_celeba.txt": f"12\n{ATTRIBUTES}\n" + lines(f"{name} -1  1 {'-1' if n % 3 else ' 1'}" for n, name in enumerate(PEOPLE)),
            "list_eval_partition.txt": lines(f"{name} {n % 3}" for n, name in enumerate(PEOPLE)),
        },
        ["list_attr_celeba.txt has several labels per image (000001.jpg: Bald, Male)"],
    ),
    "CelebA: attributes as CSV": (
        [f"img_align_celeba/{name}" for name in PEOPLE],
        {
            "list_attr_celeba.csv": lines([f"{name},1,1,{-1 if n % 2 else 1}" for n, name in enumerate(PEOPLE)], f"image_id,{ATTRIBUTES.replace(' ', ',')}\n"),
            "list_eval_partition.csv": lines([f"{name},{n % 3}" for n, name in enumerate(PEOPLE)], "image_id,partition\n"),
        },
        ["list_attr_celeba.csv has several labels per image (000001.jpg: 5_o_Clock_Shadow, Bald, Male)"],
    ),
    "CelebA: splits alone": (
        [f"img_align_celeba/{name}" for name in PEOPLE],
        {"list_eval_partition.txt": lines(f"{name} {n % 3}" for n, name in enumerate(PEOPLE))},
        ["nothing states the classes"],
    ),
    "splits of two numbers": (
        [f"x/{n}.jpg" for n in range(6)],
        {"labels.csv": lines([f"{n}.jpg,{'ab'[n % 2]},{n // 3}" for n in range(6)], "file,label,split\n")},
        ["the numbers in the column `split`", "0, 1 and 2", "-S data.columns.split=none"],
    ),
    "Open Images: several labels": (
        [f"train/{n:016x}.jpg" for n in range(6)],
        {"train-annotations-human-imagelabels.csv": lines([f"{n:016x},verification,/m/0{k},1" for n in range(6) for k in "ab"], "ImageID,Source,LabelName,Confidence\n")},
        ["train-annotations-human-imagelabels.csv has several labels for 6 of 6 images", "/m/0a, /m/0b"],
    ),
    "NIH ChestX-ray: folders of heaps": (
        [f"images_{n % 2 + 1:03d}/images/{n:08d}_000.png" for n in range(8)],
        {
            "Data_Entry_2017.csv": lines([f"{n:08d}_000.png,{('Mass', 'Mass|Edema', 'Edema', 'Edema|Mass')[n % 4]},{n}" for n in range(8)], "Image Index,Finding Labels,Patient ID\n"),
        },
        ["several labels per image in the column `Finding Labels` (`Mass|Edema`)"],
    ),
    "FGVC Aircraft: families and manufacturers": (
        [f"images/{n:07d}.jpg" for n in range(8)],
        {
            **{f"images_{kind}_{split}.txt": lines(f"{n:07d} {label[n % 2]}" for n in own) for kind, label in (("family", ("A310", "MD-11")), ("manufacturer", ("Airbus", "McDonnell"))) for split, own in (("train", range(6)), ("test", (6, 7)))},
        },
        ["contradict each other about 8 of 8 images", "two labels in the lists: A310, Airbus", "Remove all but"],
    ),
    "Places365: folders that are named like no splits": (
        PLACES,
        PLACES_LISTS,
        ["folders and list state different classes", "data_large, val_large", "-S data.label=csv"],
    ),
    "YOLO: boxes per image": (
        [f"images/{split}/{n}.jpg" for split in ("train", "val") for n in range(5)],
        {f"labels/{split}/{n}.txt": "0 0.5 0.5 0.2 0.2\n" for split in ("train", "val") for n in range(5)},
        ["10 images have a file of their name, such as labels/", "crop the objects"],
    ),
    "Pascal VOC: boxes per image": (
        [f"JPEGImages/{n}.jpg" for n in range(5)],
        {f"Annotations/{n}.xml": "<annotation/>" for n in range(5)},
        ["5 images have a file of their name, such as Annotations/0.xml", "crop the objects"],
    ),
    "PlantVillage: unpacked into itself": (
        [f"{outer}{kind}/{n}.jpg" for outer in ("PlantVillage/", "PlantVillage/PlantVillage/") for kind in ("Potato", "Tomato", "Pepper") for n in range(2)],
        {},
        ["`PlantVillage/PlantVillage` holds folders named like those beside it (`Pepper`, `Potato`, `Tomato`)", "-S data.layout=classes"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_state_one_class_per_image_is_refused_with_what_to_do(found, name):
    images, lists, facts = REFUSED[name]
    with pytest.raises(DataError) as caught:
        found(images, lists)
    assert [fact for fact in facts if fact not in str(caught.value)] == [], caught.value


def test_lists_of_several_folds_are_not_used_and_pointed_out(found):
    """The Describable Textures Dataset has ten."""
    images = [f"images/{kind}/{n}.jpg" for kind in ("dotted", "banded") for n in range(6)]
    folds = {
        f"labels/{split}{fold}.txt": lines(name.removeprefix("images/") for n, name in enumerate(images) if (n + fold) % 3 == k)
        for k, split in enumerate(("train", "val", "test")) for fold in (1, 2)
    }  # fmt: skip
    assert found(images, folds) == each(None, ("dotted", "banded"), 6)
    assert "contradict each other about 12 of 12 images" in found.notes
    assert "Remove all but the lists that are meant, such as those of one fold" in found.notes


def test_labels_that_no_folder_has_are_pointed_out(found):
    images = [*(f"train/{w}/{n}.jpg" for w in WNIDS for n in range(3)), "val/a.jpg", "val/b.jpg"]
    assert found(images, {"val.csv": "file,label\na.jpg,cat\nb.jpg,dog\n"})[UNLABELLED] == 2
    assert (
        "2 images outside the class folders, such as val/a.jpg, have classes that no folder has (cat, dog)"
        in found.notes
    )


def test_splits_in_a_format_that_is_not_read_are_pointed_out(found):
    images = [
        f"Images/{dog}/{n}.jpg" for dog in ("n02085620-Chihuahua", "n02085782-Spaniel") for n in range(3)
    ]
    assert sum(found(images, {"lists/train_list.mat": MAT, "lists/test_list.mat": MAT}).values()) == 6
    assert "test_list.mat, train_list.mat: if they state splits, they are not used" in found.notes
    found(images, {"Annotations/annotation_0001.mat": MAT})
    assert "annotation_0001" not in found.notes


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"label": "species"}, {("train", "cat"): 3, ("test", "dog"): 3}),
        ({"label": "Species "}, {("train", "cat"): 3, ("test", "dog"): 3}),
        ({"label": 3}, {("train", "tabby"): 3, ("test", "pug"): 2, ("test", "boxer"): 1}),
        ({"label": "species", "split": "none"}, {(None, "cat"): 3, (None, "dog"): 3}),
        ({"label": "species", "path": "copy", "split": "split"}, {("train", "cat"): 3, ("test", "dog"): 3}),
    ],
)
def test_the_columns_of_lists_can_be_stated(found, columns, expected):
    rows = [
        f"{n},{('cat', 'dog')[n > 2]},{('tabby', 'pug', 'boxer')[(n > 2) + (n > 4)]},{('train', 'test')[n > 2]},{5 - n}"
        for n in range(6)
    ]
    images = [f"x/{n}.jpg" for n in range(6)]
    lists = {"pets.csv": lines(rows, "image,species,breed,split,copy\n")}
    with pytest.raises(DataError, match=r"unclear \(`species`, such as cat; `breed`, such as tabby\)"):
        found(images, lists)
    assert found(images, lists, **columns) == expected


def test_a_stated_label_column_wins_over_class_folders(found):
    images = [f"{colour}/{n}.jpg" for colour in ("red", "blue") for n in range(3)]
    rows = lines([f"{name},{'ab'[int(name[-5]) % 2]}" for name in images], "path,kind\n")
    assert found(images, {"kinds.csv": rows}, label="kind") == {(None, "a"): 4, (None, "b"): 2}


@pytest.mark.parametrize("column", ["kind", 9])
@pytest.mark.parametrize("key", ["label", "split", "group", "path"])
def test_a_stated_column_that_no_list_has_is_refused_with_those_that_exist(found, key, column):
    with pytest.raises(DataError) as caught:
        found(["x/a.jpg", "x/b.jpg"], {"labels.csv": "file,label\na.jpg,cat\nb.jpg,dog\n"}, **{key: column})
    assert f"no list has the column `{column}` (data.columns.{key})" in str(caught.value)
    assert "labels.csv (`file`, `label`)" in str(caught.value)


def test_patterns_of_names_take_splits_and_groups_from_lists(found):
    images = [f"images/{pet}.jpg" for pet in PETS]
    breeds = ("Abyssinian", "beagle", "great_pyrenees")
    expected = {**each("train", breeds, 4), **each("test", breeds, 2)}
    assert found(images, pets(), "auto", r"^(?P<label>\w+)_\d+\.") == expected


def test_the_classes_of_a_numbered_column_are_read_with_their_splits(found):
    images = [f"images/{pet}.jpg" for pet in PETS]
    assert found(images, pets(), label=2) == {**each("train", "123", 4), **each("test", "123", 2)}


def test_columns_that_name_the_same_classes_in_other_words_are_no_choice(found):
    images = [f"x/{n}.jpg" for n in range(4)]
    rows = lines([f"{n}.jpg,{n % 2},{('cat', 'dog')[n % 2]}" for n in range(4)], "file,class_id,class_name\n")
    assert found(images, {"list.csv": rows}) == each(None, ("cat", "dog"), 2)
