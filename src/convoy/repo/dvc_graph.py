"""Ask DVC what each stage was made of and what lies there now.

With `rerun`, the one place that touches DVC's own classes: `dvc status` names what
changed, and only these also know from what to what. Nothing here writes, and DVC's lock
is not taken, so a pipeline that runs meanwhile is not disturbed.
"""

from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from convoy.core import yaml
from convoy.core.errors import RequestError
from convoy.core.params import flatten

State = Literal["modified", "deleted", "new", "not in cache", "update available"]
"""DVC's words for a file or folder that is not what its stage was made of, or made."""

LOCK = Path("dvc.lock")

ABSENT = object()
"""Stands for a param that is not there; None is a value that YAML has."""


@dataclass(frozen=True)
class File:
    """Compare a dependency or an output with what the stage recorded.

    Attributes:
        path: relative to the repository, or the address of a source.
        state: what differs; None where nothing does.
        old: md5 recorded when the stage ran, with DVC's `.dir` for a folder; empty: never.
        new: md5 of what lies there now; empty where nothing does, or only an ETag is known.
        old_bytes: size then; None where DVC did not record it.
        maker: the stage whose output it is; empty for what people and imports bring.
        members: of a folder that changed, path to md5 of its files then and now, where DVC kept a list.
    """

    path: str
    state: State | None
    old: str
    new: str
    old_bytes: int | None
    maker: str
    members: tuple[dict[str, str], dict[str, str]] | None = None


@dataclass(frozen=True)
class Param:
    """Compare a value with what the stage was given; `ABSENT` on the side that has none."""

    name: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Found:
    """Describe one stage as it is.

    Attributes:
        name: as DVC addresses it, such as `train` or `data.dvc`.
        kind: a stage of dvc.yaml, an import, or files that `dvc add` tracks.
        recorded: whether it ever ran here, so that something can be compared.
        frozen: whether DVC leaves its dependencies alone.
        always: whether it runs each time, whatever changed.
        command: recorded and present one, where they differ.
        params: those that differ.
        deps: its files and folders, changed or not; of a frozen stage none.
        outs: what it makes, changed or not.
    """

    name: str
    kind: Literal["stage", "import", "added"]
    recorded: bool
    frozen: bool
    always: bool
    command: tuple[str, str] | None
    params: tuple[Param, ...]
    deps: tuple[File, ...]
    outs: tuple[File, ...]

    @property
    def changed(self) -> bool:
        """Tell whether `dvc status` lists it."""
        entries = any(entry.state for entry in (*self.deps, *self.outs))
        return bool(self.always or self.command or self.params or entries)


@contextmanager
def opened(root: Path) -> Iterator[Any]:
    """Open a repository as DVC's own object.

    Raises:
        RequestError: DVC cannot read it; a bug in dvc.yaml, most often.
    """
    from dvc.exceptions import DvcException  # type: ignore[import-untyped] # noqa: PLC0415 (seconds of imports that only this needs)
    from dvc.repo import Repo  # type: ignore[import-untyped] # noqa: PLC0415 (seconds of imports that only this needs)

    try:
        with chdir(root), Repo() as repo:  # DVC names files relative to the current folder
            yield repo
    except DvcException as error:
        raise RequestError(
            f"DVC cannot read the pipeline in {root}: {error}. Repair it; `dvc status` says where."
        ) from error


def ordered(repo: Any) -> list[Any]:  # noqa: ANN401 (DVC has no types)
    """List DVC's stages in the order in which `dvc repro` visits them."""
    from dvc.repo.reproduce import get_active_graph, plan_repro  # type: ignore[import-untyped] # noqa: PLC0415 (seconds of imports that only this needs)

    return list(plan_repro(get_active_graph(repo.index.graph)))


def name(repo: Any, entry: Any) -> str:  # noqa: ANN401
    """Name a dependency or an output: relative to the repository inside it, else its address."""
    path = Path(entry.fs_path)
    inside = entry.protocol == "local" and path.is_relative_to(repo.root_dir)
    return path.relative_to(repo.root_dir).as_posix() if inside else str(entry)


def makers(stages: list[Any]) -> dict[str, str]:
    """Map every output's absolute path to the stage that makes it."""
    return {out.fs_path: stage.addressing for stage in stages for out in stage.outs}


def commands(root: Path) -> dict[str, Any]:
    """Read the recorded command of every stage that ever ran."""
    if not (root / LOCK).exists():
        return {}
    return {stage: entry.get("cmd") for stage, entry in (yaml.read(root / LOCK).get("stages") or {}).items()}


def compare(stage: Any, made_by: Mapping[str, str], command: object) -> Found:  # noqa: ANN401
    """Compare one of DVC's stages with what it recorded.

    Args:
        stage: DVC's object.
        made_by: as `makers` gives it.
        command: the recorded command; None where the stage never ran.
    """
    from dvc.dependency import ParamsDependency  # type: ignore[import-untyped] # noqa: PLC0415 (seconds of imports that only this needs)

    files = [dep for dep in stage.deps if not isinstance(dep, ParamsDependency)]
    groups = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
    differs = command is not None and stage.changed_stage()
    return Found(
        name=stage.addressing,
        kind="import" if stage.is_import else "added" if stage.is_data_source else "stage",
        recorded=command is not None or (not stage.cmd and any(out.hash_info for out in stage.outs)),
        frozen=bool(stage.frozen),
        always=bool(stage.is_callback or stage.always_changed),
        command=(_one_line(command), _one_line(stage.cmd)) if differs else None,
        params=() if stage.frozen else tuple(param for group in groups for param in _params(group)),
        # The source of a frozen import is not looked at, as DVC does not: it may be a server.
        deps=() if stage.frozen else tuple(_file(dep, made_by) for dep in files),
        outs=tuple(_file(out, {}) for out in stage.outs),
    )


def _one_line(command: object) -> str:
    return " && ".join(map(str, command)) if isinstance(command, list) else str(command)


def _params(group: Any) -> Iterator[Param]:  # noqa: ANN401
    """Name each value that differs, down to the last key: DVC compares whole sections."""
    old: dict[str, Any] = (group.hash_info.value if group.hash_info else None) or {}
    new = group.read_params()
    for section in group.params or sorted({*old, *new}):
        then = flatten({section: old[section]}) if section in old else {}
        now = flatten({section: new[section]}) if section in new else {}
        for key in dict.fromkeys([*then, *now]):
            if then.get(key, ABSENT) != now.get(key, ABSENT):
                yield Param(key, then.get(key, ABSENT), now.get(key, ABSENT))


def _file(entry: Any, made_by: Mapping[str, str]) -> File:  # noqa: ANN401
    state = next(iter(entry.status().values()), None)
    old = str(entry.hash_info.value or "") if entry.hash_info else ""
    new, members = old, None
    if state:
        new = str(entry.get_hash().value or "") if entry.exists else ""
        if old and new and (old + new).count(".dir"):
            members = _members(entry)
    return File(
        path=name(entry.repo, entry),
        state=state,
        old=old,
        new=new,
        old_bytes=entry.meta.size if entry.meta else None,
        maker=made_by.get(entry.fs_path, ""),
        members=members,
    )


def _members(entry: Any) -> tuple[dict[str, str], dict[str, str]] | None:  # noqa: ANN401
    """List a folder's files then and now; None where DVC keeps no list of those of then.

    It keeps one of outputs and imports; of a folder that git holds, such as weights/, it does not.
    """
    from dvc_data.hashfile.tree import Tree  # noqa: PLC0415 (seconds of imports that only this needs)

    then = entry.get_obj()
    if not isinstance(then, Tree):
        return None
    _, _, now = entry._build(  # noqa: SLF001 (DVC's reading, which its database of known files makes quick)
        entry.cache,
        entry.fs_path,
        entry.fs,
        entry.hash_name,
        ignore=entry.dvcignore,
        dry_run=True,
        no_progress_bar=True,
    )
    return _listed(then), _listed(now) if isinstance(now, Tree) else {}


def _listed(tree: Any) -> dict[str, str]:  # noqa: ANN401
    return {"/".join(key): str(hash_info.value) for key, _, hash_info in tree}
