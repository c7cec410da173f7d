"""The gate on a registry: every verdict with real ONNX files on sqlite, a promotion on the server too."""

import json
import secrets
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from convoy.core import files
from convoy.core.errors import RequestError
from convoy.gate.evidence import ModelUnderTest
from convoy.registry import promote
from convoy.registry.alias import move
from convoy.registry.client import CANDIDATE, CHAMPION, Registry, RegistryError, Version
from convoy.retraining import outcome
from convoy.tracking import mlflow_writer, store
from gate_project import CLASSES, LIMITS, TEST, GateProject, by_turns, deliver, write_limits
from registry_project import RegistryProject

FEW = range(12)
"""Images that a good model gets wrong; a better one fewer."""
MANY = range(0, 84, 2)
MOST = range(60)
OTHERS = range(60, 72)
ALL_OF_CAT = range(2, TEST, 3)
TWO = ("ape", "bee")


def publish(project: RegistryProject, model: ModelUnderTest, alias: str) -> Version:
    """Register a model as `convoy register` does, without a training: run, logged model, version, alias."""
    registry = Registry.open()
    registry.create()
    experiment = store.experiment(project.client, "published").experiment_id
    run_id = f"20261123-120000-{secrets.token_hex(3)}"
    run = project.client.create_run(experiment, tags={"convoy.run_id": run_id})
    folder = project.folder / "published" / run_id
    folder.mkdir(parents=True)
    shutil.copy(model.onnx, folder / "model.onnx")
    if model.verification is not None:
        files.write_json(folder / "verification.json", model.verification)
    if model.images is not None:
        rows = [(pixels, *place) for pixels, place in model.images.table.items()]
        names = ("pixels", "label", "split")
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        pq.write_table(pa.table(columns), folder / "images.parquet")
    logged = mlflow_writer.log_model(project.client, run, folder, model.sha256, [])
    project.client.set_terminated(run.info.run_id)
    tags = {"convoy.onnx_sha256": model.sha256, "convoy.run_id": run_id}
    if model.recorded_accuracy is not None:
        tags["convoy.accuracy"] = str(model.recorded_accuracy)
    version = registry.add(logged.model_id, run.info.run_id, tags, "")
    registry.point(alias, version)
    return version


@pytest.fixture(scope="session")
def gate_project(tmp_path_factory: pytest.TempPathFactory) -> GateProject:
    """120 test images of three classes. Only models are added to it."""
    return deliver(tmp_path_factory.mktemp("promote"), by_turns(TEST), TEST)


def _in(project: RegistryProject, gate_project: GateProject) -> RegistryProject:
    """Put a gate_project's data where the pipeline has them."""
    (project.folder / "build").mkdir(exist_ok=True)
    (project.folder / "build/dataset").symlink_to(gate_project.home / "dataset")
    (project.folder / "data").symlink_to(gate_project.home / "data")
    write_limits(project.folder / "params.yaml", LIMITS)
    return project


@pytest.fixture(autouse=True)
def plain(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no pictures, which take seconds and have tests of their own, but where a test asks for them."""
    if "pictured" not in request.fixturenames:
        monkeypatch.setattr(promote.page, "draw", lambda *_: ())


@pytest.fixture
def pictured() -> None:
    """Have pictures drawn."""


@pytest.fixture
def here(project: RegistryProject, gate_project: GateProject) -> RegistryProject:
    return _in(project, gate_project)


Facts = dict[str, object]

EQUAL: tuple[Facts, Facts] = ({"wrong": FEW}, {"wrong": [*range(11), 13]})
STAGED: dict[str, tuple[Facts | None, Facts, Facts, str, str]] = {
    "better": ({"wrong": MANY}, {"wrong": FEW}, {}, "promote", ""),
    "worse": ({"wrong": FEW}, {"wrong": MANY}, {"max_class_drop": None, "max_ece": None}, "keep", ""),
    "equal, keep": (*EQUAL, {}, "keep", ""),
    "equal, promote": (*EQUAL, {"on_equal": "promote"}, "promote", ""),
    "one class collapsed": (
        {"wrong": [n for n in range(TEST) if n % 3 != 2]},
        {"wrong": ALL_OF_CAT},
        {"min_accuracy": None, "max_ece": None},
        "refuse",
        "gate.class_recall gate.class_drop",
    ),
    "slower": (
        {"wrong": MANY},
        {"wrong": FEW, "products": 60},
        {"max_latency_ratio": 3.0},
        "refuse",
        "gate.latency_ratio",
    ),
    "bigger": (
        {"wrong": MANY},
        {"wrong": FEW, "dead_bytes": 3_000_000},
        {"max_size_mb": 2.0},
        "refuse",
        "gate.size_mb",
    ),
    "miscalibrated": ({"wrong": MANY}, {"wrong": FEW, "certainty": 0.4}, {}, "refuse", "gate.ece"),
    "no champion": (None, {"wrong": FEW}, {}, "promote", ""),
    "a class more": ({"classes": TWO}, {"wrong": FEW}, {"max_champion_drop": None}, "promote", ""),
    "a class fewer": (
        {"classes": (*CLASSES, "dog"), "wrong": MANY},
        {"wrong": FEW},
        {},
        "refuse",
        "gate.classes",
    ),
    "a class renamed": (
        {"classes": (*TWO, "kitten")},
        {"wrong": FEW},
        {"max_champion_drop": None},
        "refuse",
        "gate.classes",
    ),
    "test images were in training": ({"wrong": MANY}, {"seen": range(100)}, {}, "refuse", "gate.images"),
    "poisoned labels": (
        {"wrong": MOST, "recorded_accuracy": 0.97},
        {},
        {},
        "refuse",
        "gate.champion_drop",
    ),
    "too small a split": ({"wrong": range(3)}, {}, {}, "keep", ""),
}
"""Case to facts of the champion and of the candidate, limits, verdict, and tags of breached limits."""


@pytest.mark.parametrize(
    ("backend", "case"), [*(("project", case) for case in STAGED), ("server_project", "better")]
)
def test_the_verdict_moves_the_alias_or_leaves_it(
    request: pytest.FixtureRequest, gate_project: GateProject, backend: str, case: str, tmp_path: Path
) -> None:
    repository = _in(request.getfixturevalue(backend), gate_project)
    defender, challenger, limits, verdict, breached = STAGED[case]
    write_limits(repository.folder / "params.yaml", LIMITS | limits)
    before = None if defender is None else publish(repository, gate_project.model(**defender), CHAMPION)
    candidate = publish(repository, gate_project.model("convoy/8", **challenger), CANDIDATE)

    judged = promote.judge(tmp_path / "gate")
    moved = promote.carry_out(judged)

    assert judged.judgement.verdict == verdict, judged.judgement.reasons
    assert moved == (verdict == "promote")
    serving = candidate.number if moved else before.number if before else ""
    assert repository.champion() == serving
    tags = Registry.open().version(candidate.number).tags
    assert tags["gate.verdict"] == verdict
    assert tags["gate.reason"] == judged.judgement.reasons[0]
    states = {name for name, text in tags.items() if text.startswith("breached")}
    assert states == set(breached.split())
    assert json.loads((tmp_path / "gate/verdict.json").read_text())["verdict"] == verdict
    assert (tmp_path / "gate/verdict.html").exists()
    assert [status for _, status, _ in repository.entries()] == (["FINISHED"] if moved else [])


@pytest.mark.parametrize("loss", ["gone", "other bytes"])
def test_a_missing_or_damaged_champion_does_not_block_candidates(
    here: RegistryProject, gate_project: GateProject, tmp_path: Path, loss: str
) -> None:
    champion = publish(here, gate_project.model(wrong=MANY), CHAMPION)
    path = here.stored(champion)
    path.unlink() if loss == "gone" else path.write_bytes(path.read_bytes()[:-10])
    candidate = publish(here, gate_project.model("convoy/8", wrong=FEW), CANDIDATE)
    judged = promote.judge(tmp_path)
    assert judged.judgement.verdict == "promote"
    assert judged.judgement.champion_sha256 is None
    assert promote.carry_out(judged)
    assert here.champion() == candidate.number


def test_a_round_finds_the_champions_images_from_its_worktree(
    here: RegistryProject, gate_project: GateProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, MLflow's own default would be another store."""
    champion = publish(here, gate_project.model(wrong=MANY), CHAMPION)
    worktree = tmp_path / "worktree"
    worktree.mkdir()
    shutil.copy(here.folder / "params.yaml", worktree)
    monkeypatch.setenv("CONVOY_REPOSITORY", str(here.folder))
    monkeypatch.chdir(worktree)
    found = outcome._images(champion)
    assert found is not None
    assert found.table == gate_project.images().table


def test_a_candidate_whose_file_is_missing_gets_no_verdict(
    here: RegistryProject, gate_project: GateProject, tmp_path: Path
) -> None:
    candidate = publish(here, gate_project.model(wrong=FEW), CANDIDATE)
    here.stored(candidate).unlink()
    with pytest.raises(RegistryError, match=r"cannot be judged: .*no longer in the store.*convoy register"):
        promote.judge(tmp_path)
    assert here.champion() == ""


def test_without_a_candidate_it_says_how_to_register_one(here: RegistryProject, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no version with the alias `candidate`.*convoy register"):
        promote.judge(tmp_path)


def test_a_candidate_that_is_the_champion_is_left_where_it_is(
    here: RegistryProject, gate_project: GateProject, tmp_path: Path
) -> None:
    version = publish(here, gate_project.model(wrong=FEW), CHAMPION)
    Registry.open().point(CANDIDATE, version)
    judged = promote.judge(tmp_path)
    assert judged.judgement.verdict == "keep"
    assert not promote.carry_out(judged, override="whatever")
    assert here.entries() == []


def test_a_verdict_against_a_champion_that_has_been_replaced_promotes_nothing(
    here: RegistryProject, gate_project: GateProject, tmp_path: Path
) -> None:
    publish(here, gate_project.model(wrong=MANY), CHAMPION)
    other = publish(here, gate_project.model("convoy/8", wrong=OTHERS), CANDIDATE)
    publish(here, gate_project.model("convoy/9", wrong=FEW), CANDIDATE)
    judged = promote.judge(tmp_path)
    registry = Registry.open()
    move(registry, other, expected=judged.champion, kind="override", reason="meanwhile")
    with pytest.raises(RegistryError, match=r"promoted since: champion was .*/1 .* is .*/2 now"):
        promote.carry_out(judged)
    assert here.champion() == other.number


def test_a_verdict_on_a_candidate_that_has_been_replaced_promotes_nothing(
    here: RegistryProject, gate_project: GateProject, tmp_path: Path
) -> None:
    publish(here, gate_project.model(wrong=MANY), CHAMPION)
    publish(here, gate_project.model("convoy/8", wrong=OTHERS), CANDIDATE)
    judged = promote.judge(tmp_path)
    publish(here, gate_project.model("convoy/9", wrong=FEW), CANDIDATE)
    with pytest.raises(RegistryError, match=r"/2 was judged, but the candidate is .*/3 now.*convoy promote"):
        promote.carry_out(judged)
    assert here.champion() == "1"


def test_an_override_promotes_a_refused_candidate_and_is_recorded(
    here: RegistryProject, gate_project: GateProject, tmp_path: Path
) -> None:
    publish(here, gate_project.model(wrong=FEW), CHAMPION)
    candidate = publish(here, gate_project.model("convoy/8", wrong=MOST, certainty=0.4), CANDIDATE)
    judged = promote.judge(tmp_path)
    assert judged.judgement.verdict == "refuse"
    assert promote.carry_out(judged, override="the old one is withdrawn")
    assert here.champion() == candidate.number
    assert Registry.open().version(candidate.number).tags["gate.override"] == "the old one is withdrawn"
    [(_, status, tags)] = here.entries()
    assert status == "FINISHED"
    assert "the old one is withdrawn" in tags.values()


def test_a_gate_without_limits_gives_no_verdict(
    here: RegistryProject, gate_project: GateProject, tmp_path: Path
) -> None:
    publish(here, gate_project.model(wrong=FEW), CANDIDATE)
    none = {name: None for name in LIMITS if name.startswith(("min_", "max_"))}
    write_limits(here.folder / "params.yaml", LIMITS | none)
    with pytest.raises(RequestError, match=r"gate: a gate without limits gives no verdict"):
        promote.judge(tmp_path)
    assert here.champion() == ""


def test_a_registry_that_goes_down_while_judging_leaves_the_champion(
    server_project: RegistryProject, through: object, gate_project: GateProject, tmp_path: Path
) -> None:
    here = _in(server_project, gate_project)
    publish(here, gate_project.model(wrong=MANY), CHAMPION)
    publish(here, gate_project.model("convoy/8", wrong=FEW), CANDIDATE)
    through.die_at("model-versions/set-tag")
    with pytest.raises(RegistryError, match=r"(?s)did not answer the request to tag .*Start its server"):
        promote.judge(tmp_path)
    assert here.champion() == "1"
    assert (tmp_path / "verdict.html").exists(), "the verdict is not lost"


def test_the_output_shows_the_verdict_the_limits_and_the_champion(
    here: RegistryProject, gate_project: GateProject, tmp_path: Path, pictured: None
) -> None:
    publish(here, gate_project.model(wrong=MANY), CHAMPION)
    publish(here, gate_project.model("convoy/8", wrong=FEW), CANDIDATE)
    judged = promote.judge(tmp_path)
    dry = list(promote.lines(judged, moved=False, dry_run=True))
    assert dry[0] == judged.judgement.reasons[0]
    assert dry[0].startswith("Promote convoy/2: ")
    assert any("met: 90.0 % (at least 50" in line for line in dry), dry
    assert {path.name for path in judged.files} >= {"verdict.json", "verdict.html", "gain.png", "flips.png"}
    assert "serving:  convoy/1 is champion, unchanged" in dry
    assert "dry run:  to promote it: convoy promote" in dry
    done = list(promote.lines(judged, moved=True, dry_run=False))
    assert "serving:  convoy/2 is champion (before: convoy/1)" in done
    assert done[-2:] == [f"page:     {tmp_path}/verdict.html", "undo:     convoy rollback"]


def test_a_tag_is_never_longer_than_stores_take(
    here: RegistryProject, gate_project: GateProject, tmp_path: Path
) -> None:
    publish(here, gate_project.model("convoy/8", wrong=FEW), CANDIDATE)
    judgement = replace(promote.judge(tmp_path).judgement, reasons=("because " * 2000,))
    assert max(len(text) for text in promote.tags(judgement).values()) == promote.TAG_CHARACTERS
