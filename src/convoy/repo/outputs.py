"""Give a clone the data and outputs that its files name, from another repository's cache or a DVC remote."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.core import yaml
from convoy.core.console import track
from convoy.core.errors import ConvoyError
from convoy.repo import dvc, dvc_cache, git
from convoy.repo.dvc_cache import Cache


class RestoreError(ConvoyError):
    """Report that a run's state cannot be had again, or is not what it was."""


@dataclass(frozen=True)
class Wanted:
    """Name content that a clone needs: where it belongs, and its md5."""

    path: str
    md5: str


def wanted(clone: Path) -> list[Wanted]:
    """List what a clone's dvc.lock and .dvc files say that DVC keeps."""
    names = git.ask(clone, "ls-files", "-co", "--exclude-standard", "--", "*.dvc").splitlines()
    outs = [
        (Path(name).parent, out)
        for name in names
        if not Path(name).is_relative_to(".dvc")
        for out in yaml.read(clone / name).get("outs", [])
    ]
    stages = yaml.read(clone / "dvc.lock").get("stages") or {}
    outs += [(Path(), out) for stage in stages.values() for out in stage.get("outs", [])]
    return [Wanted((folder / out["path"]).as_posix(), out["md5"]) for folder, out in outs if "md5" in out]


def supply(clone: Path, source: Path, origin: str) -> None:
    """Fill a clone's own cache with what it wants.

    Content is linked from the source's cache where the file system can, else copied: removing
    links, which is all that `rm -rf` and `dvc gc` do, leaves the source's files alone. The
    clone is told of the remotes of the source, whose relative paths mean other places in a clone.

    Args:
        clone: its files are in place, its outputs are not.
        source: the repository to take content from.
        origin: what the content belongs to, for messages.

    Raises:
        RestoreError: some of it is neither in the source's cache nor in a remote.
    """
    own, theirs = Cache(clone / ".dvc" / "cache"), dvc_cache.of_repository(source)
    has_remote = configure(clone, source, clone / ".dvc" / "cache")
    needed = wanted(clone)
    # The list of a folder's members first: only it names them.
    _link({one.md5 for one in needed}, theirs, own)
    _link({md5 for one in needed for md5 in own.members(one.md5).values()}, theirs, own)
    said = ""
    if has_remote and any(own.lacks(one.md5) for one in needed):
        try:
            dvc.run(clone, "fetch")
        except dvc.DvcError as error:
            said = f"\nThe remote: {error!s:.300}"
    lost = [one for one in needed if own.lacks(one.md5)]
    if lost:
        names = ", ".join(f"{one.path} ({one.md5[:10]})" for one in lost[:4])
        more = f" and {len(lost) - 4} more" if len(lost) > 4 else ""
        where = "nor in a DVC remote" if has_remote else "and this repository has no DVC remote"
        raise RestoreError(
            f"{origin} cannot be restored: {names}{more} not in DVC's cache {where}.{said}\n"
            "Where the run was made, type `dvc push` (docs/data.md says how to add a remote), then try again here."
        )


def _link(md5s: set[str], source: Cache, target: Cache) -> None:
    for md5 in track(sorted(md5s), "take from the cache", len(md5s)):
        old, new = source.path(md5), target.path(md5)
        if new.exists() or not old.exists():
            continue
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(old, new)
        except OSError:  # another file system, or one without links
            shutil.copyfile(old, new)
            new.chmod(0o444)


def configure(clone: Path, source: Path, kept: Path) -> bool:
    """Write a clone's or worktree's .dvc/config.local; tell whether it has a remote.

    It is told of the remotes of the source, passwords included, with relative paths made absolute. Links are
    kept out of it: a file edited there would be the cache's too.

    Args:
        clone: has the source's files.
        source: the repository whose remotes are shared.
        kept: its cache. A clone's lies in itself even where the team shares one: a `dvc gc` in it would empty
            that. A worktree, which is gone after a round, uses the source's.
    """
    from dvc.config import Config  # type: ignore[import-untyped] # noqa: PLC0415 (DVC takes half a second)

    known = Config(str(source / ".dvc"))
    local = Config(str(clone / ".dvc"))
    with local.edit("local") as content:
        content["cache"]["dir"] = str(kept)
        _copy_types(content, known)
        for level in ("repo", "local"):
            theirs = known.read(level)
            content["remote"].update(theirs["remote"])
            if name := theirs["core"].get("remote"):
                content["core"]["remote"] = name
    file = clone / ".dvc" / "config.local"
    file.chmod(0o600)  # it may hold a remote's password
    own = clone / ".dvc" / "cache"
    if kept == own:  # DVC would write the absolute path; the folder gets its final name at the end
        file.write_text(file.read_text(encoding="utf-8").replace(str(own), "cache"), encoding="utf-8")
    return bool(local["core"].get("remote"))


def _copy_types(content: Any, known: Any) -> None:  # noqa: ANN401 (DVC has no types)
    """Keep links out of the workspace: a file edited there would be the source's too."""
    if known["cache"].get("type"):
        content["cache"]["type"] = "reflink,copy"
