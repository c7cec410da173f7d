"""Judge the registry's candidate against its champion, and let it take the champion's place for cause."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from convoy.core import contract, files, params
from convoy.core.errors import DataError, RequestError
from convoy.export import image_index
from convoy.gate import page, plots, written
from convoy.gate.contender import ModelUnderTest, UnavailableModel
from convoy.gate.judge import judge as judge_files
from convoy.gate.result import Criterion, GateResult
from convoy.gate.settings import GateParams
from convoy.gate.test_images import TestImages
from convoy.registry import alias as champions
from convoy.registry.artifacts import Gone, fetch
from convoy.registry.client import (
    CANDIDATE,
    CHAMPION,
    Registry,
    RegistryError,
    Version,
    refuse_inside_experiment,
)
from convoy.registry.proven import TAG_CHARACTERS

DATASET = Path("build/dataset")
DATA = Path("data")
VERDICT = "verdict.json"
PAGE = "verdict.html"


T = TypeVar("T")


@dataclass(frozen=True)
class Judged:
    """Hold a judgement with the versions that it is about.

    Attributes:
        champion: the version that the alias named then; None where there was none.
        files: verdict.json, verdict.html and the pictures.
    """

    judgement: GateResult
    candidate: Version
    champion: Version | None
    files: tuple[Path, ...]


def judge(out: Path) -> Judged:
    """Judge the candidate on this workspace's test split, and keep the verdict as files and as tags.

    Args:
        out: folder that gets verdict.json, verdict.html and the pictures.

    Raises:
        RequestError: no version has the alias `candidate`.
        RegistryError: the registry does not answer, or the candidate's file is gone.
        ConvoyError: the candidate or the test images cannot be used, so that there is no verdict.
    """
    refuse_inside_experiment("promote")
    limits = params.section("gate", GateParams)
    today = TestImages.load(DATASET, DATA)
    registry = Registry.open()
    candidate = registry.alias(CANDIDATE)
    if candidate is None:
        raise RequestError(
            f"{registry.model} has no version with the alias `{CANDIDATE}`. Register one: convoy register"
        )
    champion = registry.alias(CHAMPION)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            challenger = _contender(candidate, fetch(registry, candidate, Path(scratch) / CANDIDATE))
        except Gone as gone:
            raise RegistryError(
                f"{candidate} cannot be judged: {gone}. Register it again where its files are: convoy register"
            ) from gone
        opponent = _opponent(registry, champion, Path(scratch) / CHAMPION)
        judgement = judge_files(challenger, opponent, today, limits)
    flipped = [flip.path for flip in judgement.flips]
    kept = _write(judgement, today.thumbnails(flipped), out)
    registry.tag(candidate, tags(judgement))
    return Judged(judgement, candidate, champion, kept)


def carry_out(judged: Judged, override: str = "") -> bool:
    """Move the alias `champion` if the verdict says so, or if somebody overrides it; tell whether it moved.

    Args:
        judged: what `judge` found, however long ago.
        override: a reason for promoting although the verdict is another.

    Raises:
        RegistryError: the registry does not answer; another candidate was registered or another
            version was promoted since it was judged; somebody else promotes at this moment.
    """
    verdict = judged.judgement.verdict
    if judged.candidate == judged.champion or (verdict != "promote" and not override):
        return False
    registry = Registry.open()
    now = registry.alias(CANDIDATE)
    if now is None or now.number != judged.candidate.number:
        raise RegistryError(
            f"{judged.candidate} was judged, and the candidate is {now or 'none'} by now, so nothing was promoted. "
            "Judge again: convoy promote"
        )
    promoted = verdict == "promote"
    champions.move(
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
    """Tell people the verdict, what it rests on and what was done."""
    judgement = judged.judgement
    yield from judgement.reasons
    yield ""
    width = max((len(one.title) for one in judgement.criteria), default=0)
    for one in judgement.criteria:
        yield f"  {one.title:<{width}}  {criterion(one)}"
    yield ""
    serving = judged.candidate if moved else judged.champion
    before = f" (before: {judged.champion})" if moved and judged.champion else ""
    stays = "" if moved or serving is None else " as before"
    yield f"serving:  {f'{serving} is champion{stays}{before}' if serving else 'no champion yet'}"
    if dry_run and judgement.verdict == "promote":
        yield "dry run:  to promote it, type: convoy promote"
    page_of_it = next((path for path in judged.files if path.name == PAGE), None)
    yield f"page:     {page_of_it}"
    if moved:
        yield "back:     convoy rollback"


def tags(judgement: GateResult) -> dict[str, str]:
    """Render a judgement as tags of the version: the verdict, why, against what, and each criterion."""
    told = {
        "gate.verdict": judgement.verdict,
        "gate.reason": judgement.reasons[0],
        "gate.against": judgement.champion or "no champion",
        "gate.data_hash": judgement.data_hash,
        "gate.moment": str(judgement.conditions["moment"]),
    }
    told |= {f"gate.{one.name}": criterion(one) for one in judgement.criteria}
    return {name: text[:TAG_CHARACTERS] for name, text in told.items()}


def criterion(one: Criterion) -> str:
    """Phrase a criterion in one line: `held: 98.1 % (at least 50.0 %)`."""
    figure, limit = written.sides(one)
    said = [f"{written.outcome(one)}:"]
    if one.figure is not None:
        said.append(figure)
    if one.limit is not None:
        said.append(f"({limit})")
    return " ".join(said).removesuffix(":") + (f"; {one.note}" if one.note else "")


def _opponent(
    registry: Registry, champion: Version | None, folder: Path
) -> ModelUnderTest | UnavailableModel | None:
    """Fetch the champion; one that is gone or damaged must not keep every candidate out for ever."""
    if champion is None:
        return None
    try:
        return _contender(champion, fetch(registry, champion, folder))
    except Gone as gone:
        return UnavailableModel(str(champion), str(gone), _accuracy(champion.tags))


def _contender(version: Version, folder: Path) -> ModelUnderTest:
    known, proof = folder / contract.IMAGES, folder / contract.VERIFICATION
    return ModelUnderTest(
        name=str(version),
        onnx=folder / contract.VERIFIED,
        sha256=version.sha256,
        images=_read(known, image_index.load),
        recorded_accuracy=_accuracy(version.tags),
        proof=_read(proof, files.read_json),
        created_ms=version.created_ms,
    )


def _read(path: Path, reader: Callable[[Path], T]) -> T | None:
    """Read what is kept beside a model; what is damaged is as good as none, and the gate says what follows."""
    try:
        return reader(path) if path.exists() else None
    except (DataError, ValueError):
        return None


def _accuracy(noted: Mapping[str, str]) -> float | None:
    try:
        return float(noted["convoy.accuracy"])
    except (KeyError, ValueError):
        return None


def _write(
    judgement: GateResult, thumbnails: Mapping[str, npt.NDArray[np.uint8]], out: Path
) -> tuple[Path, ...]:
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / VERDICT, judgement.as_json())
    drawn = plots.draw(judgement, thumbnails, out)
    page.write(out / PAGE, judgement, drawn)
    return (out / VERDICT, out / PAGE, *drawn)
