"""What a stage reads (params, code and other dependencies in dvc.yaml), taken at its start and compared at its end.

DVC records the dependencies of a stage as they are when its command has ended. A file that was edited while the stage
ran would be recorded as what its result was made from.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoy.core import escaping, files, params, pipeline, yaml
from convoy.core.console import info
from convoy.core.errors import ConvoyError, RequestError, listed

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

CONTENT_FILES, CONTENT_BYTES = 500, 4_000_000
"""Largest dependency that is compared by content; of larger ones, files that were added, removed or written count."""

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
    hashes: Mapping[str, Mapping[str, str]]  # of small dependencies: SHA-256 of each file
    names: Mapping[str, list[str]]  # of large ones: their files
    began_ns: int

    @classmethod
    def take(cls, stage: str, read: pipeline.Read = yaml.read) -> "Inputs":
        """Read them from the current folder, YAML files with `read`.

        Raises:
            RequestError: dvc.yaml has no such stage, or a file of params cannot be read.
        """
        began_ns = time.time_ns()
        fields = pipeline.stage(stage)
        values, paths = pipeline.declared(fields, read)
        names = {path: _names(path) for path in paths}
        hashes = {path: _hashes(names.pop(path)) for path in paths if _is_small(names[path])}
        return cls(stage, fields, params.flatten(values), hashes, names, began_ns)

    def changes(self) -> list[str]:
        """Compare with the current folder; return a line for each param, dependency or field that differs."""
        try:
            fields = pipeline.stage(self.stage)
            values = params.flatten(pipeline.declared(fields, cache(yaml.read))[0])
        except RequestError as error:
            return [str(error)]
        edited = [name for name in {**self.fields, **fields} if self.fields.get(name) != fields.get(name)]
        lines = [f"{pipeline.PIPELINE}: {', '.join(edited)} of stage {self.stage}"] if edited else []
        for name in {**self.params, **values}:
            before, after = (
                yaml.inline(side[name]) if name in side else "(none)" for side in (self.params, values)
            )
            if before != after:
                file, _, key = name.partition(":")
                lines.append(f"{key}: {before} → {after} ({file})")
        for path in [*self.hashes, *self.names]:
            if changed := self._changed(path):
                words = [f"{escaping.visible(name)} ({what})" for name, what in sorted(changed.items())]
                lines.append(listed(words, SHOWN))
        return lines

    def _changed(self, path: str) -> dict[str, str]:
        """Name the files of a dependency that are new, removed or edited, except those that .dvcignore leaves out."""
        if path in self.hashes:
            hashes = _hashes(_names(path))
            before, now = set(self.hashes[path]), set(hashes)
            edited = {name for name, mark in hashes.items() if mark != self.hashes[path].get(name)}
        else:
            before = set(self.names[path])
            now, edited = _written(path, self.began_ns)
        rules = cache(ignore_rules)
        return {
            name: "new" if name not in before else "edited" if name in now else "removed"
            for name in edited | (now ^ before)
            if not is_ignored(name, rules)
        }


class Watch:
    """Compare the inputs of the stage that this process runs with those at its start; do nothing outside a stage."""

    def __init__(self) -> None:
        self._inputs: Inputs | None = None
        self._checked_s = -math.inf
        self._warned: list[str] = []

    @contextmanager
    def held(self, stage: str, handed: Path | None = None) -> Iterator[None]:
        """Take the inputs of a stage, run the block, and compare.

        In the block params are read as they were at its start (`params.read`). Nothing is compared again at its end if
        the block did so in its last second (`check`), or has handed its inputs over.

        Args:
            stage: its name in dvc.yaml.
            handed: inputs that the stage's command before wrote by `hand_over`; the file is removed.

        Raises:
            InputsChanged: the inputs differ at the end of the block.
        """
        self._checked_s, self._warned = -math.inf, []
        if handed and handed.exists():
            content = files.read_json(handed)
            self._inputs, values = Inputs(**content["inputs"]), content["params"]
            handed.unlink()
        else:
            read = cache(yaml.read)  # what is compared and what is served are the same bytes
            self._inputs, values = Inputs.take(stage, read), read(params.PARAMS_FILE)
        try:
            with params.held(values):
                yield
                if time.monotonic() - self._checked_s > RECENT_S:
                    self.check()
        finally:
            self._inputs = None

    def check(self, kept: str = "") -> None:
        """Compare; `kept` is a sentence about what a failed stage keeps, for the message.

        Raises:
            InputsChanged: they differ.
        """
        if self._inputs and (changes := self._inputs.changes()):
            raise InputsChanged(changes, kept)
        self._checked_s = time.monotonic()

    def warn(self) -> None:
        """Report inputs that were edited since the stage began, each set of edits once: they can still be restored."""
        changes = self._inputs.changes() if self._inputs else []
        if changes and changes != self._warned:
            info(
                f"Inputs of this stage were edited: {'; '.join(changes)}. Restore them before it ends: otherwise it fails "
                "then, and DVC does not record its result."
            )
        self._warned = changes

    def hand_over(self, path: Path) -> None:
        """Write the inputs to a file, for the next command of the same stage, which compares them at its end."""
        if self._inputs:
            content = {"inputs": vars(self._inputs), "params": params.read()}
            files.write_text(path, json.dumps(content))
            self._inputs = None

    def sha256(self, path: Path) -> str:
        """Hash a file; a dependency of the running stage that is compared by content, as it was at the stage's start."""
        taken = (
            marks.get(path.as_posix()) for marks in (self._inputs.hashes.values() if self._inputs else ())
        )
        return next(filter(None, taken), None) or files.sha256(path)


watch = Watch()
"""Of this process, which runs a single stage."""


def _walk(path: str) -> Iterator[tuple[str, list[Member]]]:
    """Yield the folders of a dependency, with a slash at their end, and the files in each; links to folders as by DVC.

    Those are followed at the top only. An entry's `stat` is relative to its open folder, which is faster by a tenth.
    """
    if not Path(path).is_dir():
        if Path(path).exists():
            yield path.removesuffix(Path(path).name), [Path(path)]
        return
    folders = [path]
    while folders:
        folder = folders.pop()
        with suppress(OSError):  # removed by now
            opened = os.open(folder, os.O_RDONLY)
            try:
                members: list[Member] = []
                with os.scandir(opened) as entries:
                    for entry in entries:
                        if not entry.is_dir(follow_symlinks=False):
                            members.append(entry)
                        elif entry.name != NEVER_INPUT:
                            folders.append(f"{folder}/{entry.name}")
                yield f"{folder}/", members
            finally:
                os.close(opened)


def _names(path: str) -> list[str]:
    return [f"{folder}{member.name}" for folder, members in _walk(path) for member in members]


def _is_small(names: Sequence[str]) -> bool:
    return len(names) <= CONTENT_FILES and sum(map(_size, names)) <= CONTENT_BYTES


def _size(name: str) -> int:
    try:
        return Path(name).stat().st_size
    except OSError:  # a dangling link
        return 0


def _hashes(names: Iterable[str]) -> dict[str, str]:
    """Describe files by their SHA-256."""
    hashes = {}
    for name in names:
        with suppress(OSError):  # removed by now, or a link to a folder
            hashes[name] = files.sha256(Path(name))
    return hashes


def _written(path: str, since_ns: int) -> tuple[set[str], set[str]]:
    """List the files of a dependency, and those of them that were written since a time."""
    now_ns = time.time_ns()
    names: set[str] = set()
    written: set[str] = set()
    for folder, members in _walk(path):
        for member in members:
            names.add(name := f"{folder}{member.name}")
            try:
                stat = member.stat()
            except OSError:  # a dangling link
                continue
            # The time of the status also shows edits that keep the time of the content; new links to the file move it too.
            if since_ns < (stat.st_ctime_ns if stat.st_nlink == 1 else stat.st_mtime_ns) <= now_ns:
                written.add(name)  # a future time comes from another clock
    return names, written


def ignore_rules(folder: str) -> "GitIgnoreSpec | None":
    """Read the .dvcignore of a folder, if there is one."""
    from pathspec import GitIgnoreSpec  # noqa: PLC0415 (only where something changed)

    path = Path(folder, ".dvcignore")
    return GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else None


def is_ignored(name: str, rules: Callable[[str], "GitIgnoreSpec | None"] = ignore_rules) -> bool:
    """Check whether .dvcignore leaves out a file, or a folder above it, as DVC does: deeper files win over those above.

    `name` is relative to the repository, as what `rules` returns for a folder.
    """
    parts = name.split("/")
    for depth in range(1, len(parts) + 1):
        ignored = None
        for above in range(depth):
            spec = rules("/".join(parts[:above]))
            path = "/".join(parts[above:depth]) + "/" * (depth < len(parts))
            if spec and (verdict := spec.check_file(path).include) is not None:
                ignored = verdict
        if ignored:
            return True
    return False
