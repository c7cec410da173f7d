"""An MLflow server on PostgreSQL for the tests: one per test session, shared by all workers.

The first worker that needs it starts a guard: `python tests/servers.py FOLDER`. It owns both servers and
stops them when the last worker that uses them is gone, however that worker ended.
"""

import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from filelock import FileLock

from clones import free_port
from proxy import Proxy

BESIDE_PATH = (
    "/usr/lib/postgresql/*/bin",  # Debian keeps the server's programs out of PATH
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)
OTHER_NAMES = {
    "chromium": (
        "chromium-browser",
        "google-chrome",
        "google-chrome-stable",
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    )
}
START_S = 60  # seconds for both servers to answer; 6 on an idle core
POLL_S = 0.2


def find(binary: str) -> Path | None:
    """Locate a program in PATH, also under another name that it has, or where PostgreSQL's packages put theirs (the newest)."""
    for name in (binary, *OTHER_NAMES.get(binary, ())):
        if found := shutil.which(name):
            return Path(found)
    elsewhere = [path for pattern in BESIDE_PATH for path in Path("/").glob(f"{pattern[1:]}/{binary}")]
    return max(elsewhere, key=lambda path: [int(part) for part in path.parts if part.isdigit()], default=None)


def require(binary: str, package: str) -> Path:
    """Locate a program that a test needs; without it the test is skipped, but fails where `CI=true`."""
    if found := find(binary):
        return found
    why = f"{binary} is not installed; on Debian: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{why} (`make packages` does it)")
    pytest.skip(why)


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Run PostgreSQL and, on it, an MLflow server that keeps files and logs in a new folder; give its address."""
    # PostgreSQL's socket lies here: its path may have 107 bytes at most, and its user must reach it.
    base = Path(tempfile.mkdtemp(prefix="convoy-pg-"))
    folder.mkdir(parents=True)
    with (folder / "postgres.log").open("w") as log, ExitStack() as stack:
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        database = _start_postgres(base, log.fileno())
        stack.callback(database.wait)
        stack.callback(database.send_signal, signal.SIGINT)  # closes connections, then stops
        yield _start_mlflow(base, folder, stack)


def _start_postgres(base: Path, log: int) -> "subprocess.Popen[bytes]":
    """Make a database cluster and serve it on a Unix socket in `base`, without any network."""
    # PostgreSQL refuses to run as root.
    user = next((one for one in pwd.getpwall() if one.pw_name == "postgres"), pwd.getpwnam("nobody"))
    root = os.geteuid() == 0
    if root:
        os.chown(base, user.pw_uid, user.pw_gid)
    env = {key: value for key, value in os.environ.items() if not key.startswith("PG")}

    def command(name: str, *words: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [str(find(name)), *words],
            cwd="/",
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
            **({"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if root else {}),
        )

    data = str(base / "data")
    made = command(
        "initdb", "-D", data, *["-A", "trust", "-U", "convoy", "--no-sync", "-E", "UTF8", "--locale=C"]
    )
    if made.wait():
        raise RuntimeError(f"initdb ended with {made.returncode}")
    serving = command("postgres", "-D", data, "-k", str(base), "-c", "listen_addresses=", "-c", "fsync=off")
    _wait_for(lambda: command("pg_isready", "-q", "-h", str(base)).wait() == 0, serving)
    command("createdb", "-h", str(base), "-U", "convoy", "mlflow").wait()
    return serving


def _start_mlflow(base: Path, folder: Path, stack: ExitStack) -> str:
    """Start an MLflow server whose runs are in the database and whose artifacts are in `folder`."""
    # Ports that systems hand out lie above 32767; those that browsers refuse end at 10080.
    uri = f"http://127.0.0.1:{free_port()}"
    with (folder / "mlflow.log").open("w") as log:
        serving = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server"),
                *("--backend-store-uri", f"postgresql+psycopg://convoy@/mlflow?host={base}"),
                *("--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")),
                *("--host", "127.0.0.1", "--port", uri.rpartition(":")[2], "--workers", "1"),
            ],
            cwd=folder,
            env={key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
            | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    stack.callback(_stop_group, serving)
    _wait_for(lambda: answers(uri), serving)
    return uri


def answers(uri: str) -> bool:
    """Check whether an MLflow server is ready to serve."""
    with suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=5) as answer:  # noqa: S310 (http)
        return bool(answer.status == 200)
    return False


def _wait_for(ready: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    """Wait until a process is ready to serve; fail if it ended, or was not ready in time."""
    until = time.monotonic() + START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"{process.args!s:.300} does not serve (exit code: {process.returncode})")
        time.sleep(POLL_S)


def _stop_group(process: "subprocess.Popen[bytes]") -> None:
    """Stop a server and the workers that it started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for a group of zombies
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)


def guard(shared: Path) -> None:
    """Run both servers until no process holds its share of the lock `shared/users`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    ready = shared / "ready.txt"
    with running(shared / f"server-{os.getpid()}") as uri, (shared / "users").open() as users:
        ready.with_suffix(".new").write_text(uri, encoding="utf-8")
        ready.with_suffix(".new").replace(ready)
        fcntl.flock(users, fcntl.LOCK_EX)  # a worker that joins now waits, then starts other servers
        ready.unlink()


@contextmanager
def joined(shared: Path) -> Iterator[str]:
    """Take part in the servers of `shared`, which are started where they do not run; give their address.

    The share of the lock ends with the process, however it ends.
    """
    shared.mkdir(parents=True, exist_ok=True)
    ready = shared / "ready.txt"
    with (shared / "users").open("a") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        with FileLock(shared / "lock"), (shared / "guard.log").open("a") as log:
            if not ready.exists():
                guarding = subprocess.Popen(
                    [sys.executable, __file__, str(shared)],
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C in the terminal is for pytest: the guard sees it end
                )
                try:
                    _wait_for(ready.exists, guarding)
                except RuntimeError as error:
                    error.add_note(f"{Path(log.name).read_text()[-2000:]}\nFolder: {shared}")
                    raise
        yield ready.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server on PostgreSQL that all tests share: a test looks only at runs that it made."""
    require("initdb", "postgresql")
    require("postgres", "postgresql")
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "servers"
    with joined(shared) as address:
        yield address


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    """A proxy before the server, for this test alone: it can be slow, refuse, or die in the middle."""
    with Proxy(server) as between:
        yield between


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
