"""The HTML page of a verdict, and its figures."""

from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

import gate_results
from convoy.core.errors import RequestError
from convoy.core.escaping import visible
from convoy.gate import page
from convoy.gate.result import ClassFigures

NAMES = ["gain.png", "classes.png", "flips.png"]
VOID = {"meta", "source", "img", "br", "link"}


class Parsed(HTMLParser):
    """Read a page: its tags, attributes and texts, and the rows of each section's tables."""

    def __init__(self, content):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.texts, self.open = Counter(), [], [], []
        self.rows, self.classes = {}, {}
        self.feed(content)
        assert not self.open, "a tag was never closed"

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"]
            self.rows[self.section], self.classes[self.section] = [], []
        if tag == "tr":
            self.rows[self.section].append([])
            self.classes[self.section].append(dict(attrs).get("class", ""))
        if tag in {"td", "th"}:
            self.rows[self.section][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[self.section][-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def read(tmp_path):
    def parse(result, pictures=()):
        page.write(tmp_path / "verdict.html", result, pictures)
        return Parsed((tmp_path / "verdict.html").read_text(encoding="utf-8"))

    return parse


def test_the_page_begins_with_the_verdict_and_its_reasons(read):
    parsed = read(gate_results.gate_result(verdict="refuse"))
    headline = "convoy/8 is refused: convoy/7 stays champion"
    assert parsed.text.startswith(f"{headline} refuse {headline} Promote convoy/8: it is better. Every limit")


def test_sections_stand_with_their_tables_and_breaches_are_marked(read):
    fallen = gate_results.criterion(
        "class_drop", figure=0.83, limit=0.2, sense="at most", unit="points", held=False, note="`3`"
    )
    parsed = read(gate_results.gate_result(verdict="refuse", criteria=(*gate_results.CRITERIA, fallen)))
    assert list(parsed.rows) == ["criteria", "gain", "classes", "flips", "compared"]
    header, first, *others = parsed.rows["criteria"]
    assert header == ["Criterion", "Value", "Limit", "Status", "Note"]
    assert first == ["Class drop", "83.0 points", "at most 20 points", "breached", "`3`"]
    assert parsed.classes["criteria"][1:] == ["breached"] + [""] * len(others)
    assert len(parsed.rows["flips"]) == 2 + 2 + 14
    assert ["Candidate", f"convoy/8 {'a' * 64}"] in parsed.rows["compared"]
    assert set(read(gate_results.identical()).rows) == {"compared"}


def test_flips_that_are_not_listed_are_counted(read):
    comparison = gate_results.comparison(0, 250, 101, 6)
    parsed = read(gate_results.gate_result(comparison=comparison, flips=gate_results.flips(100, 100)))
    assert "250, the 100 most certain listed" in parsed.text


def test_figures_are_inside_and_nothing_is_fetched_or_run(read, tmp_path):
    result = gate_results.gate_result()
    parsed = read(result, page.draw(result, gate_results.thumbnails(result), tmp_path))
    sources = [value for _, name, value in parsed.attributes if name in {"src", "srcset", "href"}]
    assert len(set(sources)) == parsed.tags["img"] == 3
    assert parsed.tags["script"] == 0
    assert all(value.startswith("data:image/png;base64,iVBOR") for value in sources)
    content = (tmp_path / "verdict.html").read_text(encoding="utf-8")
    assert not [word for word in ("url(", "@import", "http") if word in content]


def test_no_name_becomes_markup(read):
    hostile = gate_results.hostile()
    names = ["name"] * len(gate_results.HOSTILE)
    tame = replace(
        hostile,
        reasons=("why",) * len(hostile.reasons),
        classes=gate_results.classes(names),
        flips=gate_results.flips(30, 30, names),
        criteria=(gate_results.criterion("accuracy", held=False),),
        excluded={"why": 3},
        conditions={"confidence": 0.95, "key": "value"},
    )
    parsed = read(hostile)
    assert parsed.tags == read(tame).tags
    harmless = {"charset", "class", "content", "id", "lang", "name", "title"}
    assert {name for _, name, _ in parsed.attributes} <= harmless
    for name in gate_results.HOSTILE:
        if len(name) <= page.LONGEST_NAME:
            assert visible(name) in [row[0] for row in parsed.rows["classes"]]


def test_a_name_of_another_direction_is_kept_apart_from_its_line(read, tmp_path):
    read(gate_results.gate_result(classes=gate_results.classes(["שלום", "\u202egpj.exe"])))
    content = (tmp_path / "verdict.html").read_text(encoding="utf-8")
    assert '<bdi title="שלום">שלום</bdi>' in content
    assert "\u202e" not in content


# Figures


def drawn(result, out, thumbnails=None):
    thumbnails = gate_results.thumbnails(result) if thumbnails is None else thumbnails
    return [path.name for path in page.draw(result, thumbnails, out)]


def labels(figure):
    texts = [text.get_text() for text in figure.texts]
    for ax in figure.axes:
        texts += [text.get_text() for text in ax.texts]
        texts += [ax.get_title(loc="left"), *(label.get_text() for label in ax.get_yticklabels())]
    return texts


def luminance(color):
    """As WCAG 2 defines it."""
    channels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return np.dot(linear, (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("paper", ["#ffffff", "#161c24", "#0d1117"])
def test_colours_are_readable_on_light_and_on_dark_pages(paper):
    for color in (page.INK, page.CHAMPION, page.CANDIDATE, page.GOOD, page.BAD):
        low, high = sorted((luminance(color), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 3


def test_equal_results_give_equal_transparent_files(tmp_path):
    for folder in ("one", "two"):
        drawn(gate_results.gate_result(), tmp_path / folder)
        page.write(tmp_path / folder / "verdict.html", gate_results.hostile(), ())
    for name in (*NAMES, "verdict.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for name in NAMES:
        assert Image.open(tmp_path / "one" / name).convert("RGBA").getpixel((0, 0))[3] == 0


@pytest.mark.filterwarnings("error")
def test_any_class_names_can_be_drawn(tmp_path):
    assert drawn(gate_results.hostile(), tmp_path) == NAMES
    for name in NAMES:
        with Image.open(tmp_path / name) as image:
            assert max(image.size) <= 4000


def test_figures_with_nothing_to_show_are_left_out_and_earlier_ones_removed(tmp_path):
    drawn(gate_results.gate_result(), tmp_path)
    assert drawn(gate_results.without_champion(), tmp_path) == NAMES[:2]
    assert not list(tmp_path.glob("flips*"))
    assert drawn(gate_results.identical(), tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_accuracies_and_gain_are_drawn_with_their_intervals():
    figure = page._gain(gate_results.gate_result())
    shown = labels(figure)
    assert {"convoy/7", "convoy/8", "92.2 % (88.9 % to 94.5 %)", "95.5 % (92.8 % to 97.2 %)"} <= set(shown)
    assert "+3.4 (+1.0 to +4.3)" in shown
    bars = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert [to_hex(bar.get_color()) for bar in bars] == [page.CANDIDATE, page.CHAMPION]
    assert [bar.get_xdata()[0] for bar in bars] == pytest.approx([92.84, 88.90], abs=0.01)
    bar, dot, zero = figure.axes[1].lines
    assert list(bar.get_xdata()) == pytest.approx([1.04, 4.34], abs=0.01)
    assert list(dot.get_xdata()) == pytest.approx([100 * 12 / 357])
    assert set(zero.get_xdata()) == {0}
    alone = page._gain(gate_results.without_champion())
    assert len(alone.axes) == 1
    assert "convoy/7" not in labels(alone)


@pytest.mark.parametrize(
    ("b", "c", "color"), [(14, 2, page.GOOD), (2, 14, page.BAD), (6, 4, page.SOFT)], ids=["gain", "loss", "neither"]
)  # fmt: skip
def test_a_significant_gain_has_another_colour_than_one_that_may_be_chance(b, c, color):
    figure = page._gain(gate_results.gate_result(comparison=gate_results.comparison(330, b, c, 10)))
    assert to_hex(figure.axes[1].lines[0].get_color()) == color


@pytest.mark.parametrize("figure_of", [page._gain, page._classes], ids=["gain", "classes"])
def test_no_share_above_one_is_on_the_axis(figure_of):
    full = tuple(ClassFigures(name, 30, 1.0, 0.99) for name in gate_results.DIGITS)
    all_right = gate_results.gate_result(candidate_share=gate_results.share(357, 357), classes=full)
    ax = figure_of(all_right).axes[0]
    ticks = list(ax.get_xticks())
    assert len(ticks) > 1
    assert max(ticks) == 100
    assert ax.get_xlim()[0] < min(ticks)


def test_a_limit_is_drawn_only_where_it_is_near():
    near = gate_results.criterion("accuracy", figure=0.9, limit=0.85, unit="share")
    assert " limit 85 %" in labels(page._gain(gate_results.gate_result(criteria=(near,))))
    assert not [label for label in labels(page._gain(gate_results.gate_result())) if "limit" in label]


def test_recalls_of_both_are_drawn_class_by_class_from_the_top():
    figures = (ClassFigures("cat", 31, 0.5, 0.9), ClassFigures("dog", 1200, 0.8, None))
    (ax,) = page._classes(gate_results.gate_result(classes=figures)).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["dog  (1,200)", "cat  (31)"]
    dots = [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines]
    assert ([80.0], [0]) in dots
    assert ([90.0, 50.0], [1, 1]) in dots
    fallen = next(line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] == 90)
    assert to_hex(fallen.get_color()) == page.BAD


def test_of_many_classes_as_many_are_drawn_as_there_is_room_for():
    figures = tuple(ClassFigures(f"class {n}", 10, 0.9, 0.9) for n in range(300))
    (ax,) = page._classes(gate_results.gate_result(classes=figures)).axes
    assert len(ax.get_yticklabels()) == page.MOST_CLASSES
    assert "40 of 300 classes" in ax.get_title(loc="left")


def test_flips_are_drawn_with_label_and_both_predictions_regressions_first():
    result = gate_results.gate_result()
    figure = page._flips(result, gate_results.thumbnails(result))
    heading, first = figure.texts[:2]
    assert heading.get_text() == "Regressed: only the champion is right: 2 images"
    assert heading.get_color() == page.BAD
    assert first.get_text().splitlines() == ["label: 0", "champion: 0 0.61", "candidate: 3 0.72"]
    assert "Fixed: only the candidate is right: 14 images, 12 shown" in labels(figure)
    shades = [int(ax.images[0].get_array()[0, 0, 0]) for ax in figure.axes]
    assert shades == list(range(10, 24))


def test_a_missing_image_leaves_a_gap(tmp_path):
    result = gate_results.gate_result()
    some = dict(list(gate_results.thumbnails(result).items())[1:])
    assert labels(page._flips(result, some)).count("no image") == 1
    assert drawn(result, tmp_path, {}) == NAMES


def test_images_of_any_shape_keep_it():
    result = gate_results.gate_result(flips=gate_results.flips(2, 0))
    wide, high = (flip.path for flip in result.flips)
    shapes = {wide: np.zeros((2, 60, 3), np.uint8), high: np.zeros((60, 2, 3), np.uint8)}
    assert [ax.get_aspect() for ax in page._flips(result, shapes).axes] == [1.0, 1.0]


def test_a_folder_that_cannot_be_written_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"file/gain\.png"):
        page.draw(gate_results.gate_result(), {}, tmp_path / "file")
