"""Where the images come from: data.dvc, pointed elsewhere; and a look at what would be found."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core import yaml
from convoy.core.errors import DataError, RequestError
from convoy.data.prepare import describe, metrics
from convoy.data.records import IGNORED
from convoy.data.scan import survey
from convoy.data.settings import DataParams
from convoy.data.split import LEFT_OUT
from convoy.repo import dvc

DATA = "data"
IMPORT = "data.dvc"
NOTHING = np.empty((0, 0, 3), np.uint8)


def use(source: str, root: Path) -> list[str]:
    """Point data.dvc to another source and fetch it, replacing data/.

    The import is left unfrozen, so that plain `dvc repro` fetches it on a fresh clone and
    takes it anew when the source changes.

    Args:
        source: a path, relative to the current folder, or a URL that DVC imports from.
        root: the repository.

    Returns:
        Lines for people: what was done, what to heed, what to type next.

    Raises:
        RequestError: the path does not exist or cannot be a source of this repository.
        DataError: data/ holds what DVC does not know, or DVC cannot fetch the source; data/
            and data.dvc are then as they were.
    """
    root = root.resolve()
    dvc.check_repository(root)
    address = source if "://" in source else _address(source, root)
    _check_replaceable(root)
    before = _current(root)
    try:
        with dvc.replacing(root, (DATA, IMPORT)):
            dvc.run(root, "import-url", address, DATA)
            dvc.run(root, "unfreeze", IMPORT)
    except dvc.DvcError as error:
        kept = f"Nothing has changed: {IMPORT} still imports {before}." if before else "Nothing has changed."
        raise DataError(f"DVC cannot import {address}: {error}\n{kept}") from error
    lines = [f"{IMPORT} now imports {address}" + (f" (before: {before})." if before else ".")]
    if "://" not in address and Path(address).is_absolute():
        lines.append(dvc.unreachable(address))
    lines.append("Next: `convoy data check` shows what it holds, `dvc repro` trains with it.")
    lines.append(
        f"Commit {IMPORT} to keep it; `git checkout {IMPORT} && dvc checkout {IMPORT}` goes back to the committed one."
    )
    return lines


def check(data: Path, params: DataParams) -> dict[str, Any]:
    """Look at a delivery as `prepare` would, and write nothing.

    Returns:
        `data` (prepare's metrics), `classes`, `counts` per split and class, `cut` (parts that would
        be cut), `quarantined`, `left_out` and `ignored` (path and reason each), `accepted` (False
        where more is quarantined than `data.max_quarantined` allows) and `lines` for people.

    Raises:
        DataError: as `survey`, but for the number of quarantined files, all of which are listed.
    """
    found = survey(
        data,
        params.model_copy(update={"max_quarantined": 1.0}),
        shrink=lambda _: NOTHING,
        keep=lambda _: None,
    )
    numbers = metrics(found)
    groups: dict[str, list[dict[str, str]]] = {"quarantined": [], "left_out": [], "ignored": []}
    for record in found.records:
        entry = {"path": record.path, "reason": record.verdict.removeprefix(LEFT_OUT).removeprefix(IGNORED)}
        if record.quarantined:
            groups["quarantined"].append(entry)
        elif record.verdict.startswith(LEFT_OUT):
            groups["left_out"].append(entry)
        elif record.verdict.startswith(IGNORED):
            groups["ignored"].append(entry)
    judged = len(found.records) - len(groups["ignored"])
    accepted = len(groups["quarantined"]) <= params.max_quarantined * judged
    lines = describe(found, params)
    for what, entries in groups.items():
        lines += [f"{what.replace('_', ' ')}: {entry['path']}: {entry['reason']}" for entry in entries]
    if not accepted:
        lines.append(
            f"`dvc repro` would refuse this: {len(groups['quarantined']):,} of {judged:,} files cannot be used, "
            f"data.max_quarantined allows {params.max_quarantined:.1%}."
        )
    return {
        **numbers,
        "classes": found.classes,
        "counts": found.counts(),
        "cut": list(found.cut),
        **groups,
        "accepted": accepted,
        "lines": lines,
    }


def _address(source: str, root: Path) -> str:
    """Give a path as data.dvc shall hold it; the fetched copy is no source."""
    resolved, address = dvc.locate(source, root)
    if resolved == root / DATA or root / DATA in resolved.parents:
        raise RequestError(
            f"{source} lies in {DATA}/, which holds the fetched copy. Move it elsewhere first: "
            f"`mv {DATA} my-images && convoy data use my-images`"
        )
    return address


def _check_replaceable(root: Path) -> None:
    """Refuse to throw away files that are nowhere else."""
    if not (root / DATA).exists():
        return
    if (root / IMPORT).exists():
        status = json.loads(_dvc_or_refuse(root, "data", "status", "--json"))
        touched = {path.rstrip("/") for paths in status.get("uncommitted", {}).values() for path in paths}
        if DATA not in touched:
            return
        why = "was changed since DVC fetched it"
    else:
        why = f"is not from an import: there is no {IMPORT}"
    raise DataError(
        f"{DATA} {why}, so its files may be nowhere else. Move it away, then try again: `mv {DATA} my-images`"
    )


def _current(root: Path) -> str:
    """Read the source in data.dvc; empty where there is none."""
    try:
        content = yaml.load((root / IMPORT).read_text(encoding="utf-8"))
        return str(content["deps"][0]["path"])
    except (FileNotFoundError, RequestError, KeyError, IndexError, TypeError):
        return ""


def _dvc_or_refuse(root: Path, *arguments: str) -> str:
    try:
        return dvc.run(root, *arguments)
    except dvc.DvcError as error:
        raise DataError(f"`dvc {' '.join(arguments)}` failed in {root}: {error}") from error
