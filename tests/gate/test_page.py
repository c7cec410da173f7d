from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import gate_results as judged
from convoy.gate import page, plots
from convoy.gate.names import visible
from convoy.gate.result import ClassFigures
from convoy.gate.written import NOTHING

VOID = {"meta", "source", "img", "br", "link"}


class Parsed(HTMLParser):
    """Read a page: its tags, the texts of each section's table rows, and all texts."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.classes: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.section = ""
        self.feed(content)
        self.close()
        assert not self.open, "a tag was never closed"

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"]
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])
            self.classes.setdefault(self.section, []).append(dict(attrs).get("class", ""))
        if tag in {"td", "th"}:
            self.rows[self.section][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[self.section][-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def read(tmp_path):
    def written(judgement, without_credentials=()):
        page.write(tmp_path / "verdict.html", judgement, without_credentials)
        return Parsed((tmp_path / "verdict.html").read_text(encoding="utf-8"))

    return written


@pytest.mark.parametrize(
    ("verdict", "headline"),
    [
        ("promote", "convoy/8 should be the champion after convoy/7"),
        ("keep", "convoy/7 stays champion"),
        ("refuse", "convoy/8 is refused: convoy/7 stays champion"),
    ],
)
def test_the_page_begins_with_the_verdict_and_its_reasons(read, verdict, headline):
    without_credentials = read(judged.judgement(verdict=verdict))
    assert without_credentials.text.startswith(
        f"{headline} {verdict} {headline} Promote convoy/8: it is better. Every limit holds. What was asked"
    )


def test_every_criterion_stands_with_figure_limit_outcome_and_note_the_breached_first(read):
    fallen = judged.criterion(
        "class_drop", figure=0.83, limit=0.2, sense="at most", unit="points", held=False, note="`3`"
    )
    without_credentials = read(judged.judgement(verdict="refuse", criteria=(*judged.CRITERIA, fallen)))
    _, first, *others = without_credentials.rows["criteria"]
    assert first == ["Class drop", "83.0 points", "at most 20 points", "breached", "`3`"]
    assert others[0][:4] == ["Proof", NOTHING, NOTHING, "held"]
    assert others[-1] == ["Size mb", "1.21 MB", "none", "not asked", "no limit set"]
    assert len(others) == len(judged.CRITERIA)
    assert "1 of 8 breached; one is enough to refuse." in without_credentials.text
    assert without_credentials.classes["criteria"][1] == "breached"


def test_the_comparison_stands_in_words_and_in_figures(read):
    without_credentials = read(judged.judgement())
    assert "Is the candidate better? Both answered the same 357 images." in without_credentials.text
    assert "p = 0.0042, b = 14, c = 2" in without_credentials.text
    assert without_credentials.rows["gain"] == [
        ["Model", "Right", "Of images", "Accuracy", "95 % interval (Wilson)"],
        ["convoy/7", "329", "357", "92.16 %", "88.90 % to 94.52 %"],
        ["convoy/8", "341", "357", "95.52 %", "92.84 % to 97.22 %"],
    ]


def test_every_class_stands_with_both_recalls_and_their_difference(read):
    figures = (*judged.classes()[:1], *judged.without_champion().classes[1:2])
    without_credentials = read(judged.judgement(classes=figures))
    assert without_credentials.rows["classes"][1:] == [
        ["0", "30", "90.0 %", "80.0 %", "\N{MINUS SIGN}10.0"],
        ["1", "31", NOTHING, "82.5 %", NOTHING],
    ]


def test_a_rise_and_a_fall_of_a_class_have_their_colours(read):
    recalls = {"risen": (0.9, 0.8), "fallen": (0.8, 0.9), "equal": (0.8, 0.8), "new": (0.8, None)}
    figures = tuple(ClassFigures(name, 10, *both) for name, both in recalls.items())
    without_credentials = read(judged.judgement(classes=figures, flips=(), criteria=()))
    colours = [value for tag, name, value in without_credentials.attributes if (tag, name) == ("td", "class")]
    assert colours[:4] == ["good", "bad", "", ""]


def test_flips_of_both_kinds_stand_with_label_and_both_answers(read):
    without_credentials = read(judged.judgement())
    assert without_credentials.rows["flips"][0] == [
        "File",
        "Label",
        "Champion",
        "Probability",
        "Candidate",
        "Probability",
    ]
    assert without_credentials.rows["flips"][1] == ["0/broken_0000.png", "0", "0", "0.61", "3", "0.72"]
    assert ["0/fixed_0000.png", "0", "3", "0.61", "0", "0.72"] in without_credentials.rows["flips"]
    assert len(without_credentials.rows["flips"]) == 2 + 2 + 14
    assert "Only the champion is right: 2 File" in without_credentials.text


def test_flips_that_are_not_listed_are_counted(read):
    without_credentials = read(
        judged.judgement(comparison=judged.comparison(0, 250, 101, 6), flips=judged.flips(100, 100))
    )
    assert "Only the candidate is right: 250, the 100 surest listed" in without_credentials.text


def test_what_was_compared_and_how_is_stated(read):
    without_credentials = read(judged.judgement())
    assert without_credentials.rows["compared"] == [
        ["Candidate", f"convoy/8 {'a' * 64}"],
        ["Champion", f"convoy/7 {'b' * 64}"],
        ["Data", "c" * 64],
        ["Test images judged", "357"],
        ["Left out, in the champion's training", "12"],
        ["moment", "2026-11-23T22:10:05+00:00"],
        ["confidence", "0.95"],
        ["latency, threads", "1"],
        ["versions, onnxruntime", "1.32.0"],
    ]


def test_a_champion_that_cannot_be_read_is_said_loudly(read):
    assert ["Champion", "convoy/7 cannot be read"] in read(judged.judgement(champion_sha256=None)).rows[
        "compared"
    ]


def test_a_first_champion_and_a_candidate_that_is_the_champion_have_their_page(read):
    first = read(judged.without_champion())
    assert "Is the candidate better?" not in first.text
    assert ["Champion", "none yet"] in first.rows["compared"]
    assert first.rows["classes"][:2] == [["Class", "Images", "Candidate"], ["0", "30", "80.0 %"]]
    assert set(read(judged.of_itself()).rows) == {"compared"}
    share = judged.share(341, 357)
    itself = read(replace(judged.of_itself(), candidate_share=share, champion_share=share))
    assert [row[0] for row in itself.rows["gain"]] == ["Model", "convoy/7"]


def test_pictures_are_inside_for_light_and_dark_and_nothing_is_fetched_or_run(read, tmp_path):
    judgement = judged.judgement()
    without_credentials = read(judgement, plots.draw(judgement, judged.thumbnails(judgement), tmp_path))
    assert (
        without_credentials.tags["img"]
        == without_credentials.tags["picture"]
        == without_credentials.tags["source"]
        == 3
    )
    assert without_credentials.tags["script"] == 0
    sources = [
        value for _, name, value in without_credentials.attributes if name in {"src", "srcset", "href"}
    ]
    assert len(sources) == len(set(sources)) == 6
    assert all(value.startswith("data:image/png;base64,iVBOR") for value in sources)
    content = (tmp_path / "verdict.html").read_text(encoding="utf-8")
    assert "url(" not in content
    assert "@import" not in content
    assert "http" not in content


def test_a_picture_without_a_dark_one_serves_both(read, tmp_path):
    judgement = judged.judgement()
    light = plots.draw(judgement, {}, tmp_path)[0]
    sources = [value for _, name, value in read(judgement, [light]).attributes if name in {"src", "srcset"}]
    assert len(sources) == 2
    assert len(set(sources)) == 1


def test_no_name_becomes_markup(read):
    hostile = judged.hostile()
    tame = judged.judgement(
        **{
            **vars(hostile),
            "reasons": ("why",) * len(hostile.reasons),
            "classes": judged.classes(["name"] * len(judged.HOSTILE)),
            "flips": judged.flips(30, 30, ["name"] * len(judged.HOSTILE)),
            "criteria": judged.CRITERIA[:1],
            "excluded": {"why": 3},
            "conditions": {"confidence": 0.95, "key": "value"},
        }
    )
    without_credentials = read(hostile)
    assert without_credentials.tags == read(tame).tags
    assert {name for _, name, _ in without_credentials.attributes} <= {
        "charset", "class", "content", "id", "lang", "name", "scope", "title",
    }  # fmt: skip
    for name in judged.HOSTILE:
        if len(name) <= page.LONGEST_NAME:
            assert visible(name) in [row[0] for row in without_credentials.rows["classes"]]


def test_a_name_of_another_direction_is_kept_apart_from_its_line(read, tmp_path):
    read(judged.judgement(classes=judged.classes(["שלום", "\u202egpj.exe"])))
    content = Path(tmp_path / "verdict.html").read_text(encoding="utf-8")
    assert '<bdi title="שלום">שלום</bdi>' in content
    assert "\u202e" not in content


def test_equal_judgements_give_equal_pages(tmp_path):
    for name in ("one", "two"):
        page.write(tmp_path / name, judged.hostile(), ())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
