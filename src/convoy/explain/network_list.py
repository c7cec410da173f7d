"""List networks: what each costs, and the smallest images that it takes.

Measuring imports torch and takes up to two seconds per network, so results are kept in a file in the user's cache: those of
a spec as long as its layers stay the same, those of torchvision's and timm's classifiers for each version of these. timm's are
more than a thousand, so they are measured only where a filter leaves few.
"""

import os
import textwrap
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from convoy import __version__
from convoy.core import console, files, params
from convoy.core.errors import ConvoyError
from convoy.models import shapes, spec, timm, torchvision
from convoy.models.spec import Spec

MEASURED = 30  # most networks of timm's that are measured for a list: each takes a second or more
WIDTH = 120  # columns of the list of names


class Entry(BaseModel):
    """A network in numbers, or the error in its spec.

    Attributes:
        name: as `network.name` and `convoy network show` accept it.
        image_px: side of the images that parameters and MACs are counted for; `classes` likewise.
        smallest_px: side of the smallest images that it takes.
        problem: the error; all numbers are None then, as they are where timm's network was not measured.
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


def entries(
    folder: Path, image_px: int, classes: int, *, everything: bool, quiet: bool, pattern: str = ""
) -> list[Entry]:
    """Describe every spec of a folder, in order; with `everything` torchvision's and timm's classifiers too.

    `pattern` selects names that contain it, or match it if it holds `*`, `?` or `[`.

    A spec without `made_for` is counted for `image_px`, or the smallest side that it takes if that is larger, and
    for `classes`.
    """
    cache = Cache.read(cache_file())
    named = [name for name in spec.names(folder) if _matches(name, pattern)]
    listed = [_entry(name, folder, cache, (image_px, classes)) for name in named]
    if everything:
        listed += cache.all_of_torchvision(quiet=quiet, pattern=pattern)
        listed += cache.all_of_timm(quiet=quiet, pattern=pattern)
    return listed


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) if set("*?[") & set(pattern) else pattern in name


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
        if entry.parameters is not None
    ]
    header = ("network", "parameters", "in training", "MACs", "smallest px", "counted for")
    title, *body = console.table(header, cells, right=range(1, len(header))).splitlines()
    rule = "─" * max(map(len, (title, *body)))
    problems = [f"{entry.name}: {entry.problem}" for entry in listed if entry.problem]
    return [title, rule, *body, *problems, *_names_alone(listed)]


def _names_alone(listed: list[Entry]) -> list[str]:
    """List networks that were not measured by their names."""
    names = [entry.name for entry in listed if entry.parameters is None and not entry.problem]
    if not names:
        return []
    head = (
        f"{len(names):,} networks of timm {version('timm')} (with --filter, at most {MEASURED} are measured):"
    )
    return ["", head, *textwrap.wrap("  ".join(names), WIDTH, break_on_hyphens=False)]


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
        timm_version: version of timm that `timm_names` and `timm_networks` belong to.
        networks: by torchvision's name.
        specs: by a hash of layers, image side, classes and version of Convoy.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    names: list[str] = []
    networks: dict[str, Entry] = {}
    timm_version: str = ""
    timm_names: list[str] = []
    timm_networks: dict[str, Entry] = {}
    specs: dict[str, Entry] = {}
    _file: Path = PrivateAttr()

    @classmethod
    def read(cls, file: Path) -> "Cache":
        """Read the file; a missing or damaged file is an empty cache."""
        try:
            cache = cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            cache = cls()
        if cache.timm_version != version("timm"):
            cache.timm_version, cache.timm_names, cache.timm_networks = version("timm"), [], {}
        cache._file = file
        return cache

    def all_of_torchvision(self, *, quiet: bool, pattern: str = "") -> list[Entry]:
        """Describe every classifier that a pattern selects, named as `convoy network show` accepts it."""
        if not self.names:
            self.names = torchvision.names()
        names = [name for name in self.names if _matches(f"torchvision:{name}", pattern)]
        if not quiet and any(name not in self.networks for name in names):
            console.info("measuring torchvision's classifiers, once for this version of torchvision")
            for name in console.track(names, "measure", len(names)):
                self.of_torchvision(name)
        return [
            self.of_torchvision(name).model_copy(update={"name": f"torchvision:{name}"}) for name in names
        ]

    def all_of_timm(self, *, quiet: bool, pattern: str) -> list[Entry]:
        """Describe timm's classifiers that a pattern selects, by their names alone if they are many."""
        if not self.timm_names:
            self.timm_names = timm.names()
            self._write()
        names = [name for name in self.timm_names if _matches(f"timm:{name}", pattern)]
        few = len(names) <= MEASURED
        if few and not quiet and any(name not in self.timm_networks for name in names):
            console.info("measuring timm's classifiers, once for this version of timm")
            for name in console.track(names, "measure", len(names)):
                self.of_timm(name)
        return [
            (self.of_timm(name) if few else self.timm_networks.get(name, Entry(name=name))).model_copy(
                update={"name": f"timm:{name}"}
            )
            for name in names
        ]

    def of_timm(self, name: str) -> Entry:
        """Describe a classifier of timm's, for the images and classes of its default weights."""
        if name not in self.timm_networks:
            self.timm_networks[name] = _measure_of_library("timm", name, *timm.made_for(name))
            self._write()
        return self.timm_networks[name]

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
        if read.timm is not None:
            return cache.of_timm(read.timm).model_copy(update={"name": name})
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

    published = models.get_model_weights(name).DEFAULT
    image_px, classes = published.transforms().crop_size[0], len(published.meta["categories"])
    return _measure_of_library("torchvision", name, image_px, classes)


def _measure_of_library(zoo: str, name: str, image_px: int, classes: int) -> Entry:
    from convoy.models.build import smallest_px_of_classifier  # noqa: PLC0415 (as above)

    read = Spec.model_validate({"name": name, zoo: name})
    try:
        return _measure(read, classes, image_px, smallest_px_of_classifier(zoo, name, classes, 1))
    except ConvoyError as error:
        return Entry(name=name, problem=str(error))
