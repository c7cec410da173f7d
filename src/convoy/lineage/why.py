"""Explain which stages `dvc repro` would run, and which of their inputs changed from what to what.

`dvc status --json` names what changed. dvc.lock holds the params and commands of the last run, DVC's cache the files of
folders that it tracks, git the edits of the others. Nothing is run or written.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Literal

from convoy.core import pipeline, yaml
from convoy.core.console import table
from convoy.core.errors import RequestError
from convoy.core.params import did_you_mean, flatten
from convoy.repo import dvc, git, imported, packing

Verdict = Literal["unchanged", "runs", "perhaps", "cached", "accepted", "stops"]
"""What `dvc repro` does with a stage.

`runs`: an input changed; DVC takes the outputs from its run cache where it ran with these inputs before. `perhaps`: only
if an earlier stage's outputs come out different. `cached`: only outputs are missing or edited; DVC restores them, and runs
the stage if its cache lacks them. `accepted`: data without a command; DVC records them as they are now. `stops`: an input
is missing.
"""

SHOWN = 6  # files of a changed folder that are named; the rest are counted
HASHED_BYTES = 2 * 1024**3  # size of a folder up to which its files are compared by content as well

INPUT_STATES = {"deleted": "missing", "new": "new input", "update available": "changed at its source"}
OUTPUT_STATES = {
    "deleted": "missing",
    "modified": "edited by hand",
    "new": "never recorded",
    "not in cache": "not in DVC's cache",
}


@dataclass
class Stage:
    """Describe a stage of dvc.yaml, or a .dvc file."""

    name: str  # as DVC addresses it, such as `train` or `data.dvc`
    declared: dict[str, Any]  # its entry in dvc.yaml, or the content of the .dvc file
    recorded: dict[str, Any] | None  # its entry in dvc.lock; None if it never ran. A .dvc file records itself
    status: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # what `dvc status` lists, by kind of change
    makers: dict[str, str] = field(default_factory=dict)  # path of each input to the stage that makes it
    verdict: Verdict = "unchanged"
    after: list[str] = field(default_factory=list)  # earlier stages whose outputs may change

    def paths(self, *kinds: str) -> list[str]:
        """List its recorded and declared inputs (`deps`) or outputs (`outs`, `metrics`, `plots`)."""
        sources = (self.recorded or {}, self.declared)
        entries = [entry for source in sources for kind in kinds for entry in source.get(kind) or ()]
        names = (
            entry if isinstance(entry, str) else entry["path"] if "path" in entry else next(iter(entry))
            for entry in entries
        )
        return list(dict.fromkeys(self._locate(name) for name in names if "${" not in name))

    def hash(self, kind: str, path: str) -> str:
        """Read the recorded md5 of an input (`deps`) or output (`outs`), with `.dir` for a folder; empty without one."""
        entries = (self.recorded or {}).get(kind) or ()
        md5s = (entry.get("md5", "") for entry in entries if self._locate(str(entry.get("path"))) == path)
        return str(next(md5s, ""))

    def _locate(self, name: str) -> str:
        """Spell a path as `dvc status` does: a .dvc file has it relative to its folder."""
        folder = Path(self.name).parent if self.name.endswith(".dvc") else Path()
        return name if "://" in name else os.path.normpath(folder / name)


def explain(root: Path, stage: str = "") -> dict[str, Any]:
    """Explain what `dvc repro` would do with a stage, or with all if none is named; ready for JSON.

    Raises:
        RequestError: the stage does not exist, or DVC cannot read the pipeline.
    """
    try:
        status = json.loads(dvc.run(root, "status", "--json"))
    except dvc.DvcError as error:
        pipeline.locked(root)  # a damaged dvc.lock has its own remedy
        raise RequestError(f"DVC cannot read the pipeline in {root}: {error}") from error
    packed = packing.of(root)
    if packed and packing.has_changed(packed):  # DVC sees the change once the folder is packed again
        status.setdefault(str(pipeline.DATA_IMPORT), []).append(
            {"changed deps": {pipeline.data_import(root).address: "update available"}}
        )
    if imported.is_ahead(root) and str(pipeline.DATA_IMPORT) not in status:
        recorded = pipeline.data_import(root)
        if not recorded.frozen:
            status[str(pipeline.DATA_IMPORT)] = [{"changed deps": {recorded.address: "update available"}}]
    stages = _read_stages(root, status)
    if stage and stage not in stages:
        raise RequestError(f"stage `{stage}` does not exist{did_you_mean(stage, stages)}")
    for each in stages.values():
        _judge(each, stages)
    chosen = [stages[stage]] if stage else list(stages.values())
    return {
        "nothing_to_do": all(each.verdict == "unchanged" for each in chosen),
        "stages": [
            {
                "stage": each.name,
                "verdict": each.verdict,
                "after": each.after,
                "never_ran": each.recorded is None,
                "frozen": bool(each.declared.get("frozen")),
                "changes": [] if each.recorded is None else list(_changes(each, each.recorded, root)),
            }
            for each in chosen
        ],
    }


def _read_stages(root: Path, status: Mapping[str, list[Any]]) -> dict[str, Stage]:
    """Read the stages of dvc.yaml, dvc.lock and the .dvc files, in the order of their inputs."""
    lock = pipeline.locked(root)
    declared = pipeline.stages(root) if (root / pipeline.PIPELINE).exists() else {}
    stages = {name: Stage(name, content, content) for name, content in dvc.tracked_files(root).items()}
    for name, content in declared.items():
        items = [item for item in {**lock, **status} if item.startswith(f"{name}@")]  # foreach and matrix
        for item in items or [name]:
            stages[item] = Stage(item, content, lock.get(item))
    for name in status.keys() - stages.keys():  # of a dvc.yaml in another folder
        stages[name] = Stage(name, {}, {})
    made = {path: each.name for each in stages.values() for path in each.paths("outs", "metrics", "plots")}
    for each in stages.values():
        for entry in status.get(each.name, ()):
            each.status |= {entry: {}} if isinstance(entry, str) else entry
        each.makers = {
            path: maker
            for path in each.paths("deps")
            for out, maker in made.items()
            if maker != each.name and (f"{path}/".startswith(f"{out}/") or out.startswith(f"{path}/"))
        }
    order = TopologicalSorter({each.name: each.makers.values() for each in stages.values()}).static_order()
    return {name: stages[name] for name in order}


def _judge(stage: Stage, stages: Mapping[str, Stage]) -> None:
    """Decide from its status and the verdicts on earlier stages what becomes of a stage."""
    outs, is_file = stage.status.get("changed outs", {}), stage.name.endswith(".dvc")
    if stage.declared.get("frozen") or (is_file and "deps" not in stage.declared):
        stage.verdict = "stops" if "deleted" in outs.values() else "accepted" if outs else "unchanged"
        return
    makers = [name for name in stages if name in stage.makers.values()]
    stage.after = [name for name in makers if stages[name].verdict not in ("unchanged", "accepted")]
    deps = stage.status.get("changed deps", {})
    causes = [state for path, state in deps.items() if stage.makers.get(path) not in stage.after]
    if "deleted" in causes and not is_file:
        stage.verdict = "stops"
    elif causes or stage.recorded is None or {"changed command", "always changed"} & stage.status.keys():
        stage.verdict = "runs"
    elif stage.after:
        stage.verdict = "perhaps"
    elif outs:
        stage.verdict = "cached"


def _changes(stage: Stage, recorded: Mapping[str, Any], root: Path) -> Iterator[dict[str, Any]]:
    """List what differs from what a stage recorded, params first."""
    if "always changed" in stage.status:
        yield {"kind": "always", "name": "always runs"}
    if "changed command" in stage.status:
        commands = (source.get("cmd") for source in (recorded, stage.declared))
        old, new = (" && ".join(cmd) if isinstance(cmd, list) else str(cmd) for cmd in commands)
        yield {"kind": "command", "name": "cmd", "state": "modified", "old": old, "new": new}
    files = {}
    for path, state in stage.status.get("changed deps", {}).items():
        if isinstance(state, dict) and Path(path).suffix in (".yaml", ".yml", ".json"):
            values = (recorded.get("params") or {}).get(path) or {}
            yield from _param_changes(values, yaml.read(root / path), state)
        else:
            files[path] = "modified" if isinstance(state, dict) else state
    for path, state in files.items():
        md5, maker = stage.hash("deps", path), stage.makers.get(path)
        kind = state if md5 or state == "deleted" else "new"
        change = {"kind": "input", "name": path, "state": kind, "old": md5, "made_by": maker}
        if kind not in ("deleted", "new"):
            in_git = maker is None and not stage.name.endswith(".dvc")
            change |= _members(root, md5, path) or (_edits(root, md5, path) if in_git else {})
        yield change
    for path, state in stage.status.get("changed outs", {}).items():
        md5 = stage.hash("outs", path)
        members = _members(root, md5, path) if state == "modified" else {}
        yield {"kind": "output", "name": path, "state": state, "old": md5} | members


def _param_changes(
    old: Mapping[str, Any], new: Mapping[str, Any], states: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Name each value that differs, down to the last key: DVC compares whole sections."""
    before = flatten({name: old[name] for name in states if name in old})
    now = flatten(
        {name: pipeline.value_of(new, name) for name, state in states.items() if state != "deleted"}
    )
    for key in dict.fromkeys([*before, *now]):
        state = "modified" if key in before and key in now else "deleted" if key in before else "new"
        if state != "modified" or before[key] != now[key]:
            yield {
                "kind": "param", "name": key, "state": state, "old": before.get(key), "new": now.get(key)
            }  # fmt: skip


def _edits(root: Path, md5: str, path: str) -> dict[str, Any]:
    """Name the files that were edited since dvc.lock recorded an input, by git; empty if git does not hold the input."""
    if not git.query(root, "ls-files", "--", path):
        return {}
    commits = git.query(root, "log", f"-S{md5}", "--format=%h", "--", "dvc.lock").split()
    commit = commits[-1] if commits else "HEAD"
    objects = git.query(root, "rev-parse", f"{commit}:./{path}", f"HEAD:./{path}").split()
    if len(set(objects)) == 1:
        commit = "HEAD"
    files = git.edits(root, commit, path)
    diff = f"git diff {commit} -- {path}"
    return {"diff": diff, "run_committed": bool(commits), "files": files} if files else {}


def _members(root: Path, md5: str, path: str) -> dict[str, Any]:
    """Compare the files of a folder with DVC's list of them; empty if DVC keeps none, as of a folder in git."""
    folder = root / path
    then = dvc.Cache.of(root).members(md5)
    if not then or not folder.is_dir():
        return {}
    now = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    is_small = sum(file.stat().st_size for file in now.values()) <= HASHED_BYTES
    groups = {
        "added": sorted(now.keys() - then.keys()),
        "removed": sorted(then.keys() - now.keys()),
        "changed": [
            name for name in sorted(then.keys() & now.keys()) if is_small and _md5(now[name]) != then[name]
        ],
    }
    counts = {group: len(names) for group, names in groups.items()}
    some = {group: names[:SHOWN] for group, names in groups.items()}
    return {"members": {"before": len(then), "now": len(now), **counts, "some": some}}


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def lines(explained: dict[str, Any]) -> Iterator[str]:
    """Render for people: a line per stage, indented lines for its reasons, and a summary."""
    stages = explained["stages"]
    width = max(len(stage["stage"]) for stage in stages)
    busy = {stage["stage"] for stage in stages if stage["verdict"] != "unchanged"}
    for stage in stages:
        yield f"{stage['stage']:<{width}}  {_verdict(stage)}"
        # What an earlier stage makes again is explained there.
        shown = (change for change in stage["changes"] if change.get("made_by") not in busy)
        if rows := [row for change in shown for row in _rows(change)]:
            yield table(("", ""), rows, indent=4)
    if len(stages) > 1:
        yield ""
        yield _summary(stages)


def _verdict(stage: dict[str, Any]) -> str:
    name, is_file = stage["stage"], stage["stage"].endswith(".dvc")
    frozen = "frozen" if stage["frozen"] else ""
    remedy = f": data are missing. Type: dvc checkout {name} (or: dvc pull {name})"
    texts = {
        "unchanged": "unchanged" + (frozen and f", frozen{': its source is not checked' if is_file else ''}"),
        "runs": "runs: dvc.lock has no earlier run" if stage["never_ran"] else "runs",
        "perhaps": f"may run: only if outputs of {_and(stage['after'])} change",
        "cached": "restored from DVC's cache, runs only if the cache lacks outputs",
        "accepted": f"{frozen and 'frozen: '}DVC records the present files",
        "stops": "`dvc repro` stops here"
        + (remedy if frozen or is_file else ": an input is missing that no stage makes"),
    }
    return texts[stage["verdict"]]


def _rows(change: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Phrase a change as a row of name and text, or a row for each edited file."""
    name, members = change["name"], _counts(change["members"]) if "members" in change else ""
    match change["kind"]:
        case "always":
            yield name, ""
        case "param" | "command":
            yield name, f"{_value(change, 'old')} → {_value(change, 'new')}"
        case "output":
            state = OUTPUT_STATES.get(change["state"], change["state"])
            yield name, f"{state}: {members}" if members else state
        case _ if "files" in change:
            yield from _edit_rows(change)
        case _:
            yield name, members or INPUT_STATES.get(change["state"], "changed")


def _edit_rows(change: dict[str, Any]) -> Iterator[tuple[str, str]]:
    files, commit = change["files"], change["diff"].split()[2]
    note = (
        "" if change["run_committed"] else " (dvc.lock of the last run is not committed: compared with HEAD)"
    )
    for edit in files[:SHOWN]:
        if edit["added"] is None:
            yield edit["name"], "new file, not tracked by git"
        else:
            is_text = edit["added"] >= 0
            counts = f"+{edit['added']} -{edit['removed']} lines" if is_text else "binary file changed"
            yield edit["name"], f"{counts}: git diff {commit} -- {edit['name']}{note}"
    if len(files) > SHOWN:
        yield change["name"], f"{len(files)} files changed: {change['diff']}{note}"


def _value(change: dict[str, Any], side: str) -> str:
    if change["state"] == {"old": "new", "new": "deleted"}[side]:
        return "(none)"
    value = change[side]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _counts(members: dict[str, Any]) -> str:
    groups = {"added": "+", "removed": "-", "changed": "~"}
    named = [f"{sign} {path}" for group, sign in groups.items() for path in members["some"][group]]
    total = sum(members[group] for group in groups)
    more = f", and {total - SHOWN:,} more" if total > SHOWN else ""
    counts = ", ".join(f"{members[group]:,} {group}" for group in groups if members[group])
    return f"{counts or 'changed'} of {members['before']:,} files: {', '.join(named[:SHOWN])}{more}"


def _summary(stages: Sequence[dict[str, Any]]) -> str:
    names: dict[str, list[str]] = {}
    for stage in stages:
        names.setdefault(stage["verdict"], []).append(stage["stage"])
        if stage["verdict"] == "stops":
            break
    phrases = {
        "runs": "run {}",
        "cached": "restore {} from the cache",
        "accepted": "record {} as is",
        "perhaps": "perhaps run {}",
        "stops": "stop at {}",
    }
    parts = [text.format(_and(names[verdict])) for verdict, text in phrases.items() if verdict in names]
    return f"`dvc repro` would {_and(parts)}." if parts else "Nothing to do: every stage is up to date."


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
