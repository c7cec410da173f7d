"""data.dvc is read alike wherever it is needed."""

import pytest

from convoy.core import pipeline
from convoy.core.errors import RequestError


@pytest.mark.parametrize(
    ("content", "address", "md5"),
    [
        (None, "", ""),
        ("outs:\n- path: data\n", "", ""),
        ("outs:\n- md5: 12.dir\n  path: data\n", "", "12.dir"),
        ("deps:\n- path: photos\nouts:\n- md5: 12.dir\n  path: data\n", "photos", "12.dir"),
        ("frozen: true\ndeps:\n- path: s3://team/photos\nouts:\n- path: data\n", "s3://team/photos", ""),
    ],
)
def test_source_and_hash_of_the_delivery_are_read(tmp_path, content, address, md5):
    if content:
        (tmp_path / "data.dvc").write_text(content)
    found = pipeline.data_import(tmp_path)
    assert (found.address, found.md5) == (address, md5)
    assert found.frozen == bool(content and "frozen" in content)


@pytest.mark.parametrize("content", ["deps: 3\n", "outs: [photos]\n", "outs: {path: data}\n"])
def test_a_file_that_dvc_did_not_write_is_named_with_the_remedy(tmp_path, content):
    (tmp_path / "data.dvc").write_text(content)
    with pytest.raises(RequestError, match=r"data\.dvc(.|\n)*git checkout data\.dvc(.|\n)*convoy data use"):
        pipeline.data_import(tmp_path)


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "data.dvc").write_bytes("deps: [{path: Köln}]\n".encode("latin-1"))
    with pytest.raises(RequestError, match=r"data\.dvc:1 is not UTF-8(.|\n)*iconv"):
        pipeline.data_import(tmp_path)
