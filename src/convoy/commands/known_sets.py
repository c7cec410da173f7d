"""Published datasets that `convoy data use` fetches by name: official addresses with their checksums.

A set of one file becomes an unfrozen DVC import of its address. DVC cannot import several files over HTTP as one folder, so a
set of several files is downloaded into data/, compared with its checksums, and put under DVC without a source.

Addresses, checksums and class names: torchvision 0.29 (`torchvision/datasets`), mnist.npz: Keras 3 (`keras/datasets/mnist.py`).
"""

import difflib
import hashlib
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from convoy.core.console import table, track
from convoy.core.errors import DataError, refuse_credentials

CLASSES_FILE = "classes.txt"
PIECE_BYTES = 2**18
TIMEOUT_S = 60
MAX_BYTES = 2**30
"""Largest file of a set that is downloaded, in bytes."""


@dataclass(frozen=True)
class PublishedFile:
    """Describe a file of a set.

    Attributes:
        address: where its publisher, or the framework that distributes it, has it.
        algorithm: `md5` or `sha256`.
        checksum: the published one, in hexadecimal digits.
    """

    address: str
    algorithm: str
    checksum: str


@dataclass(frozen=True)
class KnownSet:
    """Describe a published dataset.

    Attributes:
        name: what is typed.
        files: one archive, or several files.
        content: classes, images and their size.
        size: of the download.
        licence: as its publisher states it; `not stated` if no source does.
        classes: names of labels, where the files have only numbers.
    """

    name: str
    files: tuple[PublishedFile, ...]
    content: str
    size: str
    licence: str
    classes: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """Return the address of the file, or of the folder with the files."""
        address = self.files[0].address
        return address if len(self.files) == 1 else address.rpartition("/")[0] + "/"


def _idx(base: str, *checksums: str) -> tuple[PublishedFile, ...]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(
        PublishedFile(f"{base}{name}-ubyte.gz", "md5", checksum)
        for name, checksum in zip(names, checksums, strict=True)
    )


def _md5(address: str, checksum: str) -> tuple[PublishedFile, ...]:
    return (PublishedFile(address, "md5", checksum),)


_ALL = (
    KnownSet(
        "cifar10",
        _md5("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
        "10 classes of things, 60,000 images of 32×32 pixels",
        "170 MB",
        "not stated",
    ),
    KnownSet(
        "cifar100",
        _md5("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
        "100 classes of things, 60,000 images of 32×32 pixels",
        "169 MB",
        "not stated",
    ),
    KnownSet(
        "mnist",
        (
            PublishedFile(
                "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
                "sha256",
                "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
            ),
        ),
        "10 handwritten digits, 70,000 gray images of 28×28 pixels",
        "11 MB",
        "CC BY-SA 3.0",
    ),
    KnownSet(
        "fashion-mnist",
        _idx(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        "10 classes of clothes, 70,000 gray images of 28×28 pixels",
        "31 MB",
        "MIT",
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    KnownSet(
        "kmnist",
        _idx(
            "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
        "10 Japanese characters, 70,000 gray images of 28×28 pixels",
        "21 MB",
        "CC BY-SA 4.0",
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
    KnownSet(
        "eurosat",
        _md5(
            "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
            "c8fa014336c82ac7804f0398fcb19387",
        ),
        "10 kinds of land use, 27,000 satellite images of 64×64 pixels",
        "94 MB",
        "MIT",
    ),
    KnownSet(
        "imagenette",
        _md5(
            "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz",
            "e793b78cc4c9e9a4ccc0c1155377a412",
        ),
        "10 classes of ImageNet, 13,394 images of 160 pixels",
        "99 MB",
        "Apache 2.0",
    ),
    KnownSet(
        "imagenette-320",
        _md5(
            "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
            "3df6f0d01a2c9592104656642f5e78a3",
        ),
        "the same, images of 320 pixels",
        "342 MB",
        "Apache 2.0",
    ),
    KnownSet(
        "food101",
        _md5("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87"),
        "101 dishes, 101,000 photographs; its list of test images is not used",
        "5 GB",
        "not stated",
    ),
    KnownSet(
        "dtd",
        _md5(
            "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
            "fff73e5086ae6bdbea199a49dfb8a4c1",
        ),
        "47 textures, 5,640 photographs; its lists of splits are not used",
        "0.6 GB",
        "not stated",
    ),
    KnownSet(
        "caltech256",
        _md5(
            "https://data.caltech.edu/records/nyy15-4j048/files/256_ObjectCategories.tar",
            "67b4f42ca05d46448c6bb8ecd2220f6d",
        ),
        "256 classes of things and `clutter`, 30,607 photographs",
        "1.2 GB",
        "not stated",
    ),
)

KNOWN_SETS: Mapping[str, KnownSet] = {known.name: known for known in _ALL}


def overview() -> str:
    """Render the sets as a table."""
    rows = [(known.name, known.content, known.size, known.licence) for known in _ALL]
    return table(("Name", "Content", "Download", "Licence"), rows)


def nearest(name: str) -> str:
    """Return the set whose name is nearly or but for case and dashes `name`, such as `CIFAR-10`; empty if none is."""
    plain = {re.sub(r"[^a-z0-9]", "", known): known for known in KNOWN_SETS}
    found = difflib.get_close_matches(re.sub(r"[^a-z0-9]", "", name.lower()), plain, n=1, cutoff=0.8)
    return plain[found[0]] if found and "/" not in name else ""


def verify(known: KnownSet, path: Path) -> None:
    """Compare a fetched set of one file with its published checksum.

    Raises:
        DataError: they differ; names both.
    """
    (published,) = known.files
    with path.open("rb") as file:
        found = hashlib.file_digest(file, published.algorithm).hexdigest()
    _compare(known, published, found)


def download(known: KnownSet, folder: Path) -> None:
    """Download a set of several files into a new folder, with a list of its class names.

    Raises:
        DataError: a server does not answer, or a checksum differs.
    """
    folder.mkdir()
    for published in track(known.files, f"fetch {known.name}", len(known.files)):
        refuse_credentials(published.address)
        name = published.address.rpartition("/")[2]
        try:
            with (
                urllib.request.urlopen(published.address, timeout=TIMEOUT_S) as response,  # noqa: S310 (addresses of the table)
                (folder / name).open("wb") as file,
            ):
                found = _copy(response, file, published)
        except (urllib.error.URLError, OSError) as error:
            raise DataError(
                f"{known.name}: {published.address} cannot be fetched: {getattr(error, 'reason', error)}"
            ) from error
        _compare(known, published, found)
    if known.classes:
        (folder / CLASSES_FILE).write_text("\n".join([*known.classes, ""]), encoding="utf-8")


def _copy(response: IO[bytes], file: IO[bytes], published: PublishedFile) -> str:
    digest = hashlib.new(published.algorithm, usedforsecurity=False)
    size = 0
    while piece := response.read(PIECE_BYTES):
        size += len(piece)
        if size > MAX_BYTES:
            raise DataError(f"{published.address} sends more than {MAX_BYTES:,} bytes.")
        digest.update(piece)
        file.write(piece)
    return digest.hexdigest()


def _compare(known: KnownSet, published: PublishedFile, found: str) -> None:
    if found != published.checksum:
        raise DataError(
            f"{known.name}: {published.address} has the {published.algorithm} {found}; {published.checksum} is published. The file "
            "was replaced or damaged on its way."
        )
