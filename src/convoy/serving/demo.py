"""Make a static page that runs a verified model in the browser, with onnxruntime-web.

The page has the verified `model.onnx` byte for byte. What it shows besides probabilities are further outputs of the same
graph: `outputs.pb` declares them, and the browser appends its bytes to the model's, which protobuf reads as one message.

N images; C channels, H height and W width of a feature map, in cells.
"""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from convoy.core import contract, files
from convoy.core.errors import RequestError, VerificationError, without_credentials
from convoy.serving import page_files
from convoy.serving.model import default_source, open_model

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the tarball, as npm's lock files write it; belongs to `VERSION`."""

RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""What a page without WebGPU needs of the package's 145 MB: 14 MB."""

FACTS = "demo.json"
OUTPUTS = "outputs.pb"
NPM_SECONDS = 600

SEEN = "pixels"
"""The value in the exported graph that the network sees: float32 (N, 3, P, P) in 0..255."""

READABLE_SIDES = (4, 2, 1)
"""Smallest sides of a map that shows a shape, in cells, tried in this order."""

REFINES = {
    "BatchNormalization",
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Elu",
    "Gelu",
    "HardSwish",
    "HardSigmoid",
    "Clip",
    "Selu",
    "Mish",
}
"""Operations behind a convolution whose output is still its map, channel by channel."""

LICENSE = """MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation
files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy,
modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE,
ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
"""Of onnxruntime-web, whose package holds no licence file."""


@dataclass(frozen=True)
class Map:
    """Describe the feature maps of a convolution.

    Attributes:
        output: name of the value in the graph.
        name: of the layer.
        operations: ONNX operations that the maps went through, in order.
    """

    output: str
    name: str
    operations: tuple[str, ...]


def build(source: str, out: Path, runtime: Path | None = None) -> dict[str, Any]:
    """Write the page for a verified model.

    Args:
        source: as of `open_model`; empty: as `convoy serve` without `--model`.
        out: folder to write; new, empty, or made by this function earlier.
        runtime: tarball of onnxruntime-web; None fetches it with npm.

    Returns:
        The facts in `demo.json`.

    Raises:
        RequestError: the folder holds something else; the model does not exist; the tarball is missing; npm is missing or failed.
        VerificationError: the model is not the one that was verified, or the tarball is another one.
        RegistryError: the registry does not answer.
    """
    _refuse_foreign(out)
    source = source or default_source()
    served = open_model(source, providers="CPUExecutionProvider")
    exported, path = served.model, served.folder / contract.VERIFIED
    if Path(source).is_file():
        path = Path(source)
    content = path.read_bytes()
    seen, maps = inner_values(content, int(exported.properties[contract.IMAGE_PX]))
    sha256 = hashlib.sha256(content).hexdigest()
    golden = served.folder / contract.GOLDEN
    # Of another file in the folder, such as an INT8 copy, golden images expect nothing.
    has_golden = path.name == contract.VERIFIED and golden.is_dir()
    name = served.name if served.version else f"Model {sha256[:12]}"
    facts = {
        "made_by": "convoy demo",
        "name": f"{name} of run {served.run_id}" if served.run_id else name,
        "sha256": sha256,
        "run_id": served.run_id,
        "classes": list(exported.classes),
        "background": exported.background,
        "image_px": int(exported.properties[contract.IMAGE_PX]),
        "seen": seen,
        "maps": [asdict(one) for one in maps],
        "runtime": f"{PACKAGE} {VERSION}",
        "golden": has_golden,
    }
    with tempfile.TemporaryDirectory() as scratch:
        parts = _runtime_files(runtime or _fetched(Path(scratch), out))
    for folder in (out / "page", out / "onnxruntime"):
        folder.mkdir(parents=True, exist_ok=True)
    files.write_json(out / FACTS, facts)
    for name, part in parts.items():
        (out / "onnxruntime" / name).write_bytes(part)
    (out / "onnxruntime" / "LICENSE").write_text(LICENSE, encoding="utf-8")
    for name, part in page_files.read(page_files.DEMO).items():
        (out / "page" / name).write_bytes(part)
    html = page_files.read((page_files.HTML,))[page_files.HTML]
    (out / page_files.HTML).write_bytes(html.replace(b"page/service.js", b"page/demo.js"))
    (out / contract.VERIFIED).write_bytes(content)
    shutil.rmtree(out / contract.GOLDEN, ignore_errors=True)
    if has_golden:
        shutil.copytree(golden, out / contract.GOLDEN)
    (out / OUTPUTS).write_bytes(declared([*([seen] if seen else []), *(one.output for one in maps)]))
    return facts


def inner_values(content: bytes, image_px: int) -> tuple[str | None, list[Map]]:
    """Choose what a page shows of a graph: what the network sees, and the maps of its first, middle and last convolution.

    Maps of fewer than 4 x 4 cells are left out where there are larger ones. A run of the graph measures them: with `fit:
    letterbox`, their sizes are not known without one.

    Args:
        content: bytes of the model.
        image_px: P, the side of the square that the network sees.

    Returns:
        Name of the (N, 3, P, P) value, None if the graph has none; and up to three maps, in the graph's order.
    """
    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content)).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    found = [one for one in convolutions(graph) if kinds.get(one.output) == TensorProto.FLOAT]  # not float16
    candidates = [SEEN] if kinds.get(SEEN) == TensorProto.FLOAT else []
    candidates += [one.output for one in found]
    if not candidates:
        return None, []
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        content + declared(candidates), options, providers=["CPUExecutionProvider"]
    )
    image_u8 = np.zeros((1, image_px, image_px, 3), np.uint8)
    values = session.run(candidates, {contract.IMAGE: image_u8})
    shapes = dict(zip(candidates, (value.shape for value in values), strict=True))
    seen = SEEN if shapes.get(SEEN) == (1, 3, image_px, image_px) else None
    for side in READABLE_SIDES:
        readable = [
            one for one in found if len(shapes[one.output]) == 4 and min(shapes[one.output][2:]) >= side
        ]
        if len(readable) >= 3:
            return seen, [readable[0], readable[len(readable) // 2], readable[-1]]
    return seen, readable


def convolutions(graph: onnx.GraphProto) -> list[Map]:
    """List the convolutions of a graph, each with the norm and the activation behind it."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found: list[Map] = []
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        output, operations = node.output[0], ["Conv"]
        while len(behind := users.get(output, [])) == 1 and behind[0].op_type in REFINES:
            output = behind[0].output[0]
            operations.append(behind[0].op_type)
        weight = node.input[1].removesuffix(".weight").rpartition("network.")[2]
        name = weight if node.input[1].endswith(".weight") else f"convolution {len(found) + 1}"
        found.append(Map(output, name, tuple(operations)))
    return found


def declared(names: Sequence[str]) -> bytes:
    """Return bytes that, behind those of a model, make float32 values of its graph outputs.

    Protobuf merges messages that follow each other: fields that repeat, such as a graph's outputs, are joined.
    """
    model = onnx.ModelProto()
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return bytes(model.SerializeToString())


def _refuse_foreign(out: Path) -> None:
    """Refuse a folder with files that `build` did not write.

    Raises:
        RequestError: naming one of them.
    """
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file. Name a folder for the page: convoy demo build/demo")
    inside = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if not inside:
        return
    try:
        earlier = files.read_json(out / FACTS).get("made_by") == "convoy demo"
    except (OSError, ValueError):
        earlier = False
    if not earlier:
        raise RequestError(
            f"{out} holds other files ({inside[0]}{' and more' if len(inside) > 1 else ''}). Name a new or empty folder, or one "
            "that `convoy demo` made."
        )


def _fetched(folder: Path, out: Path) -> Path:
    """Fetch the tarball with npm, from the registry that npm is configured for.

    Raises:
        RequestError: npm is not installed, or failed.
    """
    spec = f"{PACKAGE}@{VERSION}"
    ways = (
        f"Fetch the file on a machine that can, and name it: npm pack {spec} && convoy demo {out} --runtime "
        f"{PACKAGE}-{VERSION}.tgz"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise RequestError(
            f"npm, which fetches {spec}, is not installed. Install Node.js with npm (Debian: apt-get install npm). Or: {ways}"
        )
    try:
        done = subprocess.run(  # noqa: S603 (no shell; npm's own path)
            [npm, "pack", spec, "--pack-destination", str(folder), "--ignore-scripts", "--loglevel", "error"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=NPM_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise RequestError(f"npm did not fetch {spec} within {NPM_SECONDS} s. {ways}") from error
    made = next(folder.glob("*.tgz"), None)
    if done.returncode or made is None:
        cause = without_credentials(" ".join(done.stderr.split()))[-400:] or f"exit code {done.returncode}"
        raise RequestError(f"npm did not fetch {spec}: {cause}. {ways}")
    return made


def _runtime_files(tarball: Path) -> dict[str, bytes]:
    """Read the files of onnxruntime-web that the page needs, once the tarball is the pinned one.

    Raises:
        RequestError: the file does not exist.
        VerificationError: it is another file.
    """
    try:
        with tarball.open("rb") as file:
            digest = hashlib.file_digest(file, "sha512").digest()
    except OSError as error:
        raise RequestError(
            f"{tarball} cannot be read: {error.strerror}. `npm pack {PACKAGE}@{VERSION}` makes {PACKAGE}-{VERSION}.tgz."
        ) from error
    integrity = f"sha512-{base64.b64encode(digest).decode()}"
    if integrity != INTEGRITY:
        raise VerificationError(
            f"{tarball} is not {PACKAGE} {VERSION}: its hash is {integrity}, not {INTEGRITY}. Fetch it again: "
            f"npm pack {PACKAGE}@{VERSION}"
        )
    parts = {}
    with tarfile.open(tarball) as archive:
        for name in RUNTIME:
            member = archive.extractfile(f"package/dist/{name}")
            if member is None:
                raise AssertionError(f"the pinned {PACKAGE} {VERSION} has {name}")
            parts[name] = member.read()
    return parts
