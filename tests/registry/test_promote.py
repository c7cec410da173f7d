"""The gate on a registry: each verdict with real ONNX files on sqlite, a promotion on the server too."""

import json
import shutil
from dataclasses import replace

import pytest

import gate_results
from convoy.core.errors import RequestError, VerificationError
from convoy.export import signing
from convoy.registry import promote
from convoy.registry.alias import move
from convoy.registry.client import CANDIDATE, CHAMPION, RegistryError, Version
from convoy.registry.promote import Judged
from convoy.retraining import outcome
from gate_project import LIMITS, breaches, criterion, deliver_three_classes
from registry_project import set_params

FEW = range(12)
"""Images that a good model gets wrong."""
MANY = range(0, 84, 2)


def verdict_on(candidate, champion, **values):
    """Judge a version, whatever its files."""
    return Judged(gate_results.gate_result(**values), candidate, champion, ())


@pytest.fixture(scope="session")
def gate_project(tmp_path_factory):
    """120 test images of three classes. Only models are added to it."""
    return deliver_three_classes(tmp_path_factory.mktemp("promote"))


def _in(project, gate_project):
    """Put a gate_project's data where the pipeline has them."""
    (project.folder / "build").mkdir(exist_ok=True)
    (project.folder / "build/dataset").symlink_to(gate_project.home / "dataset")
    (project.folder / "data").symlink_to(gate_project.home / "data")
    set_params(project.folder, "gate", LIMITS)
    return project


DRAW = promote.page.draw


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Draw no pictures, which take seconds and have tests of their own."""
    monkeypatch.setattr(promote.page, "draw", lambda *_: ())


@pytest.fixture
def here(memory, gate_project):
    return _in(memory, gate_project)


WORSE = ({"wrong": FEW}, {"wrong": MANY})
VERDICTS = {
    "better": ({"wrong": MANY}, {"wrong": FEW}, {}, "promote", set()),
    "first": (None, {"wrong": FEW}, {}, "promote", set()),
    "worse": (*WORSE, {"max_class_drop": None, "max_ece": None}, "keep", set()),
    "breaches": (*WORSE, {"max_class_drop": 0.1}, "refuse", {"gate.class_drop", "gate.ece"}),
}
"""Case to the champion's and the candidate's mistakes, limits, verdict, and tags of breached limits."""


def test_a_candidate_without_the_required_signature_is_not_judged(here, gate_project, tmp_path, monkeypatch):
    here.version(gate_project.model(wrong=FEW), CANDIDATE)
    (tmp_path / "key.pub").write_text("key")
    set_params(here.folder, "gate", {"public_key": str(tmp_path / "key.pub")})
    monkeypatch.setattr(signing, "_package", lambda _: None)
    with pytest.raises(
        VerificationError, match=r"convoy/1 is not signed, and a public key is set \(.*key\.pub\)"
    ):
        promote.judge(tmp_path / "gate")
    assert not here.registry.aliases().get(CHAMPION)
    checked = []
    monkeypatch.setattr(signing, "check", lambda *words: checked.append(words[1:]))
    assert promote.judge(tmp_path / "gate").judgement.verdict == "promote"
    assert checked == [(tmp_path / "key.pub", "convoy/1")]


@pytest.mark.parametrize(
    ("backend", "case"), [*(("project", case) for case in VERDICTS), ("server_project", "better")]
)
def test_the_verdict_moves_the_alias_or_leaves_it(request, gate_project, backend, case, tmp_path):
    repository = _in(request.getfixturevalue(backend), gate_project)
    defender, challenger, limits, verdict, breached = VERDICTS[case]
    set_params(repository.folder, "gate", limits)
    before = repository.version(gate_project.model(**defender), CHAMPION).number if defender else ""
    candidate = repository.version(gate_project.model("convoy/8", **challenger), CANDIDATE)
    judged = promote.judge(tmp_path / "gate")
    moved = promote.carry_out(judged)
    assert judged.judgement.verdict == verdict, judged.judgement.reasons
    assert moved == (verdict == "promote")
    assert repository.champion() == (candidate.number if moved else before)
    tags = repository.registry.version(candidate.number).tags
    assert tags["gate.verdict"] == verdict
    assert tags["gate.reason"] == judged.judgement.reasons[0]
    assert {name for name, text in tags.items() if text.startswith("breached")} == breached
    assert json.loads((tmp_path / "gate/verdict.json").read_text())["verdict"] == verdict
    assert (tmp_path / "gate/verdict.html").exists()
    assert [status for _, status, _ in repository.entries()] == (["FINISHED"] if moved else [])


@pytest.mark.parametrize("loss", ["gone", "other bytes"])
def test_a_missing_or_damaged_champion_does_not_block_candidates(here, gate_project, tmp_path, loss):
    champion = here.version(gate_project.model(wrong=MANY), CHAMPION)
    path = here.stored(champion)
    path.unlink() if loss == "gone" else path.write_bytes(path.read_bytes()[:-10])
    candidate = here.version(gate_project.model("convoy/8", wrong=FEW), CANDIDATE)
    judged = promote.judge(tmp_path)
    assert judged.judgement.verdict == "promote"
    assert judged.judgement.champion_sha256 is None
    assert promote.carry_out(judged)
    assert here.champion() == candidate.number


def test_an_accuracy_on_validation_images_is_not_compared_with_one_on_test_images(
    here, gate_project, tmp_path
):
    champion = here.version(gate_project.model(wrong=MANY), CHAMPION)
    here.client.set_model_version_tag(champion.model, champion.number, "convoy.measured_on", "val")
    here.version(gate_project.model("convoy/8", wrong=FEW), CANDIDATE)
    drop = criterion(promote.judge(tmp_path).judgement, "champion_drop")
    assert drop.figure is None
    assert "no accuracy on test images is recorded" in drop.note


def test_a_round_finds_the_champions_images_from_its_worktree(project, gate_project, tmp_path, monkeypatch):
    """There, MLflow's own default would be another store."""
    champion = project.version(gate_project.model(wrong=MANY), CHAMPION)
    worktree = tmp_path / "worktree"
    worktree.mkdir()
    shutil.copy(project.folder / "params.yaml", worktree)
    monkeypatch.setenv("CONVOY_REPOSITORY", str(project.folder))
    monkeypatch.chdir(worktree)
    assert outcome._images(champion).table == gate_project.images().table


def test_a_candidate_whose_file_is_missing_gets_no_verdict(here, gate_project, tmp_path):
    candidate = here.version(gate_project.model(wrong=FEW), CANDIDATE)
    here.stored(candidate).unlink()
    with pytest.raises(RegistryError, match=r"cannot be judged: .*no longer in the store.*convoy register"):
        promote.judge(tmp_path)
    assert here.champion() == ""


def test_damaged_files_beside_a_candidate_count_as_missing(here, gate_project, tmp_path):
    candidate = here.version(gate_project.model(wrong=FEW), CANDIDATE)
    for name in ("verification.json", "images.parquet"):
        (here.stored(candidate).parent / name).write_text("{")
    assert breaches(promote.judge(tmp_path).judgement) == ["proof", "seen"]


def test_without_a_candidate_the_error_names_the_command_that_registers(here, tmp_path):
    with pytest.raises(RequestError, match=r"no version with the alias `candidate`.*convoy register"):
        promote.judge(tmp_path)


def test_a_candidate_that_is_the_champion_is_left_where_it_is(memory):
    version = memory.version(files=False)
    assert not promote.carry_out(verdict_on(version, version), override="whatever")
    assert memory.entries() == []


def test_a_verdict_that_the_registry_has_outrun_promotes_nothing(memory):
    first, other, judged = memory.versions(3, files=False)
    registry = memory.registry
    registry.point(CANDIDATE, judged)
    move(registry, other, expected=None, kind="override", reason="meanwhile")
    with pytest.raises(RegistryError, match=r"promoted since: champion was .*/1 .* is .*/2 now"):
        promote.carry_out(verdict_on(judged, first))
    registry.point(CANDIDATE, first)
    with pytest.raises(RegistryError, match=r"/3 was judged, but the candidate is .*/1 now.*convoy promote"):
        promote.carry_out(verdict_on(judged, other))
    assert memory.champion() == "2"


def test_an_override_promotes_a_refused_candidate_and_is_recorded(memory):
    champion, candidate = memory.versions(2, files=False)
    memory.registry.point(CHAMPION, champion)
    memory.registry.point(CANDIDATE, candidate)
    refused = verdict_on(candidate, champion, verdict="refuse")
    assert not promote.carry_out(refused)
    assert promote.carry_out(refused, override="withdrawn")
    assert memory.champion() == candidate.number
    assert memory.registry.version(candidate.number).tags["gate.override"] == "withdrawn"
    [(name, status, tags)] = memory.entries()
    assert (name, status, tags["convoy.reason"]) == ("override convoy/2", "FINISHED", "withdrawn")


def test_a_registry_that_goes_down_leaves_the_champion(server_project, through, gate_project, tmp_path):
    here = _in(server_project, gate_project)
    here.version(gate_project.model(wrong=MANY), CHAMPION)
    here.version(gate_project.model("convoy/8", wrong=FEW), CANDIDATE)
    through.die_at("model-versions/set-tag")
    with pytest.raises(RegistryError, match=r"(?s)did not answer the request to tag .*Start its server"):
        promote.judge(tmp_path)
    assert here.champion() == "1"
    assert (tmp_path / "verdict.html").exists(), "the verdict is not lost"


def test_pictures_of_the_verdict_are_among_its_files(here, gate_project, tmp_path, monkeypatch):
    monkeypatch.setattr(promote.page, "draw", DRAW)
    here.version(gate_project.model(wrong=MANY), CHAMPION)
    here.version(gate_project.model("convoy/8", wrong=FEW), CANDIDATE)
    names = {path.name for path in promote.judge(tmp_path).files}
    assert names == {"verdict.json", "verdict.html", "gain.png", "classes.png", "flips.png"}


def version(number):
    return Version("convoy", str(number), "", "", "", 0, {})


def test_the_output_shows_the_verdict_the_limits_and_the_champion(tmp_path):
    files = tmp_path / "x.json", tmp_path / "verdict.html"
    judged = replace(verdict_on(version(2), version(1)), files=files)
    dry = list(promote.lines(judged, moved=False, dry_run=True))
    assert dry[:2] == list(judged.judgement.reasons)
    assert any("accuracy " in line and line.endswith("met: 95.5 % (at least 50 %)") for line in dry), dry
    assert "serving:  convoy/1 is champion, unchanged" in dry
    assert "dry run:  to promote it: convoy promote" in dry
    done = list(promote.lines(judged, moved=True, dry_run=False))
    assert "serving:  convoy/2 is champion (before: convoy/1)" in done
    assert done[-2:] == [f"page:     {tmp_path}/verdict.html", "undo:     convoy rollback"]
    first = list(promote.lines(verdict_on(version(2), None), moved=False, dry_run=False))
    assert "serving:  no champion yet" in first


def test_a_tag_is_never_longer_than_stores_take():
    result = gate_results.gate_result(reasons=("because " * 2000,))
    assert max(len(text) for text in promote.tags(result).values()) == promote.TAG_CHARACTERS
