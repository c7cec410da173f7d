"""Keep the images of answers that abstained, in class folders that a person corrects and `convoy data use` reads."""

import hashlib
import io
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from PIL import Image

from convoy.core.errors import RequestError
from convoy.serving.model import ServedModel

logger = logging.getLogger(__name__)

STARTS = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}
"""First bytes of formats, and the suffix that a kept file gets; RIFF holds WebP, and a box `ftyp` AVIF."""


class UncertainImages:
    """Keep images whose most probable class is less probable than `min_confidence`, each once, as it was sent.

    It is an observer of `batches.Answerer`. A file is called `DIR/predicted class/0.412-sha256.jpg`: the least certain come first.
    """

    def __init__(self, folder: Path, min_confidence: float, most: int) -> None:
        """Count what the folder holds already.

        Raises:
            RequestError: the folder cannot be made or written.
        """
        self.folder, self.min_confidence, self.most = folder, min_confidence, most
        self._lock = threading.Lock()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._kept = {path.stem.rpartition("-")[2] for path in folder.glob("*/*-*.*")}
            if not os.access(folder, os.W_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise RequestError(
                f"serve.keep_uncertain: {folder} cannot be written: {error.strerror}. Name another folder in params.yaml, or none."
            ) from error

    def __call__(
        self,
        images_u8: Sequence[npt.NDArray[np.uint8]],
        probabilities: npt.NDArray[np.float32],
        contents: Sequence[bytes | None],
        served: ServedModel,
    ) -> None:
        """Keep the uncertain ones of N images with (N, K) probabilities."""
        best = probabilities.max(axis=1)
        for n in np.flatnonzero(best < self.min_confidence).tolist():
            label = served.model.classes[int(probabilities[n].argmax())]
            self._keep(contents[n] or _png(images_u8[n]), label, float(best[n]))

    def _keep(self, content: bytes, label: str, probability: float) -> None:
        digest = hashlib.sha256(content).hexdigest()[:32]
        with self._lock:
            if digest in self._kept or len(self._kept) >= self.most:
                return
            self._kept.add(digest)
            if len(self._kept) == self.most:
                logger.warning(
                    "%s holds serve.keep_max = %d images: no more are kept", self.folder, self.most
                )
        path = self.folder / folder_name(label) / f"{probability:.3f}-{digest}{_suffix(content)}"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        scratch = path.with_name(f".{path.name}")
        scratch.write_bytes(content)
        scratch.replace(path)


def folder_name(label: str) -> str:
    """Turn a class into the name of a folder: what would lead elsewhere, or be hidden, is written as `%2F`."""
    name = "".join(quote(letter, safe="") if letter in "/\\\0%" else letter for letter in label)
    return f"%2E{name[1:]}" if name.startswith(".") else name


def _png(image_u8: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_u8).save(stream, format="PNG")
    return stream.getvalue()


def _suffix(content: bytes) -> str:
    if content[8:12] == b"WEBP":
        return ".webp"
    if content[4:8] == b"ftyp":
        return ".avif"
    return next((suffix for start, suffix in STARTS.items() if content.startswith(start)), ".img")
