"""data.dvc names the state of the source that was imported, although `dvc exp run` writes the present one into it."""

import json

import pytest

from convoy.core import yaml
from convoy.lineage import why
from convoy.repo import dvc, imported


@pytest.fixture
def ahead(small):
    """A pipeline whose source has got a file, after which an experiment ran that needs no prepare."""
    small.write("source/c.txt", "c\n")
    small.dvc("exp", "run", "-S", "fit.lr=0.25")
    return small


def recorded(small):
    content = yaml.read(small.folder / "data.dvc")
    return content["deps"][0]["md5"], content["outs"][0]["md5"]


def test_a_changed_source_is_imported_after_an_experiment_did_not(ahead, capsys):
    source, data = recorded(ahead)
    assert source != data
    assert json.loads(ahead.dvc("status", "--json")) == {}, (
        "DVC has closed the hole: imported.py is not needed"
    )
    explained = why.explain(ahead.folder, "data.dvc")
    assert [stage["verdict"] for stage in explained["stages"]] == ["runs"]
    imported.correct(ahead.folder)
    assert "source has changed" in capsys.readouterr().out
    assert recorded(ahead) == (data, data)
    assert ahead.git("status", "--porcelain", "data.dvc") == "", "as committed"
    ahead.repro()
    assert (ahead.folder / "data/c.txt").exists()
    assert len(set(recorded(ahead))) == 1
    assert not imported.is_ahead(ahead.folder)


def test_a_stage_of_the_experiment_corrects_it(small, capfd):
    small.write(
        "train.sh",
        "python -c 'from pathlib import Path; from convoy.repo import imported; imported.correct(Path())'\n"
        "mkdir -p build/model && cat build/dataset/all nets/* params.yaml > build/model/weights\n",
    )
    small.repro()
    small.commit("first")
    small.write("source/c.txt", "c\n")
    small.dvc("exp", "run", "-S", "fit.lr=0.25")
    source, data = recorded(small)
    assert source == data
    assert yaml.load(
        small.git(
            "show", f"{small.git('for-each-ref', '--format=%(refname)', 'refs/exps').split()[0]}:data.dvc"
        )
    ) == yaml.read(small.folder / "data.dvc")
    assert "data.dvc" in json.loads(small.dvc("status", "--json"))


def test_a_frozen_import_is_corrected_without_a_line(ahead, capsys):
    ahead.dvc("freeze", "data.dvc")
    imported.correct(ahead.folder)
    assert capsys.readouterr().out == ""
    ahead.dvc("unfreeze", "data.dvc")
    ahead.repro()
    assert (ahead.folder / "data/c.txt").exists()


def test_files_that_dvc_ignores_in_data_are_no_change(small, tmp_path, capsys):
    (tmp_path / "photos/.git").mkdir(parents=True)
    (tmp_path / "photos/.git/config").write_text("x")
    (tmp_path / "photos/a.txt").write_text("a\n")
    for name in ("data", "data.dvc"):
        small.remove(name)
    small.dvc("import-url", str(tmp_path / "photos"), "data")
    source, data = recorded(small)
    assert source != data, "DVC ignores .git in the repository only"
    assert not imported.is_ahead(small.folder)
    (tmp_path / "photos/b.txt").write_text("b\n")
    small.dvc("commit", "--force", "data.dvc")
    assert imported.is_ahead(small.folder)


def test_of_a_file_elsewhere_the_sizes_are_compared(small):
    text = "deps:\n- checksum: '\"two\"'\n  size: 20\n  hash: md5\n  path: https://example.invalid/photos.zip\nouts:\n- md5: 0123456789abcdef0123456789abcdef\n  size: {}\n  path: photos.zip\n"
    small.write("data.dvc", text.format(20))
    assert not imported.is_ahead(small.folder)
    small.write("data.dvc", text.format(10))
    assert imported.is_ahead(small.folder)
    dvc.rewind_import(small.folder, "data.dvc")
    assert yaml.read(small.folder / "data.dvc")["deps"] == [
        {"hash": "md5", "path": "https://example.invalid/photos.zip"}
    ]


def test_data_without_a_source_are_never_ahead(tmp_path):
    assert not imported.is_ahead(tmp_path)
    (tmp_path / "data.dvc").write_text("outs:\n- md5: aa\n  path: data\n")
    assert not imported.is_ahead(tmp_path)
