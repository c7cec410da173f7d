"""Read DVC's cache without DVC, and fill a clone's cache with the data and outputs that its files name."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.core import yaml
from convoy.core.console import track
from convoy.core.errors import ConvoyError
from convoy.repo import dvc, git


class RestoreError(ConvoyError):
    """Report a run whose state cannot be restored, or differs from the recorded one."""


@dataclass(frozen=True)
class Cache:
    """Find content by its md5, as DVC 3 stores it.

    Attributes:
        folder: the cache, such as `.dvc/cache`.
    """

    folder: Path

    def path(self, md5: str) -> Path:
        """Locate content, whether it exists or not."""
        return self.folder / "files" / "md5" / md5[:2] / md5[2:]

    def members(self, md5: str) -> dict[str, str]:
        """List the files of a folder, path to md5; empty for a file, and for a folder that is not cached."""
        path = self.path(md5)
        if not md5.endswith(".dir") or not path.exists():
            return {}
        return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_text(encoding="utf-8"))}

    def lacks(self, md5: str) -> list[str]:
        """List the missing md5s of a file, or of a folder and its files."""
        required = dict.fromkeys([md5, *self.members(md5).values()])
        return [md5 for md5 in required if not self.path(md5).exists()]


def of_repository(root: Path) -> Cache:
    """Find a repository's cache, wherever its configuration puts it."""
    return Cache(Path(dvc.config(root)["cache"].get("dir") or root / ".dvc" / "cache"))


def tracked_files(root: Path) -> dict[str, dict[str, Any]]:
    """Read the .dvc files of a repository, path to content; those that git ignores are left out."""
    names = git.ask(root, "ls-files", "-co", "--exclude-standard", "--", "*.dvc").splitlines()
    return {name: yaml.read(root / name) for name in names if (root / name).is_file()}


def required_outputs(clone: Path) -> dict[str, str]:
    """Map the outputs in a clone's dvc.lock and .dvc files that DVC caches to their md5."""
    outs = [
        (Path(name).parent, out)
        for name, content in tracked_files(clone).items()
        for out in content.get("outs", [])
    ]
    stages = yaml.read(clone / "dvc.lock").get("stages") or {}
    outs += [(Path(), out) for stage in stages.values() for out in stage.get("outs", [])]
    return {(folder / out["path"]).as_posix(): out["md5"] for folder, out in outs if "md5" in out}


def fill_cache(clone: Path, source: Path, owner: str) -> None:
    """Fill a clone's own cache with everything that its files name.

    Content is linked from the source's cache where the file system can, else copied: removing
    links, which is all that `rm -rf` and `dvc gc` do, leaves the source's files alone. The
    clone gets the remotes of the source.

    Args:
        clone: its files are checked out, its outputs are not.
        source: the repository to take content from.
        owner: what the content belongs to, for messages.

    Raises:
        RestoreError: some content is neither in the source's cache nor in a remote.
    """
    own, theirs = Cache(clone / ".dvc" / "cache"), of_repository(source)
    has_remote = configure(clone, source, own.folder)
    required = required_outputs(clone)
    # The list of a folder's members first: only it names them.
    _link(set(required.values()), theirs, own)
    _link({member for md5 in required.values() for member in own.members(md5).values()}, theirs, own)
    reason = ""
    if has_remote and any(map(own.lacks, required.values())):
        try:
            dvc.run(clone, "fetch")
        except dvc.DvcError as error:
            reason = f"\nThe remote: {error!s:.300}"
    lost = [f"{path} ({md5[:10]})" for path, md5 in required.items() if own.lacks(md5)]
    if lost:
        more = f" and {len(lost) - 4} more" if len(lost) > 4 else ""
        where = "nor in a DVC remote" if has_remote else "and this repository has no DVC remote"
        raise RestoreError(
            f"{owner} cannot be restored: {', '.join(lost[:4])}{more} not in DVC's cache {where}.{reason}\n"
            "Type `dvc push` where the run was made (docs/data.md explains how to add a remote), then try again here."
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


def configure(clone: Path, source: Path, cache: Path) -> bool:
    """Write .dvc/config.local of a clone or worktree; return whether it has a default remote.

    It gets the remotes of the source, passwords included, with relative paths made absolute. Symbolic and hard links
    into the workspace are switched off: a file edited there would change the cache.

    Args:
        clone: has the source's files.
        source: the repository whose remotes are shared.
        cache: folder of the cache. A clone's lies in itself even where the team shares one, which a `dvc gc` in the
            clone would empty. A worktree, which is removed after a round, uses the source's.
    """
    known, local = dvc.config(source), dvc.config(clone)
    with local.edit("local") as content:
        content["cache"]["dir"] = str(cache)
        if known["cache"].get("type"):
            content["cache"]["type"] = "reflink,copy"
        for level in ("repo", "local"):
            theirs = known.read(level)
            content["remote"].update(theirs["remote"])
            if name := theirs["core"].get("remote"):
                content["core"]["remote"] = name
    file = clone / ".dvc" / "config.local"
    file.chmod(0o600)  # it may hold a remote's password
    own = clone / ".dvc" / "cache"
    if cache == own:  # DVC writes the absolute path, and the clone is still to be renamed
        file.write_text(file.read_text(encoding="utf-8").replace(str(own), "cache"), encoding="utf-8")
    return bool(local["core"].get("remote"))
