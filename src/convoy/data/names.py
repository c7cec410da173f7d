"""Read what the names of files and folders mean: splits, mere containers, classes."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from convoy.core.dataset import Split
from convoy.core.errors import listed
from convoy.data.records import Finding
from convoy.images import litter

Part = Literal["train", "val", "test", "unlabelled"]
"""A split, or images that wait for a prediction."""


def ordered(text: str) -> tuple[str, ...]:
    """Split a list of words."""
    return tuple(text.split())


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SPLIT_WORDS: Mapping[str, Part] = {
    **dict.fromkeys(("train", "training", "trn", "tr", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "validating", "vali", "dev", "devel"), "val"),
    **dict.fromkeys(("development",), "val"),
    **dict.fromkeys(("test", "tests", "tst", "te", "ts", "testing", "eval", "evaluation", "holdout"), "test"),
    **dict.fromkeys(
        ("pred", "predict", "prediction", "predictions", "submission", "inference"), "unlabelled"
    ),
    **dict.fromkeys(("unlabeled", "unlabelled", "unsup"), "unlabelled"),
}
"""Words in folder names that name a split, in lower case."""

SOME_SPLIT = re.compile("|".join([*SPLIT_WORDS, r"hold[\W_]out"]), re.IGNORECASE)

SECOND = frozenset({"eval", "evaluation", "holdout"})
"""Words for the test split that name the validation split where another folder is the test split."""

PLAIN = _words(
    """set sets data dataset datasets image images img imgs picture pictures pic pics photo photos jpegimages jpg jpeg png
    split splits folder dir part parts seg batch shard chunk fold subset sample samples new all raw full small large resized
    cropped processed augmented aug original orig final clean classification labeled labelled files x px"""
)
"""Words that add nothing to the name of a split: `seg_train`, `train_images`, `test_set_224x224`."""

CONTAINERS = _words(
    """data dataset datasets image images img imgs picture pictures pic pics photo photos jpegimages part parts batch batches shard
    shards chunk chunks fold folds split files jpg jpgs jpeg jpegs png pngs"""
)
"""Words that name a heap of images, never a class."""

ANNOTATIONS = _words(
    """annotation annotations mask masks label labels trimap trimaps segmentation segmentations bbox bboxes bounding_boxes
    ground_truth groundtruth gt heatmaps"""
)
"""Folders beside `images` whose pictures describe others."""

SPACE = re.compile(r"\s+")
INVISIBLE = re.compile(r"[\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\u00ad]")
RESERVED = re.compile(
    r'[<>:"\\|?*\x00-\x1f\x7f]|[. ]$|^(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)', re.IGNORECASE
)
"""What Windows refuses in the name of a folder."""

BACKGROUND = re.compile(r"background_google|\d*\.?clutter", re.IGNORECASE)
"""Folders of Caltech-101 and Caltech-256 that are no class."""

BLANKS = frozenset({"nan", "<na>", "n/a", "#n/a", "null"})
"""What programs write for a value that is missing, in lower case."""

LONG_NAME = 100
"""Characters of a class name that tables and plots have room for."""


def may_be_image(path: str) -> bool:
    """Check by its name whether a file may be an image; photos without an ending may."""
    return not litter.kind(path)


def words(name: str) -> list[str]:
    """Split a name into its words and numbers, in lower case: `trainSet_224` is train, set, 224."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFC", name)).casefold()
    apart = re.sub(r"hold[\W_]out", "holdout", apart)
    return re.findall(r"[^\W\d_]+|\d+", apart)


def split_word(name: str) -> tuple[Part, str, tuple[str, ...]] | None:
    """Find the split that a name contains: the split, its word, and the words that say something else; None without any."""
    if not SOME_SPLIT.search(name):
        return None
    found: dict[Part, str] = {}
    rest = []
    for word in words(name):
        short = re.sub(r"(?<=[a-z]{2})(set|data|images|imgs|dir)$", "", word)
        part = SPLIT_WORDS.get(word) or SPLIT_WORDS.get(short)
        if part:
            found.setdefault(part, word if word in SPLIT_WORDS else short)
        elif word not in PLAIN and not word.isdigit():
            rest.append(word)
    if found.keys() == {"train", "val"}:  # `train_val`: what is not test
        found.pop("val")
    if len(found) != 1:
        return None
    ((part, word),) = found.items()
    return part, word, tuple(rest)


def split_of(name: str) -> Split | None:
    """Return the split that a name alone states, such as the value of a list's column."""
    found = split_word(name)
    return found[0] if found and not found[2] and found[0] != "unlabelled" else None


def splits_among(names: Iterable[str]) -> dict[str, Part]:
    """Find the folders beside each other that are splits.

    Other words in the name count only if siblings share them: `cats_train` and `cats_test`, or `pets` and `validation-pets`.
    """
    found = {name: split_word(name) for name in sorted(names)}
    if not any(found.values()):
        return {}
    rest = {
        name: split[2] if split else tuple(w for w in words(name) if w not in PLAIN and not w.isdigit())
        for name, split in found.items()
    }
    named: defaultdict[tuple[str, ...], set[Part]] = defaultdict(set)
    for name, split in found.items():
        if split:
            named[rest[name]].add(split[0])
    unnamed = {rest[name] for name, split in found.items() if not split}
    parts: dict[str, Part] = {}
    for name, split in found.items():
        siblings = named.get(rest[name], set())
        if not split:
            if rest[name] and siblings and "train" not in siblings:
                parts[name] = "train"
        elif not rest[name] or len(siblings | ({"train"} if rest[name] in unnamed else set())) > 1:
            parts[name] = split[0]
    seconds = [
        name for name, part in parts.items() if part == "test" and (found[name] or ("", ""))[1] in SECOND
    ]
    if "val" not in parts.values() and len(seconds) < list(parts.values()).count("test"):
        parts |= dict.fromkeys(seconds, "val")
    return parts


def are_containers(names: Sequence[str]) -> bool:
    """Check whether folders beside each other are only heaps of images: `images`; `part_1` and `part_2`."""
    apart = [words(name) for name in names]
    shared = set.intersection(*map(set, apart)) if len(apart) > 1 else set()
    return all(
        bool(CONTAINERS & set(own))
        and all(word in PLAIN | CONTAINERS | shared or word.isdigit() for word in own)
        for own in apart
    )


def spelling(name: str) -> str:
    """Return the spelling of a class name that ignores what nobody sees: Unicode form, invisible characters, outer and double spaces."""
    return SPACE.sub(" ", INVISIBLE.sub("", unicodedata.normalize("NFC", name))).strip() or name


def merged(folders: Iterable[Sequence[str]]) -> dict[str, str]:
    """Map each name of a class to the name that is used.

    Names that look the same are one class. `Cat` and `cat` are one class unless they lie in one folder, where letters as
    classes (`A`, `a`) may differ by case alone; the name that comes first is used.

    Args:
        folders: names of the classes in each split; train first.
    """
    groups = [sorted(set(names)) for names in folders]
    seen: defaultdict[str, list[str]] = defaultdict(list)
    for name in (name for group in groups for name in group):
        if (form := unicodedata.normalize("NFC", name)) not in seen[spelling(name)]:
            seen[spelling(name)].append(form)
    # What lies alone keeps its name, spaces included; of several spellings the plain one is used.
    plain = {form: forms[0] if len(forms) == 1 else key for key, forms in seen.items() for form in forms}
    used = {name: plain[unicodedata.normalize("NFC", name)] for group in groups for name in group}
    apart = set()
    for group in groups:
        by_case: defaultdict[str, set[str]] = defaultdict(set)
        for name in group:
            by_case[used[name].casefold()].add(used[name])
        apart |= {folded for folded, own in by_case.items() if len(own) > 1}
    first: dict[str, str] = {}
    for group in groups:
        for name in group:
            folded = used[name].casefold()
            if folded not in apart:
                used[name] = first.setdefault(folded, used[name])
    return used


def notes_on(used: Mapping[str, str]) -> list[Finding]:
    """Point out class names that deserve a look; `used` as returned by `merged`."""
    classes = sorted(set(used.values()), key=natural)
    spelled: defaultdict[str, list[str]] = defaultdict(list)
    by_case: defaultdict[str, list[str]] = defaultdict(list)
    for name, label in used.items():
        if name != label and unicodedata.normalize("NFC", name) != label:
            spelled[label].append(name)
    for label in classes:
        by_case[spelling(label).casefold()].append(label)
    forms: defaultdict[str, list[str]] = defaultdict(list)
    for name, label in used.items():
        forms[label] += [ascii(name)] if unicodedata.normalize("NFC", name) == label else []
    cases = [labels for labels in by_case.values() if len(labels) > 1]
    found = [
        (
            "are one class each",
            [
                f"{listed([repr(n) for n in [*names, label]], 3)} as `{label}`"
                for label, names in spelled.items()
            ],
        ),
        (
            "are written in several Unicode forms, and are one class each",
            [f"`{label}` ({', '.join(written)})" for label, written in forms.items() if len(written) > 1],
        ),
        (
            "are named like a heap of background pictures, not a class of things",
            [_quoted(label) for label in classes if BACKGROUND.fullmatch(label)],
        ),
        (
            "differ by upper and lower case or outer spaces only, and are separate classes",
            [", ".join(map(_quoted, c)) for c in cases],
        ),
        (
            "may stand for a missing label",
            [_quoted(label) for label in classes if label.casefold() in BLANKS],
        ),
        ("are named like a split", [_quoted(label) for label in classes if split_of(label)]),
        (
            "look garbled, as if read in the wrong code page",
            [f"{_quoted(label)} (meant: `{meant}`?)" for label in classes if (meant := ungarbled(label))],
        ),
        (
            "have an outer space or invisible characters",
            [repr(label) for label in classes if spelling(label) != label],
        ),
        (
            "begin with a dot, so programs hide them",
            [_quoted(label) for label in classes if label.startswith(".")],
        ),
        (
            "cannot be names of folders on Windows",
            [repr(label) for label in classes if RESERVED.search(label)],
        ),
        (
            f"have more than {LONG_NAME} characters, and are cut short in tables",
            [f"`{label[:20]}…` ({len(label)})" for label in classes if len(label) > LONG_NAME],
        ),
    ]
    return [
        Finding("class_names", len(names), None, "report", f"class names that {what}: {listed(names, 5)}")
        for what, names in found
        if names
    ]


def ungarbled(name: str) -> str:
    """Return what a name was if its UTF-8 was read as Windows' or DOS' code page; empty if it was not."""
    if "\ufffd" in name:
        return name.replace("\ufffd", "?")
    if name.isascii():
        return ""
    for page in ("cp1252", "latin-1", "cp437"):
        try:
            return unicodedata.normalize("NFC", name).encode(page).decode()
        except UnicodeError:
            continue
    return ""


def natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Sort names with numbers as people do: 0, 1, 2, 10."""
    return tuple(
        (False, int(run), run) if run[0] in "0123456789" else (True, 0, run)
        for run in re.findall(r"[0-9]{1,18}|[^0-9]+", name)
    )


def _quoted(name: str) -> str:
    return f"`{name}`"
