"""Explain which stages `dvc repro` would run, and which of their inputs changed from what to what.

`dvc status --json` names what changed. dvc.lock holds the params, commands and hashes of the last run, DVC's cache the
files of folders that it tracks, git the edits of the others. Nothing is run or written.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Literal

from convoy.core import yaml
from convoy.core.console import table
from convoy.core.errors import RequestError
from convoy.core.params import did_you_mean, flatten
from convoy.repo import dvc, dvc_cache, git

Verdict = Literal["unchanged", "runs", "perhaps", "cached", "accepted", "stops"]
"""What `dvc repro` does with a stage.

`runs`: an input changed; DVC takes the outputs from its run cache where it ran with these inputs before. `perhaps`: only
if an earlier stage's outputs come out different. `cached`: only outputs are missing or edited, and DVC's cache has them.
`accepted`: data without a command; DVC records them as they are now. `stops`: an input is missing.
"""

LOCK = "dvc.lock"
ABSENT = object()
"""Stands for a param that does not exist; None is a value in YAML."""

SHOWN = 6
"""Files of a changed folder that are named; the rest are counted."""

HASHED_BYTES = 2 * 1024**3
"""Size of a folder up to which its files are compared by content, and not by name only."""

SEARCHED = 20
"""Latest commits of dvc.lock among which the one that recorded an input is looked for."""

OUTPUT_STATES = {
    "deleted": "missing",
    "modified": "edited by hand",
    "new": "never recorded",
    "not in cache": "not in DVC's cache",
}


@dataclass
class Stage:
    """Describe a stage of dvc.yaml, or a .dvc file.

    Attributes:
        name: as DVC addresses it, such as `train` or `data.dvc`.
        declared: its entry in dvc.yaml, or the content of the .dvc file.
        recorded: its entry in dvc.lock; None if it never ran. A .dvc file records itself.
        makers: path of each input to the stage that makes it.
        status: what `dvc status` lists: changed inputs and outputs by path, and flags such as `changed command`.
        verdict: what `dvc repro` does with it.
        after: earlier stages whose outputs decide the verdict.
    """

    name: str
    declared: dict[str, Any]
    recorded: dict[str, Any] | None
    makers: dict[str, str] = field(default_factory=dict)
    status: dict[str, dict[str, Any]] = field(default_factory=dict)
    verdict: Verdict = "unchanged"
    after: list[str] = field(default_factory=list)

    @property
    def is_file(self) -> bool:
        """Tell a .dvc file from a stage of dvc.yaml."""
        return self.name.endswith(".dvc")

    @property
    def frozen(self) -> bool:
        """Tell whether DVC ignores its inputs."""
        return bool(self.declared.get("frozen"))

    def paths(self, *kinds: str) -> list[str]:
        """List its recorded and declared inputs (`deps`) or outputs (`outs`, `metrics`, `plots`)."""
        sources = (self.recorded or {}, self.declared)
        entries = [entry for source in sources for kind in kinds for entry in source.get(kind) or ()]
        names = (
            entry if isinstance(entry, str) else entry["path"] if "path" in entry else next(iter(entry))
            for entry in entries
        )
        return list(dict.fromkeys(self._locate(name) for name in names if "${" not in name))

    def entry(self, kind: str, path: str) -> dict[str, Any]:
        """Read what is recorded of an input (`deps`) or output (`outs`): `md5`, with `.dir` for a folder, and `size`."""
        entries = (self.recorded or {}).get(kind) or ()
        return next((entry for entry in entries if self._locate(str(entry.get("path"))) == path), {})

    def hash(self, kind: str, path: str) -> str:
        """Read the recorded md5 of an input or output; empty if none is recorded."""
        return str(self.entry(kind, path).get("md5", ""))

    def _locate(self, name: str) -> str:
        """Spell a path as `dvc status` does: a .dvc file has it relative to its folder."""
        folder = Path(self.name).parent if self.is_file else Path()
        return name if "://" in name else os.path.normpath(folder / name)


@dataclass
class Repository:
    """Give access to what the explanation of a change needs.

    Attributes:
        root: the repository.
        stages: name to stage, in an order in which `dvc repro` may visit them.
    """

    root: Path
    stages: dict[str, Stage]

    @cached_property
    def cache(self) -> dvc_cache.Cache:
        """DVC's cache."""
        return dvc_cache.of_repository(self.root)

    @cached_property
    def locks(self) -> dict[str, bytes]:
        """The latest commits that changed dvc.lock, newest first, to its text."""
        commits = git.ask(self.root, "log", f"-{SEARCHED}", "--format=%h", "--", LOCK).split()
        texts = git.contents(self.root, [f"{commit}:{LOCK}" for commit in commits])
        return {commit: texts.get(f"{commit}:{LOCK}", b"") for commit in commits}

    def commit_of(self, md5: str, path: str) -> str:
        """Find the commit in which dvc.lock recorded an input; empty if that was never committed.

        HEAD, if it has the same content there.
        """
        commit = ""
        for number, text in self.locks.items():
            if md5.encode() in text:
                commit = number
            elif commit:
                break
        objects = (
            git.ask(self.root, "rev-parse", f"{commit}:{path}", f"HEAD:{path}").split() if commit else []
        )
        return "HEAD" if len(objects) == 2 and objects[0] == objects[1] else commit


def explain(root: Path, stage: str = "") -> dict[str, Any]:
    """Explain what `dvc repro` would do with every stage, or with one; ready for JSON.

    Args:
        root: the repository.
        stage: its name; empty for all.

    Raises:
        RequestError: the stage does not exist, or DVC cannot read the pipeline.
    """
    try:
        status = json.loads(dvc.run(root, "status", "--json"))
    except dvc.DvcError as error:
        raise RequestError(f"DVC cannot read the pipeline in {root}: {error}") from error
    repository = Repository(root, _read_stages(root, status))
    if stage and stage not in repository.stages:
        raise RequestError(f"stage `{stage}` does not exist{did_you_mean(stage, repository.stages)}")
    for each in repository.stages.values():
        _judge(each, repository)
    chosen = [each for name, each in repository.stages.items() if stage in ("", name)]
    return {
        "nothing_to_do": all(each.verdict == "unchanged" for each in chosen),
        "stages": [
            {
                "stage": each.name,
                "verdict": each.verdict,
                "after": each.after,
                "never_ran": each.recorded is None,
                "frozen": each.frozen,
                "changes": list(_changes(each, repository)) if each.recorded is not None else [],
            }
            for each in chosen
        ],
    }


def _read_stages(root: Path, status: Mapping[str, list[Any]]) -> dict[str, Stage]:
    """Read the stages of dvc.yaml, dvc.lock and the .dvc files, in the order of their inputs."""
    lock = (yaml.read(root / LOCK).get("stages") or {}) if (root / LOCK).exists() else {}
    stages = {name: Stage(name, content, content) for name, content in dvc_cache.tracked_files(root).items()}
    declared = (yaml.read(root / "dvc.yaml").get("stages") or {}) if (root / "dvc.yaml").exists() else {}
    for name, content in declared.items():
        items = [item for item in {**lock, **status} if item.startswith(f"{name}@")]  # foreach and matrix
        for item in items or [name]:
            stages[item] = Stage(item, content.get("do", content), lock.get(item))
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


def _judge(stage: Stage, repository: Repository) -> None:
    """Decide what becomes of a stage, from its status and the verdicts on earlier ones."""
    outs = stage.status.get("changed outs", {})
    if stage.frozen or (stage.is_file and "deps" not in stage.declared):
        stage.verdict = "stops" if "deleted" in outs.values() else "accepted" if outs else "unchanged"
        return
    pending = ("runs", "perhaps", "stops")
    earlier = {
        name: each.verdict for name, each in repository.stages.items() if name in stage.makers.values()
    }
    stage.after = [name for name, verdict in earlier.items() if verdict in pending]
    causes = []
    for path, state in stage.status.get("changed deps", {}).items():
        maker = stage.makers.get(path, "")
        verdict = earlier.get(maker, "unchanged")
        # What comes back from the cache may be what this stage used.
        if verdict == "cached":
            back = repository.stages[maker].hash("outs", path)
            verdict = "perhaps" if back in ("", stage.hash("deps", path)) else "unchanged"
        if verdict not in pending:
            causes.append("modified" if maker else state)
    if "deleted" in causes and not stage.is_file:
        stage.verdict = "stops"
    elif causes or stage.recorded is None or {"changed command", "always changed"} & stage.status.keys():
        stage.verdict = "runs"
    elif stage.after:
        stage.verdict = "perhaps"
    elif outs:
        hashes = [stage.hash("outs", path) for path in stage.paths("outs", "metrics", "plots")]
        is_cached = all(md5 and not repository.cache.lacks(md5) for md5 in hashes)
        stage.verdict = "cached" if is_cached else "runs"


def _changes(stage: Stage, repository: Repository) -> Iterator[dict[str, Any]]:
    """List what differs from what a stage recorded."""
    recorded = stage.recorded or {}
    if "always changed" in stage.status:
        yield {"kind": "always", "name": "always runs"}
    if "changed command" in stage.status:
        old, new = (_one_line(source.get("cmd")) for source in (recorded, stage.declared))
        yield {"kind": "command", "name": "cmd", "state": "modified", "old": old, "new": new}
    deps = stage.status.get("changed deps", {})
    for path, state in deps.items():
        if isinstance(state, dict):
            values = (recorded.get("params") or {}).get(path) or {}
            yield from _param_changes(values, _params(repository.root / path), list(state))
    for path, state in deps.items():
        if not isinstance(state, dict):
            yield _input_change(stage, path, state, repository)
    for path, state in stage.status.get("changed outs", {}).items():
        md5 = stage.hash("outs", path)
        change = {"kind": "output", "name": path, "state": state, "old": md5}
        yield change | (_members(repository, md5, path) if state == "modified" else {})


def _one_line(command: object) -> str:
    return " && ".join(map(str, command)) if isinstance(command, list) else str(command)


def _params(path: Path) -> dict[str, Any]:
    return yaml.read(path) if path.suffix in (".yaml", ".yml", ".json") and path.exists() else {}


def _param_changes(
    old: Mapping[str, Any], new: Mapping[str, Any], sections: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Name each value that differs, down to the last key: DVC compares whole sections."""
    for section in sections:
        try:
            present = flatten({section: yaml.get(new, section)})
        except (KeyError, TypeError):
            present = {}
        before = flatten({section: old[section]}) if section in old else {}
        for key in dict.fromkeys([*before, *present]):
            values = before.get(key, ABSENT), present.get(key, ABSENT)
            if values[0] != values[1]:
                state = "new" if values[0] is ABSENT else "deleted" if values[1] is ABSENT else "modified"
                then, now = (None if value is ABSENT else value for value in values)
                yield {"kind": "param", "name": key, "state": state, "old": then, "new": now}


def _input_change(stage: Stage, path: str, state: str, repository: Repository) -> dict[str, Any]:
    """Describe a changed input: edited files if git has it, files of a folder if DVC's cache lists them, else sizes."""
    md5, maker = stage.hash("deps", path), stage.makers.get(path)
    state = state if md5 or state == "deleted" else "new"
    change = {"kind": "input", "name": path, "state": state, "old": md5, "made_by": maker}
    if state in ("deleted", "new"):
        return change
    if members := _members(repository, md5, path):
        return change | members
    if maker is None and not stage.is_file and (edits := _edits(repository, md5, path)):
        return change | edits
    file, size = repository.root / path, stage.entry("deps", path).get("size")
    if file.is_file() and size is not None:
        return change | {"old_bytes": size, "new_bytes": file.stat().st_size}
    return change


def _edits(repository: Repository, md5: str, path: str) -> dict[str, Any]:
    """Name the files that were edited since the stage ran; empty if git does not hold the input."""
    if not git.ask(repository.root, "ls-files", "--", path):
        return {}
    commit = repository.commit_of(md5, path)
    edits = git.edits(repository.root, commit or "HEAD", path)
    diff = f"git diff {commit or 'HEAD'} -- {path}"
    return {"diff": diff, "run_committed": bool(commit), "files": edits} if edits else {}


def _members(repository: Repository, md5: str, path: str) -> dict[str, Any]:
    """Compare the files of a folder with DVC's list of them; empty if DVC keeps none, as of a folder in git."""
    then, folder = repository.cache.members(md5), repository.root / path
    if not then or not folder.is_dir():
        return {}
    now = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    is_small = sum(file.stat().st_size for file in now.values()) <= HASHED_BYTES
    groups = {
        "added": sorted(now.keys() - then.keys()),
        "removed": sorted(then.keys() - now.keys()),
        "changed": [
            name for name in sorted(then) if is_small and name in now and _md5(now[name]) != then[name]
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
    if stage["verdict"] == "stops":
        remedy = f": data are missing. Type: dvc checkout {name} (or: dvc pull {name})"
        reason = remedy if frozen or is_file else ": an input is missing that no stage makes"
        return f"`dvc repro` stops here{reason}"
    texts = {
        "unchanged": "unchanged" + (frozen and f", frozen{': its source is not checked' if is_file else ''}"),
        "runs": "runs: dvc.lock has no earlier run" if stage["never_ran"] else "runs",
        "perhaps": f"may run: only if outputs of {_and(stage['after'])} change",
        "cached": "restored from DVC's cache, does not run",
        "accepted": f"{frozen and 'frozen: '}DVC records the present files",
    }
    return texts[stage["verdict"]]


def _rows(change: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Phrase a change as a row of name and text, or a row for each edited file."""
    name, members = change["name"], _counts(change["members"]) if "members" in change else ""
    match change["kind"]:
        case "always":
            yield name, ""
        case "param" | "command":
            old, new = (_value(change, side) for side in ("old", "new"))
            yield name, f"{old} → {new}"
        case "output":
            yield (
                name,
                OUTPUT_STATES.get(change["state"], change["state"]) + (f": {members}" if members else ""),
            )
        case _ if "files" in change:
            yield from _edit_rows(change)
        case _:
            yield name, members or _input_text(change)


def _edit_rows(change: dict[str, Any]) -> Iterator[tuple[str, str]]:
    files, commit = change["files"], change["diff"].split()[2]
    note = (
        "" if change["run_committed"] else " (dvc.lock of the last run is not committed: compared with HEAD)"
    )
    for edit in files[:SHOWN]:
        if edit["added"] is None:
            yield edit["name"], "new file, not tracked by git"
        else:
            counts = (
                f"+{edit['added']} -{edit['removed']} lines" if edit["added"] >= 0 else "binary file changed"
            )
            yield edit["name"], f"{counts}: git diff {commit} -- {edit['name']}{note}"
    if len(files) > SHOWN:
        yield change["name"], f"{len(files)} files changed: {change['diff']}{note}"


def _input_text(change: dict[str, Any]) -> str:
    match change["state"]:
        case "deleted":
            return "missing"
        case "new":
            return "new input"
    if "old_bytes" in change:
        return f"changed: {change['old_bytes']:,} → {change['new_bytes']:,} bytes"
    return "changed at its source" if change["state"] == "update available" else "changed"


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
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
