"""Names in any script are legible in pictures: no letter is a box, and different names look different."""

import io
import re

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from PIL import Image

from convoy.core import lettering
from convoy.evaluation import report
from convoy.explain import figures

NAMES = ["日本猫", "日本犬", "🦊", "🐶 dog", "กระต่าย"]
"""Letters that matplotlib's own font lacks."""


@pytest.fixture(autouse=True)
def no_other_fonts(monkeypatch):
    """Work as on a machine with matplotlib's own fonts only."""
    own = [entry for entry in fontManager.ttflist if entry.name.startswith(("DejaVu", "STIX", "cm", "Last"))]
    monkeypatch.setattr(fontManager, "ttflist", own)
    monkeypatch.setattr(lettering, "findSystemFonts", list)
    lettering._fonts.cache_clear()
    yield
    lettering._fonts.cache_clear()


def font(path, letters, family="Noto Sans Test"):
    """A font whose letters are bars of different heights."""
    pens = {".notdef": TTGlyphPen(None)}
    for number, letter in enumerate(letters):
        pen = TTGlyphPen(None)
        top = 400 + 100 * number
        for place, point in enumerate([(0, 0), (0, top), (800, top), (800, 0)]):
            (pen.lineTo if place else pen.moveTo)(point)
        pen.closePath()
        pens[f"u{ord(letter):X}"] = pen
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(pens))
    builder.setupCharacterMap({ord(letter): f"u{ord(letter):X}" for letter in letters})
    builder.setupGlyf({name: pen.glyph() for name, pen in pens.items()})
    builder.setupHorizontalMetrics(dict.fromkeys(pens, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


def written(text, **options):
    """Draw a text; return it as it is written, its families and its picture."""
    figure = Figure((3, 1))
    drawn = figure.text(0.1, 0.5, text, parse_math=False, **options)
    lettering.fit(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return drawn.get_text(), drawn.get_fontfamily(), np.asarray(Image.open(stream))


@pytest.mark.filterwarnings("error")
def test_letters_that_no_font_has_are_spelled_out_so_that_names_differ():
    found = {name: written(name)[0] for name in NAMES}
    assert found["日本猫"] == "<65E5.672C.732B>"
    assert found["🐶 dog"] == "<1F436> dog"
    assert len(set(found.values())) == len(NAMES)
    assert not np.array_equal(written("日本猫")[2], written("日本犬")[2])


def test_a_long_run_of_letters_keeps_both_ends():
    assert written("日本語名前猫 1")[0] == "<65E5.672C…524D.732B> 1"


@pytest.mark.parametrize("order", [1, -1])
def test_the_regular_face_of_a_family_counts_wherever_the_list_has_it(order, monkeypatch):
    """STIX has katakana and hiragana in its regular face alone; the order of the list is that of a folder."""
    faces = [entry for entry in fontManager.ttflist if entry.name == "STIXGeneral"]
    faces.sort(key=lambda entry: (entry.weight == 400, entry.style == "normal"))
    monkeypatch.setattr(fontManager, "ttflist", faces[::order])
    assert written("の")[:2] == ("の", ["sans-serif", "STIXGeneral"])


@pytest.mark.parametrize(
    "text", ["cat", "Bär, ñandú, Кот, γάτα", "كلب أسود", "כלב גדול", "$x_1$ \\frac{", "a\nb"]
)
@pytest.mark.filterwarnings("error")
def test_letters_of_matplotlibs_own_font_stay_as_they_are(text, capsys):
    assert written(text)[:2] == (text, ["sans-serif"])
    assert not capsys.readouterr().out


@pytest.mark.filterwarnings("error")
def test_a_font_of_this_machine_is_used_for_the_letters_that_it_has(tmp_path, monkeypatch, capsys):
    path = font(tmp_path / "test.ttf", "日本猫犬")
    spelled = written("日本猫")
    monkeypatch.setattr(lettering, "findSystemFonts", lambda: [path, str(tmp_path / "gone.ttf")])
    lettering._fonts.cache_clear()
    capsys.readouterr()
    text, families, picture = written("日本猫 🦊")
    assert text == "日本猫 <1F98A>"
    assert families == ["sans-serif", "Noto Sans Test"]
    text, _, picture = written("日本猫")
    assert text == "日本猫"
    assert not np.array_equal(picture, spelled[2])
    assert not np.array_equal(picture, written("日本犬")[2])
    assert "1 letters of class names (🦊)" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["Noto Color Emoji", "Last Resort High-Efficiency"])
def test_a_font_of_boxes_or_of_pictures_is_not_used(family, tmp_path, monkeypatch):
    path = font(tmp_path / "test.ttf", "日本猫", family)
    monkeypatch.setattr(lettering, "findSystemFonts", lambda: [path])
    assert written("日本猫")[0] == "<65E5.672C.732B>"


@pytest.mark.parametrize(
    ("name", "debian", "brew"),
    [
        ("猫", "fonts-noto-cjk", "font-noto-sans-cjk"), ("ねこ", "fonts-noto-cjk", "font-noto-sans-cjk"), ("고양이", "fonts-noto-cjk", "font-noto-sans-cjk"),
        ("🐶", "fonts-symbola", "font-noto-emoji"), ("बिल्ली", "fonts-noto-core", "font-noto-sans"),
    ],
)  # fmt: skip
def test_a_line_names_the_package_to_install_once(name, debian, brew, capsys):
    written(name)
    written(name)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert f"apt-get install {debian}," in line
    assert f"brew install --cask {brew}\n" in line


def test_joiners_and_variants_of_emoji_are_not_spelled_out():
    assert re.sub("[\u200d\ufe0f]", "", written("👩\u200d🔬 x\ufe0f")[0]) in (
        "<1F469><1F52C> x",
        "<1F469.1F52C> x",
    )


@pytest.mark.filterwarnings("error")
def test_the_axes_of_the_confusion_matrix_have_no_boxes(monkeypatch):
    drawn, expected = [], [written(name)[0] for name in NAMES]
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    report.draw_confusion(np.eye(len(NAMES), dtype=np.int64), NAMES)
    (axes,) = drawn[0].axes
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == expected
        assert not any(label.get_parse_math() for label in labels)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
@pytest.mark.filterwarnings("error")
def test_every_figure_that_is_written_has_no_boxes(suffix, tmp_path):
    """The sheet of augmentations, the figures of the gate and of `explain` are written by the same function."""
    pictures = []
    for name in ("日本猫", "日本犬", "日本"):
        figure = Figure((2, 2))
        figure.subplots().set_title(name)
        pictures.append(figures.write(figure, tmp_path / f"a{suffix}").read_bytes())
    assert len(set(pictures)) == 3
