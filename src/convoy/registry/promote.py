"""Judge the registry's candidate against its champion, and promote it if the verdict allows."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from convoy.core import contract, files, params
from convoy.core.errors import DataError, RequestError
from convoy.export import image_index, signing
from convoy.gate import page, text
from convoy.gate.evidence import ModelUnderTest, UnavailableModel
from convoy.gate.judge import judge as judge_files
from convoy.gate.result import GateResult
from convoy.gate.settings import GateParams
from convoy.gate.test_images import TestImages
from convoy.registry.alias import complete_log, move
from convoy.registry.client import (
    CANDIDATE,
    CHAMPION,
    TAG_CHARACTERS,
    ArtifactMissing,
    Registry,
    RegistryError,
    Version,
    fetch,
    refuse_inside_experiment,
)

DATASET = Path("build/dataset")
DATA = Path("data")
VERDICT = "verdict.json"
PAGE = "verdict.html"


@dataclass(frozen=True)
class Judged:
    """A gate result, the versions that it is about, and its files: verdict.json, verdict.html and the pictures."""

    judgement: GateResult
    candidate: Version
    champion: Version | None
    files: tuple[Path, ...]


def judge(out: Path) -> Judged:
    """Judge the candidate on this workspace's test split; write the verdict to files in `out` and to tags of the version.

    Raises:
        RequestError: no version has the alias `candidate`.
        RegistryError: the registry does not answer, or the candidate's file is missing.
        ConvoyError: the candidate or the test images are unusable, or it is not signed as `gate.public_key` requires, so there
            is no verdict.
    """
    refuse_inside_experiment("promote")
    limits = params.section("gate", GateParams)
    key = signing.public_key(limits.public_key, "gate.public_key")
    images = TestImages.load(DATASET, DATA)
    registry = Registry.open()
    candidate = registry.alias(CANDIDATE)
    if candidate is None:
        raise RequestError(
            f"{registry.model} has no version with the alias `{CANDIDATE}`. Register a model: convoy register"
        )
    champion = registry.alias(CHAMPION)
    with tempfile.TemporaryDirectory() as scratch:
        challenger = _fetched(registry, candidate, Path(scratch) / CANDIDATE)
        if isinstance(challenger, UnavailableModel):
            raise RegistryError(
                f"{candidate} cannot be judged: {challenger.reason}. Register it again from where its files are: "
                "convoy register"
            )
        if key:
            signing.check(challenger.onnx.parent, key, str(candidate))
        defender = _fetched(registry, champion, Path(scratch) / CHAMPION) if champion else None
        result = judge_files(challenger, defender, images, limits)
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / VERDICT, result.as_json())
    pictures = page.draw(result, images.thumbnails([flip.path for flip in result.flips]), out)
    page.write(out / PAGE, result, pictures)
    registry.tag(candidate, tags(result))
    return Judged(result, candidate, champion, (out / VERDICT, out / PAGE, *pictures))


def carry_out(judged: Judged, override: str = "") -> bool:
    """Move the alias `champion` if the verdict, however old, is promote or a reason overrides it; return whether it moved.

    Raises:
        RegistryError: the registry does not answer; another candidate was registered or another version promoted since
            it was judged; another process is moving the alias.
    """
    promoted = judged.judgement.verdict == "promote"
    registry = Registry.open()
    if judged.candidate == judged.champion or not (promoted or override):
        complete_log(registry)  # of a process that was killed after it had moved the alias
        return False
    now = registry.alias(CANDIDATE)
    if now is None or now.number != judged.candidate.number:
        raise RegistryError(
            f"{judged.candidate} was judged, but the candidate is {now or 'none'} now, so nothing was promoted. "
            "Judge again: convoy promote"
        )
    move(
        registry,
        judged.candidate,
        expected=judged.champion,
        kind="promote" if promoted else "override",
        reason=judged.judgement.reasons[0] if promoted else override,
        files=judged.files,
    )
    if not promoted:
        registry.tag(judged.candidate, {"gate.override": override[:TAG_CHARACTERS]})
    return True


def lines(judged: Judged, *, moved: bool, dry_run: bool) -> Iterator[str]:
    """Render the verdict, its criteria and what was done."""
    result = judged.judgement
    yield from result.reasons
    yield ""
    width = max(len(criterion.title) for criterion in result.criteria)
    for criterion in result.criteria:
        yield f"  {criterion.title:<{width}}  {text.criterion_line(criterion)}"
    yield ""
    serving = judged.candidate if moved else judged.champion
    before = f" (before: {judged.champion})" if moved and judged.champion else ""
    unchanged = "" if moved or serving is None else ", unchanged"
    yield f"serving:  {f'{serving} is champion{unchanged}{before}' if serving else 'no champion yet'}"
    if dry_run and result.verdict == "promote":
        yield "dry run:  to promote it: convoy promote"
    yield f"page:     {next((path for path in judged.files if path.name == PAGE), None)}"
    if moved:
        yield "undo:     convoy rollback"


def tags(result: GateResult) -> dict[str, str]:
    """Render a result as tags of the version: verdict, reason, champion and each criterion."""
    texts = {
        contract.VERDICT: result.verdict,
        "gate.reason": result.reasons[0],
        "gate.against": result.champion or "no champion",
        "gate.data_hash": result.data_hash,
        "gate.moment": str(result.conditions["moment"]),
    }
    texts |= {f"gate.{criterion.name}": text.criterion_line(criterion) for criterion in result.criteria}
    return {name: value[:TAG_CHARACTERS] for name, value in texts.items()}


def _fetched(registry: Registry, version: Version, folder: Path) -> ModelUnderTest | UnavailableModel:
    """Fetch a version's files; the gate handles what is missing or damaged beside its model."""
    try:
        fetch(registry, version, folder)
    except ArtifactMissing as missing:  # a champion must not block every candidate
        return UnavailableModel(str(version), str(missing), _accuracy(version.tags))
    images = verification = None
    with suppress(DataError):
        images = image_index.load(folder / contract.IMAGES)
    with suppress(FileNotFoundError, ValueError):
        verification = files.read_json(folder / contract.VERIFICATION)
    return ModelUnderTest(
        name=str(version),
        onnx=folder / contract.VERIFIED,
        sha256=version.sha256,
        images=images,
        recorded_accuracy=_accuracy(version.tags),
        verification=verification,
        created_ms=version.created_ms,
    )


def _accuracy(tags: Mapping[str, str]) -> float | None:
    """Read the accuracy on test images; None where it is unknown, or of validation images."""
    if tags.get(contract.MEASURED_ON, "test") != "test":
        return None
    try:
        return float(tags["convoy.accuracy"])
    except (KeyError, ValueError):
        return None
