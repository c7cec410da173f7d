"""Open the model that is served: a file, or a version of the registry, verified and warm."""

import hashlib
import logging
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from convoy.core import contract, files
from convoy.core.errors import ConvoyError, RequestError, VerificationError
from convoy.export import signing
from convoy.export.onnx_model import CPU, OnnxModel, read_model
from convoy.serving import golden
from convoy.tracking import settings

logger = logging.getLogger(__name__)

DEFAULT = Path("build/deploy") / contract.VERIFIED
"""The model that is served where the registry has no champion."""

CHAMPION = "champion"
CACHE = Path(".cache/convoy/models")
"""Where models of the registry are kept, in a folder per sha256."""
MOST_CACHED = 5
SHA256 = re.compile("[0-9a-f]{64}")

RUN = "runs:/"

AUTO = ("CUDAExecutionProvider", "CoreMLExecutionProvider", "OpenVINOExecutionProvider", *CPU)
"""What `serve.providers: auto` tries, the fastest first. TensorRT must be named: it compiles a model for minutes."""

GOLDEN_SECONDS = 0.2
"""Time for golden images of a file: a service has 1.5 s until its first answer. Those of a version are all answered."""

FAST_MS = 1.0
"""Longest inference time, in milliseconds, of a model that runs in a single thread: the rest of a request takes 0.3 ms."""

MOST_PROVIDER_GAP = 0.01
"""Largest difference of a probability between another provider and the CPU, where no golden images set a limit."""


@dataclass(frozen=True)
class ServedModel:
    """Hold a model that answers, and where it comes from. Immutable: a hot swap replaces the reference.

    Attributes:
        name: `convoy/7`, or the path of a file.
        version: `7`; empty for a file.
        run_id: Convoy's id of the run that exported it; empty where the file has none.
        sha256: of model.onnx.
        folder: holds model.onnx and what lies beside it, such as verification.json and model_card.md.
        single: a single-threaded session of the same model; None unless the model is served and takes less than a millisecond.
    """

    model: OnnxModel
    name: str
    version: str
    run_id: str
    sha256: str
    folder: Path
    single: OnnxModel | None = None

    @property
    def public_name(self) -> str:
        """Name the model to whoever sends requests: a file without the folders of this machine."""
        return self.name if self.version or self.name.startswith(RUN) else Path(self.name).name

    def predict(self, images_u8: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Map (H, W, 3) images of any sizes to (N, K) probabilities; equal sizes share a batch."""
        return self.model.predict_mixed(images_u8)

    def predict_single(self, images_u8: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Do the same in a single thread, if the model has a `single` session."""
        return (self.single or self.model).predict_mixed(images_u8)


def default_source() -> str:
    """Return `champion` if the registry has a champion, else the model of the workspace.

    Raises:
        RegistryError: the registry does not answer.
    """
    uri = settings.uri()
    if uri.startswith(settings.SQLITE) and not Path(uri.removeprefix(settings.SQLITE)).exists():
        return str(DEFAULT)
    from convoy.registry.client import Registry  # noqa: PLC0415 (imports mlflow, a second)

    return CHAMPION if CHAMPION in Registry.open().aliases() else str(DEFAULT)


def open_model(
    source: str,
    *,
    providers: str = "auto",
    threads: int = 1,
    shared: bool = False,
    cache: Path | None = None,
    seconds_per_image: float | None = None,
    public_key: Path | None = None,
) -> ServedModel:
    """Open a model, check that it is the verified one, and answer images with it, so that the first request is not slower.

    A file imports neither torch nor mlflow.

    Args:
        source: `champion`, the number of a version, `runs:/ID` with what `convoy trace` resolves, or a file.
        providers: as `serve.providers`.
        threads: per operation of onnxruntime; 0 leaves their number to it.
        shared: as of `OnnxModel`.
        cache: folder for models of the registry.
        seconds_per_image: time limit of a call, as of `OnnxModel`.
        public_key: the model must be signed with its private half; None: signatures are not checked.

    Raises:
        RequestError: the file, the version, the run or the provider does not exist.
        VerificationError: the file is not valid, is not the one that was verified or signed, or does not answer as was measured.
        RegistryError: the registry does not answer, or has lost the file.
    """
    cache = cache or CACHE
    opened = partial(OnnxModel, threads=threads, shared=shared, seconds_per_image=seconds_per_image)
    if source.startswith(RUN):
        name, version, sha256, folder = _fetch_run(source.removeprefix(RUN), cache)
    elif source == CHAMPION or source.isdecimal():
        name, version, sha256, folder = _fetch_version(source, cache)
    else:
        if public_key:
            signing.check(Path(source).parent, public_key, source, Path(source).name)
        return _of_file(Path(source), providers, opened, shared=shared)
    if public_key:
        signing.check(folder, public_key, name)
    content = read_model(folder / contract.VERIFIED)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise VerificationError(f"{folder / contract.VERIFIED} changed while it was opened. Start again.")
    model = _verified(content, name, folder, math.inf, providers=providers, opened=opened)
    single = _single(model, content, name, folder) if shared else None
    return ServedModel(
        model, name, version, model.properties.get(contract.RUN_ID, ""), sha256, folder, single
    )


def _of_file(path: Path, providers: str, opened: Callable[..., OnnxModel], *, shared: bool) -> ServedModel:
    content = read_model(path)
    sha256 = hashlib.sha256(content).hexdigest()
    _check_recorded(path, sha256)
    # Of another file in the folder, such as an INT8 copy, golden images expect nothing.
    folder = path.parent if sha256 in _recorded(path.parent).values() else None
    model = _verified(content, str(path), folder, GOLDEN_SECONDS, providers=providers, opened=opened)
    single = _single(model, content, str(path), folder) if shared else None
    run_id = model.properties.get(contract.RUN_ID, "")
    return ServedModel(model, str(path), "", run_id, sha256, path.parent, single)


def _fetch_version(source: str, cache: Path) -> tuple[str, str, str, Path]:
    """Fetch a version, unless the cache has its bytes; return its name, number, sha256 and folder."""
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
    if not version.sha256 or not is_verified(folder, version.sha256):
        try:
            with _scratch(cache) as scratch:
                fetch(registry, version, scratch)
                _keep(scratch, folder)
        except ArtifactMissing as missing:
            raise RegistryError(
                f"{missing}. Serve another version: convoy serve --model VERSION"
            ) from missing
    _prune(cache, folder)
    return str(version), version.number, version.sha256, folder


def _fetch_run(query: str, cache: Path) -> tuple[str, str, str, Path]:
    """Fetch the verified model of a run; return its name, no version, its sha256 and folder."""
    from convoy.registry.client import Registry  # noqa: PLC0415 (imports mlflow, a second)
    from convoy.registry.register import of_run  # noqa: PLC0415 (as above)

    with _scratch(cache) as scratch:
        model, _ = of_run(Registry.open(), query, scratch)
        folder = model.folder
        if folder == scratch:
            folder = cache / model.sha256
            _keep(scratch, folder)
            _prune(cache, folder)
    return f"{RUN}{model.run_id}", "", model.sha256, folder


@contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """Make a folder beside those of the cache, and remove it."""
    cache.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=cache, prefix="."))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _keep(scratch: Path, folder: Path) -> None:
    """Move what was fetched to its place; what another process put there meanwhile is the same."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        scratch.rename(folder)


def _prune(cache: Path, used: Path) -> None:
    """Remove models that were not used for the longest time."""
    os.utime(used)
    folders = [folder for folder in cache.iterdir() if SHA256.fullmatch(folder.name)]
    for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)[MOST_CACHED:]:
        shutil.rmtree(folder, ignore_errors=True)


def _verified(
    content: bytes,
    name: str,
    folder: Path | None,
    golden_s: float,
    *,
    providers: str,
    opened: Callable[..., OnnxModel],
) -> OnnxModel:
    """Open a model with the first provider that answers as was measured; `folder` may hold golden images."""
    available = onnxruntime.get_available_providers()
    if providers != "auto" and providers not in available:
        raise RequestError(
            f"serve.providers is {providers}, which this onnxruntime does not have; it has: {', '.join(available)}. "
            "Set serve.providers: auto"
        )
    chosen = [each for each in AUTO if each in available] if providers == "auto" else [providers]
    for provider in chosen:
        names = CPU if provider in CPU else (provider, *CPU)
        try:
            model = opened(content, providers=names, name=name)
            if provider not in CPU:
                _compare_with_cpu(model, opened(content, name=name))
            _check_answers(model, folder, name, golden_s)
        except ConvoyError as error:
            if provider == chosen[-1]:
                raise
            logger.warning("%s is not used: %s", provider, error)
        else:
            break
    return model


def _single(model: OnnxModel, content: bytes, name: str, folder: Path | None) -> OnnxModel | None:
    """Open a second, single-threaded session if the model takes less than a millisecond per image on the CPU."""
    if model.providers != CPU or _fastest_ms(model) > FAST_MS:
        return None
    single = OnnxModel(content, threads=1, name=name)
    _check_answers(single, folder, name, GOLDEN_SECONDS)
    return single if _fastest_ms(single) <= FAST_MS else None


def _fastest_ms(model: OnnxModel) -> float:
    """Measure the least time of an image of the model's own size, in milliseconds: other work only adds to it."""
    px = int(model.properties[contract.IMAGE_PX])
    image_u8 = np.zeros((1, px, px, 3), np.uint8)
    fastest = math.inf
    for _ in range(5):
        began = time.perf_counter()
        model(image_u8)
        fastest = min(fastest, (time.perf_counter() - began) * 1000)
    return fastest


def _check_answers(model: OnnxModel, folder: Path | None, name: str, golden_s: float) -> None:
    """Answer images of two batch sizes, and the golden images.

    Raises:
        VerificationError: an answer is none, or another than was measured.
    """
    px = int(model.properties[contract.IMAGE_PX])
    for images in (1, 2):
        probabilities = model(np.zeros((images, px, px, 3), np.uint8))
        if probabilities.shape != (images, len(model.classes)) or not np.isfinite(probabilities).all():
            raise VerificationError(
                f"{name} does not answer a black image with {len(model.classes)} finite probabilities. "
                "Export again: dvc repro --force export"
            )
    images_of = folder / contract.GOLDEN if folder else None
    if images_of and (images_of / contract.GOLDEN_FACTS).is_file():
        golden.check(golden.replay(golden.of_model(model), images_of, golden_s), name)


def _compare_with_cpu(model: OnnxModel, reference: OnnxModel) -> None:
    """Compare a provider with the CPU.

    Raises:
        VerificationError: they answer differently, or the provider runs nothing.
    """
    if model.providers == reference.providers:
        raise VerificationError("it does not start here; onnxruntime fell back to the CPU")
    px = int(model.properties[contract.IMAGE_PX])
    noise_u8 = np.random.default_rng(0).integers(0, 256, (4, px, px, 3), np.uint8)
    gap = float(np.abs(model(noise_u8) - reference(noise_u8)).max())
    if not gap <= MOST_PROVIDER_GAP:
        raise VerificationError(
            f"its probabilities differ from the CPU's by up to {gap:.3g}; {MOST_PROVIDER_GAP} is allowed"
        )


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
    known = _recorded(path.parent).get(path.name, sha256)
    if known != sha256:
        raise VerificationError(
            f"{path} (sha256 {sha256[:12]}) is not the model that {path.parent / contract.VERIFICATION} describes (sha256 "
            f"{known[:12]}): either was changed since. Restore both: dvc checkout --force build/deploy; or make them again: dvc "
            "repro --force export"
        )
