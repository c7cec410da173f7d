"""Find the code page of names that are not marked as UTF-8, as older programs pack them into zips."""

import unicodedata
from collections.abc import Iterable
from typing import Final

ZIP_DEFAULT: Final = "cp437"
"""Code page of names in a zip that are not marked as UTF-8 (APPNOTE.TXT 6.3.10, appendix D), which few programs heed."""

CODE_PAGES = ("cp437", "cp850", "cp1252", "cp932", "gbk", "cp866", "cp1251")
"""Candidates beside UTF-8, in order of preference: DOS, Western Europe, Windows, Japanese, Chinese, Russian."""

DISPLAY = {"cp932": "Shift-JIS", "gbk": "GBK"}

LEAST_EVIDENCE = 0.5
"""Least mean plausibility of the characters that are not ASCII, -1..1."""

LONGEST_SAMPLE = 20_000
"""Bytes of names that are judged; all must be decodable."""

LEVEL_1 = {"cp932": ("euc_jp", 0xB0, 0xCF), "gbk": ("gb2312", 0xB0, 0xD7)}
"""First bytes of the most common characters: level 1 of JIS X 0208 and of GB 2312, about 3,000 and 3,755."""

FREQUENT = frozenset("äöüßéèêàâçñáíóúîôûëïåøæаоеинтсрвлкмдпуяыьгзбчйхжшюц")
"""Letters that are not ASCII and frequent in Western European languages and in Russian; others decide what is even otherwise."""


def find(names: Iterable[bytes]) -> str | None:
    """Choose the code page in which names make most sense; None if none does, or all are ASCII.

    Args:
        names: as they are packed, those that are not marked as UTF-8.
    """
    odd = {part for name in names for part in name.split(b"/") if not part.isascii()}
    if not odd:
        return None
    sample = b"\n".join(sorted(odd))
    if _decodes(sample, "utf-8"):
        return "utf-8"
    evidence = {
        page: _plausibility(sample[:LONGEST_SAMPLE].decode(page, errors="ignore"), page)
        for page in CODE_PAGES
        if _decodes(sample, page)
    }
    best = max(evidence, key=lambda page: evidence[page])  # the first of equals; cp437 decodes everything
    return best if evidence[best] >= LEAST_EVIDENCE else None


def display(page: str) -> str:
    """Return the name of a code page for people."""
    return DISPLAY.get(page, page)


def _decodes(content: bytes, page: str) -> bool:
    try:
        content.decode(page)
    except UnicodeDecodeError:
        return False
    return True


def _plausibility(text: str, page: str) -> float:
    """Average how plausible each character that is not ASCII is beside its neighbours, -1..1, weighted by its bytes."""
    total, size = 0.0, 0
    for before, character, after in zip(f"\n{text}", text, f"{text[1:]}\n", strict=False):
        if not character.isascii():
            width = len(character.encode(page))
            total += width * _fits(before, character, after, page)
            size += width
    return total / size


def _fits(before: str, character: str, after: str, page: str) -> float:
    if not character.isalpha():
        return -1.0 if unicodedata.category(character) in ("Sm", "So", "Cc", "Sc", "Lm", "No") else -0.5
    script = unicodedata.name(character, "?").split()[0]
    if script in ("LATIN", "CYRILLIC"):
        return _fits_alphabet(before, character, after, script)
    if any(other.isalpha() and other.isascii() for other in (before, after)):
        return -0.5
    if script == "CJK" and page in LEVEL_1:
        return _commonness(character, *LEVEL_1[page])
    return 1.0 if script in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA") else -0.5


def _fits_alphabet(before: str, character: str, after: str, script: str) -> float:
    neighbours = [other for other in (before, after) if other.isalpha()]
    is_mixed = any(not unicodedata.name(other, "?").startswith(script) for other in neighbours)
    is_inner_capital = before.isalpha() and character.isupper() and (before.islower() or after.islower())
    if (
        is_mixed
        or is_inner_capital
        or (character.islower() and after.isupper())
        or {before, after} & {*"^[]{}|@`"}
    ):
        return -0.5
    has_latin_neighbour = any(other.isascii() for other in neighbours)
    return (1.0 if script == "CYRILLIC" or has_latin_neighbour else 0.4) - 0.1 * (
        character.lower() not in FREQUENT
    )


def _commonness(character: str, standard: str, first: int, last: int) -> float:
    try:
        return 1.0 if first <= character.encode(standard)[0] <= last else 0.5
    except UnicodeEncodeError:
        return -0.2
