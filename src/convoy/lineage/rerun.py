"""Foresee what `dvc repro` does with every stage: run it, take it from the cache, leave it, or stop there."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from convoy.repo import dvc_graph
from convoy.repo.dvc_graph import File, Found

Verdict = Literal["unchanged", "runs", "perhaps", "cached", "accepted", "stops"]
"""What becomes of a stage.

`perhaps`: only if an earlier stage's outputs come out different. `cached`: it changed, and DVC has the
outputs for these inputs already. `accepted`: data without a command; DVC records them as they lie there.
"""


@dataclass(frozen=True)
class Foreseen:
    """State what becomes of a stage, and why.

    Attributes:
        stage: what differs from what it recorded.
        verdict: what `dvc repro` would do.
        after: earlier stages whose outputs nobody can know yet, and that decide or add to the verdict.
        replaced: inputs that lie there unchanged, and that an earlier stage is going to replace.
    """

    stage: Found
    verdict: Verdict
    after: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()


@dataclass
class _Ahead:
    """Know what stages judged so far will leave behind.

    Attributes:
        promised: path of an output to the md5 that it is sure to have.
        unsure: stages whose outputs nobody can know, in the order of `dvc repro`.
    """

    promised: dict[str, str] = field(default_factory=dict)
    unsure: dict[str, None] = field(default_factory=dict)

    def expect(self, dep: File) -> str:
        """Name the md5 that an input will have when its stage's turn comes; empty where it is not there."""
        return self.promised.get(dep.path, dep.new)


def foresee(root: Path) -> list[Foreseen]:
    """Judge every stage of a repository, in the order of `dvc repro`.

    Raises:
        RequestError: DVC cannot read the pipeline.
    """
    with dvc_graph.opened(root) as repo:
        stages = dvc_graph.ordered(repo)
        made_by = dvc_graph.makers(stages)
        commands = dvc_graph.commands(root)
        ahead = _Ahead()
        return [
            _judge(repo, stage, dvc_graph.compare(stage, made_by, commands.get(stage.addressing)), ahead)
            for stage in stages
        ]


def _judge(repo: Any, stage: Any, found: Found, ahead: _Ahead) -> Foreseen:  # noqa: ANN401 (DVC has no types)
    """Judge one stage by those before it, and add to what lies ahead."""
    if found.frozen or found.kind == "added":
        return _judge_data(found, ahead)
    after = tuple(name for name in ahead.unsure if any(dep.maker == name for dep in found.deps))
    known = [dep for dep in found.deps if dep.maker not in after]
    differing = [dep for dep in known if ahead.expect(dep) != dep.old]
    replaced = tuple(dep.path for dep in differing if not dep.state)
    if any(not ahead.expect(dep) for dep in known) and found.kind == "stage":
        ahead.unsure[found.name] = None
        return Foreseen(found, "stops", after, replaced)
    own = differing or found.params or found.command or found.always or not found.recorded
    # An input that is back as recorded when the turn comes is no cause.
    news = (
        own or any(out.state for out in found.outs) or any(dep.state == "update available" for dep in known)
    )
    if not news:
        if after:
            ahead.unsure[found.name] = None
        return Foreseen(found, "perhaps" if after else "unchanged", after)
    made = None if after or found.always else _kept(repo, stage, found, ahead, as_recorded=not own)
    if made is not None:
        ahead.promised |= made
        return Foreseen(found, "cached", after, replaced)
    if found.kind == "import" and [dep.hash_name for dep in stage.deps] == ["md5"]:
        ahead.promised[found.outs[0].path] = found.deps[0].new  # what is imported is what lies at the source
    else:
        ahead.unsure[found.name] = None
    return Foreseen(found, "runs", after, replaced)


def _judge_data(found: Found, ahead: _Ahead) -> Foreseen:
    """Judge what has no command or is frozen: DVC takes what lies there, and stops where nothing does."""
    if any(out.state and not out.new for out in found.outs):
        ahead.unsure[found.name] = None
        return Foreseen(found, "stops")
    ahead.promised |= {out.path: out.new for out in found.outs if out.state}
    return Foreseen(found, "accepted" if found.changed else "unchanged")


def _kept(repo: Any, stage: Any, found: Found, ahead: _Ahead, *, as_recorded: bool) -> dict[str, str] | None:  # noqa: ANN401
    """Look for the outputs of these inputs in DVC's cache; path to md5, None where it has them not (all)."""
    outs = {out.path: entry for out, entry in zip(found.outs, stage.outs, strict=True)}
    if as_recorded and all(out.old for out in found.outs):
        if any(entry.changed_cache() for entry in outs.values()):
            return None
        return {out.path: out.old for out in found.outs}
    return _from_run_cache(repo, stage, found, ahead) if found.kind == "stage" else None


def _from_run_cache(repo: Any, stage: Any, found: Found, ahead: _Ahead) -> dict[str, str] | None:  # noqa: ANN401
    """Look for an earlier run of the same command with the same inputs.

    `StageCache.restore(dry=True)` would compare what is recorded, not what is there.
    """
    from dvc.dependency import ParamsDependency  # type: ignore[import-untyped] # noqa: PLC0415 (seconds of imports that only this needs)
    from dvc.stage.cache import _get_cache_hash  # type: ignore[import-untyped] # noqa: PLC0415 (seconds of imports that only this needs)
    from dvc.stage.serialize import to_single_stage_lockfile  # type: ignore[import-untyped] # noqa: PLC0415 (seconds of imports that only this needs)
    from dvc_data.hashfile.hash_info import HashInfo  # noqa: PLC0415 (seconds of imports that only this needs)
    from dvc_data.hashfile.meta import Meta  # noqa: PLC0415 (seconds of imports that only this needs)

    if any(out.persist for out in stage.outs):
        return None
    expected = iter([ahead.expect(dep) for dep in found.deps])
    for dep in stage.deps:
        if isinstance(dep, ParamsDependency):
            dep.hash_info = dep.get_hash()
            continue
        dep.hash_info = HashInfo("md5", next(expected))
        # What is recorded of the file holds its old md5; whether it is executable is part of the key.
        dep.meta = Meta(isexec=dep.exists and dep.isfile() and dep.get_meta().isexec)
    key = _get_cache_hash(to_single_stage_lockfile(stage), key=True)
    kept = sorted(
        Path(repo.stage_cache.cache_dir, key[:2], key).glob("*"), key=lambda path: path.stat().st_mtime
    )
    entry = repo.stage_cache._load_cache(key, kept[-1].name) if kept else None  # noqa: SLF001
    if not entry:
        return None
    made = repo.stage_cache._create_stage(entry, wdir=stage.wdir)  # noqa: SLF001
    if not made.outs_cached():
        return None
    return {dvc_graph.name(repo, out): str(out.hash_info.value) for out in made.outs}
