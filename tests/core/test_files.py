"""Result files are whole or absent."""

import json
from pathlib import Path

import pytest

from convoy.core import files
from convoy.core.errors import RequestError


def test_what_is_written_is_read_back(tmp_path):
    files.write_json(tmp_path / "new" / "facts.json", {"class": "Häuser", "share": 0.1})
    assert files.read_json(tmp_path / "new" / "facts.json") == {"class": "Häuser", "share": 0.1}


def test_a_number_that_is_none_is_refused_and_the_old_file_stays(tmp_path):
    files.write_json(tmp_path / "facts.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "facts.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "facts.json").read_text()) == {"loss": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]


def test_a_hash_is_that_of_the_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(tmp_path / "abc") == expected


def test_a_home_folder_that_is_unknown_is_an_invalid_request(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert files.expanded("~/a.zip") == Path("/somewhere/a.zip")
    monkeypatch.delenv("HOME")
    with pytest.raises(
        RequestError,
        match=r"~nobody-of-this-name/a.zip: the home folder .* HOME is not set. Type the whole path",
    ):
        files.expanded("~nobody-of-this-name/a.zip")
