"""Find the delivered images that a list of files means, however it writes their paths."""

import posixpath
import unicodedata
from collections.abc import Sequence

from convoy.core.dataset import Split
from convoy.data import names
from convoy.images.litter import IMAGE_SUFFIXES


class Index:
    """Find delivered images by what a list writes for them."""

    def __init__(self, images: Sequence[str]) -> None:
        self.exact = frozenset(images)
        self.by_stem: dict[str, list[str] | str] = {}
        for name in images:
            key = self.key(posixpath.basename(name))
            before = self.by_stem.get(key)
            if before is None:
                self.by_stem[key] = name
            elif isinstance(before, str):
                self.by_stem[key] = [before, name]
            else:
                before.append(name)

    @staticmethod
    def key(base: str) -> str:
        """Normalise a file name for comparison: no image suffix, one case, one Unicode form."""
        stem, dot, suffix = base.rpartition(".")
        plain = stem if dot and suffix.lower() in IMAGE_SUFFIXES else base
        return unicodedata.normalize("NFC", plain).casefold()

    def find(self, written: str, folder: str, split: Split | None) -> str | None:
        """Return the one delivered path that is meant, without or with suffix, folders or case; None for none.

        Raises:
            LookupError: several fit.
        """
        text = written.replace("\\", "/")
        for start in (folder, ""):
            path = f"{start}/{text.lstrip('/')}" if start else text.lstrip("/")
            path = posixpath.normpath(path) if "./" in path or "//" in path else path
            if path in self.exact:
                return path
        base = posixpath.basename(text)
        found = self.by_stem.get(self.key(base)) if base else None
        if found is None:
            return None
        every = [found] if isinstance(found, str) else found
        has_suffix = base.rpartition(".")[2].lower() in IMAGE_SUFFIXES
        fits = [name for name in every if not has_suffix or _same(posixpath.basename(name), base)]
        parts = [part for part in text.split("/")[:-1] if part not in ("", ".", "..")]
        if parts and not text.startswith("/") and ":" not in parts[0] and ".." not in text.split("/"):
            # A relative path names its folders: another folder's file of the same name is not meant.
            fits = [name for name in fits if _ends_with(name, parts)]
        for narrower in (
            lambda name: _ends_with(name, parts),
            lambda name: _ends_with(name, parts[-1:]),
            lambda name: posixpath.dirname(name) == folder,
            lambda name: bool(folder) and name.startswith(f"{folder}/"),
            lambda name: bool(split) and any(names.split_of(part) == split for part in name.split("/")[:-1]),
        ):
            if len(fits) > 1:
                fits = [name for name in fits if narrower(name)] or fits
        if len(fits) > 1:
            raise LookupError(written)
        return fits[0] if fits else None


def _same(one: str, other: str) -> bool:
    return unicodedata.normalize("NFC", one).casefold() == unicodedata.normalize("NFC", other).casefold()


def _ends_with(name: str, parts: Sequence[str]) -> bool:
    own = name.split("/")[:-1]
    return not parts or [part.casefold() for part in own[-len(parts) :]] == [
        part.casefold() for part in parts
    ]
