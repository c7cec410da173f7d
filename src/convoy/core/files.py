"""Write small result files so that a reader never sees half of one; copy, read and hash files."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convoy.core.errors import RequestError


def expanded(text: str) -> Path:
    """Make a path of what a person typed; a leading `~` is the home folder.

    Raises:
        RequestError: the home folder is unknown, as in a container that runs as a user without an account.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise RequestError(
            f"{text}: the home folder that `~` stands for is unknown; HOME is {os.environ.get('HOME') or 'not set'}. "
            "Type the whole path, or set HOME."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step: readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Load a JSON object."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder with its content; what is there already is replaced."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def sha256(path: Path) -> str:
    """Hash a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
