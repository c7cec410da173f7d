"""Read the split and the class of each image from the folders of a delivery."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from convoy.core.dataset import SPLITS, Split
from convoy.core.errors import DataError, listed
from convoy.data import names
from convoy.data.names import Part
from convoy.data.records import Finding
from convoy.data.settings import Arrangement
from convoy.images.delivery import Place

STRAYS = 0.05
"""Largest share of images that may lie beside the folders that explain all others; such images are quarantined by name."""

DEEPEST = 24
"""Folders of a path that are looked at; what lies deeper belongs to the last of them."""

PARTS: tuple[Part, ...] = (*SPLITS, "unlabelled")

UNLABELLED = Place(passed_over="unlabelled image")
ANNOTATION = Place(passed_over="annotation")
OUTSIDE = Place(passed_over="image outside the classes")


@dataclass(frozen=True)
class Folders:
    """Read split and class of a file from the folders that it is in.

    Attributes:
        places: what is stated about the files below a folder; the deepest folder counts.
        delivered: the splits that are delivered; empty if all are cut.
        notes: what deserves a look.
    """

    places: Mapping[str, Place]
    delivered: tuple[Split, ...]
    notes: tuple[Finding, ...] = ()
    by_image = False
    depth: int = field(init=False)
    _known: dict[str, Place] = field(init=False, default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Measure how deep a path has to be looked at."""
        object.__setattr__(self, "depth", max((path.count("/") + 1 for path in self.places), default=0))

    def place(self, name: str) -> Place:
        """Return what the folders of a delivered path state."""
        folder = name.rpartition("/")[0]
        found = self._known.get(folder) or self._known.setdefault(folder, self._deepest(folder))
        # Other files in such a folder are passed over for what they are.
        return Place() if found.passed_over and not names.may_be_image(name) else found

    def _deepest(self, folder: str) -> Place:
        parts = folder.split("/")
        for deep in range(min(len(parts), self.depth), 0, -1):
            if (found := self.places.get("/".join(parts[:deep]))) is not None:
                return found
        return self.places.get("", Place())

    @property
    def classes(self) -> set[str]:
        """Return the classes that folders are."""
        return {place.label for place in self.places.values() if place.label}


def read_folders(path: Path, images: Iterable[str], arrangement: Arrangement = "auto") -> Folders:
    """Read splits and classes from folders; without classes if the folders are none, as in `train/cat.0.jpg`.

    Folders that only wrap others are looked through, at the top and inside each split. A folder named like a split is a
    class where it is full of images beside others: `train`, `bus`, `car`.

    Args:
        path: of the delivery, for messages.
        images: delivered paths that may be images.
        arrangement: what the folders are; `auto` decides, and refuses what can be read in two ways.

    Raises:
        DataError: the layout is ambiguous, two folders are the same split, or the train split is missing.
    """
    through_splits = arrangement in ("classes", "classes_then_splits")
    node, annotations = _unwrap(_tree(images), through_splits=through_splits)
    return _Reader(path, node, annotations, arrangement).read()


def splits_only(path: Path, images: Iterable[str], arrangement: Arrangement) -> Folders:
    """Read splits from folders where the classes stand elsewhere; none if other folders lie beside them."""
    node, places = _unwrap(_tree(images), through_splits=False)
    inside = _inside(node)
    parts = names.splits_among(inside)
    others = sum(child.images for name, child in inside.items() if name not in parts)
    if arrangement == "classes" or "train" not in parts.values() or others > STRAYS * node.images:
        return Folders(places, ())
    _check_double(path, node, parts)
    places |= {
        node.folders[name].path: UNLABELLED if part == "unlabelled" else Place(split=part)
        for name, part in parts.items()
    }
    return Folders(places, tuple(split for split in SPLITS if split in parts.values()))


@dataclass(slots=True, eq=False)
class _Node:
    """Hold a folder with images below it.

    Attributes:
        path: without a slash at its end; empty at the top.
        loose: images directly inside.
        images: images inside and below.
    """

    path: str
    loose: int = 0
    images: int = 0
    folders: dict[str, "_Node"] = field(default_factory=dict)


def _tree(images: Iterable[str]) -> _Node:
    top = _Node("")
    for folder, count in Counter(name.rpartition("/")[0] for name in images).items():
        node = top
        node.images += count
        for part in folder.split("/")[:DEEPEST] if folder else ():
            below = node.folders.get(part)
            if below is None:
                below = node.folders[part] = _Node(f"{node.path}/{part}" if node.path else part)
            node = below
            node.images += count
        node.loose += count
    return top


def _annotations(node: _Node) -> set[str]:
    """Name the folders of masks and the like, beside a folder of images."""
    found = {name for name in node.folders if "_".join(names.words(name)) in names.ANNOTATIONS}
    rest = node.folders.keys() - found
    return found if found and rest and names.are_containers(sorted(rest)) else set()


def _inside(node: _Node) -> dict[str, _Node]:
    annotated = _annotations(node)
    return {name: child for name, child in sorted(node.folders.items()) if name not in annotated}


def _mixed(node: _Node) -> bool:
    return node.loose > STRAYS * node.images


def _unwrap(node: _Node, *, through_splits: bool) -> tuple[_Node, dict[str, Place]]:
    """Descend through folders that only wrap a single other one; also return the places of annotations on the way."""
    places: dict[str, Place] = {}
    while True:
        inside = _inside(node)
        places |= {child.path: ANNOTATION for name, child in node.folders.items() if name not in inside}
        if len(inside) != 1 or _mixed(node):
            return node, places
        ((name, child),) = inside.items()
        is_split = names.splits_among([name]) and not names.splits_among(child.folders)
        if not child.folders or (is_split and not through_splits):
            return node, places
        node = child


def _chain(node: _Node) -> Iterator[_Node]:
    """Yield a split's folder and those that it only wraps, while they hold folders."""
    while node.folders:
        yield node
        inside = _inside(node)
        if len(inside) != 1 or _mixed(node):
            return
        (node,) = inside.values()


class _Reader:
    """Read one delivery's folders from the first that does more than wrap another."""

    def __init__(
        self, path: Path, node: _Node, annotations: Mapping[str, Place], arrangement: Arrangement
    ) -> None:
        self.path, self.node, self.arrangement = path, node, arrangement
        self.stated = arrangement != "auto"
        self.inside = _inside(node)
        self.places = dict(annotations)

    def read(self) -> Folders:
        if self.arrangement == "classes":
            return self.classes()
        if self.arrangement == "classes_then_splits":
            return self.classes_then_splits()
        parts = names.splits_among(self.inside)
        if self.arrangement == "splits":
            if "train" not in parts.values():
                raise self.refusal(
                    f"data.layout is splits, but {self.where} has no train folder; it has {self.names(self.inside)}. Name one of them "
                    "train, or let the folders decide: -S data.layout=auto"
                )
            return self.splits(parts)
        full = [name for name in parts if self.inside[name].folders]
        others = [name for name in self.inside if name not in parts]
        if not parts or (others and self.are_classes(parts, full, others)):
            return self.by_classes()
        if sum(self.inside[name].images for name in others) > STRAYS * self.node.images:
            readings: dict[Arrangement, str] = {}
            if "train" in parts.values():
                readings["splits"] = f"{self.names(others)} passed over"
            readings["classes"] = f"{len(self.inside)} classes"
            raise self.ambiguous(
                f"{self.where} holds folders named like splits ({self.names(parts)}) beside others ({self.names(others)})",
                readings,
            )
        if _mixed(self.node):
            raise self.loose(self.node, "splits")
        return self.splits(parts)

    def are_classes(self, parts: Mapping[str, Part], full: Sequence[str], others: Sequence[str]) -> bool:
        """Check whether folders named like splits are classes: full of images, as most beside them are."""
        strong = {part for name, part in parts.items() if len(name) > 3 and part in SPLITS}
        return (
            not full and len(parts) < len(others) + (len(parts) == 1) and (len(parts) == 1 or len(strong) < 2)
        )

    def by_classes(self) -> Folders:
        """Read class folders, unless splits lie inside them, or they are only heaps of images."""
        if _mixed(self.node) and self.inside:
            raise self.loose(self.node, "classes")
        if not self.inside or self.are_heaps(self.inside.values()):
            return Folders(self.places, ())
        self.check_copy()
        divided = [name for name, child in self.inside.items() if self.divided(child)]
        certain = [
            name for name in divided if len(set(names.splits_among(self.inside[name].folders).values())) > 1
        ]
        if divided and len(divided) == len(self.inside):
            return self.classes_then_splits()
        if certain:
            rest = [name for name in self.inside if name not in divided]
            raise self.ambiguous(
                f"some class folders in {self.where} hold folders named like splits ({self.names(certain)}), others do not ({self.names(rest)})",
                {"classes": "their splits mixed and cut anew", "classes_then_splits": "others passed over"},
            )
        below = [set(child.folders) for child in self.inside.values()]
        shared = set.intersection(*below) if not any(child.loose for child in self.inside.values()) else set()
        heaps = names.are_containers(list(self.inside))
        if len(below) > 1 and (heaps or len(shared) > max(len(below), 1)):
            what = (
                f"all hold the folders {self.names(sorted(shared))}"
                if shared
                else "look like parts of one set"
            )
            raise self.refusal(
                f"{self.names(self.inside)} in {self.where} {what}: they are splits of unknown names, parts or variants of the same "
                f"images, or {len(below)} classes. Rename them to train, val and test, merge the parts, deliver one variant, or read "
                "each as a class: -S data.layout=classes"
            )
        found = self.classes()
        if len(below) > 1 and len(shared) > 1:
            text = (
                f"each of the classes {self.names(self.inside)} holds the folders {self.names(sorted(shared))}; if those are the "
                "classes, rename the outer folders to train, val and test, or merge them"
            )
            found = replace(
                found, notes=(*found.notes, Finding("class_names", len(below), None, "report", text))
            )
        return found

    def are_heaps(self, nodes: Collection[_Node]) -> bool:
        """Check whether folders, and those inside, are only heaps of images: `images_001/images`."""
        return names.are_containers([node.path.rpartition("/")[2] for node in nodes]) and all(
            not node.folders or self.are_heaps(_inside(node).values()) for node in nodes
        )

    def check_copy(self) -> None:
        """Refuse a folder among classes that holds folders of the same names: an archive unpacked into itself.

        Raises:
            DataError: names the folder.
        """
        own = {_alike(name) for name in self.inside}
        for name, child in self.inside.items():
            again = [inner for inner in child.folders if _alike(inner) in own - {_alike(name)}]
            if len(again) > 1 and len(again) > len(child.folders) / 2:
                raise self.refusal(
                    f"`{child.path}` holds folders named like those beside it ({self.names(again)}): a copy of the set, or another part of it. "
                    "Remove or merge it, or, if it is a class: -S data.layout=classes"
                )

    def divided(self, child: _Node) -> bool:
        """Check whether a class folder holds nothing but splits."""
        parts = names.splits_among(child.folders)
        return bool(parts) and len(parts) == len(child.folders) and not _mixed(child)

    def classes(self) -> Folders:
        if self.stated and self.node.loose:
            self.places[self.node.path] = OUTSIDE
        used = names.merged([list(self.inside)])
        self.places |= {child.path: Place(label=used[name]) for name, child in self.inside.items()}
        return Folders(self.places, (), tuple(names.notes_on(used)))

    def classes_then_splits(self) -> Folders:
        used = names.merged([list(self.inside)])
        delivered: set[Part] = set()
        for name, child in self.inside.items():
            parts = names.splits_among(child.folders)
            _check_double(self.path, child, parts)
            if not parts and self.stated and any(map(self.divided, self.inside.values())):
                self.places[child.path] = OUTSIDE
                continue
            if "train" not in parts.values():
                raise self.refusal(
                    f"class folder {child.path} has no train folder inside; it has {self.names(child.folders) or 'no folders'}. "
                    "Add it, or mix the splits and cut them anew: -S data.layout=classes"
                )
            self.places[child.path] = Place(reason="lies in a class folder, but in none of its splits")
            for inner, part in parts.items():
                place = UNLABELLED if part == "unlabelled" else Place(part, used[name])
                self.places[child.folders[inner].path] = place
            delivered |= set(parts.values())
        notes = (*names.notes_on(used), *self.sets())
        return Folders(self.places, tuple(split for split in SPLITS if split in delivered), notes)

    def sets(self) -> list[Finding]:
        """Point out classes whose splits hold the same folders, as data sets beside each other do: `pets/train/cat`, `pets/test/cat`."""
        inner = {
            name: set.intersection(*({*split.folders} for split in child.folders.values()))
            for name, child in self.inside.items()
            if len(child.folders) > 1
        }
        if len(inner) < len(self.inside) or not all(len(below) > 1 for below in inner.values()):
            return []
        shown = [f"`{name}` ({listed(sorted(below), 3)})" for name, below in inner.items()]
        text = (
            f"the splits of each class hold the same folders: {listed(shown, 5)}. If those are the classes, the outer folders are data "
            "sets: deliver one of them, or merge their splits"
        )
        return [Finding("class_names", len(inner), None, "report", text)]

    def splits(self, parts: Mapping[str, Part]) -> Folders:
        """Read splits, each wrapped in its own way, and the class folders inside."""
        level = self.levels(parts)
        labelled = {
            name: node for name, node in level.items() if node is not None and parts[name] != "unlabelled"
        }
        _check_double(self.path, self.node, {name: parts[name] for name in labelled} or parts)
        self.check_train({name: parts[name] for name in labelled} or parts)
        if self.stated:
            self.places[self.node.path] = OUTSIDE
        if not labelled:
            for name, part in parts.items():
                self.places[self.inside[name].path] = (
                    UNLABELLED if part == "unlabelled" else Place(split=part)
                )
            return Folders(self.places, tuple(split for split in SPLITS if split in parts.values()))
        ordered = sorted(labelled, key=lambda name: PARTS.index(parts[name]))
        used = names.merged([list(_inside(labelled[name])) for name in ordered])
        for name, part in parts.items():
            node = labelled.get(name)
            if node is None:
                self.places[self.inside[name].path] = UNLABELLED
                continue
            if _mixed(node) and not self.stated:
                raise self.loose(node, "splits")
            split = _split(part)
            self.places[self.inside[name].path] = OUTSIDE if self.stated else Place(split)
            self.places |= {child.path: ANNOTATION for child in node.folders.values()}
            self.places |= {child.path: Place(split, used[inner]) for inner, child in _inside(node).items()}
        found = {parts[name] for name in labelled}
        return Folders(
            self.places, tuple(split for split in SPLITS if split in found), tuple(names.notes_on(used))
        )

    def levels(self, parts: Mapping[str, Part]) -> dict[str, _Node | None]:
        """Find the folder of each split that holds its class folders; None for a split without any.

        Of the folders that wrap each other, the one whose folders are named as in other splits is taken, else the deepest.
        """
        options = {name: list(_chain(self.inside[name])) for name in parts}
        labels_of = {
            name: [
                set() if self.is_heap(node) else {_alike(inner) for inner in _inside(node)} for node in nodes
            ]
            for name, nodes in options.items()
        }
        level: dict[str, _Node | None] = {}
        chosen: dict[str, set[str]] = {}
        for name, nodes in options.items():
            others = {
                label for other, sets in labels_of.items() if other != name for own in sets for label in own
            }
            ranked = [
                (len(own & others), depth)
                for depth, own in enumerate(labels_of[name])
                if not self.is_heap(nodes[depth])
            ]
            depth = max(ranked)[1] if ranked else -1
            level[name] = nodes[depth] if ranked else None
            chosen[name] = labels_of[name][depth] if ranked else set()
        trained = {label for name, part in parts.items() if part == "train" for label in chosen[name]}
        for name, part in parts.items():
            if part == "train" or not chosen[name] or not trained or chosen[name] & trained:
                continue
            if len(chosen[name]) == 1:
                level[name] = None  # `test/unknown/1.jpg`
            elif part != "unlabelled" and not self.stated:
                train = next(other for other, own in parts.items() if own == "train")
                ours, theirs = (
                    f"{node.path} holds {self.names(_inside(node))}"
                    for node in (level[train], level[name])
                    if node is not None
                )
                raise self.refusal(
                    f"the splits have different classes: {ours}, but {theirs}. Lay the classes out alike in every split, rename "
                    f"the folder if it is not a split, or treat the folders in {self.where} as classes: -S data.layout=classes"
                )
        if not trained and any(chosen.values()):
            train = listed([self.inside[name].path for name, part in parts.items() if part == "train"], 3)
            other = next(name for name in parts if chosen[name])
            raise (
                self.refusal(
                    f"{train or 'The train split'} holds images without class folders, but {self.inside[other].path} has the classes "
                    f"{self.names(sorted(chosen[other]))}. Sort the training images into class folders too, deliver a list of files "
                    f"with their classes, or take the folders in {self.where} as classes: -S data.layout=classes"
                )
                if train
                else self.no_train(parts)
            )
        return level

    def is_heap(self, node: _Node) -> bool:
        """Check whether a folder of a split holds heaps of images instead of classes: `train/images/1.jpg`."""
        inside = _inside(node)
        heap = names.are_containers(list(inside)) or (len(inside) == 1 and bool(names.splits_among(inside)))
        return heap and not any(child.folders for child in inside.values())

    def check_train(self, parts: Mapping[str, Part]) -> None:
        if "train" not in parts.values():
            raise self.no_train(parts)

    def no_train(self, parts: Mapping[str, Part]) -> DataError:
        paths = listed([self.inside[name].path for name in parts], 5)
        return DataError(
            f"{self.path} has {paths} but no train folder with images of classes. Add one; or, if the folders only wrap the class folders, "
            "rename them."
        )

    @property
    def where(self) -> str:
        return f"`{self.node.path}`" if self.node.path else "the delivery"

    def names(self, folders: Collection[str]) -> str:
        return listed([f"`{name}`" for name in folders], 5)

    def refusal(self, text: str) -> DataError:
        return DataError(f"{self.path}: {text}")

    def ambiguous(self, text: str, readings: Mapping[Arrangement, str]) -> DataError:
        remedies = "; ".join(f"-S data.layout={layout} ({then})" for layout, then in readings.items())
        return self.refusal(f"{text}. Move what does not belong, or state what the folders are: {remedies}")

    def loose(self, node: _Node, arrangement: Arrangement) -> DataError:
        where = f"`{node.path}`" if node.path else "the delivery"
        return self.refusal(
            f"{where} holds {node.loose:,} loose images and {node.images - node.loose:,} in the folders {self.names(_inside(node))}: "
            "either the folders are classes and the loose images have none, or the images have no class folders at all. Sort them into "
            f"the folders or remove them; to pass the loose ones over: -S data.layout={arrangement}; if a list has their classes: "
            "-S data.label=csv"
        )


def _split(part: Part) -> Split | None:
    return None if part == "unlabelled" else part


def _alike(name: str) -> str:
    return names.spelling(name).casefold()


def _check_double(path: Path, node: _Node, parts: Mapping[str, Part]) -> None:
    by_part: defaultdict[Part, list[str]] = defaultdict(list)
    for name, part in parts.items():
        by_part[part].append(node.folders[name].path)
    for part, paths in by_part.items():
        if len(paths) > 1 and part != "unlabelled":
            raise DataError(
                f"{path}: {' and '.join(paths[:5])} are both the {part} split. Merge them into one folder, or, if each is a "
                "class: -S data.layout=classes"
            )
