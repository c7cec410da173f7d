"""What changed in the data between two trainings, image by image, compared by pixels and not by file names."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from convoy.export.image_index import Images

MOST_EXAMPLES = 24  # images of each kind that are kept; counts include all


@dataclass(frozen=True)
class ClassChange:
    """Count a class's images before and now, in all splits together."""

    name: str
    before: int
    now: int

    @property
    def difference(self) -> int:
        """Number of images more than before."""
        return self.now - self.before


@dataclass(frozen=True)
class Example:
    """Name an image that changed."""

    pixels: str  # hash of its pixels
    path: str  # in today's data; empty where it is gone or unknown
    before: str  # its label before; empty where it was not there
    now: str  # its label now; empty where it is gone
    split: str  # that it is in now, or was in before it was removed


@dataclass(frozen=True)
class Changes:
    """Count what changed; an image is the same where its pixels are."""

    before: (
        int | None
    )  # images of the champion's dataset; None where that is unknown, and nothing is compared
    now: int  # images of today's dataset
    classes: tuple[ClassChange, ...]  # of either side, in order of name
    added: int = 0
    gone: int = 0
    relabelled: int = 0  # whose label changed, as poisoned labels do
    moved: int = 0  # that kept their label and are in another split
    relabels: tuple[tuple[str, str, int], ...] = ()  # label before, now, images; the most frequent first
    added_examples: tuple[Example, ...] = ()  # of each label by turns, in order of path; likewise the others
    gone_examples: tuple[Example, ...] = ()
    relabelled_examples: tuple[Example, ...] = ()

    @property
    def none(self) -> bool:
        """Whether every image is as it was."""
        return self.before is not None and not (self.added or self.gone or self.relabelled or self.moved)

    @property
    def share_relabelled(self) -> float:
        """Share of the common images that have another label now; 0 where there is no common image."""
        both = self.now - self.added
        return self.relabelled / both if both and self.before is not None else 0.0


def diff(before: Images | None, now: Images, paths: Mapping[str, str] = {}) -> Changes:
    """Compare the champion's images, if they are known, with the candidate's, image by image.

    `paths` has the path of each image today by the hash of its pixels, for the examples.
    """
    labels = {pixels: label for pixels, (label, _) in now.table.items()}
    old = {pixels: label for pixels, (label, _) in before.table.items()} if before else {}
    counts, old_counts = Counter(labels.values()), Counter(old.values())
    names = sorted({*counts, *old_counts})
    classes = tuple(ClassChange(name, old_counts[name], counts[name]) for name in names)
    if before is None:
        return Changes(None, len(labels), classes)
    added, gone = labels.keys() - old.keys(), old.keys() - labels.keys()
    changed = {pixels for pixels in labels.keys() & old.keys() if now.table[pixels] != before.table[pixels]}
    relabelled = [pixels for pixels in changed if labels[pixels] != old[pixels]]
    pairs = Counter((old[pixels], labels[pixels]) for pixels in relabelled)

    def examples(hashes: Iterable[str]) -> tuple[Example, ...]:
        ordered = sorted(hashes, key=lambda pixels: (paths.get(pixels, ""), pixels))
        return tuple(
            Example(
                pixels,
                paths.get(pixels, ""),
                old.get(pixels, ""),
                labels.get(pixels, ""),
                split=(now.table.get(pixels) or before.table[pixels])[1],
            )
            for pixels in _of_each(ordered, lambda pixels: (old.get(pixels), labels.get(pixels)))
        )

    return Changes(
        before=len(old),
        now=len(labels),
        classes=classes,
        added=len(added),
        gone=len(gone),
        relabelled=len(relabelled),
        moved=len(changed) - len(relabelled),
        relabels=tuple((*pair, pairs[pair]) for pair in sorted(pairs, key=lambda pair: (-pairs[pair], pair))),
        added_examples=examples(added),
        gone_examples=examples(gone),
        relabelled_examples=examples(relabelled),
    )


def _of_each(ordered: Sequence[str], kind: Callable[[str], object]) -> list[str]:
    """Choose examples of every kind by turns, so that no kind hides the others."""
    turns: Counter[object] = Counter()
    ranked = []
    for position, pixels in enumerate(ordered):
        turns[kind(pixels)] += 1
        ranked.append((turns[kind(pixels)], position, pixels))
    return [pixels for *_, pixels in sorted(ranked)[:MOST_EXAMPLES]]
