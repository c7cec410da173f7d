"""What happens at a moment: edits, signals, clocks, disks, other processes, git, DVC, moves.

`at` runs while the command is halted, `after` once it goes on, and `undo` when it has ended: what a person would do then.
"""

import signal
import stat
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from chaos.scene import Scene
from chaos.states import OTHER
from clones import Clone, kill_uploaders
from convoy.core import files, pipeline
from convoy.core.errors import RequestError

STAGES = ("prepare", "train", "evaluate", "export", "between")
COMMANDS = ("delivery", "register", "promote", "retrain")
ALL = STAGES + COMMANDS
PARAMS = {
    "prepare": ("max_quarantined: 0.01", "max_quarantined: 0.03"),
    "train": ("lr: 0.03 ", "lr: 0.02 "),
    "evaluate": ("batch_size: 256", "batch_size: 99"),
    "export": ("latency_runs: 10", "latency_runs: 11"),
}
CODE = {
    "prepare": "src/convoy/data/split.py",
    "train": "src/convoy/training/optim.py",
    "evaluate": "src/convoy/evaluation/report.py",
    "export": "src/convoy/export/latency.py",
}


def nothing(_: Scene) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Action:
    """What happens, and the moments that it makes sense at."""

    name: str
    moments: tuple[str, ...] = ALL
    before: Callable[[Scene], None] = nothing
    at: Callable[[Scene], None] = nothing
    after: Callable[[Scene], None] = nothing
    undo: Callable[[Scene], None] = nothing
    remedy: Callable[[Scene], list[tuple[str, ...]]] = (
        lambda _: []
    )  # documented commands before those of the moment
    drops_cache: bool = False  # whether cached data that only other commits use may be gone


def edit_params(scene: Scene) -> None:
    """Edit a param of the stage."""
    scene.edit("params.yaml", *PARAMS[scene.moment.stage or "train"])


def edit_code(scene: Scene) -> None:
    """Edit code of the stage."""
    path = scene.folder / CODE[scene.moment.stage or "train"]
    with path.open("a", encoding="utf-8") as file:
        file.write("# edited\n")
    scene.note(f"edit {path.name}")


def edit_spec(scene: Scene) -> None:
    """Edit the network's spec."""
    scene.edit("networks/tiny.yaml", "filters: 4", "filters: 5")


def restore_or_keep(scene: Scene) -> None:
    """Restore the edited files, or keep a stage's new ones."""
    if not scene.moment.target or scene.random.random() < 0.5:
        scene.git("checkout", "--", "params.yaml", "src", "networks")


def killed(*, group: bool, uploader: bool = False) -> Callable[[Scene], None]:
    """Return `kill -9` of the halted process, of the command with all that it started, or of the uploader too."""

    def at(scene: Scene) -> None:
        if scene.random.random() < 0.5:
            scene.release()
            scene.pause()
        scene.signal(signal.SIGKILL, group=group)
        if uploader:
            kill_uploaders(scene.folder)

    return at


def signalled(how: signal.Signals) -> Callable[[Scene], None]:
    """Return a signal to the process group, or to the halted process only, once it goes on."""

    def after(scene: Scene) -> None:
        scene.pause()
        # Ctrl-C reaches all of a terminal's processes; SIGTERM is sent to either.
        scene.signal(how, group=how == signal.SIGINT or scene.random.random() < 0.5)

    return after


def clock(*seconds: float) -> Callable[[Scene], None]:
    """Return a step of the clock by one of these."""

    def at(scene: Scene) -> None:
        step = scene.random.choice(seconds)
        (scene.control / "clock").write_text(str(step), encoding="utf-8")
        scene.note(f"clock set by {step} s")

    return at


def fill_disk(scene: Scene) -> None:
    """Let files take no more than some bytes."""
    limit = scene.random.choice((0, 512, 4096, 65536))
    (scene.control / "full").write_text(str(limit), encoding="utf-8")
    scene.note(f"files may have {limit} bytes")


def free_disk(scene: Scene) -> None:
    """Make space."""
    (scene.control / "full").unlink()


def make_repro(scene: Scene) -> list[tuple[str, ...]]:
    """Return `make repro`, which also removes what a full disk has cut of DVC's files."""
    target = scene.moment.target
    return [("python", "pipelines/repro.py", "--until", target)] if target else []


def repaired(scene: Scene) -> list[tuple[str, ...]]:
    """Return `make repro` where dvc.lock or a file of locks was cut: DVC refuses every command with it."""
    try:
        pipeline.locked(scene.folder)
        for name in ("rwlock", "exps/rwlock"):
            if (path := scene.folder / ".dvc/tmp" / name).exists():
                files.read_json(path)
    except (RequestError, ValueError):
        return make_repro(scene) or [("python", "pipelines/repro.py")]
    return []


def readonly(name: str) -> Callable[[Scene], None]:
    """Return that a file or folder, with all in it, becomes read-only."""

    def at(scene: Scene) -> None:
        _change_mode(scene.folder / name, write=False)
        scene.note(f"{name} is read-only")

    return at


def writable(name: str) -> Callable[[Scene], None]:
    """Return that it becomes writable again."""
    return lambda scene: _change_mode(scene.folder / name, write=True)


def _change_mode(top: Path, *, write: bool) -> None:
    for path in (top, *top.rglob("*")):
        if not path.is_symlink() and path.exists():
            mode = path.stat().st_mode
            path.chmod(mode | stat.S_IWUSR if write else mode & ~0o222)


def second(*command: str) -> tuple[Callable[[Scene], None], Callable[[Scene], None]]:
    """Return that a second command starts while the first is halted, and that both end."""
    others: list[subprocess.Popen[bytes]] = []

    def at(scene: Scene) -> None:
        (scene.control / "moment.json").unlink()  # the second is not halted
        words = command or scene.moment.command
        if command[:2] == ("dvc", "exp"):
            words = (*command, scene.moment.target)
        other, log = scene.start(*words)
        others.append(other)
        with suppress(subprocess.TimeoutExpired):
            other.wait(scene.random.uniform(1, 6))
        scene.note(f"$ {' '.join(words)}  (second; {log.name}) → {other.poll()}\n{log.read_text()[-1500:]}")

    def undo(scene: Scene) -> None:
        code = scene.wait(others.pop(), "the second command")
        scene.note(f"the second command ended with {code}")
        scene.settle()

    return at, undo


SECOND_SAME, SECOND_EXPERIMENT = second(), second("dvc", "exp", "run", "-S", "train.lr=0.01")


def git(*words: str) -> Callable[[Scene], None]:
    """Return a git command."""

    def run(scene: Scene) -> None:
        scene.git(*words)

    return run


def unstash(scene: Scene) -> None:
    """Bring the stashed edit back."""
    scene.git("stash", "pop")


def collect_cache(scene: Scene) -> None:
    """Remove what the workspace does not use from DVC's cache; DVC may refuse while a command works."""
    (scene.control / "moment.json").unlink(missing_ok=True)
    scene.run("dvc", "gc", "-w", "-f")


def move(scene: Scene) -> None:
    """Rename the repository's folder."""
    target = scene.folder.with_name("moved")
    scene.folder.rename(target)
    env = {name: value.replace(str(scene.folder), str(target)) for name, value in scene.clone.env.items()}
    scene.clone = Clone(target)
    scene.clone.env = env
    scene.note("the folder `clone` is `moved` now")


def relocated(scene: Scene) -> list[tuple[str, ...]]:
    """Return the command that repairs the paths of a store, where there is one."""
    return [("convoy", "sync", "--moved")] if (scene.folder / "mlflow.db").exists() else []


@dataclass(frozen=True)
class Outage:
    """A tracking server that is reached through a proxy, with an experiment and a model of this combination's own."""

    @staticmethod
    def begin(scene: Scene) -> None:
        """Use the server from now on; export, if the moment needs a run there."""
        assert scene.proxy
        scene.uri = scene.proxy.uri
        scene.clone.env["MLFLOW_TRACKING_URI"] = scene.uri
        name = f"chaos-{scene.folder.parent.name}"
        scene.experiment = name
        scene.edit("params.yaml", "experiment: convoy ", f"experiment: {name} ")
        scene.edit("params.yaml", "registered_model: convoy ", f"registered_model: {name} ")
        if scene.moment.name in {"register", "delivery", "promote"}:
            scene.edit("params.yaml", *PARAMS["export"])
            if scene.moment.name == "delivery":
                (scene.control / "offline").touch()
            code, _ = scene.run("dvc", "repro", "export")
            assert not code, scene.tell()
            (scene.control / "offline").unlink(missing_ok=True)
        if scene.moment.name == "promote":
            code, _ = scene.run("convoy", "register")
            assert not code, scene.tell()
        scene.git("commit", "-q", "-a", "-m", "a server")

    @staticmethod
    def at(scene: Scene) -> None:
        """Let the server be gone at once, or after some more calls."""
        assert scene.proxy
        calls = scene.random.choice((0, 1, 2, 5))
        if calls:
            scene.proxy.die_after(calls)
        else:
            scene.proxy.refuse()
        scene.note(f"the server dies after {calls} calls")

    @staticmethod
    def undo(scene: Scene) -> None:
        """Let the server answer again."""
        assert scene.proxy
        scene.proxy.refuse()
        scene.proxy.accept()


ACTIONS = (
    Action("edit-params", at=edit_params, undo=restore_or_keep),
    Action("edit-code", ALL[:-1], at=edit_code, undo=restore_or_keep),
    Action(
        "edit-spec",
        ("train", "between", "delivery", "register"),
        at=edit_spec,
        undo=restore_or_keep,
    ),
    Action("kill-stage", at=killed(group=False), remedy=repaired),
    Action("kill-all", at=killed(group=True), remedy=repaired),
    Action("power-loss", at=killed(group=True, uploader=True), remedy=repaired),
    Action("ctrl-c", after=signalled(signal.SIGINT)),
    Action("sigterm", after=signalled(signal.SIGTERM)),
    Action("clock-back", at=clock(-2, -3600, -90000)),
    Action("clock-forward", ALL[:-1], at=clock(2, 3600, 90000)),
    Action("disk-full", at=fill_disk, undo=free_disk, remedy=make_repro),
    Action("readonly-build", (*STAGES, "promote"), at=readonly("build"), undo=writable("build")),
    Action("readonly-outbox", (*STAGES[1:], "delivery"), at=readonly("outbox"), undo=writable("outbox")),
    Action(
        "readonly-store", ("train", "export", *COMMANDS), at=readonly("mlflow.db"), undo=writable("mlflow.db")
    ),
    Action("second-process", at=SECOND_SAME[0], undo=SECOND_SAME[1]),
    Action("second-experiment", STAGES, at=SECOND_EXPERIMENT[0], undo=SECOND_EXPERIMENT[1]),
    Action(
        "network-loss",
        ("train", "export", "delivery", "register", "promote"),
        before=Outage.begin,
        at=Outage.at,
        undo=Outage.undo,
    ),
    Action("branch-switch", at=git("checkout", "-q", OTHER), undo=git("checkout", "-q", "main")),
    Action("stash", STAGES, before=edit_params, at=git("stash"), undo=unstash),
    Action("dvc-gc", (*STAGES, "delivery", "promote", "retrain"), at=collect_cache, drops_cache=True),
    Action(
        "git-gc", ("train", "export", "between", "delivery", "retrain"), at=git("gc", "-q", "--prune=now")
    ),
    Action("moved-folder", (*STAGES, *COMMANDS[:-1]), at=move, remedy=relocated),
)
