"""Run DVC, read its cache, and read from its classes what its command line does not print.

DVC has no public Python interface for the last part of this file, and may change it in any release: pyproject.toml
pins the minor version, and tests/repo/test_dvc_contract.py names what changed. Beside this file only `dvc_locks.py` and `reproduce.py` import DVC.
"""

import difflib
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from convoy.core import files, pipeline, yaml
from convoy.core.console import track
from convoy.core.errors import ConvoyError, RequestError, listed, without_credentials
from convoy.core.stage import repository
from convoy.repo import git

SITE_CACHE = "DVC_SITE_CACHE_DIR"
"""Variable that names the folder in which DVC keeps indexes of all repositories, as pickles."""


class DvcError(Exception):
    """Carry the error messages of DVC."""


def environment(root: Path) -> dict[str, str]:
    """Return the variables for DVC in `root`: no statistics, and a private folder for its indexes.

    By default that is /var/tmp/dvc, where every user of the machine may replace a pickle, whose code DVC then runs. A
    round's worktree shares the folder of the repository that called it.

    Raises:
        RequestError: the folder belongs to another user, or is a link.
    """
    owner = repository() if (repository() / ".dvc").is_dir() else root.resolve()
    folder = Path(os.environ.get(SITE_CACHE) or owner / ".dvc" / "tmp" / f"site-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or stat.S_ISLNK(found.st_mode):
        raise RequestError(
            f"{folder}, in which DVC keeps pickles, is {'a link' if stat.S_ISLNK(found.st_mode) else 'owned by another user'}, "
            f"who could have DVC run code. Remove it, or name a folder of your own: export {SITE_CACHE}=$HOME/.cache/dvc-site"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)
    return {"DVC_NO_ANALYTICS": "1", SITE_CACHE: str(folder)}


def run(root: Path, *arguments: str) -> str:
    """Run DVC in `root` and return its output.

    Raises:
        DvcError: DVC failed.
    """
    done = subprocess.run(  # noqa: S603 (no shell; DVC checks the address)
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env=os.environ | environment(root),
        capture_output=True,
        text=True,
        errors="replace",  # DVC names files, which need not be UTF-8
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and "dvc.org/support" not in line]
        raise DvcError(
            "\n".join(lines) or f"`dvc {' '.join(arguments)}` ended with exit code {done.returncode}"
        )
    return done.stdout


def check_repository(root: Path) -> None:
    """Refuse a folder that is not a DVC repository.

    Raises:
        RequestError: `root` has no folder `.dvc`.
    """
    if not (root / ".dvc").is_dir():
        for parent in root.resolve().parents:
            if (parent / ".dvc").is_dir():
                raise RequestError(f"{root} is a subfolder of the repository {parent}. Type: cd {parent}")
        raise RequestError(
            f"{root} is not a DVC repository. Change to the repository's root, or run `dvc init`."
        )


def check_git(root: Path) -> None:
    """Refuse a folder in no git repository, such as a downloaded ZIP file, unless DVC is configured for that.

    Raises:
        RequestError: the folder is in no git repository, and DVC is not configured to work without git.
    """
    if git.is_repository(root) or config(root)["core"].get("no_scm"):
        return
    raise RequestError(
        f"{root} is in no git repository, as after the download of a ZIP file. Type: git init && git add -A && git commit -m "
        "first\nWithout git, `dvc config --local core.no_scm true` lets the stages run; runs then record no commit, and "
        "`dvc exp run`, `convoy trace --restore` and `make retrain` need git."
    )


def locate(source: str, root: Path) -> tuple[Path, str]:
    """Find a local source, and its address for an import into the repository `root`.

    Returns:
        The resolved path, and its address: relative to `root` inside it, else absolute, since relative paths that leave
        the repository do not work in the workspaces that DVC makes for experiments.

    Raises:
        RequestError: the path does not exist, or contains the repository.
    """
    path = files.expanded(source).absolute()
    if not path.exists():
        raise RequestError(
            f"{source} does not exist{_nearest(path)}. Give a path, or a URL such as https:// or s3://."
        )
    resolved = path.resolve()
    if resolved == root or resolved in root.parents:
        raise RequestError(f"{source} contains this repository. Name the data themselves.")
    inside = root in resolved.parents
    return resolved, resolved.relative_to(root).as_posix() if inside else str(resolved)


def unreachable(address: str) -> str:
    """Warn of an import that works on this machine only."""
    return (
        f"Warning: {address} lies outside the repository; another machine, such as CI or a colleague's, cannot "
        "fetch it. For them use a URL or a bucket."
    )


@contextmanager
def replacing(root: Path, names: Sequence[str]) -> Iterator[None]:
    """Move files and folders aside while others are made in their place; a failure puts them back.

    `names` are paths of what exists and of what may come to exist, relative to the repository `root`.
    """
    scratch = root / ".dvc" / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    # DVC adds to the .gitignore beside what it imports.
    paths = {(root / name).parent / ".gitignore" for name in names}
    ignores = {path: path.read_bytes() if path.exists() else None for path in paths}
    with tempfile.TemporaryDirectory(dir=scratch, prefix="convoy-", ignore_cleanup_errors=True) as aside:
        try:
            _move(names, root, Path(aside))
            yield
        except BaseException:  # Ctrl-C as well: half a change is worse than none
            for name in names:
                remove(root / name)
            _move(names, Path(aside), root)
            for path, content in ignores.items():
                if content is None:
                    path.unlink(missing_ok=True)
                else:
                    path.write_bytes(content)
            raise


def _nearest(path: Path) -> str:
    """Name the first folder on the way that does not exist, and what is there instead."""
    while not path.parent.exists():
        path = path.parent
    names = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {path.parent / near[0]}"
    return f"; {path.parent} holds no `{path.name}`"


def _move(names: Sequence[str], source: Path, target: Path) -> None:
    for name in names:
        if (source / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).rename(target / name)


def remove(path: Path) -> None:
    """Remove a file or a folder, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def stage_inputs(root: Path) -> dict[str, dict[str, Any]]:
    """List what each stage of dvc.yaml is given: `cmd`, the values of its `params`, and git's ids of its `files`.

    Files are those of HEAD; outputs of other stages and other files that git does not hold are left out.
    """
    found = {}
    read = cache(lambda path: yaml.read(root / path))
    for name, fields in pipeline.stages(root).items():
        params, deps = pipeline.declared(fields, read)
        found[name] = {"cmd": fields["cmd"], "params": params, "files": git.objects(root, deps)}
    return found


class RestoreError(ConvoyError):
    """Report a run whose state cannot be restored, or differs from the recorded one."""


@dataclass(frozen=True)
class Cache:
    """Find content in a folder such as `.dvc/cache` by its md5, as DVC 3 stores it."""

    folder: Path

    @classmethod
    def of(cls, root: Path) -> Self:
        """Find a repository's cache, wherever its configuration puts it."""
        return cls(Path(config(root)["cache"].get("dir") or root / ".dvc" / "cache"))

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


def content_md5(path: Path) -> str:
    """Compute DVC's md5 of a file, or of a folder with its suffix `.dir`, from its bytes; empty if it does not exist.

    `dvc status` trusts the md5s that it wrote down when it took content from a remote.
    """
    if not path.is_dir():
        return _md5(path) if path.is_file() else ""
    paths = [Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names]
    members = [{"md5": _md5(file), "relpath": file.relative_to(path).as_posix()} for file in paths]
    members.sort(key=lambda member: member["relpath"])
    listing = json.dumps(members, sort_keys=True).encode()
    return f"{hashlib.md5(listing, usedforsecurity=False).hexdigest()}.dir"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def tracked_files(root: Path) -> dict[str, dict[str, Any]]:
    """Read the .dvc files of a repository, path to content; those that git ignores are left out."""
    names = git.names(root, "ls-files", "-co", "--exclude-standard", "-z", "--", "*.dvc")
    return {name: yaml.read(root / name) for name in names if (root / name).is_file()}


def required_outputs(clone: Path) -> dict[str, str]:
    """Map the outputs in a clone's dvc.lock and .dvc files that DVC caches to their md5."""
    outs = [
        (Path(name).parent, out)
        for name, content in tracked_files(clone).items()
        for out in content.get("outs", [])
    ]
    outs += [(Path(), out) for stage in pipeline.locked(clone).values() for out in stage.get("outs", [])]
    return {(folder / out["path"]).as_posix(): out["md5"] for folder, out in outs if "md5" in out}


def fill_cache(clone: Path, source: Path, owner: str) -> None:
    """Fill a clone's own cache with everything that its files name, from the repository `source` or its remotes.

    Content is linked from the source's cache where the file system can, else copied: removing links, which is all that
    `rm -rf` and `dvc gc` do, leaves the source's files alone. `owner` names in messages what the content belongs to.

    Raises:
        RestoreError: some content is neither in the source's cache nor in a remote.
    """
    own, theirs = Cache(clone / ".dvc" / "cache"), Cache.of(source)
    has_remote = configure(clone, source, own.folder)
    required = required_outputs(clone)
    # The list of a folder's members first: only it names them.
    _link(set(required.values()), theirs, own)
    _link({member for md5 in required.values() for member in own.members(md5).values()}, theirs, own)
    reason = ""
    if has_remote and any(map(own.lacks, required.values())):
        try:
            run(clone, "fetch")
        except DvcError as error:
            reason = f"\nThe remote: {error!s:.300}"
    lost = [f"{path} ({md5[:10]})" for path, md5 in required.items() if own.lacks(md5)]
    if lost:
        where = "nor in a DVC remote" if has_remote else "and this repository has no DVC remote"
        raise RestoreError(
            f"{owner} cannot be restored: {listed(lost, 4)} not in DVC's cache {where}.{reason}\n"
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
    into the workspace are switched off: a file edited there would change the cache. A clone's cache lies in itself even
    where the team shares one, which a `dvc gc` in the clone would empty. A worktree, which is removed after a round,
    uses the source's.
    """
    known, local = config(source), config(clone)
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


# From here on: DVC's own classes.


@dataclass(frozen=True)
class ImportSource:
    """Describe the source of an import, without downloading it.

    A fingerprint is DVC's hash of local files, ETag or version of remote ones, or the commit of a git repository.
    """

    address: str  # without a password
    recorded: str  # fingerprint of the data that were imported
    current: str  # fingerprint of the source now
    has_fingerprint: bool  # False for a web server that sends no ETag: a change cannot be seen


def config(root: Path) -> Any:  # noqa: ANN401 (DVC has no types)
    """Read DVC's configuration of a repository, all levels merged.

    `dvc config` prints neither resolved paths nor the passwords that a clone needs, and takes 0.7 s where this takes 0.1.
    """
    from dvc.config import Config  # type: ignore[import-untyped] # noqa: PLC0415 (0.1 s)

    return Config(str(root / ".dvc"))


def default_remote(root: Path) -> tuple[str, str]:
    """Read name and address of the default remote; both empty without one."""
    settings = config(root)
    name = settings["core"].get("remote") or ""
    return name, str(settings["remote"].get(name, {}).get("url", ""))


def verifies(root: Path, name: str) -> bool:
    """Check whether DVC compares what a remote delivers with its md5 (the remote's option `verify`)."""
    return bool(config(root)["remote"].get(name, {}).get("verify"))


def import_source(root: Path, name: str) -> ImportSource:
    """Compare the import in the .dvc file `name` with its source.

    Raises:
        RequestError: DVC cannot read the pipeline or the import, or the source is a database.
        DvcError: the source does not answer.
    """
    with _opened(root) as repo:
        stage = next((stage for stage in _stages(repo) if stage.addressing == name), None)
        if stage is None:
            raise RequestError(f"DVC does not read {name}. `dvc status` shows why.")
        source = stage.deps[0]
        address = without_credentials(str(source.def_path))
        in_git = hasattr(source, "def_repo")
        if not in_git and not source.fs:
            raise RequestError(
                f"{name} imports from a database, which has no fingerprint. Export a file there, and import that: "
                "`convoy data use URL`"
            )
        try:
            if in_git:
                commit = source._make_fs(locked=False).repo.get_rev()  # noqa: SLF001 (what `dvc update` does)
                return ImportSource(
                    address, str(source.def_repo.get("rev_lock")), str(commit), has_fingerprint=True
                )
            if source.fs.version_aware:
                path = source.fs.version_path(source.fs_path, None)
                recorded, current = source.meta.version_id, source.fs.info(path).get("version_id")
            else:
                recorded, current = source.hash_info.value, source.get_hash().value
            web = source.fs.protocol in ("http", "https")
            return ImportSource(
                address, str(recorded), str(current), not web or bool(source.get_meta().checksum)
            )
        except Exception as error:  # file systems raise what their libraries do
            reason = without_credentials(" ".join(str(error).split()))[:500]
            raise DvcError(f"{type(error).__name__}: {reason}") from error


def rewind_import(root: Path, name: str) -> None:
    """Record in the .dvc file `name` the state of the source that was imported, where `dvc exp run` recorded a later one.

    A folder or file on this machine has the hash of what was imported; of others the state is removed, so that DVC
    takes them for changed.

    Raises:
        RequestError: DVC cannot read the pipeline.
    """
    with _opened(root) as repo:
        for stage in (stage for stage in _stages(repo) if stage.addressing == name):
            source, data = stage.deps[0], stage.outs[0]
            is_local = source.hash_info.name == data.hash_info.name
            source.hash_info = data.hash_info if is_local else type(data.hash_info)()
            source.meta = data.meta if is_local else type(data.meta)()
            stage.md5 = stage.compute_md5()
            stage.dump()


def check_remote(root: Path) -> str:
    """Contact the default remote; return the reason where it does not answer, else nothing."""
    with _opened(root) as repo:
        try:
            store = repo.cloud.get_remote_odb(None, "fetch", hash_name="md5")
            store.fs.exists(store.path)
        except Exception as error:  # noqa: BLE001 (file systems raise what their libraries do)
            return without_credentials(" ".join(str(error).split()))[:300]
    return ""


def push_run_cache(root: Path) -> None:
    """Push the entries of DVC's run cache that belong to this dvc.lock, so that another machine need not run the stages.

    `dvc push --run-cache` would push those of every experiment that this machine ever ran, outputs included.
    """
    from dvc.stage.cache import (  # type: ignore[import-untyped] # noqa: PLC0415 (half a second)
        RunCacheNotSupported,
        _get_cache_hash,
    )
    from dvc.stage.serialize import to_single_stage_lockfile  # type: ignore[import-untyped] # noqa: PLC0415 (likewise)
    from dvc_data.hashfile.db import HashFileDB  # noqa: PLC0415 (likewise)
    from dvc_objects.fs.local import LocalFileSystem  # noqa: PLC0415 (likewise)

    with _opened(root) as repo, tempfile.TemporaryDirectory() as scratch:
        run_cache = Path(repo.stage_cache.cache_dir)
        for stage in _stages(repo):
            key = _get_cache_hash(to_single_stage_lockfile(stage), key=True) if stage.cmd else None
            for entry in (run_cache / key[:2] / key).glob("*") if key else ():
                copy = Path(scratch, "runs", entry.relative_to(run_cache))
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(entry.read_bytes())
        try:
            target = repo.cloud.get_remote_odb(None, "push --run-cache", hash_name="md5-dos2unix")
            repo.stage_cache.transfer(HashFileDB(LocalFileSystem(), scratch), target)  # type: ignore[no-untyped-call] # DVC has no types
        except RunCacheNotSupported:  # an HTTP remote keeps outputs only; another machine trains again
            return


@contextmanager
def _opened(root: Path) -> Iterator[Any]:
    """Open a repository as DVC's object, without DVC's lock.

    Raises:
        RequestError: DVC cannot read it; most often dvc.yaml is invalid.
    """
    from dvc.exceptions import DvcException  # type: ignore[import-untyped] # noqa: PLC0415 (half a second)
    from dvc.repo import Repo  # type: ignore[import-untyped] # noqa: PLC0415 (likewise)

    try:
        settings = {"core": {"site_cache_dir": environment(root)[SITE_CACHE]}}
        with chdir(root), Repo(config=settings) as repo:  # DVC names files relative to the current folder
            yield repo
    except DvcException as error:
        pipeline.locked(root)  # a damaged dvc.lock has its own remedy
        raise RequestError(
            f"DVC cannot read the pipeline in {root}: {error}\nOnce the cause is removed, `dvc status` reads it."
        ) from error


def _stages(repo: Any) -> list[Any]:  # noqa: ANN401 (DVC has no types)
    """List DVC's stages in the order of `dvc repro`."""
    from dvc.repo.reproduce import get_active_graph, plan_repro  # type: ignore[import-untyped] # noqa: PLC0415 (half a second)

    return list(plan_repro(get_active_graph(repo.index.graph)))
