import hashlib
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from convoy.export.image_index import Images
from convoy.retraining.data_diff import MOST_EXAMPLES, Changes, ClassChange, Example, diff


def images(**labels):
    """Make a dataset of `name="label"` in train, or `name="label/split"`."""
    table = {}
    for name, content in labels.items():
        label, _, split = content.partition("/")
        table[name] = (label, split or "train")
    return Images(table)


def test_images_are_compared_by_pixels_and_counted_by_change():
    before = images(a="cat", b="cat", c="dog", d="dog/test", e="bee")
    now = images(a="cat", b="dog", c="dog/val", d="dog/test", f="ape")
    changes = diff(before, now)
    assert (changes.before, changes.now) == (5, 5)
    assert (changes.added, changes.gone, changes.relabelled, changes.moved) == (1, 1, 1, 1)
    counts = {"ape": (0, 1), "bee": (1, 0), "cat": (2, 1), "dog": (2, 3)}
    assert changes.classes == tuple(ClassChange(name, *pair) for name, pair in counts.items())
    assert changes.relabels == (("cat", "dog", 1),)
    assert not changes.none


def test_the_same_images_have_not_changed():
    same = images(a="cat", b="dog/test")
    assert diff(same, same).none
    assert not diff(same, images(a="cat", b="dog/val")).none
    assert not diff(None, same).none


def test_unknown_champion_images_are_not_compared():
    changes = diff(None, images(a="cat", b="dog"))
    assert changes == Changes(None, 2, (ClassChange("cat", 0, 1), ClassChange("dog", 0, 1)))
    assert changes.share_relabelled == 0


def test_examples_have_path_and_both_labels():
    before = images(a="cat", b="cat/test", c="dog")
    now = images(a="dog/val", c="dog", d="ape")
    changes = diff(before, now, {"a": "dog/1.png", "d": "ape/2.png"})
    assert changes.relabelled_examples == (Example("a", "dog/1.png", "cat", "dog", "val"),)
    assert changes.gone_examples == (Example("b", "", "cat", "", "test"),)
    assert changes.added_examples == (Example("d", "ape/2.png", "", "ape", "train"),)


def test_the_share_of_relabelled_images_is_of_those_that_both_have():
    before = images(a="cat", b="cat", c="cat", gone="cat")
    changes = diff(before, images(a="dog", b="cat", c="dog", new="cat"))
    assert changes.share_relabelled == 2 / 3


def test_the_most_frequent_relabelling_comes_first_and_examples_are_of_each_by_turns():
    before = images(**{f"a{n}": "cat" for n in range(100)}, z="dog")
    now = images(**{f"a{n}": "dog" for n in range(100)}, z="cat")
    changes = diff(before, now, {f"a{n}": f"1/{n:03}.png" for n in range(100)} | {"z": "2/z.png"})
    assert changes.relabels == (("cat", "dog", 100), ("dog", "cat", 1))
    assert len(changes.relabelled_examples) == MOST_EXAMPLES
    paths = [example.path for example in changes.relabelled_examples]
    assert paths[:3] == ["1/000.png", "2/z.png", "1/001.png"]


datasets = st.dictionaries(
    st.integers(0, 30).map(lambda n: hashlib.sha256(str(n).encode()).hexdigest()),
    st.tuples(st.sampled_from("abc"), st.sampled_from(("train", "val", "test"))),
).map(Images)


@given(datasets, datasets)
def test_every_image_is_counted_once(before, now):
    changes = diff(before, now)
    both = before.table.keys() & now.table.keys()
    assert changes.before + changes.added - changes.gone == changes.now
    assert changes.relabelled + changes.moved + sum(
        before.table[pixels] == now.table[pixels] for pixels in both
    ) == len(both)
    assert sum(row.before for row in changes.classes) == changes.before
    assert sum(row.now for row in changes.classes) == changes.now
    assert sum(images for *_, images in changes.relabels) == changes.relabelled
    assert changes.none == (before.table == now.table)
    turned = diff(now, before)
    assert (turned.added, turned.gone) == (changes.gone, changes.added)
    assert Counter(turned.relabels) == Counter((now, was, images) for was, now, images in changes.relabels)
