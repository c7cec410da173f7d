"""Look at the source of the data without downloading it, and tell one set of inputs from another.

What is compared are fingerprints: of a local source DVC's hash of the files (its database of known
files makes that quick), of an HTTP one the ETag, of a bucket the ETags or versions in its listing,
of a path in another git repository that repository's commit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.core import params, yaml
from convoy.core.errors import RequestError, without_credentials
from convoy.gate.settings import TRIGGER
from convoy.repo import dvc
from convoy.retraining.processes import RoundError
from convoy.retraining.worktree import DATA, follows_source


@dataclass(frozen=True)
class Upstream:
    """Say what the source holds now.

    Attributes:
        address: of the source as data.dvc has it, without a password; empty where there is none.
        fingerprint: another one means other data.
        changed: whether data.dvc names other data, so that they have to be taken.
        inputs: digest of everything that decides what a round comes to: `fingerprint`, params, code
            and commands of the stages, and the limits of the gate.
        hint: what people should know about this source; may be empty.
    """

    address: str
    fingerprint: str
    changed: bool
    inputs: str
    hint: str = ""


def look(place: Path) -> Upstream:
    """Look at the source that data.dvc names, and at everything else that the stages are given.

    Args:
        place: a working tree as it is committed.

    Raises:
        RequestError: there is no data.dvc, or its source is of a kind whose state cannot be asked for.
        RoundError: the source does not answer.
    """
    if not (place / DATA).exists():
        raise RequestError(
            f"there is no {DATA}, so nothing says where the data come from. Type `convoy data use PATH-OR-URL`, "
            f"then commit {DATA}."
        )
    if follows_source(place / DATA):
        source = _source(place)
        address, recorded, now = source.address, source.recorded, source.current
        hint = "" if source.has_fingerprint else _no_etag(address)
    else:
        imported = yaml.read(place / DATA)
        address, hint = _address(imported), _still(imported)
        recorded = now = ";".join(str(out.get("md5")) for out in imported["outs"])
    stages = {
        name: {"cmd": given.command, "params": given.params, "files": given.files}
        for name, given in dvc.stage_inputs(place, skip=DATA).items()
    }
    inputs = params.digest({"source": now, "stages": stages, "gate": _limits(place)})
    return Upstream(address, params.digest({"source": now}), recorded != now, inputs, hint)


def _source(place: Path) -> dvc.ImportSource:
    try:
        return dvc.import_source(place, DATA)
    except dvc.DvcError as error:
        raise RoundError(
            f"the source of the data does not answer: {_address(yaml.read(place / DATA))}\n{error}\n"
            f"Is it there, and may this machine read it? `dvc update {DATA}` tries by hand; `convoy data use` points "
            "elsewhere."
        ) from error


def _no_etag(address: str) -> str:
    return (
        f"`{address}` gives no ETag, so a change at the source cannot be seen: neither by a round nor by "
        "`dvc update`. Let the server send one, or import from a bucket or a folder."
    )


def _limits(place: Path) -> dict[str, Any]:
    """Read the gate's limits: changed ones ask for another verdict on the same model."""
    limits = yaml.read(place / params.PARAMS_FILE).get("gate") or {}
    return {name: limit for name, limit in limits.items() if name != TRIGGER}


def _address(imported: dict[str, Any]) -> str:
    deps = imported.get("deps") or [{}]
    return without_credentials(str(deps[0].get("path", "")))


def _still(imported: dict[str, Any]) -> str:
    """Say why nobody looks at a source."""
    if imported.get("frozen"):
        return f"`{DATA}` is frozen, so its source is not looked at. `dvc unfreeze {DATA}`, committed, changes that."
    return (
        f"`{DATA}` names files without a source, so new ones come only with a commit of it. "
        "`convoy data use PATH-OR-URL` gives it one."
    )
