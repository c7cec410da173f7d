import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

import gate_results as judged
from convoy.core.errors import RequestError
from convoy.gate import plots
from convoy.gate.looks import DARK, LIGHT
from convoy.gate.result import ClassFigures

NAMES = ["gain.png", "gain-dark.png", "classes.png", "classes-dark.png", "flips.png", "flips-dark.png"]


def drawn(judgement, out, thumbnails=None):
    without_credentials = judged.thumbnails(judgement) if thumbnails is None else thumbnails
    return [path.name for path in plots.draw(judgement, without_credentials, out)]


def words(figure):
    texts = [text.get_text() for text in figure.texts]
    for place in figure.axes:
        texts += [text.get_text() for text in place.texts]
        texts += [place.get_title(loc="left"), *(label.get_text() for label in place.get_yticklabels())]
    return texts


def test_every_picture_is_drawn_for_light_and_dark_pages(tmp_path):
    assert drawn(judged.judgement(), tmp_path / "new") == NAMES
    corners = {name: Image.open(tmp_path / "new" / name).convert("L").getpixel((0, 0)) for name in NAMES}
    assert all((corner < 60) == ("-dark" in name) for name, corner in corners.items())


def test_equal_judgements_give_equal_bytes(tmp_path):
    for place in ("one", "two"):
        drawn(judged.judgement(), tmp_path / place)
    assert all(
        (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in NAMES
    )


@pytest.mark.filterwarnings("error")
def test_any_class_names_can_be_drawn(tmp_path):
    assert drawn(judged.hostile(), tmp_path) == NAMES
    for name in NAMES:
        with Image.open(tmp_path / name) as image:
            assert max(image.size) <= 4000


def test_pictures_that_would_show_nothing_are_left_out_and_those_of_an_earlier_judgement_removed(tmp_path):
    drawn(judged.judgement(), tmp_path)
    assert drawn(judged.without_champion(), tmp_path) == NAMES[:4]
    assert not list(tmp_path.glob("flips*"))
    assert drawn(judged.of_itself(), tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_the_accuracies_and_the_gain_are_drawn_with_their_intervals():
    figure = plots._gain(judged.judgement(), LIGHT)
    said = words(figure)
    assert {"convoy/7", "convoy/8", "92.2 % (88.9 % to 94.5 %)", "95.5 % (92.8 % to 97.2 %)"} <= set(said)
    assert "+3.4 (+1.0 to +4.3)" in said
    bars = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert [to_hex(bar.get_color()) for bar in bars] == [LIGHT.candidate, LIGHT.champion]
    assert [bar.get_xdata()[0] for bar in bars] == pytest.approx([92.84, 88.90], abs=0.01)
    bar, dot, zero = figure.axes[1].lines
    assert list(bar.get_xdata()) == pytest.approx([1.04, 4.34], abs=0.01)
    assert list(dot.get_xdata()) == pytest.approx([100 * 12 / 357])
    assert set(zero.get_xdata()) == {0}


@pytest.mark.parametrize(
    ("b", "c", "color"), [(14, 2, LIGHT.good), (2, 14, LIGHT.bad), (6, 4, LIGHT.soft)], ids=["gain", "loss", "neither"]
)  # fmt: skip
def test_a_gain_that_is_shown_has_another_colour_than_one_that_may_be_chance(b, c, color):
    both = judged.comparison(330, b, c, 10)
    figure = plots._gain(judged.judgement(comparison=both), LIGHT)
    assert to_hex(figure.axes[1].lines[0].get_color()) == color


def test_without_a_champion_the_candidate_stands_alone():
    figure = plots._gain(judged.without_champion(), LIGHT)
    assert len(figure.axes) == 1
    assert "convoy/7" not in words(figure)


@pytest.mark.parametrize("figure_of", [plots._gain, plots._classes], ids=["gain", "classes"])
def test_no_share_above_one_is_on_the_axis(figure_of):
    full = tuple(ClassFigures(name, 30, 1.0, 0.99) for name in judged.DIGITS)
    all_right = judged.judgement(candidate_share=judged.share(357, 357), classes=full)
    place = figure_of(all_right, LIGHT).axes[0]
    ticks = list(place.get_xticks())
    assert len(ticks) > 1
    assert max(ticks) == 100
    assert place.get_xlim()[0] < min(ticks)


def test_a_limit_is_drawn_where_it_is_near_and_not_where_it_would_push_the_figures_together():
    near = judged.criterion("accuracy", figure=0.9, limit=0.85, unit="share")
    assert " limit 85 %" in words(plots._gain(judged.judgement(criteria=(near,)), LIGHT))
    assert not [said for said in words(plots._gain(judged.judgement(), LIGHT)) if "limit" in said]


def test_recalls_of_both_are_drawn_class_by_class_from_the_top():
    figures = (ClassFigures("cat", 31, 0.5, 0.9), ClassFigures("dog", 1200, 0.8, None))
    figure = plots._classes(judged.judgement(classes=figures), LIGHT)
    (place,) = figure.axes
    assert [label.get_text() for label in place.get_yticklabels()] == ["dog  (1,200)", "cat  (31)"]
    dots = [(list(line.get_xdata()), list(line.get_ydata())) for line in place.lines]
    assert ([80.0], [0]) in dots
    assert ([90.0, 50.0], [1, 1]) in dots
    fallen = next(line for line in place.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] == 90)
    assert to_hex(fallen.get_color()) == LIGHT.bad


def test_of_many_classes_those_that_changed_most_are_drawn_in_their_own_order():
    figures = [ClassFigures(f"class {n}", 10, 0.9, 0.9) for n in range(300)]
    figures[250] = ClassFigures("fallen", 10, 0.1, 0.9)
    figures[7] = ClassFigures("risen", 10, 1.0, 0.9)
    figure = plots._classes(judged.judgement(classes=tuple(figures)), LIGHT)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == plots.MOST_CLASSES
    assert labels.index("fallen  (10)") < labels.index("risen  (10)")
    assert "; the 40 of 300 classes that changed most" in figure.axes[0].get_title(loc="left")


def test_flips_are_shown_with_label_and_both_answers_broken_ones_first():
    judgement = judged.judgement()
    figure = plots._flips(judgement, judged.thumbnails(judgement), LIGHT)
    said = [text.get_text() for text in figure.texts]
    assert said[:4] == [
        "Only the champion is right: 2 images",
        "is 0",
        "champion: 0 0.61",
        "candidate: 3 0.72",
    ]
    colors = [text.get_color() for text in figure.texts[:4]]
    assert colors == [LIGHT.bad, LIGHT.ink, LIGHT.good, LIGHT.bad]
    assert "Only the candidate is right: 14 images, of which 12 are shown" in said
    shades = [int(place.images[0].get_array()[0, 0, 0]) for place in figure.axes]
    assert shades == list(range(10, 24))


def test_an_image_that_is_missing_leaves_a_gap(tmp_path):
    judgement = judged.judgement()
    some = dict(list(judged.thumbnails(judgement).items())[1:])
    figure = plots._flips(judgement, some, DARK)
    assert words(figure).count("no image") == 1
    assert drawn(judgement, tmp_path, {}) == NAMES


def test_images_of_any_shape_keep_it(tmp_path):
    judgement = judged.judgement(flips=judged.flips(2, 0))
    wide, high = (flip.path for flip in judgement.flips)
    shapes = {wide: np.zeros((2, 60, 3), np.uint8), high: np.zeros((60, 2, 3), np.uint8)}
    figure = plots._flips(judgement, shapes, LIGHT)
    assert [place.get_aspect() for place in figure.axes] == [1.0, 1.0]


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"The picture .*file/gain\.png cannot be written: "):
        plots.draw(judged.judgement(), {}, tmp_path / "file")
