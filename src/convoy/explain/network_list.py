"""The networks that there are: what each costs, and the smallest images that it takes."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from convoy.core import files
from convoy.core.console import info, track
from convoy.core.errors import ConvoyError
from convoy.explain.table import tabulate
from convoy.models import shapes, spec, torchvision
from convoy.models.spec import Spec


class Entry(BaseModel):
    """Describe a network by numbers, or say what is wrong with its spec.

    Attributes:
        name: as `network.name` and `convoy network show` take it.
        image_px: side of the images that parameters and MACs are counted for.
        classes: likewise.
        smallest_px: smallest side of the images that it takes, in pixels.
        problem: why the rest is missing.
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
    """Describe every spec of a folder, in order.

    Args:
        folder: where the specs are.
        image_px: side of the images to count for where a spec does not say what it was made for; the
            smallest side that it takes, if that is larger.
        classes: likewise.
        everything: whether to describe torchvision's classifiers too. The first time takes minutes; what was
            found is kept in the user's cache for this version of torchvision.
        quiet: whether to show no progress.
    """
    memory = Memory.recall(cache_file())
    found = [_entry(name, folder, memory, (image_px, classes)) for name in spec.names(folder)]
    return found + memory.describe_all(quiet=quiet) if everything else found


def lines(found: list[Entry]) -> list[str]:
    """Lay entries out as plain text; a broken spec's problem follows its name."""
    headings = ("network", "parameters", "in training", "MACs", "smallest px", "counted for")
    cells = [headings, *(_cells(entry) for entry in found if not entry.problem)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(headings))]
    laid_out = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in cells
    ]
    rule = "─" * max(map(len, laid_out))
    broken = [f"{entry.name}: {entry.problem}" for entry in found if entry.problem]
    return [laid_out[0], rule, *laid_out[1:], *broken]


def cache_file() -> Path:
    """Name the file that remembers torchvision's classifiers: under $XDG_CACHE_HOME, else ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "convoy" / f"torchvision-{version('torchvision')}.json"


def _cells(entry: Entry) -> tuple[str, ...]:
    training = (entry.parameters or 0) + (entry.auxiliary_parameters or 0)
    return (
        entry.name,
        f"{entry.parameters:,}",
        f"{training:,}" if entry.auxiliary_parameters else "",
        f"{entry.macs:,}",
        f"{entry.smallest_px}" if entry.smallest_px else "",
        f"{entry.image_px} px, {entry.classes} classes",
    )


def _entry(name: str, folder: Path, memory: "Memory", otherwise: tuple[int, int]) -> Entry:
    try:
        read = spec.load(name, folder)
        if read.torchvision is not None:
            return memory.describe(read.torchvision).model_copy(update={"name": name})
        wanted, classes = (read.made_for.image_px, read.made_for.classes) if read.made_for else otherwise
        smallest = shapes.smallest_px(read.layers, classes, 1)
        image_px = wanted if read.made_for else max(wanted, smallest or 0)
        return _counted(read, classes, image_px, smallest)
    except ConvoyError as error:
        return Entry(name=name, problem=str(error))


def _counted(read: Spec, classes: int, image_px: int, smallest_px: int | None) -> Entry:
    table = tabulate(read, classes, image_px)
    return Entry(
        name=read.name,
        image_px=image_px,
        classes=classes,
        parameters=table.parameters,
        auxiliary_parameters=table.auxiliary_parameters,
        macs=table.macs,
        smallest_px=smallest_px,
    )


class Memory(BaseModel):
    """Remember torchvision's classifiers in a file; measuring one imports torch and takes a second or two.

    Attributes:
        names: all that this torchvision has; empty until they were asked for.
        networks: what was measured, by torchvision's names.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    names: list[str] = []
    networks: dict[str, Entry] = {}
    _file: Path = PrivateAttr()

    @classmethod
    def recall(cls, file: Path) -> "Memory":
        """Read the file; one that is missing or damaged is an empty memory."""
        try:
            memory = cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            memory = cls()
        memory._file = file
        return memory

    def describe_all(self, *, quiet: bool) -> list[Entry]:
        """Describe every classifier, named as `convoy network show` takes it."""
        if not self.names:
            self.names = torchvision.names()
        if not quiet and any(name not in self.networks for name in self.names):
            info("measuring torchvision's classifiers, once for this version of torchvision")
            for name in track(self.names, "measure", len(self.names)):
                self.describe(name)
        return [self.describe(name).model_copy(update={"name": f"torchvision:{name}"}) for name in self.names]

    def describe(self, name: str) -> Entry:
        """Describe one, for the images and classes of torchvision's own weights."""
        if name not in self.networks:
            self.networks[name] = _measure(name)
            self._remember()
        return self.networks[name]

    def _remember(self) -> None:
        """Write the file after each network, so that an interrupted first time is not lost."""
        try:
            files.write_json(self._file, self.model_dump())
        except OSError as error:
            note = f"{self._file} cannot be written, so this is measured again next time: {error.strerror}"
            print(note, file=sys.stderr)


def _measure(name: str) -> Entry:
    from torchvision import models  # type: ignore[import-untyped]  # noqa: PLC0415 (a second that layers need not)

    from convoy.models.build import smallest_px_of_torchvision  # noqa: PLC0415 (needs torch, as above)

    published = models.get_model_weights(name).DEFAULT
    image_px, classes = published.transforms().crop_size[0], len(published.meta["categories"])
    read = Spec(name=name, torchvision=name)
    return _counted(read, classes, image_px, smallest_px_of_torchvision(name, classes, 0))
