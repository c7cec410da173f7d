"""What others chose is shown and cannot act: in terminals, CI logs, JSON, Markdown and spreadsheets."""

import csv
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from convoy import cli
from convoy.core import console, escaping, stage, templates
from convoy.core.errors import DataError

COMMANDS = (
    "::stop-commands::x",
    "  ::error::x",
    "a\n::add-mask::x",
    "##[error]x",
    "x ##vso[task.setvariable]x",
)


def is_command(line):
    """Whether GitHub Actions or Azure Pipelines would take a line of a log for a command."""
    return bool(re.match(r"\s*::", line) or re.search(r"##(vso)?\[", line))


@pytest.mark.parametrize("text", COMMANDS)
def test_no_line_of_a_log_is_a_command(text, capsys):
    console.info(text)
    console.ProgressBar("read").print(text)
    printed = capsys.readouterr().out.splitlines()
    assert not any(map(is_command, printed))
    assert all(line.rstrip().endswith("x") or line == "a" for line in printed)


@given(st.text())
def test_lines_keep_their_breaks_and_nothing_else_that_cannot_be_seen(text):
    shown = escaping.lines(text)
    assert shown.count("\n") == text.count("\n")
    assert not any(map(is_command, shown.split("\n")))
    assert escaping.visible(shown.replace("\n", "").replace("\t", "")) == shown.replace("\n", "").replace(
        "\t", ""
    )


def test_ordinary_lines_are_unchanged():
    for text in ("a: b", "src::c", "# heading\n\tä → 日本語", "http://[::1]:80/x"):
        assert escaping.lines(text) == text


@pytest.mark.parametrize("module", ["convoy.cli", "convoy.core.stage"])
def test_an_error_that_names_a_file_cannot_act_on_the_terminal(module, capsys, monkeypatch):
    def fail():
        raise DataError("cat/\x1b]0;x\x07.png is damaged\n::stop-commands::x")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main() if module == "convoy.cli" else stage.main(fail)
    printed = capsys.readouterr().err
    assert "cat/<U+001B>]0;x<U+0007>.png is damaged\n" in printed
    assert not any(map(is_command, printed.splitlines()))


def test_a_name_stays_in_its_row_of_a_table():
    rows = console.table(("file", "reason"), [("a\n::error::b\x1b[31m", "c")]).splitlines()
    assert rows[1:] == [r"a\n::error::b<U+001B>[31m  c"]


@given(st.text())
def test_json_reads_back_what_was_written_and_shows_nothing_hidden(text):
    line = escaping.json_line({"path": text + "\udcff"})
    assert json.loads(line) == {"path": text + "\udcff"}
    line.encode()
    assert escaping.visible(line) == line


@pytest.mark.parametrize(
    "text", ["=1+1", "+1+1", "-cmd|'/c calc'!A0", "@SUM(1)", "\t=1", "\r=1", " =1", "\uff1d1+1", "+", "-"]
)
def test_text_that_a_spreadsheet_would_compute_gets_a_quote(text):
    stream = io.StringIO(newline="")
    csv.writer(stream).writerow(escaping.csv_row([text, "cat"]))
    assert next(csv.reader(io.StringIO(stream.getvalue(), newline=""))) == [f"'{text}", "cat"]


@pytest.mark.parametrize("cell", ["cat", "a=b", "'=1", "", "-0.5", "+3", "1e-05", "-inf", 7, -0.25])
def test_numbers_and_other_cells_are_unchanged(cell):
    assert escaping.csv_row([cell]) == [str(cell)]


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_a_name_is_no_markup_on_the_model_card(name):
    parsed = (
        MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .parse(f"| a |\n|---|\n| {escaping.code(name)} |\n")
    )
    kinds = {child.type for token in parsed for child in token.children or ()}
    assert kinds <= {"text", "code_inline", "html_inline"}
    html = {
        child.content for token in parsed for child in token.children or () if child.type == "html_inline"
    }
    assert html <= {"<code>", "</code>"}


@given(st.text(alphabet=st.sampled_from("ab_*\\ é.[]()<&-1"), max_size=12))
def test_a_sentence_is_no_markup_and_reads_as_it_was(sentence):
    parsed = MarkdownIt("commonmark", {"html": True}).parse(f"x {escaping.prose(sentence)} x")
    children = [child for token in parsed for child in token.children or ()]
    assert {child.type for child in children} <= {"text"}
    assert "".join(child.content for child in children).split() == ["x", *sentence.split(), "x"]


def test_names_of_settings_in_a_sentence_read_the_same_in_plain_text():
    sentence = "train.weight_decay 5e-05 → 0.001, image_px 64"
    assert escaping.prose(sentence) == sentence
    assert escaping.prose("_a_ __b__ c_d_") == r"\_a\_ \_\_b\_\_ c_d\_"


def test_a_page_spells_out_what_turns_its_text(tmp_path, monkeypatch):
    (tmp_path / "other_pages").mkdir()
    (tmp_path / "other_pages" / "__init__.py").touch()
    (tmp_path / "other_pages" / "a.html.j2").write_text(
        "{% macro bold(x) %}<b>{{ x }}</b>{% endmacro %}{{ bold(name) }}"
    )
    monkeypatch.syspath_prepend(tmp_path)
    page = templates.render("other_pages", "a.html.j2", {"name": "<cat\u202egpj>"})
    assert page == "<b>&lt;cat&lt;U+202E&gt;gpj&gt;</b>"


def test_every_csv_file_is_written_from_inert_cells(repository):
    texts = [path.read_text(encoding="utf-8") for path in (repository / "src" / "convoy").rglob("*.py")]
    writing = [text for text in texts if "csv.writer(" in text]
    assert len(writing) >= 2
    assert all("csv_row" in text for text in writing)


def test_every_line_that_may_hold_names_is_printed_by_the_console(repository):
    """`print` elsewhere would pass controls through: only the console, and the entry points' own fixed texts, call it."""
    # repo/reproduce.py rewrites what DVC prints, each line through `escaping.lines`.
    known = {"cli.py", "core/console.py", "core/stage.py", "export/latency.py", "repo/reproduce.py"}
    source = repository / "src" / "convoy"
    printing = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if re.search(r"(?<![.\w])print\(", path.read_text(encoding="utf-8"))
    }
    assert printing <= known
