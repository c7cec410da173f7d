"""A round trains if its inputs differ from those of the newest candidate, or if the champion is old."""

import hashlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from convoy.core.contract import RETRAIN_INPUTS, RETRAIN_SOURCE
from convoy.core.errors import RequestError
from convoy.registry.client import Version
from convoy.retraining import trigger
from convoy.retraining.trigger import Upstream, decide
from convoy.retraining.worktree import RoundError, checkout_pinned
from retraining_rounds import Programs, Rounds, started
from small_pipeline import Small


@pytest.fixture
def no_pipeline(quick: Programs) -> Programs:
    """Let DVC take the data, and the pipeline do nothing but leave its files."""
    quick.real = ("update",)
    return quick


@pytest.fixture
def small(rounds: Rounds) -> Small:
    return rounds.small


class Server(BaseHTTPRequestHandler):
    """Serve one file, and record the methods of the requests."""

    content: ClassVar[bytes] = b"one"
    etag: ClassVar[bool] = True
    methods: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.methods.append(self.command)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        if self.etag:
            self.send_header("ETag", f'"{hashlib.md5(self.content, usedforsecurity=False).hexdigest()}"')
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def web_import(committed: Small, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Small, str]]:
    """The pipeline with data imported from a web server, and the file's address. Read only."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://user:secret@127.0.0.1:{server.server_port}/images.zip"
    small = committed.copy(tmp_path_factory.mktemp("web") / "repository")
    import_from(small, address)
    yield small, address
    server.shutdown()
    server.server_close()


@pytest.fixture
def web_rounds(web_import, tmp_path, monkeypatch) -> tuple[Rounds, str]:
    """A copy of it, with the server as it was when the data were imported."""
    for name, value in {"content": b"one", "etag": True, "methods": []}.items():
        monkeypatch.setattr(Server, name, value)
    return started(Rounds(web_import[0]), tmp_path, monkeypatch), web_import[1]


def import_from(small: Small, *source: str) -> None:
    """Import data, and let rounds follow the source."""
    small.remove("data.dvc")
    small.remove("data")
    if len(source) == 1:
        small.dvc("import-url", *source, "data")
    else:
        small.dvc("import", *source, "--out", "data")
    small.edit("data.dvc", "frozen: true\n", "")
    small.commit("another source")


def test_a_folder_is_compared_by_its_files(small):
    before = trigger.look(small.folder)
    assert (before.address, before.changed, before.hint) == ("source", False, "")
    small.write("source/c.txt", "new\n")
    after = trigger.look(small.folder)
    assert after.changed
    assert after.fingerprint != before.fingerprint
    assert after.inputs != before.inputs


def test_a_file_on_a_web_server_is_compared_by_its_etag_and_not_downloaded(web_rounds, monkeypatch):
    rounds, address = web_rounds
    before = trigger.look(rounds.root)
    assert (before.changed, before.hint) == (False, "")
    assert before.address == address.replace("secret", "***")
    monkeypatch.setattr(Server, "content", b"two")
    assert trigger.look(rounds.root).changed
    monkeypatch.setattr(Server, "etag", False)
    assert "sends no ETag" in trigger.look(rounds.root).hint
    assert set(Server.methods) == {"HEAD"}


def test_a_web_server_that_is_down_is_reported_with_its_address(web_rounds):
    rounds, address = web_rounds
    nowhere = address.rpartition(":")[0] + ":9/images.zip"
    rounds.small.edit("data.dvc", address, nowhere)
    rounds.small.commit("a server that is down")
    data = (rounds.root / "data").read_bytes()
    assert rounds.run()[0] == 1
    assert nowhere.replace("secret", "***") in rounds.result["reason"].splitlines()[0]
    assert "secret" not in rounds.report + str(rounds.result)
    assert (rounds.root / "data").read_bytes() == data


def test_another_git_repository_is_compared_by_its_commit(small, tmp_path):
    other = Small(tmp_path / "other")
    other.write("images/a.txt", "a\n")
    other.init()
    other.commit("images")
    import_from(small, str(other.folder), "images")
    before = trigger.look(small.folder)
    assert not before.changed
    other.write("images/b.txt", "b\n")
    other.commit("more")
    after = trigger.look(small.folder)
    assert after.changed
    assert after.fingerprint != before.fingerprint


def test_a_frozen_import_is_not_checked(rounds, no_pipeline):
    rounds.small.write("data.dvc", "frozen: true\n" + (rounds.root / "data.dvc").read_text())
    rounds.small.write("source/c.txt", "new\n")
    rounds.small.commit("frozen")
    before = trigger.look(rounds.root)
    assert not before.changed
    assert before.hint.startswith("`data.dvc` is frozen")
    assert rounds.run()[0] == 0
    assert "frozen: true" in rounds.small.git("show", f"{rounds.result['branch']}:data.dvc")
    assert "`dvc unfreeze data.dvc`" in rounds.report


def test_files_that_dvc_add_tracks_are_taken_from_the_cache(rounds, no_pipeline):
    rounds.small.remove("data.dvc")
    rounds.small.dvc("add", "-q", "data")
    rounds.small.commit("added")
    upstream = trigger.look(rounds.root)
    assert (upstream.address, upstream.changed) == ("", False)
    assert "has no source" in upstream.hint
    assert rounds.run() == (0, "promoted", "")


def test_a_source_in_the_repository_that_git_does_not_hold_is_reached_from_the_worktree(rounds, no_pipeline):
    rounds.small.write(".gitignore", (rounds.root / ".gitignore").read_text() + "/mine\n")
    rounds.small.write("mine/a.txt", "mine\n")
    import_from(rounds.small, "mine")
    rounds.small.write("mine/b.txt", "mine too\n")
    assert rounds.run()[0] == 0
    assert [words[2:] for words in no_pipeline.started] == [["dvc", "update", "data.dvc"], []]
    assert "nfiles: 2" in rounds.small.git("show", f"{rounds.result['branch']}~1:data.dvc")
    assert sorted(path.name for path in (rounds.root / "mine").iterdir()) == ["a.txt", "b.txt"]


def test_params_code_specs_and_limits_change_the_inputs_and_comments_do_not(small):
    def look() -> str:
        small.commit("edit")
        return trigger.look(small.folder).inputs

    seen = [trigger.look(small.folder).inputs]
    for name, old, new in (
        ("params.yaml", "lr: 0.5", "lr: 0.25"), ("params.yaml", "min_accuracy: 0.5", "min_accuracy: 0.6"),
        ("train.sh", "mkdir -p", "mkdir  -p"), ("nets/one.yaml", "1", "11"), ("dvc.yaml", "sh evaluate", "sh -e evaluate"),
    ):  # fmt: skip
        small.edit(name, old, new)
        seen.append(look())
    assert len(set(seen)) == len(seen)
    small.edit("params.yaml", "max_champion_age_days: 90", "max_champion_age_days: 30")
    small.edit("params.yaml", "gate:", "# a comment\ngate:")
    small.edit("nets/two.yaml", "2", "22")
    small.write("README.md", "words\n")
    assert look() == seen[-1]


def test_a_source_that_is_unknown_or_a_database_is_refused(small):
    small.remove("data.dvc")
    with pytest.raises(RequestError, match=r"data\.dvc does not exist.*`convoy data use PATH-OR-URL`"):
        trigger.look(small.folder)
    small.write("data.dvc", "deps:\n- db:\n    query: SELECT 1\n    file_format: csv\nouts:\n- path: data\n")
    with pytest.raises(RequestError, match=r"imports from a database.*Export a file"):
        trigger.look(small.folder)


def test_missing_content_is_reported_with_its_file(small, tmp_path):
    small.write("weights/net.pt", "weights\n")
    small.dvc("add", "-q", "weights/net.pt")
    small.commit("pinned")
    assert checkout_pinned(small.folder, has_remote=False) == ["weights/net.pt.dvc"]
    small.remove("weights/net.pt")
    small.remove(".dvc/cache")
    message = r"content of weights/net\.pt\.dvc is not in DVC's cache and there is no DVC remote"
    with pytest.raises(RoundError, match=message):
        checkout_pinned(small.folder, has_remote=False)
    small.set_remote(url=tmp_path / "store")
    with pytest.raises(RoundError, match=r"not in DVC's cache nor in the DVC remote(?s:.*)`dvc push`"):
        checkout_pinned(small.folder, has_remote=True)


NOW = Upstream("source", "f" * 64, changed=False, inputs="1" * 64)
TAGS = {RETRAIN_INPUTS: NOW.inputs, RETRAIN_SOURCE: NOW.fingerprint}


def days_ago(days: float) -> int:
    return int(time.time() * 1000 - days * 24 * 3600 * 1000)


def version(number: str = "1", days: float = 0, tags: dict[str, str] = TAGS) -> Version:
    return Version("convoy", number, "0" * 64, "run", "mlflow", days_ago(days), tags)


@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        (None, "no version is registered yet"),
        (version(tags={}), "no round has judged convoy/1"),
        (version(tags={RETRAIN_INPUTS: "2", RETRAIN_SOURCE: "e"}), "the data changed since convoy/1"),
        (version(tags=TAGS | {RETRAIN_INPUTS: "2"}), "params, code or limits changed since convoy/1"),
    ],
)
def test_changed_inputs_start_a_training(candidate, why):
    decision = decide(NOW, candidate, None, 0, None)
    assert (decision.trains, decision.why, decision.aged) == (True, why, False)


def test_unchanged_inputs_start_no_training():
    decision = decide(NOW, version(days=400), version(days=400), days_ago(400), None)
    assert not decision.trains
    same = "the data (source), params, code and limits are those of convoy/1, which has been judged"
    assert decision.why == same
    refused = version(tags=TAGS | {"gate.verdict": "refuse"})
    assert decide(NOW, refused, None, 0, None).why == f"{same} (verdict: refuse)"


def test_age_counts_from_when_the_champion_became_one_and_one_training_per_span_is_enough():
    old = version(days=400)
    assert not decide(NOW, old, old, days_ago(89), 90).trains
    assert not decide(NOW, version("2", days=3), old, days_ago(91), 90).trains
    assert not decide(NOW, old, None, 0, 90).trains, "without a champion there is no age"
    decision = decide(NOW, old, old, days_ago(91), 90)
    assert (decision.trains, decision.aged) == (True, True)
    assert "more than gate.max_champion_age_days (90); nothing else changed" in decision.why
