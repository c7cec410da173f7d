"""Open the model that is served: a file, or a version of the registry, verified and warm."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convoy.core import contract, files
from convoy.core.errors import RequestError, VerificationError
from convoy.export.onnx_model import OnnxModel, read_model
from convoy.serving import golden

DEFAULT = Path("build/deploy") / contract.VERIFIED
"""The model that is served where the registry has no champion."""

CHAMPION = "champion"
GOLDEN_SECONDS = 0.2
"""Time for golden images when a model is opened: a service has 1.5 s until its first answer."""

CACHE = Path(".cache/convoy/models")
"""Where models of the registry are kept, in a folder per sha256."""


@dataclass(frozen=True)
class ServedModel:
    """Hold a model that answers, and where it comes from. Immutable: a hot swap replaces the reference.

    Attributes:
        name: `convoy/7`, or the path of a file.
        version: `7`; empty for a file.
        run_id: Convoy's id of the run that exported it; empty where the file has none.
        sha256: of model.onnx.
        folder: holds model.onnx and what lies beside it, such as verification.json and model_card.md.
    """

    model: OnnxModel
    name: str
    version: str
    run_id: str
    sha256: str
    folder: Path

    def predict(self, images_u8: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Map (H, W, 3) images of any sizes to (N, K) probabilities; equal sizes share a batch."""
        return self.model.predict_mixed(images_u8)


def open_model(
    source: str,
    *,
    providers: str = "auto",
    threads: int = 1,
    cache: Path | None = None,
    seconds_per_image: float | None = None,
) -> ServedModel:
    """Open a model, check that it is the verified one, and answer an image with it.

    Args:
        source: `champion`, the number of a version, or a file.
        providers: as `serve.providers`.
        threads: per operation of onnxruntime; 0 leaves their number to it.
        cache: folder for models of the registry.
        seconds_per_image: time limit of a call, as of `OnnxModel`.

    Raises:
        RequestError: the file or the version does not exist.
        VerificationError: the file is not valid, or is not the one that was verified.
        RegistryError: the registry does not answer.
    """
    opened = partial(_opened, providers=providers, threads=threads, seconds_per_image=seconds_per_image)
    if source == CHAMPION or source.isdecimal():
        return _of_registry(source, cache or CACHE, opened)
    return _of_file(Path(source), opened)


def _of_file(path: Path, opened: Callable[..., ServedModel]) -> ServedModel:
    """Open a file; this imports neither torch nor mlflow."""
    content = read_model(path)
    sha256 = hashlib.sha256(content).hexdigest()
    _check_recorded(path, sha256)
    return opened(content, sha256, path.parent, name=str(path), version="")


def _of_registry(source: str, cache: Path, opened: Callable[..., ServedModel]) -> ServedModel:
    """Fetch a version, unless the cache has its bytes, and open it."""
    from convoy.registry.client import (  # noqa: PLC0415 (imports mlflow, a second)
        ArtifactMissing,
        Registry,
        RegistryError,
        fetch,
        is_verified,
    )

    registry = Registry.open()
    version = registry.alias(CHAMPION) if source == CHAMPION else registry.version(source)
    if version is None:
        raise RequestError(
            f"{registry.model} at {registry.address} has no champion. Make one: convoy register, then convoy promote; "
            f"or serve a file: convoy serve --model {DEFAULT}"
        )
    folder = cache / version.sha256
    if not is_verified(folder, version.sha256):
        cache.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=cache, prefix="."))
        try:
            fetch(registry, version, scratch)
            shutil.rmtree(folder, ignore_errors=True)
            scratch.replace(folder)
        except ArtifactMissing as missing:
            raise RegistryError(
                f"{missing}. Serve another version: convoy serve --model VERSION"
            ) from missing
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    content = read_model(folder / contract.VERIFIED)
    if (sha256 := hashlib.sha256(content).hexdigest()) != version.sha256:
        raise VerificationError(f"{folder / contract.VERIFIED} changed while it was opened. Start again.")
    return opened(content, sha256, folder, name=str(version), version=version.number)


def _opened(
    content: bytes,
    sha256: str,
    folder: Path,
    *,
    name: str,
    version: str,
    providers: str,
    threads: int,
    seconds_per_image: float | None,
) -> ServedModel:
    """Open the bytes of a model, and answer images with it, so that the first request is as fast as the others.

    Raises:
        VerificationError: its answers to golden images are not those that were measured.
    """
    chosen = ("CPUExecutionProvider",) if providers == "auto" else (providers, "CPUExecutionProvider")
    model = OnnxModel(
        content, threads=threads, providers=chosen, name=name, seconds_per_image=seconds_per_image
    )
    px = int(model.properties[contract.IMAGE_PX])
    for images in (1, 2):
        probabilities = model(np.zeros((images, px, px, 3), np.uint8))
        if probabilities.shape != (images, len(model.classes)) or not np.isfinite(probabilities).all():
            raise VerificationError(
                f"{name} does not answer a black image with {len(model.classes)} finite probabilities. "
                "Export again: dvc repro --force export"
            )
    expected = folder / contract.GOLDEN
    # Of another file in the folder, such as an INT8 copy, they expect nothing.
    if (expected / contract.GOLDEN_FACTS).is_file() and sha256 in _recorded(folder).values():
        golden.check(golden.replay(golden.of_model(model), expected, GOLDEN_SECONDS), name)
    return ServedModel(model, name, version, model.properties.get(contract.RUN_ID, ""), sha256, folder)


def _recorded(folder: Path) -> dict[str, str]:
    """Read for which file, with which sha256, the verification of a folder holds; nothing where there is none."""
    beside = folder / contract.VERIFICATION
    if not beside.is_file():
        return {}
    try:
        recorded = files.read_json(beside)["model"]
        return {str(recorded["file"]): str(recorded["sha256"])}
    except (ValueError, LookupError, TypeError):  # cut or edited by hand
        return {contract.VERIFIED: "unreadable"}


def _check_recorded(path: Path, sha256: str) -> None:
    """Refuse a file that is not the one that the verification beside it describes.

    Raises:
        VerificationError: naming both hashes.
    """
    beside = path.parent / contract.VERIFICATION
    known = _recorded(path.parent)
    if known.get(path.name, sha256) != sha256:
        raise VerificationError(
            f"{path} (sha256 {sha256[:12]}) is not the model that {beside} describes (sha256 {known[path.name][:12]}): either was "
            "changed since. Restore both: dvc checkout --force build/deploy; or make them again: dvc repro --force export"
        )
