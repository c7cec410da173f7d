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
from convoy.repo import dvc_graph, git
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
    with dvc_graph.opened(place) as repo:
        stages = dvc_graph.ordered(repo)
        imported = next((one for one in stages if one.addressing == DATA), None)
        if imported is None:
            raise RequestError(f"DVC does not read {DATA}. `dvc status` says why.")
        if follows_source(place / DATA):
            source = imported.deps[0]
            address = without_credentials(str(source.def_path))
            recorded, now, hint = _states(source, address)
        else:
            address = _address(place)
            recorded = now = ";".join(str(out.hash_info.value) for out in imported.outs)
            hint = _still(place)
        inputs = params.digest(
            {
                "source": now,
                "stages": {
                    one.addressing: _given(one, stages, place) for one in stages if one is not imported
                },
                "gate": _limits(place),
            }
        )
    return Upstream(address, params.digest({"source": now}), recorded != now, inputs, hint)


def _states(source: Any, address: str) -> tuple[str, str, str]:  # noqa: ANN401 (DVC has no types)
    """Name the state of a source that data.dvc took, the present one, and what there is to heed."""
    in_git = hasattr(source, "def_repo")  # a path in another git repository
    if not in_git and not source.fs:
        raise RequestError(
            f"{DATA} imports from a database, which cannot be asked whether it changed. Export a file there, and "
            "import that: `convoy data use URL`"
        )
    try:
        if in_git:
            rev = source._make_fs(locked=False).repo.get_rev()  # noqa: SLF001 (what `dvc update` asks)
            return str(source.def_repo.get("rev_lock")), str(rev), ""
        recorded, now = _identity(source, source), _identity(source, None)
    except Exception as error:  # file systems raise what their libraries do
        said = without_credentials(" ".join(str(error).split()))[:500]
        raise RoundError(
            f"the source of the data does not answer: {address}\n{type(error).__name__}: {said}\n"
            f"Is it there, and may this machine read it? `dvc update {DATA}` tries by hand; `convoy data use` points "
            "elsewhere."
        ) from error
    hint = ""
    if source.fs.protocol in ("http", "https") and not source.get_meta().checksum:
        hint = (
            f"`{address}` gives no ETag, so a change at the source cannot be seen: neither by a round nor by "
            "`dvc update`. Let the server send one, or import from a bucket or a folder."
        )
    return recorded, now, hint


def _identity(source: Any, known: Any) -> str:  # noqa: ANN401 (DVC has no types)
    """Spell the state of a source: as recorded, or, where `known` is None, as it is now."""
    if source.fs.version_aware:
        path = source.fs.version_path(source.fs_path, None)
        meta = known.meta if known else source.fs.info(path)
        return str(meta.version_id if known else meta.get("version_id"))
    return str(known.hash_info.value if known else source.get_hash().value)


def _given(stage: Any, stages: list[Any], place: Path) -> dict[str, Any]:  # noqa: ANN401 (likewise)
    """Say what a stage is given apart from what other stages make: command, params, files as committed."""
    from dvc.dependency import ParamsDependency  # type: ignore[import-untyped] # noqa: PLC0415 (half a second that only a round needs)

    made = dvc_graph.makers(stages)
    values = [dep.read_params() for dep in stage.deps if isinstance(dep, ParamsDependency)]
    files = [dep for dep in stage.deps if not isinstance(dep, ParamsDependency) and dep.fs_path not in made]
    paths = [dvc_graph.name(stage.repo, dep) for dep in files]
    kept = _objects(place, paths)
    held = {
        path: kept.get(path) or str(dep.get_hash().value if dep.exists else "")
        for path, dep in zip(paths, files, strict=True)
    }
    return {"cmd": stage.cmd, "params": values, "files": held}


def _objects(place: Path, paths: list[str]) -> dict[str, str]:
    """Name what the commit holds at these paths, as git names content."""
    inside = [path for path in paths if not Path(path).is_absolute() and "://" not in path]
    if not inside:
        return {}
    listed = git.ask(place, "ls-tree", "-z", "HEAD", "--", *inside)
    rows = (row.partition("\t") for row in listed.split("\0") if row)
    return {path: facts.split()[2] for facts, _, path in rows}


def _limits(place: Path) -> dict[str, Any]:
    """Read the gate's limits: changed ones ask for another verdict on the same model."""
    limits = yaml.read(place / params.PARAMS_FILE).get("gate") or {}
    return {name: limit for name, limit in limits.items() if name != TRIGGER}


def _address(place: Path) -> str:
    deps = yaml.read(place / DATA).get("deps") or [{}]
    return without_credentials(str(deps[0].get("path", "")))


def _still(place: Path) -> str:
    """Say why nobody looks at a source."""
    if yaml.read(place / DATA).get("frozen"):
        return f"`{DATA}` is frozen, so its source is not looked at. `dvc unfreeze {DATA}`, committed, changes that."
    return (
        f"`{DATA}` names files without a source, so new ones come only with a commit of it. "
        "`convoy data use PATH-OR-URL` gives it one."
    )
