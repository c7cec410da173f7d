"""A service follows the champion, and what fails leaves the old model in place."""

from types import SimpleNamespace

import pytest

from convoy.core.errors import VerificationError
from convoy.serving import server, watch
from convoy.serving.watch import Follower
from services import serve_params


def model(number):
    return SimpleNamespace(name=f"convoy/{number}", version=number, sha256=f"sha{number}")


class Registry:
    """A registry with a champion, which can be down or hold a model that fails its verification."""

    def __init__(self):
        self.champion, self.down, self.broken, self.opened = "1", None, None, 0

    def look_up(self):
        if self.down:
            raise self.down
        return self.champion, f"sha{self.champion}"

    def open(self):
        self.opened += 1
        if self.broken:
            raise self.broken
        return model(self.champion)


@pytest.fixture
def registry():
    return Registry()


@pytest.fixture
def follower(registry):
    return Follower(SimpleNamespace(served=model("1"), problem=""), registry.look_up, registry.open, 0.01)


def test_a_moved_alias_replaces_the_model_once(registry, follower):
    before = follower.state.served
    follower.look()
    assert follower.state.served is before
    registry.champion = "2"
    follower.look()
    follower.look()
    assert follower.state.served.name == "convoy/2"
    assert registry.opened == 1
    registry.champion = "1"  # rolled back
    follower.look()
    assert follower.state.served.version == "1"
    assert not follower.state.problem


def test_a_registry_that_is_down_is_reported_and_the_model_stays(registry, follower, caplog):
    before = follower.state.served
    registry.down = ConnectionError("connection refused\nat line 3")
    follower.look()
    assert follower.state.served is before
    assert follower.state.problem == "The registry does not answer."
    assert "ConnectionError: connection refused" in caplog.text, (
        "the cause, with addresses, is in the log only"
    )
    registry.down = None
    follower.look()
    assert follower.state.problem == ""


def test_a_model_that_fails_is_reported_stays_out_and_is_tried_again_later(
    registry, follower, monkeypatch, caplog
):
    clock = [1000.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    registry.champion, registry.broken = "2", VerificationError("golden image 03.jpg is another class")
    for _ in range(3):
        follower.look()
    assert registry.opened == 1
    assert follower.state.served.version == "1"
    assert "Version 2" in follower.state.problem
    assert "03.jpg" not in follower.state.problem
    assert "03.jpg" in caplog.text
    for wait in (60, 120):
        clock[0] += wait - 1
        follower.look()
        clock[0] += 1
        before = registry.opened
        follower.look()
        assert registry.opened == before + 1
    registry.champion = "3"  # another version is tried at once
    registry.broken = None
    follower.look()
    assert follower.state.served.version == "3"
    assert follower.state.problem == ""


def test_it_looks_in_a_thread_until_it_is_stopped(registry, follower):
    registry.champion = "2"
    follower.start()
    for _ in range(500):
        if follower.state.served.version == "2":
            break
        follower._stopped.wait(0.01)
    follower.stop()
    follower._thread.join(5)
    assert not follower._thread.is_alive()
    assert follower.state.served.version == "2"


def test_a_champion_that_takes_over_is_opened_as_the_first_was_signature_included(monkeypatch):
    opened, followers = [], []

    def open_model(source, **options):
        opened.append((source, options))
        return SimpleNamespace(
            name="convoy/1", version="1", sha256="sha1", model=SimpleNamespace(classes=["a"])
        )

    monkeypatch.setattr(server, "open_model", open_model)
    monkeypatch.setattr(server, "default_source", lambda: "champion")
    monkeypatch.setattr(server.signing, "public_key", lambda path, key: f"key {path}")
    monkeypatch.setattr(
        server, "Follower", lambda *parts: followers.append(parts) or SimpleNamespace(start=int, stop=int)
    )
    monkeypatch.setattr(server.uvicorn, "Server", lambda config: SimpleNamespace(run=lambda sockets: None))
    monkeypatch.setattr(server, "serve_params", lambda: serve_params(public_key="convoy.pub", watch_s=3))
    server.serve("", "127.0.0.1", 0)
    [(_, _, open_champion, every_s)] = followers
    assert every_s == 3
    open_champion()
    assert opened[0] == opened[1]
    assert opened[1][1]["public_key"] == "key convoy.pub"
    for source in ("7", "model.onnx"):
        server.serve(source, "127.0.0.1", 0)
    assert len(followers) == 1, "a version or a file stays"
