"""Class names and paths of the delivery, made fit to be shown: they are whatever somebody typed."""

import unicodedata

JOINERS = "\u200c\u200d"
"""Format characters without which words of some scripts, and joined emoji, come apart."""


def visible(text: str) -> str:
    """Spell out what cannot be seen: line breaks, controls, and marks that turn the direction of reading.

    A name such as `cat<U+202E>gpj.exe` would show as another one, and turn the line that it stands in.
    """
    return "".join(_spelled(sign) if _hidden(sign) else sign for sign in text)


def short(text: str, longest: int) -> str:
    """Spell a name out and cut its middle where it is longer than `longest` characters; ends tell names apart."""
    without_credentials = visible(text)
    if len(without_credentials) <= longest:
        return without_credentials
    end = longest // 2
    return f"{without_credentials[: longest - end - 1]}…{without_credentials[-end:]}"


def _hidden(sign: str) -> bool:
    return sign not in JOINERS and unicodedata.category(sign) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def _spelled(sign: str) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(sign, f"<U+{ord(sign):04X}>")
