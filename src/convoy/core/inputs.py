"""What a stage reads (params, code and other dependencies in dvc.yaml), taken at its start and compared at its end.

DVC records the dependencies of a stage as they are when its command has ended. A file that was edited while the stage
ran would be recorded as what its result was made from.
"""

import fnmatch
import json
import math
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.core import escaping, files, params, yaml
from convoy.core.console import info
from convoy.core.errors import ConvoyError, RequestError, listed

PIPELINE = Path("dvc.yaml")
IGNORE = Path(".dvcignore")
TEMPLATE = re.compile(r"\$\{([^}]+)\}")
"""How dvc.yaml refers to a param, such as `${network.name}`."""

CONTENT_FILES, CONTENT_BYTES = 500, 4_000_000
"""Largest dependency that is compared by content; of larger ones, files that were added, removed or written count."""

FOR_PEOPLE = ("desc", "meta")
"""Fields of a stage that DVC does not compare."""

SHOWN = 5
RECENT_S = 1.0
NEVER_INPUT = "__pycache__"

Member = os.DirEntry[str] | Path


class InputsChanged(ConvoyError):  # noqa: N818 (a state of the workspace)
    """Params, code or dependencies were edited while their stage ran."""

    def __init__(self, changes: list[str], kept: str) -> None:
        """Store a line per change; `kept` states what remains of the stage's work, empty if nothing does."""
        self.changes = changes
        lines = "\n".join(f"  {change}" for change in changes)
        remedy = "Run `dvc repro` again, with these inputs as they are now or restored."
        if kept:
            remedy = (
                f"{kept} Restore these inputs and run `dvc repro`, which finishes from there; or keep them and run "
                "`dvc repro` for the new ones."
            )
        super().__init__(
            f"its inputs changed while it ran, so its result is not recorded:\n{lines}\n{remedy} "
            "To try other values while a stage runs: dvc exp run --queue -S KEY=VALUE"
        )


@dataclass(frozen=True)
class Inputs:
    """Hold what a stage of dvc.yaml was given, at one moment."""

    stage: str
    fields: Mapping[str, Any]  # of the stage in dvc.yaml
    params: Mapping[str, Any]  # `file:key` to value, nested keys flat
    files: Mapping[str, Mapping[str, str]]  # fingerprint of each file of each dependency
    by_content: Collection[str]  # dependencies whose fingerprints are SHA-256
    began_ns: int

    @classmethod
    def take(cls, stage: str) -> "Inputs":
        """Read them from the current folder.

        Raises:
            RequestError: dvc.yaml has no such stage, or a file of params cannot be read.
        """
        began_ns = time.time_ns()
        fields = _fields(stage)
        values, paths = declared(fields)
        found = {path: list(_members(path)) for path in paths}
        small = [path for path, members in found.items() if _is_small(members)]
        marks = {path: _fingerprints(members, by_content=path in small) for path, members in found.items()}
        return cls(stage, fields, params.flatten(values), marks, small, began_ns)

    def changes(self) -> list[str]:
        """Compare with the current folder; return a line for each param, dependency or field that differs."""
        try:
            fields = _fields(self.stage)
            values = params.flatten(declared(fields)[0])
        except RequestError as error:
            return [str(error)]
        edited = [name for name in {**self.fields, **fields} if self.fields.get(name) != fields.get(name)]
        lines = [f"{PIPELINE}: {', '.join(edited)} of stage {self.stage}"] if edited else []
        for name in {**self.params, **values}:
            before, after = (
                yaml.inline(side[name]) if name in side else "(none)" for side in (self.params, values)
            )
            if before != after:
                file, _, key = name.partition(":")
                lines.append(f"{key}: {before} → {after} ({file})")
        for path, marks in self.files.items():
            small = path in self.by_content
            now = _fingerprints(_members(path), by_content=small, since_ns=self.began_ns)
            if now != marks and (words := _file_changes(marks, now)):
                lines.append(listed(words, SHOWN))
        return lines


_held: Inputs | None = None
_checked_s = -math.inf  # when they were compared last
_warned: list[str] = []  # the edits that were reported last


@contextmanager
def held(stage: str) -> Iterator[None]:
    """Take the inputs of a stage, run the block, and compare.

    In the block params are read as they were at its start (`params.read`). Nothing is compared again at its end if the
    block did so in its last second (`check`), or has handed its inputs over.

    Raises:
        InputsChanged: the inputs differ at the end of the block.
    """
    global _held, _checked_s  # noqa: PLW0603 (a process is one stage)
    _held, _checked_s = Inputs.take(stage), -math.inf
    try:
        with params.held():
            yield
            if time.monotonic() - _checked_s > RECENT_S:
                check()
    finally:
        _held = None


def check(kept: str = "") -> None:
    """Compare the inputs of the running stage with those at its start; nothing is compared outside a stage.

    `kept` is a sentence about what a failed stage keeps, for the message.

    Raises:
        InputsChanged: they differ.
    """
    global _checked_s  # noqa: PLW0603 (as above)
    if _held and (changes := _held.changes()):
        raise InputsChanged(changes, kept)
    _checked_s = time.monotonic()


def warn() -> None:
    """Report inputs that were edited since the stage began, each set of edits once: they can still be restored."""
    global _warned  # noqa: PLW0603 (as above)
    changes = _held.changes() if _held else []
    if changes and changes != _warned:
        info(
            f"Inputs of this stage were edited: {'; '.join(changes)}. Restore them before it ends: otherwise it fails "
            "then, and DVC does not record its result."
        )
    _warned = changes


def hand_over(path: Path) -> None:
    """Write the inputs to a file, for the next command of the same stage, which compares them at its end."""
    global _held  # noqa: PLW0603 (as above)
    if _held:
        files.write_text(path, json.dumps(vars(_held)))
        _held = None


def take_over(path: Path) -> None:
    """Compare at the end with the inputs that the stage's command before handed over; remove their file."""
    global _held  # noqa: PLW0603 (as above)
    if _held and path.exists():
        _held = Inputs(**files.read_json(path))
        path.unlink()


def sha256(path: Path) -> str:
    """Hash a file; a dependency of the running stage that is compared by content, as it was at the stage's start."""
    taken = (marks.get(path.as_posix()) for marks in (_held.files.values() if _held else ()))
    return next(filter(None, taken), None) or files.sha256(path)


def declared(fields: Mapping[str, Any], root: Path = Path()) -> tuple[dict[str, Any], list[str]]:
    """Resolve the params of a stage, `file:key` to value, and the paths of its dependencies.

    Raises:
        RequestError: a params file does not exist or is not valid YAML.
    """
    found: dict[str, Any] = {}
    for entry in fields.get("params") or ():
        for path, keys in ({params.PARAMS_FILE.name: [entry]} if isinstance(entry, str) else entry).items():
            content = yaml.read(root / path)
            found |= {f"{path}:{key}": value_of(content, key) for key in keys or content}
    values = yaml.read(root / params.PARAMS_FILE)
    paths = [
        TEMPLATE.sub(lambda match: str(value_of(values, match[1])), path) for path in fields.get("deps") or ()
    ]
    return found, paths


def value_of(values: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401 (as wide as YAML)
    """Look up a param by its flat key; None if it does not exist."""
    try:
        return yaml.get(values, key)
    except (KeyError, TypeError):
        return None


def _fields(stage: str) -> dict[str, Any]:
    """Read the fields of a stage from dvc.yaml."""
    stages = yaml.read(PIPELINE).get("stages") or {}
    stage = stage.rpartition(":")[2].partition("@")[0]  # DVC's `folder/dvc.yaml:train@lenet5`
    if stage not in stages:
        raise RequestError(f"{PIPELINE} has no stage {stage}{params.did_you_mean(stage, stages)}")
    fields = stages[stage].get("do", stages[stage])  # of foreach and matrix
    return {name: value for name, value in fields.items() if name not in FOR_PEOPLE}


def _is_small(members: Sequence[Member]) -> bool:
    return len(members) <= CONTENT_FILES and sum(map(_size, members)) <= CONTENT_BYTES


def _size(member: Member) -> int:
    try:
        return member.stat().st_size
    except OSError:  # a dangling link
        return 0


def _fingerprints(members: Iterable[Member], *, by_content: bool, since_ns: int = 0) -> dict[str, str]:
    """Describe files by their SHA-256, or by whether they were changed since a time; 0: none was."""
    if by_content:
        hashes = {}
        for member in members:
            with suppress(OSError):  # removed by now, or a link to a folder
                hashes[os.fspath(member)] = files.sha256(Path(member))
        return hashes
    if not since_ns:
        return {os.fspath(member): "" for member in members}
    now_ns, marks = time.time_ns(), {}
    for member in members:
        mark = ""
        try:
            stat = member.stat()
            # The time of the status also shows edits that keep the time of the content; new links to the file move it too.
            time_ns = stat.st_ctime_ns if stat.st_nlink == 1 else stat.st_mtime_ns
            if since_ns < time_ns <= now_ns:  # a future time comes from another clock
                mark = "edited"
        except OSError:  # a dangling link
            pass
        marks[os.fspath(member)] = mark
    return marks


def _members(path: str) -> Iterator[Member]:
    """Yield the files of a dependency; links to folders are followed at the top only, as by DVC."""
    if not Path(path).is_dir():
        if Path(path).exists():
            yield Path(path)
        return
    folders = [path]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    yield entry
                elif entry.name != NEVER_INPUT:
                    folders.append(entry.path)


def _file_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Name the files that differ, except those that .dvcignore leaves out."""
    patterns = IGNORE.read_text(encoding="utf-8").split("\n") if IGNORE.exists() else []
    patterns = [line.strip().strip("/") for line in patterns if line.strip() and not line.startswith("#")]
    return [
        f"{escaping.visible(name)} ({'new' if name not in before else 'removed' if name not in now else 'edited'})"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
        and not any(
            fnmatch.fnmatch(part, pattern)
            for pattern in patterns
            for part in (name, *map(str, Path(name).parents), *Path(name).parts)
        )
    ]
