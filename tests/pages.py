"""Pages for the browser tests: a folder served over HTTP, onnxruntime-web, and images of every kind."""

import functools
import http.server
import io
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from filelock import FileLock
from PIL import Image, PngImagePlugin

from convoy.serving import demo
from icc import DISPLAY_P3
from servers import require


@contextmanager
def static(folder: Path) -> Iterator[str]:
    """Serve a folder as any web server does; give its address."""
    handler = functools.partial(_Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Write no log."""


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tarball of onnxruntime-web, fetched once for all workers."""
    npm = require("npm", "npm")
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "onnxruntime-web"
    shared.mkdir(exist_ok=True)
    with FileLock(shared / "lock"):
        if not list(shared.glob("*.tgz")):
            command = [str(npm), "pack", f"{demo.PACKAGE}@{demo.VERSION}", "--ignore-scripts"]
            subprocess.run(command, cwd=shared, check=True, capture_output=True)
    return next(shared.glob("*.tgz"))


def pictures(count: int) -> list[tuple[str, bytes]]:
    """Make images as applications have them: JPEG and PNG of several sizes and subsamplings, noisy and smooth, upright by EXIF,
    gray, with a palette, transparent, with an ICC profile, with a gamma chunk that Pillow ignores."""
    rng = np.random.default_rng(4)
    turned = Image.Exif()
    made = []
    for n in range(count):
        height, width = (int(side) for side in rng.integers(6, 90, 2))
        grain = 1 if n % 3 else 8
        size = (-(-height // grain), -(-width // grain), 3)
        image = Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        turned[274] = n // 8 % 8 + 1
        alpha = Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8))
        kinds = {
            "turned.jpg": lambda image=image, n=n: _saved(
                image, "JPEG", quality=60 + n % 40, subsampling=n % 3, exif=turned
            ),
            "plain.png": lambda image=image: _saved(image, "PNG"),
            "progressive.jpg": lambda image=image: _saved(image, "JPEG", quality=85, progressive=True),
            "transparent.png": lambda image=image, alpha=alpha: _saved(
                Image.merge("RGBA", (*image.split(), alpha)), "PNG"
            ),
            "gray.jpg": lambda image=image: _saved(image.convert("L"), "JPEG", quality=90),
            "palette.png": lambda image=image: _saved(image.convert("P"), "PNG"),
            "profile.jpg": lambda image=image: _saved(image, "JPEG", quality=95, icc_profile=DISPLAY_P3),
            "gamma.png": lambda image=image: _saved(image, "PNG", gamma=True),
        }
        kind = list(kinds)[n % len(kinds)]
        made.append((f"{n:03}-{kind}", kinds[kind]()))
    return made


def _saved(image: Image.Image, format_: str, *, gamma: bool = False, **options: object) -> bytes:
    stream = io.BytesIO()
    if gamma:
        chunks = PngImagePlugin.PngInfo()
        chunks.add(b"gAMA", (100000).to_bytes(4, "big"))
        options["pnginfo"] = chunks
    image.save(stream, format_, **options)
    return stream.getvalue()


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Run an application as `convoy serve` does, in a thread; give its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, http="httptools", ws="none", access_log=False, log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()
