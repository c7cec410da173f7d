import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from convoy.core.errors import DataError
from convoy.data.layout import Stated, recognise
from convoy.data.names import split_of
from convoy.images.delivery import Place


class Paths:
    """Stand in for a delivery of these paths, whose lists have the given text."""

    path = Path("data")
    places = None

    def __init__(self, *patterns, lists=None):
        self.lists = {
            name: text.encode() if isinstance(text, str) else text for name, text in (lists or {}).items()
        }
        self.paths = [path for pattern in patterns for path in expanded(pattern)]
        self.notes = []

    def names(self):
        return [*self.paths, *self.lists]

    def holds(self):
        return f"Found: {len(self.names())}"

    def read(self, names, limit):
        return ((name, self.lists[name][:limit]) for name in names)


def expanded(pattern):
    """Expand `{a,b}` and, for numbered files, `[3]`: `{cat,dog}/[2].jpg` is cat/0.jpg, cat/1.jpg, dog/0.jpg, dog/1.jpg."""
    if match := re.search(r"\{([^{}]*)\}", pattern):
        options = match[1].split(",")
    elif match := re.search(r"\[(\d+)\]", pattern):
        options = [str(number) for number in range(int(match[1]))]
    else:
        return [pattern]
    return [
        path
        for one in options
        for path in expanded(f"{pattern[: match.start()]}{one}{pattern[match.end() :]}")
    ]


def counts(delivery, *arguments):
    """Count the images of each place: (split, label), or the kind if they are passed over, or the reason."""
    layout = recognise(delivery, *arguments)
    places = map(layout.place, delivery.paths)
    return dict(Counter(p.passed_over or p.reason or (p.split, p.label) for p in places))


def refusal(delivery, *arguments):
    with pytest.raises(DataError) as caught:
        recognise(delivery, *arguments)
    return str(caught.value)


def both(train, test, *labels):
    return {("train", label): train for label in labels} | {("test", label): test for label in labels}


def cut(number, *labels):
    return {(None, label): number for label in labels}


UNLABELLED = "unlabelled image"

LAYOUTS = {
    "class folders": (["{cat,dog}/[3].jpg"], cut(3, "cat", "dog")),
    "wrapped class folders": (["a/b/c/{cat,dog}/[3].jpg"], cut(3, "cat", "dog")),
    "deeper folders belong to their class": (
        ["cat/[3].jpg", "dog/{x,y}/z/[2].jpg"],
        {(None, "cat"): 3, (None, "dog"): 4},
    ),
    "train alone": (["train/{cat,dog}/[3].jpg"], {("train", "cat"): 3, ("train", "dog"): 3}),
    "a wrapper named like a split": (["training/{train,test}/{cat,dog}/[2].jpg"], both(2, 2, "cat", "dog")),
    "a class named train": (["{bus,car,train}/[3].jpg"], cut(3, "bus", "car", "train")),
    "a class named test among many": (["{bus,car,test,tram}/[3].jpg"], cut(3, "bus", "car", "test", "tram")),
    "languages that look like splits": (
        ["{de,en,fr,te,tr,it}/[3].png"],
        cut(3, "de", "en", "fr", "te", "tr", "it"),
    ),
    "Kaggle: cats and dogs, doubled": (
        ["training_set/training_set/{cats,dogs}/[3].jpg", "test_set/test_set/{cats,dogs}/[2].jpg"],
        both(3, 2, "cats", "dogs"),
    ),
    "Kaggle: plant disease, doubled in title case": (
        ["{Train/Train,Test/Test,Validation/Validation}/{Healthy,Rust}/[1].jpg"],
        {(split, label): 1 for split in ("train", "val", "test") for label in ("Healthy", "Rust")},
    ),
    "Kaggle: Intel scenes with images to predict": (
        [
            "seg_train/seg_train/{sea,street}/[3].jpg",
            "seg_test/seg_test/{sea,street}/[2].jpg",
            "seg_pred/seg_pred/[4].jpg",
        ],
        both(3, 2, "sea", "street") | {UNLABELLED: 4},
    ),
    "Kaggle: fruits-360": (
        ["fruits-360_dataset_100x100/fruits-360/{Training,Test}/{Apple 1,Banana}/[2].jpg"],
        both(2, 2, "Apple 1", "Banana"),
    ),
    "Kaggle: chest X-rays": (
        ["chest_xray/{train,test}/{NORMAL,PNEUMONIA}/[2].jpeg", "chest_xray/val/{NORMAL,PNEUMONIA}/[1].jpeg"],
        both(2, 2, "NORMAL", "PNEUMONIA") | {("val", "NORMAL"): 1, ("val", "PNEUMONIA"): 1},
    ),
    "Kaggle: a competition's test pictures": (
        ["train/{cat,dog}/[3].jpg", "test/[4].jpg"],
        both(3, 0, "cat", "dog") | {UNLABELLED: 4},
    ),
    "Keras: a test folder with one unknown class": (
        ["train/{cat,dog}/[3].jpg", "validation/{cat,dog}/[2].jpg", "test/unknown/[4].jpg"],
        {("train", "cat"): 3, ("train", "dog"): 3, ("val", "cat"): 2, ("val", "dog"): 2, UNLABELLED: 4},
    ),
    "TensorFlow: horse or human": (
        ["{horse-or-human,validation-horse-or-human}/{horses,humans}/[2].png"],
        {(split, label): 2 for split in ("train", "val") for label in ("horses", "humans")},
    ),
    "TensorFlow: cats_and_dogs_filtered": (
        ["cats_and_dogs_filtered/{train,validation}/{cats,dogs}/[2].jpg"],
        {(split, label): 2 for split in ("train", "val") for label in ("cats", "dogs")},
    ),
    "PyTorch: hymenoptera_data": (
        ["hymenoptera_data/{train,val}/{ants,bees}/[2].jpg"],
        {(split, label): 2 for split in ("train", "val") for label in ("ants", "bees")},
    ),
    "torchvision: Imagenette": (
        ["imagenette2-160/{train,val}/{n01440764,n02102040}/[2].JPEG"],
        {(split, label): 2 for split in ("train", "val") for label in ("n01440764", "n02102040")},
    ),
    "torchvision: GTSRB": (
        ["GTSRB/Training/{00000,00001}/[2].ppm", "GTSRB/Final_Test/Images/[3].ppm"],
        {("train", "00000"): 2, ("train", "00001"): 2, UNLABELLED: 3},
    ),
    "fastai: mnist_sample": (
        ["mnist_sample/{train,valid}/{3,7}/[2].png"],
        {(split, label): 2 for split in ("train", "val") for label in ("3", "7")},
    ),
    "ImageNet: synsets, with val and test flat": (
        [
            "ILSVRC/Data/CLS-LOC/train/{n01440764,n01443537}/[3].JPEG",
            "ILSVRC/Data/CLS-LOC/{val,test}/[2].JPEG",
        ],
        {("train", "n01440764"): 3, ("train", "n01443537"): 3, UNLABELLED: 4},
    ),
    "Caltech 101": (
        ["caltech101/101_ObjectCategories/{BACKGROUND_Google,Faces,ant}/image_000[2].jpg"],
        cut(2, "BACKGROUND_Google", "Faces", "ant"),
    ),
    "Tiny ImageNet's training split": (
        [
            "tiny-imagenet-200/train/{n01443537,n01629819}/images/[3].JPEG",
            "tiny-imagenet-200/{test,val}/images/[2].JPEG",
        ],
        {("train", "n01443537"): 3, ("train", "n01629819"): 3, UNLABELLED: 4},
    ),
    "Hugging Face imagefolder": (["data/{train,test}/{cat,dog}/[2].png"], both(2, 2, "cat", "dog")),
    "each split wrapped differently": (
        ["train/images/{cat,dog}/[3].jpg", "test/batch/jpg/{cat,dog}/[2].jpg"],
        both(3, 2, "cat", "dog"),
    ),
    "a split of one class beside a wrapper": (
        ["train/{cat,dog}/[3].jpg", "test/cat/{in,out}/[1].jpg", "test/dog/[2].jpg"],
        both(3, 2, "cat", "dog"),
    ),
    "class then split": (
        ["pets/{cat,dog}/train/[3].jpg", "pets/{cat,dog}/test/[2].jpg"],
        both(3, 2, "cat", "dog"),
    ),
    "class then split, other words": (
        ["{cat,dog}/Training/[3].jpg", "{cat,dog}/test_set/[2].jpg"],
        both(3, 2, "cat", "dog"),
    ),
    "masks beside images": (
        ["images/{cat,dog}/[3].jpg", "masks/{cat,dog}/[3].png"],
        cut(3, "cat", "dog") | {"annotation": 6},
    ),
    "splits with a shared other word": (
        ["{pets_train,pets_test}/{cat,dog}/[2].jpg"],
        both(2, 2, "cat", "dog"),
    ),
    "years and sizes in the names": (["{train2017,test2017}/{cat,dog}/[2].jpg"], both(2, 2, "cat", "dog")),
    "evaluation beside test": (
        ["{train,evaluation,test}/{cat,dog}/[2].jpg"],
        {(split, label): 2 for split in ("train", "val", "test") for label in ("cat", "dog")},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_people_have_are_recognised_by_content(layout):
    patterns, expected = LAYOUTS[layout]
    assert counts(Paths(*patterns)) == {place: number for place, number in expected.items() if number}


@pytest.mark.parametrize(
    ("split", "word"),
    [
        *(("train", word) for word in ["train", "training", "training_set", "trainset", "seg_train", "tr", "trn", "train_images", "dataset-train", "TRAIN", "01_train"]),
        *(("val", word) for word in ["val", "valid", "validation", "dev", "Validation_Set", "val_224x224", "valset"]),
        *(("test", word) for word in ["test", "tst", "testing", "test_set", "seg_test", "eval", "evaluation", "holdout", "hold-out", "test1", "TestImages"]),
        *((None, word) for word in ["cat", "steam_train", "test-tube", "trainer", "contest", "latest", "valve", "devil", "evil", "traintest"]),
    ],
)  # fmt: skip
def test_a_split_is_recognised_by_the_words_of_its_folder(split, word):
    assert split_of(word) == split


AMBIGUOUS = {
    "images both loose and in class folders": (
        ["{cat,dog}/[9].jpg", "[9].jpg"],
        ["9 loose images and 18 in the folders `cat`, `dog`", "-S data.layout=classes", "-S data.label=csv"],
    ),
    "loose images inside a split": (
        ["train/{cat,dog}/[9].jpg", "train/[9].jpg", "test/{cat,dog}/[9].jpg"],
        ["`train` holds 9 loose images and 18", "-S data.layout=splits"],
    ),
    "class folders beside split folders": (
        ["{train,test}/{cat,dog}/[5].jpg", "bird/[5].jpg"],
        [
            "named like splits (`test`, `train`) beside others (`bird`)",
            "-S data.layout=splits",
            "-S data.layout=classes",
        ],
    ),
    "three names of splits, one other": (
        ["{train,val,test,extra}/[5].jpg"],
        ["named like splits (`test`, `train`, `val`) beside others (`extra`)", "-S data.layout=classes"],
    ),
    "two splits beside as many and more others": (
        ["{train,test,bus,car,van}/[5].jpg"],
        ["named like splits (`test`, `train`) beside others (`bus`, `car`, `van`)", "-S data.layout=splits"],
    ),
    "two short names of splits beside two others": (
        ["{tr,val,cat,dog}/[5].jpg"],
        ["named like splits (`tr`, `val`) beside others (`cat`, `dog`)", "-S data.layout=classes"],
    ),
    "different classes in the splits": (
        ["train/{cat,dog}/[5].jpg", "test/{2020,2021}/[5].jpg"],
        ["train holds `cat`, `dog`, but test holds `2020`, `2021`", "-S data.layout=classes"],
    ),
    "splits inside some classes": (
        ["cat/{train,test}/[5].jpg", "dog/[5].jpg"],
        [
            "hold folders named like splits (`cat`), others do not (`dog`)",
            "-S data.layout=classes",
            "-S data.layout=classes_then_splits",
        ],
    ),
    "two names of one split": (
        ["{train,val,valid}/{cat,dog}/[5].jpg"],
        ["val and valid are both the val split", "Merge"],
    ),
    "splits and classes in one name": (
        ["{train_cat,train_dog,test_cat,test_dog}/[5].jpg"],
        ["test_cat and test_dog are both the test split", "-S data.layout=classes"],
    ),
    "no train and no classes": (["{test,val}/[5].jpg"], ["has test, val but no train folder"]),
    "no train": (["{test,val}/{cat,dog}/[5].jpg"], ["has test, val but no train folder"]),
    "train without classes": (
        ["train/[5].jpg", "test/{cat,dog}/[5].jpg"],
        ["train holds images without class folders, but test has the classes `cat`, `dog`"],
    ),
    "variants of the same images": (
        ["{color,grayscale,segmented}/{a,b,c,d}/[5].jpg"],
        [
            "`color`, `grayscale`, `segmented` in the delivery all hold the folders `a`, `b`, `c`, `d`",
            "-S data.layout=classes",
        ],
    ),
    "parts of one heap": (
        ["{part_1,part_2}/ISIC_[5].jpg"],
        ["nothing states the classes of its 10 images", "part_1 (5), part_2 (5)"],
    ),
    "an unknown name of the train split": (
        ["{trian,test}/{cat,dog}/[5].jpg"],
        ["(`test`) beside others (`trian`)", "-S data.layout=classes"],
    ),
    "folds": (
        ["{fold1,fold2}/{cat,dog}/[5].jpg"],
        ["`fold1`, `fold2` in the delivery all hold the folders `cat`, `dog`", "merge the parts"],
    ),
    "a folder of images around a class": (
        ["x/[9].jpg", "x/cat/[9].jpg"],
        ["`x` holds 9 loose images and 9 in the folders `cat`"],
    ),
    "a heap named by its format": (
        ["jpg/image_[9].jpg"],
        ["nothing states the classes of its 9 images", "jpg (9)"],
    ),
    "no images": (["README.md"], ["contains no images"]),
}


@pytest.mark.parametrize("layout", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused_with_both_and_the_param(layout):
    patterns, facts = AMBIGUOUS[layout]
    message = refusal(Paths(*patterns))
    assert [fact for fact in facts if fact not in message] == [], message


@pytest.mark.parametrize(
    ("layout", "patterns", "expected"),
    [
        ("classes", ["{train,test}/{cat,dog}/[2].jpg"], cut(4, "train", "test")),
        ("classes", ["{cat,dog}/[2].jpg", "[5].jpg"], cut(2, "cat", "dog") | {"image outside the classes": 5}),
        ("classes", ["{color,gray}/{a,b,c}/[1].jpg"], cut(3, "color", "gray")),
        ("classes", ["x/{part_1,part_2}/[2].jpg"], cut(2, "part_1", "part_2")),
        ("splits", ["{train,test}/{cat,dog}/[2].jpg", "bird/[3].jpg"], both(2, 2, "cat", "dog") | {"image outside the classes": 3}),
        ("splits", ["train/{cat,dog}/[2].jpg", "train/[2].jpg"], {("train", "cat"): 2, ("train", "dog"): 2, "image outside the classes": 2}),
        ("classes_then_splits", ["{cat,dog}/{train,test}/[2].jpg"], both(2, 2, "cat", "dog")),
        ("classes_then_splits", ["{cat,dog}/{train,test}/[2].jpg", "x/[3].jpg"], both(2, 2, "cat", "dog") | {"image outside the classes": 3}),
    ],
)  # fmt: skip
def test_a_stated_layout_wins(layout, patterns, expected):
    assert counts(Paths(*patterns), layout) == expected


@pytest.mark.parametrize(
    ("layout", "patterns", "facts"),
    [
        ("splits", ["{cat,dog}/[2].jpg"], ["data.layout is splits", "no train folder; it has `cat`, `dog`"]),
        (
            "classes_then_splits",
            ["{cat,dog}/[2].jpg"],
            ["class folder cat has no train folder", "no folders"],
        ),
    ],
)
def test_a_stated_layout_that_is_not_delivered_is_refused(layout, patterns, facts):
    message = refusal(Paths(*patterns), layout)
    assert all(fact in message for fact in facts), message


def test_the_delivered_splits_are_listed():
    for patterns, expected in (
        (["{a,b}/[2].jpg"], ()),
        (["{train,valid}/{a,b}/[2].jpg"], ("train", "val")),
        (["{test,val,train}/{a,b}/[2].jpg"], ("train", "val", "test")),
        (["train/{a,b}/[2].jpg", "test/[2].jpg"], ("train",)),
    ):
        assert recognise(Paths(*patterns)).delivered == expected


def test_a_few_images_outside_the_classes_do_not_change_the_reading():
    for stray in ("cover.jpg", "extra/a.jpg", "test/x.jpg"):
        found = counts(Paths("{train,test}/{cat,dog}/[20].jpg", stray))
        split = "test" if stray.startswith("test/") else None
        assert found == both(20, 20, "cat", "dog") | {(split, None): 1}


NFC, NFD = (unicodedata.normalize(form, "Äpfel") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("patterns", "labels", "note"),
    [
        ([f"{NFC}/1.jpg", f"{NFD}/2.jpg", "b/1.jpg"], {NFC, "b"}, r"several Unicode forms, and are one class each: `Äpfel` ('A\u0308pfel', '\xc4pfel')"),
        ([f"train/{{{NFC},b}}/1.jpg", f"test/{{{NFD},b}}/1.jpg"], {NFC, "b"}, "several Unicode forms"),
        ([f"{{{NFD},b}}/1.jpg"], {NFC, "b"}, None),
        (["{BACKGROUND_Google,Faces,airplanes}/1.jpg"], {"BACKGROUND_Google", "Faces", "airplanes"}, "background pictures, not a class of things: `BACKGROUND_Google`"),
        (["train/{Cat,dog}/1.jpg", "test/{cat,dog}/1.jpg"], {"Cat", "dog"}, "'cat', 'Cat' as `Cat`"),
        (["{A,a,b}/1.jpg"], {"A", "a", "b"}, "differ by upper and lower case or outer spaces only, and are separate classes: `A`, `a`"),
        (["train/{A,a,b}/1.jpg", "test/{A,a,b}/1.jpg"], {"A", "a", "b"}, "separate classes"),
        (["{cat ,cat,dog}/1.jpg"], {"cat", "dog"}, "'cat ', 'cat' as `cat`"),
        (["{cat\u200b,cat,dog}/1.jpg"], {"cat", "dog"}, "one class"),
        (["{cat ,dog}/1.jpg"], {"cat ", "dog"}, "outer space or invisible characters: 'cat '"),
        (["{Dog,dog ,cat}/1.jpg"], {"Dog", "dog ", "cat"}, "are separate classes: `Dog`, `dog `"),
        (["{NaN,dog}/1.jpg"], {"NaN", "dog"}, "missing label: `NaN`"),
        (["{.net,java}/1.jpg"], {".net", "java"}, "begin with a dot"),
        (["{bus,car,train}/[1].jpg"], {"bus", "car", "train"}, "named like a split: `train`"),
        (["{CafÃ©,bar}/1.jpg"], {"CafÃ©", "bar"}, "garbled, as if read in the wrong code page: `CafÃ©` (meant: `Café`?)"),
        (["{Caf├⌐,bar}/1.jpg"], {"Caf├⌐", "bar"}, "(meant: `Café`?)"),
        (["{con,a:b,end.}/1.jpg"], {"con", "a:b", "end."}, "cannot be names of folders on Windows: 'a:b', 'con', 'end.'"),
        ([f"{{{'x' * 200},b}}/1.jpg"], {"x" * 200, "b"}, "more than 100 characters, and are cut short in tables: `xxx"),
        (["{0,1,2,10,日本猫,-flag,Straße}/1.jpg"], {"0", "1", "2", "10", "日本猫", "-flag", "Straße"}, None),
    ],
)  # fmt: skip
def test_names_of_classes_are_kept_merged_or_pointed_out(patterns, labels, note):
    delivery = Paths(*patterns)
    layout = recognise(delivery)
    assert {layout.place(path).label for path in delivery.paths} == labels
    texts = [found.text for found in layout.notes if found.check == "class_names"]
    assert any(note in text for text in texts) if note else not texts, texts


def test_classes_that_hold_the_same_folders_are_pointed_out():
    (note,) = recognise(Paths("{A,B}/{cat,dog}/[2].jpg")).notes
    assert "each of the classes `A`, `B` holds the folders `cat`, `dog`" in note.text


def test_data_sets_beside_each_other_are_pointed_out_and_subfolders_of_a_class_are_not():
    (note,) = recognise(
        Paths("pets/{train,test}/{cat,dog}/[2].jpg", "farm/{train,test}/{cow,pig}/[2].jpg")
    ).notes
    assert "`farm` (cow, pig), `pets` (cat, dog)" in note.text
    assert not recognise(Paths("cat/{train,test}/{day,night}/[2].jpg", "dog/{train,test}/[2].jpg")).notes


def test_a_split_of_loose_images_does_not_hide_where_the_classes_are():
    found = counts(Paths("train/images/{cat,dog}/[4].jpg", "val/images/[3].jpg"))
    assert found == {("train", "cat"): 4, ("train", "dog"): 4, UNLABELLED: 3}


def test_a_pattern_of_groups_that_matches_nothing_is_refused_and_images_without_a_group_are_counted():
    with pytest.raises(
        DataError, match=r"data.group .* matches none of 8 paths, such as cat/0.jpg.*data.group=none"
    ):
        recognise(Paths("{cat,dog}/[4].jpg"), group="(?P<group>patient)")
    (note,) = recognise(Paths("{cat,dog}/[4].jpg"), group="/(?P<group>[01])").notes
    assert "4 of 8 images" in note.text
    assert note.paths == ("cat/2.jpg", "cat/3.jpg", "dog/2.jpg", "dog/3.jpg")


def test_a_pattern_of_paths_states_groups():
    delivery = Paths("{cat,dog}/video{1,2}_frame[2].jpg", "cat/single.jpg")
    layout = recognise(delivery, "auto", "auto", r"(?P<group>video\d)")
    assert [layout.place(path).group for path in delivery.paths] == [*["video1"] * 2, *["video2"] * 2] * 2 + [
        None
    ]


def test_containers_that_state_the_place_of_each_file_are_taken_at_their_word():
    delivery = Paths("train/cat/a-0.ppm")
    delivery.places = {"train/cat/a-0.ppm": Place("train", "dog")}
    layout = recognise(delivery)
    assert isinstance(layout, Stated)
    assert layout.place("train/cat/a-0.ppm") == Place("train", "dog")
    assert layout.delivered == ("train",)


def test_a_path_of_many_folders_and_many_classes_take_no_time():
    deep = "/".join(["a"] * 100_000)
    layout = recognise(Paths("{cat,dog}/1.jpg", f"cat/{deep}.jpg", *(f"c{n}/1.jpg" for n in range(10_000))))
    assert layout.place(f"cat/{deep}.jpg").label == "cat"
    assert layout.place("c9999/1.jpg").label == "c9999"


def test_a_layout_that_is_stated_for_arrays_is_pointed_out():
    delivery = Paths()
    delivery.places, delivery.kind = {"train/cat/1.pgm": Place("train", "cat")}, "IDX files"
    assert not recognise(delivery).notes
    (note,) = recognise(delivery, "classes", "csv").notes
    assert "data.layout (classes) and data.label (csv) are not used" in note.text
