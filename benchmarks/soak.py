"""Keep `convoy serve` under load while its champion moves and its registry is down, and write benchmarks/SOAK.md.

    python benchmarks/soak.py cifar10-jpeg.tar.gz                10 minutes and two to prepare
    python benchmarks/soak.py cifar10-jpeg.tar.gz --minutes 1    a look, printed only

16 clients send 32 x 32 JPEGs of the archive; a twentieth of the requests is garbage. The service serves the champion of a tracking
server, of a project with the digits that is trained with two seeds. From 0.3 of the time on the other version is the champion; from 0.5 to
0.7 the tracking server is down. No good request may fail, no garbage may be answered with 200 or 5xx, and memory must stay as it is.
"""

import argparse
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from convoy.core import yaml
from convoy.core.cpus import usable_cpus
from convoy.export.latency import hardware
from serving import CLIENTS, CONVOY, ROOT, running, small_files

GARBAGE = (b"<html>no image</html>", b"\xff\xd8\xff\xe0 cut", b"", b"\x89PNG\r\n\x1a\n" + bytes(200))
SHARE = 0.05
"""Of the requests that are garbage."""

SETTLE = 0.1
"""Share of the time after which memory is compared: buffers have grown by then."""


@dataclass
class Seen:
    """Collect what the clients saw.

    Attributes:
        good: answers to images, by status; 0 for a broken connection.
        bad: likewise to garbage.
        versions: images by the version that answered.
        slowest_s: longest answer to an image.
        memory: (share of the time, resident bytes of the service).
        states: what /readyz stated, in order, without repeats.
    """

    good: Counter[int] = field(default_factory=Counter)
    bad: Counter[int] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    memory: list[tuple[float, int]] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def main() -> None:
    """Prepare a project, run the load, and print the outcome; the exit code is 1 if a good request failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    chosen = parser.parse_args()
    contents = small_files(chosen.archive, 256)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        store = [
            *(
                sys.executable,
                "-m",
                "mlflow",
                "server",
                "--host",
                "127.0.0.1",
                "--port",
                "PORT",
                "--workers",
                "1",
            ),
            *(
                "--backend-store-uri",
                f"sqlite:///{folder}/store.db",
                "--artifacts-destination",
                str(folder / "artifacts"),
            ),
        ]
        os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        registry = stack.enter_context(ExitStack())
        port = registry.enter_context(running(store, folder, {}))
        env = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
        project = two_versions(folder / "project", env)
        served = stack.enter_context(running([*CONVOY, "serve", "--port", "PORT"], project, env))
        store = [str(port) if word == "PORT" else word for word in store]
        seen = load(served, contents, 60 * chosen.minutes, Outage(registry, store, folder, env, project))
        logged = (project / "server.log").read_text(encoding="utf-8")
    text = report(seen, chosen.minutes, logged)
    print(text)
    if chosen.minutes >= 10:
        (ROOT / "benchmarks/SOAK.md").write_text(text, encoding="utf-8")
    sys.exit(bool(sum(seen.good.values()) - seen.good[200]))


@dataclass
class Outage:
    """Move the champion, and stop and start the tracking server."""

    registry: ExitStack
    command: Sequence[str]
    folder: Path
    env: dict[str, str]
    project: Path

    def move(self) -> None:
        """Make the second version the champion."""
        code = "from mlflow import MlflowClient; MlflowClient().set_registered_model_alias('convoy', 'champion', '2')"
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | self.env)

    def stop(self) -> None:
        """End the tracking server."""
        self.registry.close()

    def start(self) -> None:
        """Start it again, at the same port."""
        self.registry.enter_context(running(self.command, self.folder, {}))


def two_versions(project: Path, env: dict[str, str]) -> Path:
    """Train the digits with two seeds in a clone, and register both; the first is the champion."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(project)], check=True)
    whole = os.environ | env | {"PYTHONPATH": str(project / "src")}
    for seed in (1, 2):
        text = (project / "params.yaml").read_text(encoding="utf-8")
        text = text.replace("seed: 1 ", f"seed: {seed} ", 1).replace("watch_s: 10", "watch_s: 1", 1)
        (project / "params.yaml").write_text(text, encoding="utf-8")
        if yaml.read(project / "params.yaml")["seed"] != seed:
            raise RuntimeError("the line `seed: 1` of params.yaml was not found")
        for words in (
            ["dvc", "repro", "-q"],
            ["convoy", "register"],
            *([["convoy", "promote"]] if seed == 1 else []),
        ):
            subprocess.run(
                [sys.executable, "-m", *words], check=True, cwd=project, env=whole, stdout=subprocess.DEVNULL
            )
    return project


def load(port: int, contents: Sequence[bytes], seconds: float, outage: Outage) -> Seen:
    """Send requests from threads, and move the champion, stop and start the registry at their times."""
    seen, end = Seen(), time.monotonic() + seconds
    clients = [
        threading.Thread(target=client, args=(port, contents, end, seen, number)) for number in range(CLIENTS)
    ]
    for thread in clients:
        thread.start()
    events = [(0.3, outage.move), (0.5, outage.stop), (0.7, outage.start)]
    service = next(
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [])[-2:] == ["--port", str(port)]
        and "serve" in process.info["cmdline"]
    )
    while (now := time.monotonic()) < end:
        share = 1 - (end - now) / seconds
        seen.memory.append((share, service.memory_info().rss))
        state = ready(port)
        if state not in seen.states[-1:]:
            seen.states.append(state)
        if events and share >= events[0][0]:
            events.pop(0)[1]()
        time.sleep(min(1.0, seconds / 100))
    for thread in clients:
        thread.join()
    return seen


def client(port: int, contents: Sequence[bytes], end: float, seen: Seen, number: int) -> None:
    """Send images and garbage over a connection that stays open."""
    chance = random.Random(number)  # noqa: S311 (chooses images)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    while time.monotonic() < end:
        is_bad = chance.random() < SHARE
        body = chance.choice(GARBAGE if is_bad else contents)
        began = time.monotonic()
        try:
            connection.request("POST", "/predict", body, {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            status, content = answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            status, content = 0, b""
            connection.close()
        took = time.monotonic() - began
        with seen.lock:
            (seen.bad if is_bad else seen.good)[status] += 1
            if status == 200 and not is_bad:
                seen.versions[json.loads(content)["version"]] += 1
                seen.slowest_s = max(seen.slowest_s, took)


def ready(port: int) -> str:
    """Read /readyz: status and problem."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/readyz")
    content = json.loads(connection.getresponse().read())
    connection.close()
    return f"{content['status']}, {content['model']}" + (
        f": {content['problem']}" if "problem" in content else ""
    )


def report(seen: Seen, minutes: float, logged: str) -> str:
    """Describe the outcome."""
    settled = [size / 2**20 for share, size in seen.memory if share >= SETTLE]
    middle = sorted(settled)[len(settled) // 2]
    good, bad = (
        ", ".join(f"{count:,} × {status}" for status, count in sorted(each.items()))
        for each in (seen.good, seen.bad)
    )
    versions = ", ".join(f"{count:,} by version {number}" for number, count in sorted(seen.versions.items()))
    rows = {
        "images, by status of the answer": good,
        "garbage, likewise": bad,
        "images answered": versions,
        "longest answer": f"{seen.slowest_s:.2f} s",
        "memory after a tenth of the time": f"{min(settled):.0f} to {max(settled):.0f} MiB, median {middle:.0f}, at the end {settled[-1]:.0f}",
        "/readyz, in order": "; ".join(seen.states),
        "log": f"{logged.count(chr(10)):,} lines, {logged.count('Traceback')} tracebacks",
    }
    return (
        "# Soak\n\n"
        f"`python benchmarks/soak.py`, {datetime.now(UTC):%Y-%m-%d}: {usable_cpus()} cores ({hardware()['processor']}), load average {os.getloadavg()[0]:.0f}. "
        f"{CLIENTS} clients for {minutes:g} minutes, {SHARE:.0%} of the requests garbage; the champion moved at 0.3 of the time, the registry was down from 0.5 to 0.7.\n\n"
        "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
