"""Run DVC, and replace what it imports so that a failure leaves everything as it was."""

import difflib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from convoy.core.errors import RequestError


class DvcError(Exception):
    """Carry what DVC said when it failed."""


def run(root: Path, *arguments: str) -> str:
    """Run DVC in `root` without its chatter and return what it printed.

    Raises:
        DvcError: DVC failed.
    """
    done = subprocess.run(  # noqa: S603 (no shell; DVC judges the address)
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env=os.environ | {"DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip() and "dvc.org/support" not in line]
        raise DvcError("\n".join(said) or f"`dvc {' '.join(arguments)}` ended with {done.returncode}")
    return done.stdout


def check_repository(root: Path) -> None:
    """Refuse a folder in which DVC has nothing to do.

    Raises:
        RequestError: `root` is no DVC repository.
    """
    if not (root / ".dvc").is_dir():
        raise RequestError(
            f"{root} is no DVC repository. Change to the repository's root, or run `dvc init`."
        )


def locate(source: str, root: Path) -> tuple[Path, str]:
    """Find a local source, and give its address as an import shall hold it.

    Relative paths that leave the repository do not work in the workspaces that DVC makes
    for experiments, hence absolute ones.

    Args:
        source: a path, relative to the current folder.
        root: the repository, resolved.

    Returns:
        The resolved path, and its address: relative to `root` inside it, else absolute.

    Raises:
        RequestError: nothing is there, or the path contains the repository.
    """
    path = Path(source).expanduser().absolute()
    if not path.exists():
        raise RequestError(
            f"{source} does not exist{_nearest(path)}. Give a path, or a URL such as https:// or s3://."
        )
    resolved = path.resolve()
    if resolved == root or resolved in root.parents:
        raise RequestError(f"{source} contains this repository. Name what is to be imported itself.")
    inside = root in resolved.parents
    return resolved, resolved.relative_to(root).as_posix() if inside else str(resolved)


def unreachable(address: str) -> str:
    """Warn of an import that works on this machine alone."""
    return (
        f"Warning: {address} lies outside the repository; another machine, such as CI or a colleague's, cannot "
        "fetch it. For them use a URL or a bucket."
    )


@contextmanager
def replacing(root: Path, names: Sequence[str]) -> Iterator[None]:
    """Move files and folders aside while others are made in their place; a failure puts them back.

    Args:
        root: the repository.
        names: paths relative to it, of what exists and of what may come to exist.
    """
    scratch = root / ".dvc" / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    # DVC adds to the .gitignore beside what it imports.
    ignores = {path: path.read_bytes() if path.exists() else None for path in _ignores(root, names)}
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


def _ignores(root: Path, names: Sequence[str]) -> set[Path]:
    return {(root / name).parent / ".gitignore" for name in names}


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
