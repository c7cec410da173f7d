"""How fast the exported graph answers, beside eager torch on the same processor.

Each is timed in its own process, so that neither waits for the other's threads, and on one
thread: a figure per core can be compared between machines, and where other work runs beside,
several threads would time each other's waiting (a busy 2-core machine made torch's 0.2 ms 96 ms).
`python -m convoy.export.latency onnx|eager PATH IMAGE_PX RUNS` prints JSON.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import convoy
from convoy.core.errors import VerificationError

BATCH = 32
"""Images per batch when throughput is measured."""
WARM_UP = 3
"""Untimed calls before the timed ones: first calls allocate memory and choose kernels."""

THREADS = 1

Answer = Callable[[npt.NDArray[np.uint8]], object]


def measure(model: Path, trained: Path, image_px: int, runs: int) -> dict[str, Any]:
    """Time the ONNX file in onnxruntime, and the model that it came from in eager torch.

    Args:
        model: the ONNX file.
        trained: folder that training wrote.
        image_px: side of the square images that both are given, in pixels.
        runs: timed calls with one image; as many images again go through in batches.

    Returns:
        Conditions (`threads`, `batch`, `runs`, `image_px`), and for `onnx` and `eager` each
        `latency_ms_p50`, `latency_ms_p95` (one image) and `images_per_second` (batches).

    Raises:
        ProofError: with what the timing process said.
    """
    conditions = {"image_px": image_px, "runs": runs, "threads": THREADS, "batch": BATCH}
    return conditions | {
        kind: _in_own_process(kind, path, image_px, runs)
        for kind, path in (("onnx", model), ("eager", trained))
    }


def time_answers(answer: Answer, image_px: int, runs: int) -> dict[str, float]:
    """Time single images, then batches; the clock covers the call alone."""
    images_u8 = np.random.default_rng(0).integers(0, 256, (BATCH, image_px, image_px, 3), dtype=np.uint8)
    single = _seconds(answer, images_u8[:1], runs)
    batch = _seconds(answer, images_u8, max(3, runs // BATCH))
    return {
        "latency_ms_p50": float(np.percentile(single, 50)) * 1e3,
        "latency_ms_p95": float(np.percentile(single, 95)) * 1e3,
        "images_per_second": BATCH / float(np.median(batch)),
    }


def _seconds(answer: Answer, images_u8: npt.NDArray[np.uint8], runs: int) -> list[float]:
    for _ in range(WARM_UP):
        answer(images_u8)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        answer(images_u8)
        seconds.append(time.perf_counter() - start)
    return seconds


def _onnx(path: Path) -> Answer:
    from convoy.export.onnx_model import OnnxModel  # noqa: PLC0415 (each process pays for its own engine alone)

    return OnnxModel(path, threads=THREADS)


def _eager(path: Path) -> Answer:
    import torch  # noqa: PLC0415 (each process pays for its own engine alone)

    from convoy.models import trained  # noqa: PLC0415 (likewise)

    torch.set_num_threads(THREADS)
    model, _ = trained.load(path)

    def answer(images_u8: npt.NDArray[np.uint8]) -> object:
        with torch.inference_mode():
            return model(torch.from_numpy(images_u8).permute(0, 3, 1, 2).float()).softmax(dim=1).numpy()

    return answer


def _in_own_process(kind: str, path: Path, image_px: int, runs: int) -> dict[str, float]:
    words = [sys.executable, "-m", "convoy.export.latency", kind, path, image_px, runs]
    source = str(Path(convoy.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(  # noqa: S603 (this module, with our own words)
        [str(word) for word in words], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise VerificationError(f"timing of {path} ({kind}) failed with exit code {done.returncode}:\n{said}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _main(kind: str, path: str, image_px: str, runs: str) -> None:
    engine = {"onnx": _onnx, "eager": _eager}[kind]
    print(json.dumps(time_answers(engine(Path(path)), int(image_px), int(runs))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
