"""The dataset that dvc.lock records is found in DVC's cache, unless data.dvc names another source since."""

import shutil

import pytest

from convoy.repo import dvc, recorded


@pytest.fixture
def inside(small, monkeypatch):
    monkeypatch.chdir(small.folder)
    return small


def contents():
    return {name: path.read_text() for name, path in recorded.dataset().items()}


def test_the_recorded_dataset_is_found_although_its_folder_is_gone(inside):
    shutil.rmtree("build")
    assert contents() == {"all": "a\nb\n", "lines": "1\n"}


def test_a_later_version_of_the_same_source_is_compared_with_it(inside):
    inside.write("source/c.txt", "c\n")
    inside.dvc("update", "data.dvc")
    assert contents() == {"all": "a\nb\n", "lines": "1\n"}


def test_another_source_is_no_later_version(inside):
    inside.write("other/a.txt", "other\n")
    inside.remove("data")
    inside.remove("data.dvc")
    inside.dvc("import-url", "other", "data")
    assert contents() == {}


def test_without_a_record_or_its_content_there_is_nothing(inside):
    shutil.rmtree(dvc.Cache.of(inside.folder).folder)
    assert contents() == {}
    inside.remove("dvc.lock")
    assert contents() == {}
