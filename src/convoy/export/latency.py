"""Time the exported graph beside eager torch on the same processor, and name the conditions.

Each is timed in a process without the other, so that neither waits for the other's threads, and on a single thread:
a figure per core compares between machines, and on a busy machine several threads would time each other's waiting (a
busy 2-core machine made torch's 0.2 ms 96 ms). `python -m convoy.export.latency MODEL IMAGE_PX RUNS` prints JSON.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

import convoy
from convoy.core import files
from convoy.core.errors import VerificationError

PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")
BATCH = 32  # images, when throughput is measured
WARM_UP = 3  # untimed calls at the start: they allocate memory and choose kernels
THREADS = 1
EAGER = "eager.json"  # beside the graph, from its build to its verification

Predict = Callable[[npt.NDArray[np.uint8]], object]


def measure(model: Path, image_px: int, runs: int) -> dict[str, Any]:
    """Time the ONNX file in onnxruntime, and add the figures of eager torch, whose file is removed.

    Both are given square images; about as many as in the `runs` calls with a single image are timed in batches.

    Returns:
        Conditions (`threads`, `batch`, `runs`, `image_px`), and for `onnx` and `eager` each
        `latency_ms_p50`, `latency_ms_p95` (single images) and `images_per_second` (batches).

    Raises:
        VerificationError: the timing process failed; with its last lines.
    """
    source = str(Path(convoy.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(  # noqa: S603 (this module, with fixed arguments)
        [sys.executable, "-m", "convoy.export.latency", str(model), str(image_px), str(runs)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        lines = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise VerificationError(f"timing of {model} failed with exit code {done.returncode}:\n{lines}")
    timed = {"image_px": image_px, "runs": runs, "threads": THREADS, "batch": BATCH}
    eager = files.read_json(model.with_name(EAGER))
    model.with_name(EAGER).unlink()
    return timed | {"onnx": json.loads(done.stdout.splitlines()[-1]), "eager": eager}


def measure_eager(trained: Path, deploy: Path, runs: int) -> None:
    """Time the trained model in eager torch and write the figures beside the graph that was built from it."""
    import torch  # noqa: PLC0415 (`verify` must not import it)

    from convoy.models.trained import load  # noqa: PLC0415 (likewise)

    model, facts = load(trained)

    def predict(images_u8: npt.NDArray[np.uint8]) -> object:
        with torch.inference_mode():
            return model(torch.from_numpy(images_u8).permute(0, 3, 1, 2).float()).softmax(dim=1).numpy()

    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        files.write_json(deploy / EAGER, time_calls(predict, facts.image_px, runs))
    finally:
        torch.set_num_threads(threads)


def time_calls(predict: Predict, image_px: int, runs: int) -> dict[str, float]:
    """Time single images, then batches; the clock covers the call alone."""
    images_u8 = np.random.default_rng(0).integers(0, 256, (BATCH, image_px, image_px, 3), dtype=np.uint8)
    single = _seconds(predict, images_u8[:1], runs)
    batch = _seconds(predict, images_u8, max(3, runs // BATCH))
    return {
        "latency_ms_p50": float(np.percentile(single, 50)) * 1e3,
        "latency_ms_p95": float(np.percentile(single, 95)) * 1e3,
        "images_per_second": BATCH / float(np.median(batch)),
    }


def _seconds(predict: Predict, images_u8: npt.NDArray[np.uint8], runs: int) -> list[float]:
    for _ in range(WARM_UP):
        predict(images_u8)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        predict(images_u8)
        seconds.append(time.perf_counter() - start)
    return seconds


def versions() -> dict[str, str]:
    """List the installed versions that a prediction depends on; imports none of them."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def hardware() -> dict[str, Any]:
    """Name processor, cores, memory in GiB and system."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    """Read the model's name from Linux; Python's own answer is often empty there."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    from convoy.export.onnx_model import OnnxModel

    _path, _image_px, _runs = sys.argv[1:]
    print(json.dumps(time_calls(OnnxModel(Path(_path), threads=THREADS), int(_image_px), int(_runs))))
