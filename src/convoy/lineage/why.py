"""Put into words what `dvc repro` would do, stage by stage, and which input changed from what to what."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from convoy.core.errors import RequestError
from convoy.core.params import did_you_mean
from convoy.lineage.rerun import Foreseen, foresee
from convoy.repo import git
from convoy.repo.dvc_graph import ABSENT, File, Param

SHOWN = 6
"""Members of a changed folder that are named; the rest are counted."""

OUTPUT_STATES = {
    "deleted": "is missing",
    "modified": "was changed by hand",
    "new": "was never recorded",
    "not in cache": "is not in DVC's cache",
}


def explain(root: Path, stage: str = "") -> dict[str, Any]:
    """Say what would rerun, and why; ready for JSON.

    Args:
        root: the repository.
        stage: the only one to speak of; empty for all.

    Raises:
        RequestError: there is no such stage, or DVC cannot read the pipeline.
    """
    foreseen = foresee(root)
    names = [one.stage.name for one in foreseen]
    if stage and stage not in names:
        raise RequestError(f"there is no stage `{stage}`{did_you_mean(stage, names)}")
    chosen = [one for one in foreseen if not stage or one.stage.name == stage]
    files = (dep for one in chosen if one.stage.recorded for dep in one.stage.deps)
    edited = {
        dep.path: dep.old
        for dep in files
        if dep.state == "modified" and not dep.maker and dep.members is None
    }
    edits = git.edits(root, {path: md5 for path, md5 in edited.items() if md5 and not md5.endswith(".dir")})
    return {
        "nothing_to_do": all(one.verdict == "unchanged" for one in chosen),
        "stages": [
            {
                "stage": one.stage.name,
                "verdict": one.verdict,
                "after": list(one.after),
                "never_ran": not one.stage.recorded,
                "frozen": one.stage.frozen,
                "changes": list(_changes(one, edits, root)),
            }
            for one in chosen
        ],
    }


def _changes(one: Foreseen, edits: dict[str, git.Edit], root: Path) -> Iterator[dict[str, Any]]:
    """List what differs from what a stage recorded; of one that never ran, nothing can differ."""
    found = one.stage
    if not found.recorded:
        return
    if found.always:
        yield {"kind": "always", "name": "runs each time"}
    if found.command:
        yield {
            "kind": "command",
            "name": "cmd",
            "state": "modified",
            "old": found.command[0],
            "new": found.command[1],
        }
    for param in found.params:
        yield _param(param)
    for dep in found.deps:
        if dep.state:
            yield _input(dep, edits, root)
        elif dep.path in one.replaced:
            yield {
                "kind": "input",
                "name": dep.path,
                "state": "replaced",
                "made_by": dep.maker,
                "old": dep.old,
            }
    for out in found.outs:
        if out.state:
            yield {"kind": "output", **_file(out)}


def _param(param: Param) -> dict[str, Any]:
    state = "new" if param.old is ABSENT else "deleted" if param.new is ABSENT else "modified"
    old, new = (None if value is ABSENT else value for value in (param.old, param.new))
    return {"kind": "param", "name": param.name, "state": state, "old": old, "new": new}


def _input(dep: File, edits: dict[str, git.Edit], root: Path) -> dict[str, Any]:
    change = {"kind": "input", **_file(dep), "made_by": dep.maker or None}
    if edit := edits.get(dep.path):
        return change | {"diff": edit.diff, "lines_added": edit.added, "lines_removed": edit.removed}
    if dep.state == "modified" and (root / dep.path).is_file() and dep.old_bytes is not None:
        return change | {"old_bytes": dep.old_bytes, "new_bytes": (root / dep.path).stat().st_size}
    return change


def _file(entry: File) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": entry.path, "state": entry.state, "old": entry.old, "new": entry.new}
    if entry.members:
        then, now = entry.members
        groups = {
            "added": sorted(now.keys() - then.keys()),
            "removed": sorted(then.keys() - now.keys()),
            "changed": sorted(path for path in then.keys() & now.keys() if then[path] != now[path]),
        }
        facts["members"] = {
            "before": len(then),
            "now": len(now),
            **{group: len(paths) for group, paths in groups.items()},
            "some": {group: paths[:SHOWN] for group, paths in groups.items()},
        }
    return facts


def lines(explained: dict[str, Any]) -> Iterator[str]:
    """Render for people: a line per stage, indented lines for its reasons, and what it comes to."""
    stages = explained["stages"]
    width = max(len(one["stage"]) for one in stages)
    busy = {one["stage"] for one in stages if one["verdict"] != "unchanged"}
    for one in stages:
        yield f"{one['stage']:<{width}}  {_verdict(one)}"
        # What an earlier stage is about to make again is told there.
        without_credentials = [
            change
            for change in one["changes"]
            if change.get("made_by") not in busy or change["state"] == "replaced"
        ]
        names = max((len(change["name"]) for change in without_credentials), default=0)
        for change in without_credentials:
            yield f"    {change['name']:<{names}}  {_change(change)}"
    if len(stages) > 1:
        yield ""
        yield _sum(stages)


def _verdict(one: dict[str, Any]) -> str:
    after = _and(one["after"])
    frozen = "frozen" + (": its source is not looked at" if one["stage"].endswith(".dvc") else "")
    match one["verdict"]:
        case "unchanged":
            return f"unchanged, {frozen}" if one["frozen"] else "unchanged"
        case "runs":
            return "runs: it never ran here" if one["never_ran"] else "runs"
        case "perhaps":
            return f"perhaps: only if what {after} {'make' if len(one['after']) > 1 else 'makes'} comes out different"
        case "cached":
            never = "never ran here by dvc.lock, but " if one["never_ran"] else ""
            return f"{never}DVC's cache has its outputs for these inputs; they are put back, nothing runs"
        case "accepted":
            return f"{'frozen: ' if one['frozen'] else ''}DVC records the files as they lie there now"
        case _:
            return _stops(one)


def _stops(one: dict[str, Any]) -> str:
    if one["stage"].endswith(".dvc") or one["frozen"]:
        return f"`dvc repro` stops here: frozen or tracked data are missing. Type: dvc checkout {one['stage']} (or: dvc pull)"
    return "`dvc repro` stops here: an input is missing that no stage makes"


def _change(change: dict[str, Any]) -> str:
    """Phrase one change; the kinds of change share no facts but their name."""
    if change["kind"] == "always":
        return ""
    if change["kind"] in ("param", "command"):
        old, new = (_value(change, side) for side in ("old", "new"))
        return f"{old} → {new}"
    members = _members(change["members"]) if "members" in change else ""
    if change["kind"] == "output":
        return f"{OUTPUT_STATES[change['state']]}{': ' if members else ''}{members}"
    return members or _file_change(change)


def _file_change(change: dict[str, Any]) -> str:
    if change["state"] == "replaced":
        said = f"other than recorded, once {change['made_by']} has put it there"
    elif change["state"] == "deleted":
        said = "is missing"
    elif change["state"] == "new" or not change["old"]:
        said = "is a new input"
    elif diff := change.get("diff"):
        counts = f"+{change['lines_added']} -{change['lines_removed']} lines"
        said = f"{counts if change['lines_added'] >= 0 else 'changed'}: {diff}"
    elif "old_bytes" in change:
        sizes = f"{change['old_bytes']:,} → {change['new_bytes']:,} bytes"
        said = f"{sizes}; git has no copy of the earlier one"
    else:
        said = f"changed: {change['old'][:10]} → {change['new'][:10] or 'unknown'}"
    return said


def _value(change: dict[str, Any], side: str) -> str:
    if change["state"] == {"old": "new", "new": "deleted"}[side]:
        return "(none)"
    value = change[side]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _members(members: dict[str, Any]) -> str:
    named = [
        f"{sign} {path}"
        for group, sign in (("added", "+"), ("removed", "-"), ("changed", "~"))
        for path in members["some"][group]
    ]
    total = sum(members[group] for group in ("added", "removed", "changed"))
    more = f", and {total - SHOWN:,} more" if total > SHOWN else ""
    counts = ", ".join(
        f"{members[group]:,} {group}" for group in ("added", "removed", "changed") if members[group]
    )
    return f"{counts} of {members['before']:,} files: {', '.join(named[:SHOWN])}{more}"


def _sum(stages: Sequence[dict[str, Any]]) -> str:
    of: dict[str, list[str]] = {}
    for one in stages:
        of.setdefault(one["verdict"], []).append(one["stage"])
        if one["verdict"] == "stops":
            break
    parts = [
        f"run {_and(of['runs'])}" if "runs" in of else "",
        f"put back {_and(of['cached'])} from the cache" if "cached" in of else "",
        f"record {_and(of['accepted'])} as is" if "accepted" in of else "",
        f"perhaps run {_and(of['perhaps'])}" if "perhaps" in of else "",
        f"stop at {of['stops'][0]}" if "stops" in of else "",
    ]
    if not any(parts):
        return "Nothing to do: `dvc repro` would leave everything as it is."
    return f"`dvc repro` would {_and([part for part in parts if part])}."


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
