"""A pipeline in the subfolder of a larger repository: runs record it alone, and `trace --restore` and `why` find it."""

import shutil
from pathlib import Path

import pytest

from convoy.core.errors import RequestError
from convoy.core.files import sha256
from convoy.lineage import restore, trace, why
from convoy.repo import identity
from small_pipeline import FILES, FIRST, Small, create


@pytest.fixture(scope="module")
def in_ml(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The small pipeline in `ml`, run and committed, beside a file of others. Read only."""
    folder = tmp_path_factory.mktemp("larger") / "repository"
    folder.mkdir()
    (folder / "others.txt").write_text("others\n")
    small = create(folder, FILES, "ml")
    assert "Running stage 'evaluate'" in small.repro()
    small.commit("reproduced")
    return small


@pytest.fixture
def small(in_ml: Small, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    copy = Small(shutil.copytree(in_ml.folder.parent, tmp_path / "repository", symlinks=True) / "ml")
    shutil.copy(empty_store, copy.folder / "mlflow.db")
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(copy.folder)
    return copy


def test_changes_of_others_and_the_lock_do_not_make_a_run_dirty(small):
    small.write("../others.txt", "changed\n")
    small.write("dvc.lock", "written by DVC\n")
    assert identity.git_state()["convoy.git_dirty"] == "false"
    small.write("train.sh", "true\n")
    assert identity.git_state()["convoy.git_dirty"] == "true"


def test_why_names_the_edited_file(small):
    small.edit("train.sh", "cat build", "cat -u build")
    text = "\n".join(why.lines(why.explain(small.folder, "train")))
    assert "train.sh  +1 -1 lines" in text


def test_a_run_with_uncommitted_changes_is_restored_in_the_same_subfolder(small, tmp_path):
    small.edit("train.sh", "cat build", "cat -u build")
    small.write("note.py", "new\n")
    assert "Running stage 'train'" in small.repro()
    client = small.store
    experiment = client.create_experiment("convoy", artifact_location=(tmp_path / "artifacts").as_uri())
    tags = {"convoy.run_id": FIRST, "convoy.lock": sha256(small.folder / "dvc.lock"), **identity.git_state()}
    run = client.create_run(experiment, 1, tags).info.run_id
    client.set_terminated(run, "FINISHED")
    assert not identity.write_diff(tmp_path / "workspace.diff")
    for path in (tmp_path / "workspace.diff", *(small.folder / name for name in restore.FILES)):
        client.log_artifact(run, str(path), "pipeline")
    small.git("checkout", "-q", ".")
    small.remove("note.py")
    match, sources = trace.look(FIRST, Path.cwd())
    assert "--restore ../../restored" not in "".join(
        link.missing for link in trace.chain(match.records[0], sources)
    )
    with pytest.raises(RequestError, match=r"lies inside this repository.*\.\./\.\./restored"):
        restore.restore(match.records[0], sources, Path("../restored"))
    pipeline = restore.restore(match.records[0], sources, Path("../../restored"), trust_run_code=True)
    assert pipeline.resolve() == tmp_path / "restored/ml"
    clone = Small(pipeline.resolve())
    assert (clone.folder / "note.py").read_text() == "new\n"
    assert "cat -u build" in (clone.folder / "train.sh").read_text()
    assert (clone.folder.parent / "others.txt").read_text() == "others\n"
    assert "Data and pipelines are up to date" in clone.repro()
