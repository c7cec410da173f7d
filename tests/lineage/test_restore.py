"""`convoy trace --restore`: the state of a run comes back whole or not at all. `--verify` compares a second training."""

import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from convoy.core import files, yaml
from convoy.core.errors import RequestError
from convoy.lineage import restore, trace
from convoy.lineage.compare import only_run
from convoy.lineage.runs import Record, Records
from convoy.repo import dvc
from convoy.repo.dvc import RestoreError
from small_pipeline import FAILED, FIRST, SECOND, Small

COMMIT = "mlflow.source.git.commit"


def restored(text: str, target: Path, *, trust: bool = True) -> Small:
    match, sources = trace.look(text, Path.cwd())
    restore.restore(only_run(match), sources, target, trust_run_code=trust)
    return Small(target)


@pytest.fixture
def forge(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Replace an artifact of every run, as everybody may who may write to the tracking store."""
    listed, download = Records.artifacts, Records.download

    def replace(name: str, text: str) -> None:
        name = f"pipeline/{name}"

        def forged(records: Records, record: Record, wanted: str, folder: Path) -> Path | None:
            if wanted != name:
                return download(records, record, wanted, folder)
            files.write_text(folder / name, text)
            return folder / name

        monkeypatch.setattr(Records, "artifacts", lambda *words: [*listed(*words), name])
        monkeypatch.setattr(Records, "download", forged)

    return replace


def remove_from_cache(traced: Small, name: str) -> str:
    """Remove an output's content from the cache; its md5."""
    lock = yaml.load((traced.folder / "dvc.lock").read_text())
    [md5] = [out["md5"] for stage in lock["stages"].values() for out in stage["outs"] if out["path"] == name]
    dvc.Cache.of(traced.folder).path(md5).unlink()
    return str(md5)


def is_up_to_date(clone: Small) -> bool:
    output = clone.repro()
    assert "Running" not in output
    return "Data and pipelines are up to date" in output


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "traced")


def test_in_a_restored_run_dvc_repro_has_nothing_to_do(traced, tmp_path):
    clone = restored(FIRST, tmp_path / "clone")
    clone.write("source/c.txt", "what changes upstream later does not reach it\n")
    assert is_up_to_date(clone)
    clone.remove("source/c.txt")
    assert (clone.folder / "build/score").read_text() == (traced.folder / "build/score").read_text()
    assert clone.git("rev-parse", "HEAD") == traced.git("rev-parse", "HEAD")
    assert clone.git("branch", "--show-current") == f"restored/{FIRST}"
    assert "frozen: true" in (clone.folder / "data.dvc").read_text()
    assert clone.git("status", "--porcelain") == "M data.dvc", "nothing else differs from the commit"
    assert leftovers(tmp_path) == ["clone"]


def test_uncommitted_changes_come_back(traced, tmp_path):
    clone = restored(SECOND, tmp_path / "clone")
    assert "lr: 0.25" in (clone.folder / "params.yaml").read_text()
    assert "cat -u build" in (clone.folder / "train.sh").read_text()
    assert (clone.folder / "note.txt").read_text() == "new\n"
    assert is_up_to_date(clone)


def test_uncommitted_code_is_shown_and_needs_trust(traced, tmp_path):
    with pytest.raises(RequestError) as refused:
        restored(SECOND, tmp_path / "clone", trust=False)
    for fact in ("note.txt, train.sh", "+mkdir -p build/model && cat -u build", "--trust-run-code"):
        assert fact in str(refused.value)
    assert "lr: 0.25" not in str(refused.value), "values are no code"
    assert leftovers(tmp_path) == []


def test_a_dvc_yaml_that_is_not_the_commit_s_is_shown_and_needs_trust(traced, forge, tmp_path):
    forged = (
        (traced.folder / "dvc.yaml")
        .read_text()
        .replace("sh train.sh", "sh train.sh; touch /tmp/\x1b[2Jowned")
    )
    forge("dvc.yaml", forged)
    with pytest.raises(
        RequestError, match=r"dvc.yaml(.|\n)*\+ .*touch /tmp/\?\[2Jowned(.|\n)*--trust-run-code"
    ):
        restored(FIRST, tmp_path / "clone", trust=False)
    assert leftovers(tmp_path) == []


def test_params_and_networks_of_a_run_need_no_trust(traced, forge, tmp_path):
    forge("workspace.diff", link_diff("networks/own.yaml", "layers: 3", mode="100644"))
    clone = restored(FIRST, tmp_path / "clone", trust=False)
    assert (clone.folder / "networks/own.yaml").read_text() == "layers: 3"
    assert clone.git("status", "--porcelain").splitlines() == ["M data.dvc", "?? networks/"]


def link_diff(name: str, target: str, mode: str = "120000") -> str:
    """Write a diff that adds a link."""
    head = f"diff --git a/{name} b/{name}\nnew file mode {mode}\n--- /dev/null\n+++ b/{name}\n"
    return f"{head}@@ -0,0 +1 @@\n+{target}\n\\ No newline at end of file\n"


@pytest.mark.parametrize("trust", [True, False])
def test_a_link_from_a_run_s_changes_leads_nowhere_outside_the_clone(traced, forge, tmp_path, trust):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    traced.remove("params.yaml")
    (traced.folder / "params.yaml").symlink_to(victim)
    diff = traced.git("diff", "--binary", "HEAD", "--", "params.yaml")
    traced.git("checkout", "-q", "params.yaml")
    forge("workspace.diff", f"{diff}\n")
    clone = restored(FIRST, tmp_path / "clone", trust=trust)
    assert victim.read_text() == "mine"
    assert not (clone.folder / "params.yaml").is_symlink()


@pytest.mark.parametrize("name", ["build", "data", "networks/own.yaml"])
def test_a_folder_of_outputs_that_leads_out_of_the_clone_is_refused(traced, forge, tmp_path, name):
    (tmp_path / "home").mkdir()
    forge("workspace.diff", link_diff(name, str(tmp_path / "home")))
    with pytest.raises(RequestError, match=rf"{name}(.|\n)*--trust-run-code"):
        restored(FIRST, tmp_path / "clone", trust=False)
    with pytest.raises(RestoreError, match=rf"lead out of the restored folder: .*{name}"):
        restored(FIRST, tmp_path / "clone")
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("data.dvc", "path: data", "path: ../victim"),
        ("data.dvc", "outs:", "wdir: ..\nouts:"),
        ("dvc.lock", "path: build/score", "path: ../../victim"),
    ],
)
def test_an_output_outside_the_clone_is_refused_before_anything_is_written(
    traced, forge, tmp_path, name, old, new
):
    text = (traced.folder / name).read_text()
    assert old in text
    forge(name, text.replace(old, new))
    with pytest.raises(RestoreError, match=rf"lead out of the restored folder: {name}: "):
        restored(FIRST, tmp_path / "clone", trust=False)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", [".dvc/config.local", "build/evil.dvc", "x/dvc.yaml", "y.pyc"])
def test_new_files_that_git_ignores_need_trust_too(traced, forge, tmp_path, name):
    (traced.folder / ".git/info/exclude").write_text("*.pyc\n")
    forge("workspace.diff", link_diff(name, "outs: [{path: ../../victim}]", "100644"))
    with pytest.raises(RequestError, match=rf"{name}(.|\n)*--trust-run-code"):
        restored(FIRST, tmp_path / "clone", trust=False)
    assert leftovers(tmp_path) == []


def test_a_second_training_gets_no_credentials(clone, monkeypatch):
    secrets = {
        "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "GH_TOKEN",
        "RETRAIN_TOKEN", "AZURE_STORAGE_CONNECTION_STRING", "GOOGLE_APPLICATION_CREDENTIALS", "SSH_AUTH_SOCK",
        "my_api_key", "DB_PASS", "CI_JOB_JWT",
    }  # fmt: skip
    for name in secrets:
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:word@proxy:8080")
    kept = {"CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1", "HF_HOME": "/hf", "KEYBOARD": "de"}
    for name, text in kept.items():
        monkeypatch.setenv(name, text)
    given: dict[str, str] = {}
    monkeypatch.setattr(
        restore.subprocess, "run", lambda *_, env, **__: given.update(env) or Mock(returncode=0)
    )
    restore._repro(clone)
    assert not secrets & given.keys()
    assert "HTTPS_PROXY" not in given
    assert kept.items() <= given.items()
    assert "PATH" in given


def test_a_restored_run_keeps_its_commit_after_the_repository_lost_it(traced, tmp_path):
    commit = traced.git("rev-parse", "HEAD")
    traced.git("commit", "-q", "--amend", "-m", "amended")
    clone = restored(FIRST, tmp_path / "clone")
    for repository in (traced, clone):
        repository.git("reflog", "expire", "--expire=now", "--all")
        repository.git("gc", "-q", "--prune=now")
    with pytest.raises(RestoreError, match=rf"commit {commit} of run {FIRST} is not in this repository"):
        restored(FIRST, tmp_path / "again")
    assert clone.git("rev-parse", "HEAD") == commit
    assert clone.git("fsck", "--no-dangling") == ""


def test_a_shallow_repository_gives_a_commit_that_its_branches_do_not_contain(traced, tmp_path, monkeypatch):
    shallow = Small(tmp_path / "shallow")
    traced.git("clone", "-q", "--depth=1", traced.folder.as_uri(), str(shallow.folder))
    shutil.copytree(traced.folder / ".dvc/cache", shallow.folder / ".dvc/cache")
    shutil.copy(traced.folder / "mlflow.db", shallow.folder)
    shallow.init()
    shallow.git("commit", "-q", "--amend", "-m", "amended")
    monkeypatch.chdir(shallow.folder)
    clone = restored(FIRST, tmp_path / "clone")
    assert clone.git("rev-parse", "HEAD") == traced.git("rev-parse", "HEAD")
    assert clone.git("branch", "--show-current") == f"restored/{FIRST}"
    assert is_up_to_date(clone)


def test_removing_the_clone_and_emptying_its_cache_leave_the_repository_whole(traced, tmp_path):
    clone = restored(SECOND, tmp_path / "clone")
    shutil.rmtree(clone.folder / "build")
    clone.write("dvc.lock", "schema: '2.0'\nstages: {}\n")
    clone.dvc("gc", "--workspace", "--force")
    assert len(list((clone.folder / ".dvc/cache").rglob("*.dir"))) == 1, "of its cache, only data are left"
    shutil.rmtree(clone.folder)
    shutil.rmtree(traced.folder / "build")
    traced.dvc("checkout")
    assert is_up_to_date(traced)


def test_a_cache_that_a_team_shares_is_not_the_clone_s(traced, tmp_path):
    shutil.move(traced.folder / ".dvc/cache", tmp_path / "shared")
    traced.dvc("cache", "dir", str(tmp_path / "shared"))
    traced.dvc("config", "cache.type", "symlink")
    traced.set_tags(FIRST, {COMMIT: traced.commit("shared cache")})
    clone = restored(FIRST, tmp_path / "clone")
    assert dvc.Cache.of(clone.folder).folder == clone.folder / ".dvc/cache"
    assert not (clone.folder / "build/score").is_symlink()
    assert is_up_to_date(clone)


def test_what_the_cache_lost_comes_from_a_remote_whose_path_is_relative(traced, tmp_path):
    traced.dvc("remote", "add", "--default", "--local", "team", "../remote")
    traced.dvc("push")
    remove_from_cache(traced, "build/score")
    (tmp_path / "elsewhere").mkdir()
    assert is_up_to_date(restored(FIRST, tmp_path / "elsewhere/clone"))


def test_data_that_are_nowhere_are_named_with_the_remedy(traced, tmp_path):
    md5 = remove_from_cache(traced, "build/model")
    with pytest.raises(RestoreError, match=rf"build/model \({md5[:10]}\) not in DVC's cache.*no DVC remote"):
        restored(FIRST, tmp_path / "clone")
    traced.dvc("remote", "add", "--default", "--local", "team", "../empty")
    with pytest.raises(RestoreError, match=r"nor in a DVC remote(.|\n)*`dvc push`"):
        restored(FIRST, tmp_path / "clone")
    assert leftovers(tmp_path) == []


def test_a_run_that_cannot_be_restored_is_refused_with_the_reason(traced, tmp_path):
    def refused(run_id: str, reason: str) -> None:
        with pytest.raises(RestoreError, match=reason):
            restored(run_id, tmp_path / "clone")
        assert leftovers(tmp_path) == []

    refused(FAILED, r"deadbeef of run .*(.|\n)*git fetch --all --tags(.|\n)*pipeline/")
    traced.set_tags(FAILED, {COMMIT: traced.git("rev-parse", "HEAD")})
    refused(FAILED, r"is FAILED: it has no final dvc.lock(.|\n)*git checkout")
    traced.store.set_terminated(traced.run(FAILED).info.run_id, "FINISHED")
    refused(FAILED, r"has no dvc.lock.*`convoy sync`")
    traced.store.delete_tag(traced.run(FIRST).info.run_id, COMMIT)
    refused(FIRST, "has no commit")
    traced.write("train.sh", "true\n")
    traced.set_tags(SECOND, {COMMIT: traced.commit("another")})
    refused(SECOND, "do not fit its commit: `git apply` failed")


def test_uncommitted_changes_that_were_not_stored_are_detected(traced, tmp_path, monkeypatch):
    monkeypatch.setattr(restore, "DIFF", "pipeline/lost.diff")
    with pytest.raises(RestoreError, match=r"`dvc status` reports train(.|\n)*not stored"):
        restored(SECOND, tmp_path / "clone")
    assert leftovers(tmp_path) == []


def test_a_folder_in_use_is_not_touched(traced, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, reason in {
        "used": "not empty",
        "file": "a file",
        "traced/in": "inside this repository",
    }.items():
        with pytest.raises(RequestError, match=reason):
            restored(FIRST, tmp_path / name)
    assert (tmp_path / "used/mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert (restored(FIRST, tmp_path / "empty").folder / "build/score").exists()


def test_an_interrupted_restore_leaves_nothing(traced, tmp_path, monkeypatch):
    monkeypatch.setattr(restore, "fill_cache", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        restored(FIRST, tmp_path / "clone")
    assert leftovers(tmp_path) == []


def test_content_is_copied_where_it_cannot_be_linked(traced, tmp_path, monkeypatch):
    monkeypatch.setattr(dvc.os, "link", Mock(side_effect=OSError(18, "Invalid cross-device link")))
    assert is_up_to_date(restored(FIRST, tmp_path / "clone"))


TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.steps": torch.tensor(3)}
ENVIRONMENT = {
    "hardware": {"processor": "one", "system": "Linux x86_64", "cores": 2},
    "versions": {"torch": "2.14.1", "python": "3.11.7"},
}


def save(path: Path, **changes: torch.Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(TENSORS | {key.replace("_", "."): value for key, value in changes.items()}, path)
    return path


NEXT = TENSORS["a.weight"].clone()
NEXT[1, 2] = torch.nextafter(NEXT[1, 2], torch.tensor(9.0))


@pytest.mark.parametrize(
    ("name", "tensor", "difference"),
    [
        ("a.weight", NEXT, pytest.approx(4.8e-7, rel=0.01)),
        ("a.weight", TENSORS["a.weight"].double(), 0.0),
        ("a.weight", TENSORS["a.weight"].reshape(3, 2), float("inf")),
        ("b.weight", torch.ones(1), float("inf")),
    ],
    ids=["bit", "type", "shape", "name"],
)
def test_tensors_differ_by_content_and_not_by_order(tmp_path, name, tensor, difference):
    first, second = save(tmp_path / "1.pt"), save(tmp_path / "2.pt", **{name: tensor})
    assert restore.compare_weights(first, second)[1] == {name: difference}
    torch.save(dict(reversed(TENSORS.items())), second)
    assert restore.compare_weights(first, second) == (2, {})


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What `verify` reads of a restored clone."""
    folder = tmp_path / "clone"
    save(folder / restore.WEIGHTS)
    metrics = {"val": {"loss": 0.25}, "train": {"seconds": 9.0}}
    files.write_json(folder / restore.METRICS / "train.json", metrics)
    files.write_json(folder / restore.VERIFICATION, ENVIRONMENT)
    files.write_text(folder / "dvc.lock", "as restored\n")
    files.write_text(folder / "params.yaml", "train: {precision: auto}\n")
    return folder


def record(metrics: dict[str, float]) -> Record:
    return Record("20261123-100000-aaaaaa", "", "name", "FINISHED", 0, {}, {}, metrics)


def test_equal_results_are_equal_whatever_time_they_took(clone, monkeypatch):
    calls: list[tuple[str, ...]] = []

    def repro(folder: Path, *options: str) -> None:
        calls.append(options)
        files.write_text(folder / "dvc.lock", "trained again\n")

    monkeypatch.setattr(restore, "_repro", repro)
    monkeypatch.setattr(dvc, "run", lambda _, *words: calls.append(words))
    report = restore.verify(clone, record({"val/loss": 0.25, "train/seconds": 3.0, "system/cpu": 1.0}))
    assert report == restore.Report({}, 1, {}, 2, ())
    assert report.equal
    assert "bit-identical: 2 tensors" in "".join(restore.lines(report))
    assert calls == [("--force", "--single-item", "train"), (), ("checkout", "--force")]
    assert (clone / "dvc.lock").read_text() == "as restored\n", "the run's outputs are back"


def test_differences_are_named_with_their_possible_causes(clone, monkeypatch):
    def repro(folder: Path, *_: str) -> None:
        save(folder / restore.WEIGHTS, a_weight=TENSORS["a.weight"] + 0.5)
        hardware = ENVIRONMENT["hardware"] | {"processor": "other"}
        versions = ENVIRONMENT["versions"] | {"torch": "2.11"}
        files.write_json(folder / restore.VERIFICATION, {"hardware": hardware, "versions": versions})

    monkeypatch.setattr(restore, "_repro", repro)
    monkeypatch.setattr(dvc, "run", lambda *_: "")
    report = restore.verify(clone, record({"val/loss": 0.5}))
    assert not report.equal
    assert (report.metrics, report.tensors) == ({"val/loss": (0.5, 0.25)}, {"a.weight": 0.5})
    text = "\n".join(restore.lines(report))
    facts = "0.5: a.weight", "val/loss  0.5 → 0.25", "processor: one → other", "torch 2.14.1 → 2.11", "bf16"
    assert [fact for fact in facts if fact not in text] == []


def test_a_training_that_fails_leaves_the_clone(clone, monkeypatch):
    monkeypatch.setattr(restore.sys, "executable", shutil.which("false"))
    with pytest.raises(RestoreError, match=r"`dvc repro --force --single-item train` failed"):
        restore.verify(clone, record({}))
    assert (clone / restore.WEIGHTS).exists()
