"""Small deliveries, made on the spot."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoy.core import yaml
from convoy.data.settings import DataParams

Files = Mapping[str, bytes]
SHIPPED = yaml.read(Path(__file__).parents[1] / "params.yaml")["data"]


def data_params(**changes: object) -> DataParams:
    """Return the shipped `data` section with larger splits, for small deliveries, and the changes."""
    return DataParams.model_validate(SHIPPED | {"splits": {"val": 0.2, "test": 0.2}} | changes)


ONE_COLOUR: Mapping[str, object] = SHIPPED["checks"] | {
    "blank": {"limit": 1, "action": "report", "max_share": 1.0}
}
"""Checks for deliveries of stand-ins that are of a single colour each."""


def png_of(seed: int, width: int = 8, height: int = 8) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    return png_of


@pytest.fixture(scope="session")
def pets() -> dict[str, bytes]:
    """Two classes of 40 images, without parts; every part gets some of each when cut."""
    return {
        f"{label}/{n}.png": png_of(1000 * start + n)
        for start, label in enumerate(("cat", "dog"))
        for n in range(40)
    }


@pytest.fixture(scope="session")
def parts() -> dict[str, bytes]:
    """Two classes in train, val and test."""
    folders = [f"{part}/{label}" for part in ("train", "val", "test") for label in ("cat", "dog")]
    return {
        f"{folder}/{n}.png": png_of(100 * index + n) for index, folder in enumerate(folders) for n in range(5)
    }


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[Files], Path]:
    def write(files: Files, name: str = "data") -> Path:
        for path, content in files.items():
            target = tmp_path / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return tmp_path / name

    return write


@pytest.fixture
def zipped(tmp_path: Path) -> Callable[[Files], Path]:
    def write(files: Files, name: str = "data.bin") -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in files.items():
                archive.writestr(member, content)
        return path

    return write


@pytest.fixture
def tarred(tmp_path: Path) -> Callable[..., Path]:
    def write(files: Files, compression: str = "gz", extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
        path = tmp_path / f"data-{compression}.bin"
        with tarfile.open(path, f"w:{compression}") as archive:  # type: ignore[call-overload] # the mode is put together
            for member, content in files.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            for info in extra:
                archive.addfile(info)
        return path

    return write


@pytest.fixture
def settings() -> Callable[..., DataParams]:
    def make(**changes: object) -> DataParams:
        return data_params(**{"image_px": 8, "max_quarantined": 0.1} | changes)

    return make
