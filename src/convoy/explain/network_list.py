"""List networks: what each costs, and the smallest images that it takes.

Measuring imports torch and takes up to two seconds per network, so results are kept in a file in the user's cache: those of
a spec as long as its layers stay the same, those of torchvision's classifiers for each version of torchvision.
"""

import os
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from convoy import __version__
from convoy.core import console, files, params
from convoy.core.errors import ConvoyError
from convoy.models import shapes, spec, torchvision
from convoy.models.spec import Spec


class Entry(BaseModel):
    """A network in numbers, or the error in its spec.

    Attributes:
        name: as `network.name` and `convoy network show` accept it.
        image_px: side of the images that parameters and MACs are counted for; `classes` likewise.
        smallest_px: side of the smallest images that it takes.
        problem: the error; all numbers are None then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    image_px: int | None = None
    classes: int | None = None
    parameters: int | None = None
    auxiliary_parameters: int | None = None
    macs: int | None = None
    smallest_px: int | None = None
    problem: str | None = None


def entries(folder: Path, image_px: int, classes: int, *, everything: bool, quiet: bool) -> list[Entry]:
    """Describe every spec of a folder, in order; with `everything` torchvision's classifiers too.

    A spec without `made_for` is counted for `image_px`, or the smallest side that it takes if that is larger, and
    for `classes`.
    """
    cache = Cache.read(cache_file())
    listed = [_entry(name, folder, cache, (image_px, classes)) for name in spec.names(folder)]
    return listed + cache.all_of_torchvision(quiet=quiet) if everything else listed


def lines(listed: list[Entry]) -> list[str]:
    """Format entries as text; the error of a broken spec follows its name."""
    cells = [
        (
            entry.name,
            f"{entry.parameters:,}",
            f"{(entry.parameters or 0) + entry.auxiliary_parameters:,}" if entry.auxiliary_parameters else "",
            f"{entry.macs:,}",
            entry.smallest_px or "",
            f"{entry.image_px} px, {entry.classes} classes",
        )
        for entry in listed
        if not entry.problem
    ]
    header = ("network", "parameters", "in training", "MACs", "smallest px", "counted for")
    title, *body = console.table(header, cells, right=range(1, len(header))).splitlines()
    rule = "─" * max(map(len, (title, *body)))
    return [title, rule, *body, *(f"{entry.name}: {entry.problem}" for entry in listed if entry.problem)]


def cache_file() -> Path:
    """Locate the cache: under $XDG_CACHE_HOME, else ~/.cache."""
    home: str | Path | None = os.environ.get("XDG_CACHE_HOME")
    try:
        home = home or Path.home() / ".cache"
    except (
        RuntimeError
    ):  # no HOME and no account: a file that cannot be written, as in a home that is read-only
        home = os.devnull
    return Path(home) / "convoy" / f"torchvision-{version('torchvision')}.json"


class Cache(BaseModel):
    """Measured networks, kept in a file.

    Attributes:
        names: all classifiers of this torchvision; empty until they are first listed.
        networks: by torchvision's name.
        specs: by a hash of layers, image side, classes and version of Convoy.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    names: list[str] = []
    networks: dict[str, Entry] = {}
    specs: dict[str, Entry] = {}
    _file: Path = PrivateAttr()

    @classmethod
    def read(cls, file: Path) -> "Cache":
        """Read the file; a missing or damaged file is an empty cache."""
        try:
            cache = cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            cache = cls()
        cache._file = file
        return cache

    def all_of_torchvision(self, *, quiet: bool) -> list[Entry]:
        """Describe every classifier, named as `convoy network show` accepts it."""
        if not self.names:
            self.names = torchvision.names()
        if not quiet and any(name not in self.networks for name in self.names):
            console.info("measuring torchvision's classifiers, once for this version of torchvision")
            for name in console.track(self.names, "measure", len(self.names)):
                self.of_torchvision(name)
        return [
            self.of_torchvision(name).model_copy(update={"name": f"torchvision:{name}"})
            for name in self.names
        ]

    def of_torchvision(self, name: str) -> Entry:
        """Describe a classifier, for the images and classes of torchvision's own weights."""
        if name not in self.networks:
            self.networks[name] = _measure_classifier(name)
            self._write()
        return self.networks[name]

    def of_spec(self, read: Spec, classes: int, image_px: int, smallest_px: int | None) -> Entry:
        """Describe a network of layers."""
        content = read.model_dump(mode="json", exclude={"name"})
        key = params.digest(
            {"spec": content, "classes": classes, "image_px": image_px, "convoy": __version__}
        )
        if key not in self.specs:
            self.specs[key] = _measure(read, classes, image_px, smallest_px)
            self._write()
        return self.specs[key].model_copy(update={"name": read.name})

    def _write(self) -> None:
        """Write after each network, so that an interrupted measurement is not lost."""
        try:
            files.write_json(self._file, self.model_dump())
        except OSError as error:
            cause = f"networks are measured again next time: {error.strerror}"
            console.info(f"{self._file} cannot be written, so {cause}", stderr=True)


def _entry(name: str, folder: Path, cache: Cache, otherwise: tuple[int, int]) -> Entry:
    try:
        read = spec.load(name, folder)
        if read.torchvision is not None:
            return cache.of_torchvision(read.torchvision).model_copy(update={"name": name})
        px, classes = (read.made_for.image_px, read.made_for.classes) if read.made_for else otherwise
        smallest = shapes.smallest_px(read.layers, classes, 1)
        image_px = px if read.made_for else max(px, smallest or 0)
        shapes.infer(read, classes, image_px)  # refuses what does not fit, whatever the cache holds
        return cache.of_spec(read, classes, image_px, smallest)
    except ConvoyError as error:
        return Entry(name=name, problem=str(error))


def _measure(read: Spec, classes: int, image_px: int, smallest_px: int | None) -> Entry:
    from convoy.explain.table import tabulate  # noqa: PLC0415 (imports torch, which cached networks need not)

    table = tabulate(read, classes, image_px)
    return Entry(
        name=read.name,
        image_px=image_px,
        classes=classes,
        parameters=table.total("parameters"),
        auxiliary_parameters=table.total("parameters", auxiliary=True),
        macs=table.total("macs"),
        smallest_px=smallest_px,
    )


def _measure_classifier(name: str) -> Entry:
    from torchvision import models  # type: ignore[import-untyped]  # noqa: PLC0415 (as above)

    from convoy.models.build import smallest_px_of_torchvision  # noqa: PLC0415 (as above)

    published = models.get_model_weights(name).DEFAULT
    image_px, classes = published.transforms().crop_size[0], len(published.meta["categories"])
    read = Spec(name=name, torchvision=name)
    return _measure(read, classes, image_px, smallest_px_of_torchvision(name, classes, 1))
