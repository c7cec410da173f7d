"""Time `convoy serve` and `convoy predict` side by side with other servers and write benchmarks/SERVING.md.

    python benchmarks/serving.py cifar10-jpeg.tar.gz                     about 15 minutes on 2 cores, quiet otherwise
    python benchmarks/serving.py cifar10-jpeg.tar.gz --others PYTHON      beside LitServe and BentoML, 4 minutes more
    python benchmarks/serving.py cifar10-jpeg.tar.gz --only small photo   some parts: small, photo, start, predict
    python benchmarks/serving.py cifar10-jpeg.tar.gz --quick              short, printed and not written

The archive holds CIFAR-10 as JPEG files below `test/`. PYTHON is the interpreter of another environment with litserve, bentoml,
onnxruntime and pillow. Servers take turns, each in a process of its own on a free port of 127.0.0.1, with the same model and the same
bytes; clients are threads of another process with connections that stay open. The limit is what decoding and onnxruntime reach in
as many threads as cores, without HTTP. Networks have random weights: time does not depend on them.
"""

import argparse
import base64
import io
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from PIL import Image

from convoy.core.cpus import usable_cpus
from convoy.export.latency import hardware
from convoy.export.onnx_model import OnnxModel
from convoy.images.decode import decode
from convoy.serving.predict import predict

ROOT = Path(__file__).parents[1]
CLIENTS = 16
PARTS = ("small", "photo", "start", "predict")
PACKAGES = ("onnxruntime", "fastapi", "uvicorn", "mlflow", "torch", "pillow", "numpy")


class Load(NamedTuple):
    """Hold what clients measured.

    Attributes:
        per_second: answered requests per second.
        p50_ms: median time of a request.
        p95_ms: 95th percentile.
        failed: requests without status 200.
    """

    per_second: float
    p50_ms: float
    p95_ms: float
    failed: int


TUTORIAL = """
import io, sys
import torch, uvicorn
from fastapi import FastAPI, File, UploadFile
from PIL import Image
from torchvision import transforms
from convoy.models import trained
from pathlib import Path

model, facts = trained.load(Path(sys.argv[1]))
to_tensor = transforms.Compose([transforms.Resize((facts.image_px, facts.image_px)), transforms.PILToTensor()])
app = FastAPI()

@app.post("/predict")
async def predict(file: UploadFile = File(...)):
    image = Image.open(io.BytesIO(await file.read())).convert("RGB")
    with torch.no_grad():
        probabilities = model(to_tensor(image).float().unsqueeze(0)).softmax(dim=1)[0]
    best = int(probabilities.argmax())
    return {"class": facts.classes[best], "probability": float(probabilities[best])}

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
"""

LITSERVE = """
import io, sys
import litserve, numpy, onnxruntime
from PIL import Image

class Classifier(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options)
    def decode_request(self, request):
        return numpy.asarray(Image.open(request["image"].file).convert("RGB"))
    def batch(self, inputs):
        return numpy.stack(inputs)
    def predict(self, batch):
        return self.session.run(["probabilities"], {"image": batch})[0]
    def unbatch(self, output):
        return list(output)
    def encode_response(self, output):
        return {"class": int(output.argmax()), "probability": float(output.max())}

if __name__ == "__main__":
    server = litserve.LitServer(Classifier(max_batch_size=16, batch_timeout=0.002), accelerator="cpu", workers_per_device=2)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
"""

BENTOML = """
from __future__ import annotations
import os
import bentoml, numpy, onnxruntime
from PIL import Image as Pictures
from PIL.Image import Image

@bentoml.service(workers=2)
class Classifier:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options)

    @bentoml.api
    def predict(self, image: Image) -> dict:
        (rows,) = self.session.run(["probabilities"], {"image": numpy.asarray(image.convert("RGB"))[None]})
        return {"class": int(rows[0].argmax()), "probability": float(rows[0].max())}
"""


def main() -> None:
    """Measure the parts that are wanted, print them, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--others", type=Path, metavar="PYTHON")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    seconds, trials = (2.0, 1) if chosen.quick else (10.0, chosen.trials)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        work = Workplace(
            Path(scratch), chosen.archive.resolve(), chosen.others, seconds, trials, quick=chosen.quick
        )
        sections = [getattr(work, part)() for part in PARTS if part in chosen.only]
    page = "\n\n".join([heading(load_before, trials, seconds), *sections]) + "\n"
    print(page)
    if not chosen.quick and tuple(chosen.only) == PARTS:
        (ROOT / "benchmarks/SERVING.md").write_text(page, encoding="utf-8")


def heading(load_before: float, trials: int, seconds: float) -> str:
    """State machine, versions and conditions."""
    machine = hardware()
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"# Serving\n\n`python benchmarks/serving.py`, {datetime.now(UTC):%Y-%m-%d}: {machine['cores']} cores "
        f"({machine['processor']}), {platform.system()}, no GPU, Python {platform.python_version()}, {packages}; load average before "
        f"{load_before:.1f}.\n\nMedian of {trials} trials of {seconds:g} s (lowest to highest), contenders by turns; clients share the "
        "cores with the server. The limit: decoding and onnxruntime in as many threads as cores, without HTTP and clients."
    )


class Workplace:
    """Hold models, images and the time per trial."""

    def __init__(
        self, folder: Path, archive: Path, others: Path | None, seconds: float, trials: int, *, quick: bool
    ) -> None:
        self.folder, self.others, self.seconds, self.trials, self.quick = (
            folder,
            others,
            seconds,
            trials,
            quick,
        )
        self.small_files = small_files(archive, 64)
        self.archive = archive

    def small(self) -> str:
        """Compare servers with 32 x 32 JPEGs and 16 clients."""
        model = exported(self.folder / "convnet", "convnet", 32)
        servers = self.servers(model)
        rates: dict[str, list[Load]] = {name: [] for name in servers}
        limits = []
        for _ in range(self.trials):
            limits.append(limit(model, self.small_files, self.seconds))
            for name, (command, env, requests) in servers.items():
                with running(command, self.folder, env) as port:
                    rates[name].append(drive(port, requests(self.small_files), CLIENTS, self.seconds))
        ours = statistics.median(load.per_second for load in rates["convoy serve"])
        rows = [
            f"| limit | {_spread(limits, ',.0f')} | | | | |",
            *(
                f"| {name} | {_spread([load.per_second for load in loads], ',.0f')} | {_spread([load.p50_ms for load in loads], '.1f')} "
                f"| {_spread([load.p95_ms for load in loads], '.1f')} | {sum(load.failed for load in loads)} "
                f"| {ours / statistics.median(load.per_second for load in loads):.1f} |"
                for name, loads in rates.items()
            ),
        ]
        share = ours / statistics.median(limits)
        return (
            f"## 32 × 32 JPEGs, `convnet`, {CLIENTS} clients\n\n| server | requests/s | p50, ms | p95, ms | failed | Convoy: times as fast |\n"
            "|---|---|---|---|---|---|\n" + "\n".join(rows) + f"\n\nConvoy reaches {share:.2f} of the limit."
        )

    def servers(
        self, model: Path
    ) -> dict[str, tuple[list[str], dict[str, str], Callable[[Sequence[bytes]], list[bytes]]]]:
        """Name the servers: their command, in which PORT is replaced, their environment, and how their requests are made."""
        found: dict[str, tuple[list[str], dict[str, str], Callable[[Sequence[bytes]], list[bytes]]]] = {
            "convoy serve": ([*CONVOY, "serve", "--model", str(model), "--port", "PORT"], {}, raw_requests),
            "mlflow models serve": (
                [
                    sys.executable,
                    "-m",
                    "mlflow",
                    "models",
                    "serve",
                    "-m",
                    str(logged(self.folder / "logged", model)),
                    "-p",
                    "PORT",
                    "--env-manager",
                    "local",
                ],
                {},
                mlflow_requests,
            ),
            "FastAPI and eager torch": (
                [
                    sys.executable,
                    str(_script(self.folder / "tutorial.py", TUTORIAL)),
                    str(model.parent.parent / "model"),
                    "PORT",
                ],
                {},
                form_requests("file"),
            ),
        }
        if self.others:
            other = str(self.others)
            found["LitServe"] = (
                [other, str(_script(self.folder / "lit.py", LITSERVE)), str(model), "PORT"],
                {},
                form_requests("image"),
            )
            _script(self.folder / "bento.py", BENTOML)
            found["BentoML"] = (
                [
                    other,
                    "-m",
                    "bentoml",
                    "serve",
                    "bento:Classifier",
                    "--host",
                    "127.0.0.1",
                    "--port",
                    "PORT",
                ],
                {"MODEL": str(model), "BENTOML_DO_NOT_TRACK": "True"},
                form_requests("image"),
            )
        return found

    def photo(self) -> str:
        """Time a single client with photographs, beside decoding and the session alone; and 16 clients beside LitServe."""
        model = exported(self.folder / "resnet18", "resnet18", 224)
        photo = [photograph(500, 375, seed) for seed in range(8)]
        bare, served, crowd = [], [], []
        lit = []
        command = [*CONVOY, "serve", "--model", str(model), "--port", "PORT"]
        for _ in range(self.trials):
            bare.append(alone(model, photo, self.seconds / 2))
            with running(command, self.folder, {}) as port:
                served.append(drive(port, raw_requests(photo), 1, self.seconds / 2).p50_ms)
                crowd.append(drive(port, raw_requests(photo), CLIENTS, self.seconds).per_second)
            if self.others:
                lit_command = [
                    str(self.others),
                    str(_script(self.folder / "lit.py", LITSERVE)),
                    str(model),
                    "PORT",
                ]
                with running(lit_command, self.folder, {}) as port:
                    lit.append(drive(port, form_requests("image")(photo), CLIENTS, self.seconds).per_second)
        ratio = statistics.median(served) / statistics.median(bare)
        text = (
            "## 500 × 375 JPEGs, ResNet-18 at 224 px\n\n| | |\n|---|---|\n"
            f"| decoding and onnxruntime alone, as many threads as cores, median ms | {_spread(bare, '.1f')} |\n"
            f"| `convoy serve`, one client, median ms | {_spread(served, '.1f')} |\n| ratio | {ratio:.2f} |\n"
            f"| `convoy serve`, {CLIENTS} clients, requests/s | {_spread(crowd, ',.1f')} |\n"
        )
        return text + (
            f"| LitServe, {CLIENTS} clients, requests/s | {_spread(lit, ',.1f')} |\n" if lit else ""
        )

    def start(self) -> str:
        """Time from the start of the process to the first answer of `convoy serve`, and of `convoy predict`."""
        model = exported(self.folder / "convnet", "convnet", 32)
        image = self.folder / "one.jpg"
        image.write_bytes(self.small_files[0])
        first, cold = [], []
        for _ in range(2 + self.trials):
            began = time.perf_counter()
            with running(
                [*CONVOY, "serve", "--model", str(model), "--port", "PORT"], self.folder, {}
            ) as port:
                drive(port, raw_requests(self.small_files), 1, 0.0)
                first.append(time.perf_counter() - began)
            began = time.perf_counter()
            subprocess.run(
                [*CONVOY, "predict", str(image), "--model", str(model)],
                check=True,
                capture_output=True,
                cwd=self.folder,
            )
            cold.append(time.perf_counter() - began)
        return (
            "## Start\n\n| | s |\n|---|---|\n"
            f"| `convoy serve --model FILE`, process start to first answer | {_spread(first, '.2f')} |\n"
            f"| `convoy predict IMAGE --model FILE`, whole process | {_spread(cold, '.2f')} |"
        )

    def predict(self) -> str:
        """Compare `convoy predict` on folders with decoding and onnxruntime alone."""
        small, large = (600, 40) if self.quick else (60_000, 2_000)
        folder = self.folder / "images"
        rows = []
        for title, network, px, contents in (
            (f"{small:,} JPEGs of 32 × 32, `convnet`", "convnet", 32, small_files(self.archive, small)),
            (
                f"{large:,} photographs of 500 × 375, MobileNetV3-small at 224 px",
                "mobilenet_v3_small",
                224,
                [photograph(500, 375, seed) for seed in range(min(large, 50))] * (large // min(large, 50)),
            ),
        ):
            path = exported(self.folder / network, network, px)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for number, content in enumerate(contents):
                (folder / f"{number:06}.jpg").write_bytes(content)
            paths = sorted(folder.iterdir())
            ours, bare = [], []
            for _ in range(self.trials):
                model = OnnxModel(path, threads=1)
                began = time.perf_counter()
                count = sum(not each.reason for each in predict(model, [folder]))
                ours.append(count / (time.perf_counter() - began))
                bare.append(whole(model, paths))
            share = statistics.median(ours) / statistics.median(bare)
            rows.append(f"| {title} | {_spread(ours, ',.0f')} | {_spread(bare, ',.0f')} | {share:.2f} |")
        return (
            "## `convoy predict FOLDER`\n\nThe limit reads, decodes and classifies the same files in as many threads as cores, 64 at once, without naming "
            "and ordering them.\n\n| | images/s | limit | share |\n|---|---|---|---|\n" + "\n".join(rows)
        )


CONVOY = [sys.executable, "-m", "convoy"]


def exported(folder: Path, network: str, px: int) -> Path:
    """Export a network with random weights, ten classes; return the file. It is not verified: only its time counts."""
    path = folder / "deploy" / "model.onnx"
    if path.exists():
        return path
    code = (
        "import sys, torch; from pathlib import Path; from convoy.models import spec, trained; from convoy.export import onnx_graph; "
        "folder, name, px = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]); torch.manual_seed(1); "
        "facts = trained.ModelFacts(network=name, spec=spec.load(name) if (Path('networks') / f'{name}.yaml').exists() else spec.Spec(name=name, torchvision=name), classes=list('abcdefghij'), image_px=px, fit='squash', "
        "mean=[0.5] * 3, std=[0.25] * 3); trained.save(folder / 'model', trained.make(facts), facts); "
        "onnx_graph.build(folder / 'model', folder / 'deploy', dict.fromkeys(('run_id', 'git_commit', 'data_hash', 'params_hash'), 'none'))"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), network, str(px)], check=True, cwd=ROOT)
    (path.parent / "model.unverified.onnx").rename(path)
    return path


def logged(folder: Path, model: Path) -> Path:
    """Make MLflow's folder of a model, as a run logs it."""
    code = (
        "import sys; from pathlib import Path; from convoy.core import files; from convoy.tracking import mlflow_writer, store; "
        "client = store.connect(); run = client.create_run('0'); "
        "print(mlflow_writer.log_model(client, run, Path(sys.argv[1]), files.sha256(Path(sys.argv[1]) / 'model.onnx'), []).artifact_location)"
    )
    folder.mkdir(exist_ok=True)
    source = folder / "source"
    source.mkdir(exist_ok=True)
    shutil.copy(model, source)
    env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(source)],
        check=True,
        capture_output=True,
        text=True,
        cwd=folder,
        env=env,
    )
    return Path(done.stdout.splitlines()[-1].removeprefix("file://"))


@contextmanager
def running(command: Sequence[str], folder: Path, env: dict[str, str]) -> Iterator[int]:
    """Start a server on a free port, wait until it accepts connections, and end it with all its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (folder / "server.log").open("wb")
    words = [str(port) if word == "PORT" else word for word in command]
    process = subprocess.Popen(
        words, stdout=log, stderr=log, cwd=folder, env=os.environ | env, start_new_session=True
    )
    try:
        for _ in range(6000):
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended: {(folder / 'server.log').read_text()[-2000:]}")
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.01)
        yield port
    finally:
        for child in psutil.Process(process.pid).children(
            recursive=True
        ):  # BentoML's have sessions of their own
            with suppress(psutil.NoSuchProcess):
                child.kill()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def drive(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Send requests from as many connections in a process of its own, so that the server's lock is not the clients'; at least one each."""
    done = subprocess.run(
        [sys.executable, __file__, "--drive", str(port), str(clients), str(seconds)],
        input=b"".join(len(request).to_bytes(4, "big") + request for request in requests),
        capture_output=True,
        check=True,
    )
    return Load(*json.loads(done.stdout))


def clients(port: int, count: int, seconds: float, stream: io.BufferedIOBase) -> None:
    """Be the clients: threads that send prepared bytes and read answers by their length; print what they measured."""
    requests = []
    while head := stream.read(4):
        requests.append(stream.read(int.from_bytes(head, "big")))
    wait_for(port, requests[0])
    end = time.perf_counter() + seconds

    def work(number: int) -> list[tuple[float, bool]]:
        """Send one request after the other; return the time of each, and whether it was answered."""
        connection = connect(port)
        sent: list[tuple[float, bool]] = []
        while not sent or time.perf_counter() < end:
            began = time.perf_counter()
            try:
                good = ask(connection, requests[(number + len(sent)) % len(requests)]) == b"200"
            except OSError:
                good, connection = False, connect(port)
            sent.append((time.perf_counter() - began, good))
        return sent

    began = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        sent = [each for part in pool.map(work, range(count)) for each in part]
    took = time.perf_counter() - began
    milliseconds = np.array([each for each, _ in sent]) * 1e3
    p50, p95 = np.percentile(milliseconds, [50, 95]).tolist()
    print(json.dumps([len(sent) / took, p50, p95, sum(not good for _, good in sent)]))


def wait_for(port: int, request: bytes) -> None:
    """Wait until the server answers a request."""
    for _ in range(3000):
        try:
            if ask(connect(port), request) == b"200":
                return
        except OSError:
            pass
        time.sleep(0.01)
    raise RuntimeError(f"no answer with status 200 at port {port} in 30 s")


def connect(port: int) -> socket.socket:
    """Open a connection without delayed sending."""
    connection = socket.create_connection(("127.0.0.1", port), 60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def ask(connection: socket.socket, request: bytes) -> bytes:
    """Send a request; return the status."""
    connection.sendall(request)
    answer = connection.recv(65536)
    while (end := answer.find(b"\r\n\r\n")) < 0:
        if not (more := connection.recv(65536)):
            raise OSError("closed")
        answer += more
    head = answer[:end].lower()
    at = head.find(b"content-length:")
    if at < 0:
        raise OSError("no length")
    left = int(head[at + 15 :].split(b"\r\n", 1)[0]) - (len(answer) - end - 4)
    while left > 0:
        left -= len(connection.recv(65536))
    return answer[9:12]


def _request(path: str, kind: str, body: bytes) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def raw_requests(contents: Sequence[bytes]) -> list[bytes]:
    """Send the file as the body."""
    return [_request("/predict", "image/jpeg", content) for content in contents]


def mlflow_requests(contents: Sequence[bytes]) -> list[bytes]:
    """Send base64 text in a table, as MLflow's scoring server takes it."""
    return [
        _request(
            "/invocations",
            "application/json",
            json.dumps(
                {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(content).decode()]]}}
            ).encode(),
        )
        for content in contents
    ]


def form_requests(field: str) -> Callable[[Sequence[bytes]], list[bytes]]:
    """Send a form with a file."""

    def make(contents: Sequence[bytes]) -> list[bytes]:
        edge = "boundary7f3a"
        head = f'--{edge}\r\nContent-Disposition: form-data; name="{field}"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
        return [
            _request(
                "/predict",
                f"multipart/form-data; boundary={edge}",
                head.encode() + content + f"\r\n--{edge}--\r\n".encode(),
            )
            for content in contents
        ]

    return make


def limit(path: Path, contents: Sequence[bytes], seconds: float) -> float:
    """Decode and classify single images in as many threads as cores; images per second."""
    model = OnnxModel(path, threads=1)
    end = time.perf_counter() + seconds

    def work(_: int) -> int:
        done = 0
        while time.perf_counter() < end:
            model(decode(contents[done % len(contents)]).image_u8[np.newaxis])
            done += 1
        return done

    began = time.perf_counter()
    with ThreadPoolExecutor(usable_cpus()) as pool:
        return sum(pool.map(work, range(usable_cpus()))) / (time.perf_counter() - began)


def alone(path: Path, contents: Sequence[bytes], seconds: float) -> float:
    """Decode and classify an image after the other, the operations on all cores; median milliseconds."""
    model = OnnxModel(path)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        began = time.perf_counter()
        model(decode(contents[len(times) % len(contents)]).image_u8[np.newaxis])
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def whole(model: OnnxModel, paths: Sequence[Path]) -> float:
    """Read, decode and classify files of equal size in batches, as many threads as cores; images per second."""
    threads = usable_cpus()

    def work(first: int) -> None:
        mine = paths[first::threads]
        for start in range(0, len(mine), 64):
            model(np.stack([decode(path.read_bytes()).image_u8 for path in mine[start : start + 64]]))

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    return len(paths) / (time.perf_counter() - began)


def photograph(width: int, height: int, seed: int) -> bytes:
    """Make a JPEG (quality 85) with as much detail as a photograph's: noise at several scales."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for step in (4, 16, 64):
        coarse = rng.normal(0, 12 * step**0.35, (height // step + 2, width // step + 2, 3)).astype(np.float32)
        layers = [
            Image.fromarray(coarse[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            for channel in range(3)
        ]
        picture += np.stack([np.asarray(layer) for layer in layers], axis=2)
    stream = io.BytesIO()
    Image.fromarray(np.clip(picture + 128, 0, 255).astype(np.uint8)).save(stream, format="JPEG", quality=85)
    return stream.getvalue()


def small_files(archive: Path, count: int) -> list[bytes]:
    """Read the first JPEGs of an archive."""
    found: list[bytes] = []
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.endswith(".jpg") and (file := tar.extractfile(member)):
                found.append(file.read())
            if len(found) == count:
                break
    return found


def _script(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--drive"]:
        clients(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.stdin.buffer)
    else:
        main()
