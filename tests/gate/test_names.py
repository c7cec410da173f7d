import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.gate.names import short, visible


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"),
        ("日本語 שלום", "日本語 שלום"),
        ("new\nline", "new\\nline"),
        ("\u202egpj.exe", "<U+202E>gpj.exe"),
        ("a\u0000b\u2028c", "a<U+0000>b<U+2028>c"),
        ("\ud800", "<U+D800>"),
        ("👩\u200d🔬", "👩\u200d🔬"),
    ],
)
def test_what_cannot_be_seen_is_spelled_out(name, without_credentials):
    assert visible(name) == without_credentials


@given(st.text())
def test_nothing_that_is_shown_breaks_a_line_or_turns_its_direction(name):
    without_credentials = visible(name)
    assert len(without_credentials.splitlines()) <= 1
    assert not {unicodedata.category(sign) for sign in without_credentials if sign not in "\u200c\u200d"} & {
        "Cc",
        "Cf",
        "Cs",
    }
    without_credentials.encode()


def test_a_long_name_keeps_both_its_ends():
    name = "a" * 100 + "0123456789.png"
    assert short(name, 20) == "aaaaaaaaa…456789.png"
    assert len(short(name, 20)) == 20
    assert short("short", 5) == "short"
