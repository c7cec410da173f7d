"""Look into DVC's cache without DVC: what it has, and what an entry lacks."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cache:
    """Find content by its md5, as DVC 3 keeps it.

    Attributes:
        folder: the cache, such as `.dvc/cache`.
    """

    folder: Path

    def path(self, md5: str) -> Path:
        """Say where content is kept, whether it is there or not."""
        return self.folder / "files" / "md5" / md5[:2] / md5[2:]

    def members(self, md5: str) -> dict[str, str]:
        """List the files of a folder, path to md5; empty for a file, and where the list is not there."""
        path = self.path(md5)
        if not md5.endswith(".dir") or not path.exists():
            return {}
        return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_text(encoding="utf-8"))}

    def lacks(self, md5: str) -> list[str]:
        """List the md5 of what is missing of a file, or of a folder and all that it holds."""
        wanted = [md5, *self.members(md5).values()]
        return [one for one in dict.fromkeys(wanted) if not self.path(one).exists()]


def of_repository(root: Path) -> Cache:
    """Find a repository's cache, wherever its configuration puts it."""
    from dvc.config import Config  # type: ignore[import-untyped] # noqa: PLC0415 (seconds of imports that only this needs)

    own = root / ".dvc"
    return Cache(Path(Config(str(own))["cache"].get("dir") or own / "cache"))
