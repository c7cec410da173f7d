"""`convoy register` without a run: only the model that dvc.lock records, made of the workspace's own data."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from convoy.core import files
from convoy.core.errors import RequestError
from convoy.registry import workspace
from convoy.registry.register import register
from registry_project import write_verified

DATA_HASH = "d" * 64  # of `write_verified`


def set_data(project, md5):
    files.write_text(project.folder / "data.dvc", f"outs:\n- md5: {md5}\n  path: data\n")


def set_dataset(project, data_hash=DATA_HASH, images=b"images"):
    files.write_json(project.folder / "build/dataset/dataset.json", {"hash": data_hash})
    (project.folder / "build/dataset/images").mkdir(exist_ok=True)
    (project.folder / "build/dataset/images/test.npy").write_bytes(images)


def refusal(project):
    """Register, which must be refused; return the message."""
    with pytest.raises(RequestError) as refused:
        register()
    assert project.registry.versions() == [], "nothing was registered"
    return str(refused.value)


def test_after_data_use_the_model_of_other_data_is_registered_by_its_run_only(project):
    run_id = project.train().data.tags["convoy.run_id"]
    set_data(project, "a" * 32)
    project.lock(data="a" * 32)
    set_data(project, "b" * 32)  # as `convoy data use` does
    message = refusal(project)
    for fact in ("data aaaaaaaaaa, data.dvc has bbbbbbbbbb", "dvc repro", f"convoy register {run_id}"):
        assert fact in message
    assert register(run_id).run_id == run_id


def test_a_dataset_that_was_packed_again_is_other_data_too(memory):
    run_id = memory.export()
    set_dataset(memory, "e" * 64)
    memory.lock()
    message = refusal(memory)
    assert "dataset dddddddddddd, build/dataset has eeeeeeeeeeee" in message
    assert f"convoy register {run_id}" in message


def test_a_model_that_was_replaced_with_its_verification_is_refused(memory):
    run_id = memory.export()
    write_verified(memory.deploy, run_id, accuracy=0.99)
    message = refusal(memory)
    assert "build/deploy is not what dvc.lock records" in message
    assert "dvc checkout --force build/deploy" in message


def test_the_changed_files_are_named_where_the_cache_lists_them(memory):
    memory.export()
    md5 = workspace.dvc.content_md5(memory.deploy)
    listing = [
        {"md5": workspace.dvc.content_md5(path), "relpath": path.relative_to(memory.deploy).as_posix()}
        for path in memory.deploy.rglob("*")
        if path.is_file()
    ]
    (memory.folder / ".dvc").mkdir(exist_ok=True)
    files.write_text(memory.folder / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}", json.dumps(listing))
    (memory.deploy / "images.parquet").write_bytes(b"without the test images")
    (memory.deploy / "new").touch()
    (memory.deploy / "model_card.md").unlink()
    assert "dvc.lock records: images.parquet, model_card.md, new." in refusal(memory)


def test_a_dataset_that_was_changed_is_refused(memory):
    memory.export()
    set_dataset(memory)
    memory.lock()
    set_dataset(memory, images=b"poison")
    message = refusal(memory)
    assert "build/dataset is not what dvc.lock records" in message
    assert "dvc checkout --force build/dataset" in message


def test_a_model_that_no_lock_records_is_registered_by_its_run_only(memory):
    run_id = memory.export()
    (memory.folder / "dvc.lock").unlink()
    assert f"convoy register {run_id}" in refusal(memory)


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (timedelta(days=3, hours=2), "3 days"),
        (timedelta(hours=1), "1 hour"),
        (timedelta(minutes=5), "5 minutes"),
    ],
)
def test_the_age_is_that_of_the_run(age, text):
    assert workspace.age(f"{datetime.now(UTC) - age:%Y%m%d-%H%M%S}-abcdef") == f"made {text} ago"
    assert workspace.age("run-7") == "made by run run-7"
