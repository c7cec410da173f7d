"""Show text that others chose (file names, class names, errors) where it could act: terminals, CI logs, JSON, Markdown, spreadsheets.

GitHub and GitLab turn more into markup than CommonMark does: `|` ends a cell of a table even inside of code, `$` begins
a formula, `@name` notifies a person.
"""

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories of characters that cannot be seen: controls, format marks, lone surrogates, separators of lines."""

JOINERS = "\u200c\u200d"  # format characters that hold together words of some scripts, and joined emoji

LONGEST_NAME = 60  # characters of a name in a table
LONGEST_WORD = 120  # in a sentence: a longer word would widen its table beyond the page
LONGEST_SENTENCE = 400  # characters of a reason or note

COMMAND = re.compile(r"^(\s*)(:)(?=:)|(#)(?=#(?:vso)?\[)", re.MULTILINE)
"""Where a line of a log would be a command to GitHub Actions or Azure Pipelines, such as `::stop-commands::`."""

# An underscore between letters or digits, as in `image_px`, is not markup; others become `\_`, which reads well in plain text, too.
MARKUP = re.compile(r"[\\`*\[\]<>|~$&#]|(?<!\w)_+|_++(?!\w)")
MENTION = re.compile(r"(?<![\w`])@(?=\w)")
LIST = re.compile(r"^(\s*)([-+=]|\d+(?=[.)](?:\s|$)))")
PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")


def visible(text: str) -> str:
    r"""Spell out characters that cannot be seen, on one line: line breaks, controls, and marks that turn the direction of reading.

    A name such as `cat<U+202E>gpj.exe` would pass for another, and turn the line that it stands in. A byte of a file name
    that is not UTF-8 (Python's `surrogateescape`) becomes `\xff`.
    """
    return text if text.isprintable() else "".join(map(_spelled, text))


def lines(text: str) -> str:
    """Make text of several lines inert in terminals and CI logs; only line breaks and tabs stay as they are."""
    shown = "\n".join("\t".join(map(visible, line.split("\t"))) for line in text.split("\n"))
    return COMMAND.sub(lambda match: (match[1] or "") + f"<U+{ord(match[2] or match[3]):04X}>", shown)


def _spelled(character: str) -> str:
    if character.isprintable() or character in JOINERS or unicodedata.category(character) not in HIDDEN:
        return character
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character, f"<U+{ord(character):04X}>")


def short(text: str, longest: int) -> str:
    """Make a name visible, and cut its middle where it is longer than `longest` characters; names often differ at their ends."""
    shown = visible(text)
    if len(shown) <= longest:
        return shown
    end = longest // 2
    return f"{shown[: longest - end - 1]}…{shown[-end:]}"


def json_line(content: Any) -> str:  # noqa: ANN401 (as wide as JSON)
    r"""Write JSON on one line; what cannot be seen becomes `\u…`, which every reader of JSON turns back."""
    text = json.dumps(content, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(
        character if _spelled(character) == character else json.dumps(character)[1:-1] for character in text
    )


def csv_row(cells: Iterable[object]) -> list[str]:
    """Make the cells of a CSV file inert in spreadsheets, which compute text that begins with `=`, `+`, `-`, `@`, tab or CR.

    Such text gets a leading `'`, unless it is a number. Numbers and other text are unchanged.
    """
    return [f"'{text}" if _is_formula(text) else text for text in map(str, cells)]


def _is_formula(text: str) -> bool:
    start = unicodedata.normalize("NFKC", text).lstrip(" ")  # full-width signs count as well
    if not start.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


# Markdown


def code(content: str, longest: int = LONGEST_NAME) -> str:
    """Show a name as code, in which nothing is markup; also fit for a cell of a table."""
    shown = short(content, longest)
    if not shown:
        return ""
    if "|" in shown or not shown.strip():
        # No way to write `|` inside backticks reads the same in every renderer's tables.
        return f"<code>{PUNCTUATION.sub(_entity, shown).replace(' ', '&#32;')}</code>"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    # Markdown removes a space at each end, where both have a space.
    space = " " if shown[0] in "` " or shown[-1] in "` " else ""
    return f"{fence}{space}{shown}{space}{fence}"


def prose(sentence: str, longest: int = LONGEST_SENTENCE) -> str:
    """Show a sentence literally, on one line; fit for a cell of a table."""
    one_line = " ".join(short(word, LONGEST_WORD) for word in sentence.split())
    escaped = MARKUP.sub(
        lambda match: match[0].replace("_", r"\_") if "_" in match[0] else _entity(match),
        short(one_line, longest),
    )
    escaped = LIST.sub(lambda match: match[1] + "".join(f"&#{ord(mark)};" for mark in match[2]), escaped)
    return MENTION.sub("@\u200b", escaped)  # a zero-width space, so that nobody is notified


def _entity(match: re.Match[str]) -> str:
    return f"&#{ord(match[0])};"
