"""Whatever happens, whenever it happens: what is recorded agrees, nothing is lost, and the next command ends well.

`CONVOY_CHAOS_SEED` (1) decides the order, the points at which commands are halted, and the timing.
"""

import itertools
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from random import Random

import pytest

from chaos import invariants
from chaos.actions import ACTIONS, Action
from chaos.moments import MOMENTS
from chaos.scene import Scene
from chaos.states import States
from proxy import Proxy

pytestmark = pytest.mark.pipeline

SEED = os.environ.get("CONVOY_CHAOS_SEED", "1")
QUICK = (
    *(f"{action}@prepare" for action in ("edit-params", "kill-all", "ctrl-c", "disk-full", "readonly-build")),
    *("second-process@prepare", "branch-switch@prepare", "power-loss@train"),
)
"""Combinations of `make test`."""

TABLE = [(action, moment) for action in ACTIONS for moment in MOMENTS if moment.name in action.moments]
NUMBERS = itertools.count()


def parameters() -> list[object]:
    """List the combinations in the seed's order."""
    table = [(f"{action.name}@{moment.name}", action, moment) for action, moment in TABLE]
    Random(SEED).shuffle(table)  # noqa: S311 (an order)
    assert set(QUICK) <= {name for name, _, _ in table}
    return [
        pytest.param(action, moment, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, action, moment in table
    ]


@pytest.fixture(scope="session")
def states(tmp_path_factory: pytest.TempPathFactory) -> States:
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "chaos"
    folder.mkdir(exist_ok=True)
    return States(folder)


@pytest.fixture
def upstream(action: Action, request: pytest.FixtureRequest) -> Iterator[Proxy | None]:
    """A proxy before a tracking server, for the actions that need it."""
    with ExitStack() as stack:
        needed = action.name == "network-loss"
        yield stack.enter_context(Proxy(request.getfixturevalue("server"))) if needed else None


@pytest.mark.parametrize(("action", "moment"), parameters())
def test_chaos(action, moment, states, upstream, request):
    name = f"{action.name}@{moment.name}"
    began, cpu = time.monotonic(), os.times()
    chance = Random(f"{SEED}:{name}")  # noqa: S311 (when and where)
    scene = Scene(states.copy(moment.state, next(NUMBERS)), moment, chance, proxy=upstream)
    again = f"CONVOY_CHAOS_SEED={SEED} python -m pytest 'tests/chaos/test_chaos.py::test_chaos[{name}]'"
    try:
        go_through(scene, action)
    except Exception as error:  # noqa: BLE001 (whatever the clone's files hold)
        message = (
            f"{type(error).__name__}: {error}\n\nTo repeat: {again}\nClone: {scene.folder}\n\n{scene.tell()}"
        )
        (scene.folder.parent / "failure.txt").write_text(
            message, encoding="utf-8"
        )  # at once, for whoever waits
        pytest.fail(message, pytrace=False)
    else:
        shutil.rmtree(scene.folder.parent)
    finally:
        now = os.times()
        used = sum(now[:4]) - sum(cpu[:4])
        request.node.user_properties += [
            ("cpu_s", round(used, 1)),
            ("wall_s", round(time.monotonic() - began, 1)),
        ]


def go_through(scene: Scene, action: Action) -> None:
    """Let it happen, and check what holds, at once and after the next documented commands."""
    action.before(scene)
    before = invariants.Before.of(scene)
    scene.halt()
    action.at(scene)
    scene.release()
    action.after(scene)
    scene.finish()
    action.undo(scene)
    drops = action.drops_cache
    found = invariants.check(scene, before, settled=False, drops_cache=drops)
    assert not found, "\n".join(["At once:", *found])
    for command in (*action.remedy(scene), *scene.moment.next):
        code, _ = scene.run(*command)
        assert code == 0, f"`{' '.join(command)}` ended with {code}"
    scene.settle()
    found = invariants.synchronize(scene) + invariants.check(scene, before, settled=True, drops_cache=drops)
    assert not found, "\n".join(["After the next command:", *found])
