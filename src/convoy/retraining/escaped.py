"""Texts of others in Markdown: class names, paths, errors. None of them may become markup.

GitHub and GitLab turn more into markup than CommonMark does: `|` ends a cell of a table even
inside of code, `$` begins a formula, `@name` calls a person.
"""

import re
from urllib.parse import quote, urlsplit

from convoy.gate.names import short, visible

LONGEST_NAME = 60
"""Characters of a name in a table."""

LONGEST_WORD = 120
"""Characters of a word in a sentence: a longer one would widen its table beyond the page."""

MARKUP = re.compile(r"[\\`*_\[\]<>|~$&#]")
MENTION = re.compile(r"(?<![\w`])@(?=\w)")
LIST = re.compile(r"^(\s*)([-+=]|\d+(?=[.)](?:\s|$)))")
PIECE = re.compile(r"[!-/:-@\[-`{-~]")


def code(text: object, longest: int = LONGEST_NAME) -> str:
    """Show a name as code, in which nothing is markup; also fit for a cell of a table."""
    shown = short(str(text), longest)
    if not shown:
        return ""
    if "|" in shown or not shown.strip():
        # No way to write `|` inside backticks reads the same in every renderer's tables.
        return f"<code>{PIECE.sub(_entity, shown).replace(' ', '&#32;')}</code>"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    # Markdown takes one space off each end, where both have one.
    space = " " if shown[0] in "` " or shown[-1] in "` " else ""
    return f"{fence}{space}{shown}{space}{fence}"


def prose(text: object, longest: int = 1000) -> str:
    """Show a sentence as it was written, on one line; fit for a cell of a table."""
    words = (short(word, LONGEST_WORD) for word in str(text).split())
    one_line = " ".join(words)
    escaped = MARKUP.sub(_entity, short(one_line, longest))
    escaped = LIST.sub(lambda match: match[1] + "".join(map(_signed, match[2])), escaped)
    # An invisible space after it, and nobody is called.
    return MENTION.sub("@\u200b", escaped)


def block(text: str, longest: int) -> str:
    """Show lines as they are, the last ones where there are too many."""
    lines = [visible(line) for line in text.strip("\n").splitlines()]
    shown = "\n".join(lines)
    if len(shown) > longest:
        shown = f"…{shown[-longest:]}"
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"


def link(address: str, text: str = "") -> str:
    """Link an address of the web; show anything else as code."""
    if urlsplit(address).scheme not in {"http", "https"}:
        return code(address, 300)
    target = quote(address, safe=":/?#@!$&'*+,;=%-._~")
    return f"[{prose(text or address)}]({target})"


def target(relative: str) -> str:
    """Write a path as the target of a link."""
    return quote(relative, safe="/-._~")


def _entity(match: re.Match[str]) -> str:
    return _signed(match[0])


def _signed(sign: str) -> str:
    return f"&#{ord(sign)};"
