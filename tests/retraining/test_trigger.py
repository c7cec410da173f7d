"""A round trains if its inputs differ from those of the newest candidate, or if the champion is old."""

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from convoy.core.contract import RETRAIN_INPUTS, RETRAIN_SOURCE
from convoy.core.errors import RequestError
from convoy.registry.client import Version
from convoy.retraining import trigger
from convoy.retraining.processes import RoundError
from convoy.retraining.trigger import Upstream, decide
from convoy.retraining.worktree import checkout_pinned
from retraining_rounds import Programs, Rounds
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
    """Serve one file, and count what is asked for."""

    content: ClassVar[bytes] = b"one"
    etag: ClassVar[bool] = True
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.asked.append(self.command)
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


@pytest.fixture
def served() -> Iterator[tuple[type[Server], str]]:
    """A server of one file, and the file's address."""
    kind = type("Served", (Server,), {"content": b"one", "etag": True, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield kind, f"http://user:secret@127.0.0.1:{server.server_port}/images.zip"
    server.shutdown()
    server.server_close()


def import_from(small: Small, address: str) -> None:
    small.remove("data.dvc")
    small.remove("data")
    small.dvc("import-url", address, "data")
    small.dvc("unfreeze", "data.dvc")
    small.commit("another source")


def test_a_folder_is_told_by_its_files(small: Small) -> None:
    before = trigger.look(small.folder)
    assert (before.address, before.changed, before.hint) == ("source", False, "")
    small.write("source/c.txt", "new\n")
    after = trigger.look(small.folder)
    assert after.changed
    assert after.fingerprint != before.fingerprint
    assert after.inputs != before.inputs


def test_a_file_on_a_server_is_told_by_its_etag_and_not_downloaded(
    small: Small, served: tuple[type[Server], str]
) -> None:
    server, address = served
    import_from(small, address)
    before = trigger.look(small.folder)
    assert (before.changed, before.hint) == (False, "")
    assert before.address == address.replace("secret", "***")
    server.content = b"two"
    server.asked.clear()
    assert trigger.look(small.folder).changed
    assert "GET" not in server.asked


def test_a_server_without_etags_is_told_about(small: Small, served: tuple[type[Server], str]) -> None:
    server, address = served
    server.etag = False
    import_from(small, address)
    assert "sends no ETag" in trigger.look(small.folder).hint


def test_a_server_that_is_down_is_told_with_its_address(
    rounds: Rounds, served: tuple[type[Server], str]
) -> None:
    _, address = served
    import_from(rounds.small, address)
    nowhere = address.rpartition(":")[0] + ":9/images.zip"
    rounds.small.edit("data.dvc", address, nowhere)
    rounds.small.commit("a server that is down")
    data = (rounds.root / "data").read_bytes()
    assert rounds.run() == 1
    said = rounds.result["reason"]
    assert said.startswith(f"the source of the data does not answer: {nowhere.replace('secret', '***')}\n")
    assert "secret" not in rounds.report + str(rounds.result)
    assert (rounds.root / "data").read_bytes() == data


def test_another_git_repository_is_told_by_its_commit(small: Small, tmp_path: Path) -> None:
    other = Small(tmp_path / "other")
    other.write("images/a.txt", "a\n")
    other.git("init", "-q", "-b", "main")
    other.git("config", "user.name", "test")
    other.git("config", "user.email", "test@example.invalid")
    other.commit("images")
    small.remove("data.dvc")
    small.remove("data")
    small.dvc("import", str(other.folder), "images", "-o", "data")
    small.dvc("unfreeze", "data.dvc")
    before = trigger.look(small.folder)
    assert not before.changed
    other.write("images/b.txt", "b\n")
    other.commit("more")
    after = trigger.look(small.folder)
    assert after.changed
    assert after.fingerprint != before.fingerprint


def test_a_frozen_import_is_not_looked_at(rounds: Rounds, no_pipeline: Programs) -> None:
    rounds.small.dvc("freeze", "data.dvc")
    rounds.small.write("source/c.txt", "new\n")
    rounds.small.commit("frozen")
    before = trigger.look(rounds.root)
    assert not before.changed
    assert before.hint.startswith("`data.dvc` is frozen")
    assert rounds.run() == 0
    assert "frozen: true" in rounds.small.git("show", f"{rounds.result['branch']}:data.dvc")
    assert "`dvc unfreeze data.dvc`" in rounds.report


def test_files_that_dvc_add_tracks_are_taken_from_the_cache(rounds: Rounds, no_pipeline: Programs) -> None:
    rounds.small.remove("data.dvc")
    rounds.small.dvc("add", "-q", "data")
    rounds.small.commit("added")
    found = trigger.look(rounds.root)
    assert (found.address, found.changed) == ("", False)
    assert "has no source" in found.hint
    assert rounds.run() == 0
    assert rounds.result["verdict"] == "promoted"


def test_a_source_in_the_repository_that_git_does_not_hold_is_reached_from_the_worktree(
    rounds: Rounds, no_pipeline: Programs
) -> None:
    rounds.small.write(".gitignore", (rounds.root / ".gitignore").read_text() + "/mine\n")
    rounds.small.write("mine/a.txt", "mine\n")
    import_from(rounds.small, "mine")
    rounds.small.write("mine/b.txt", "mine too\n")
    assert rounds.run() == 0
    assert [words[2:] for words in no_pipeline.started] == [["dvc", "update", "data.dvc"], []]
    assert "nfiles: 2" in rounds.small.git("show", f"{rounds.result['branch']}~1:data.dvc")
    assert sorted(path.name for path in (rounds.root / "mine").iterdir()) == ["a.txt", "b.txt"]


def test_params_code_specs_and_limits_make_other_inputs_and_words_for_people_do_not(small: Small) -> None:
    def look() -> str:
        small.commit("edit")
        return trigger.look(small.folder).inputs

    seen = [trigger.look(small.folder).inputs]
    for name, old, new in (
        ("params.yaml", "lr: 0.5", "lr: 0.25"),
        ("params.yaml", "min_accuracy: 0.5", "min_accuracy: 0.6"),
        ("train.sh", "mkdir -p", "mkdir  -p"),
        ("nets/one.yaml", "1", "11"),
        ("dvc.yaml", "sh evaluate.sh", "sh -e evaluate.sh"),
    ):
        small.edit(name, old, new)
        seen.append(look())
    assert len(set(seen)) == len(seen)
    small.edit("params.yaml", "max_champion_age_days: 90", "max_champion_age_days: 30")
    small.edit("params.yaml", "gate:", "# a comment\ngate:")
    small.edit("nets/two.yaml", "2", "22")
    small.write("README.md", "words\n")
    assert look() == seen[-1]


def test_a_repository_without_data_dvc_is_told_what_to_type(small: Small) -> None:
    small.remove("data.dvc")
    with pytest.raises(RequestError, match=r"data\.dvc does not exist.*`convoy data use PATH-OR-URL`"):
        trigger.look(small.folder)


def test_a_database_cannot_be_looked_at(small: Small) -> None:
    small.write("data.dvc", "deps:\n- db:\n    query: SELECT 1\n    file_format: csv\nouts:\n- path: data\n")
    with pytest.raises(RequestError, match=r"imports from a database.*Export a file"):
        trigger.look(small.folder)


def test_content_that_nobody_has_is_named(small: Small, tmp_path: Path) -> None:
    small.write("weights/net.pt", "weights\n")
    small.dvc("add", "-q", "weights/net.pt")
    small.commit("pinned")
    assert checkout_pinned(small.folder, has_remote=False) == ["weights/net.pt.dvc"]
    small.remove("weights/net.pt")
    small.remove(".dvc/cache")
    said = r"content of weights/net\.pt\.dvc is not in DVC's cache and there is no DVC remote"
    with pytest.raises(RoundError, match=said):
        checkout_pinned(small.folder, has_remote=False)
    small.dvc("remote", "add", "-q", "--default", "store", str(tmp_path / "store"))
    with pytest.raises(RoundError, match=r"not in DVC's cache nor in the DVC remote(?s:.*)`dvc push`"):
        checkout_pinned(small.folder, has_remote=True)


NOW = Upstream("source", "f" * 64, changed=False, inputs="1" * 64)


def days_ago(days: float) -> int:
    return int(time.time() * 1000 - days * 24 * 3600 * 1000)


def version(number: str = "1", days: float = 0, **tags: str) -> Version:
    all_tags = tags or {RETRAIN_INPUTS: NOW.inputs, RETRAIN_SOURCE: NOW.fingerprint}
    return Version("convoy", number, "0" * 64, "run", "mlflow", days_ago(days), all_tags)


@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        (None, "no version is registered yet"),
        (version(note="x"), "no round has judged convoy/1"),
        (replace(version(), tags={RETRAIN_INPUTS: "2", RETRAIN_SOURCE: "e"}), "the data changed since convoy/1"),
        (replace(version(), tags={RETRAIN_INPUTS: "2", RETRAIN_SOURCE: NOW.fingerprint}), "params, code or limits changed since convoy/1"),
    ],
)  # fmt: skip
def test_news_are_a_cause(candidate: Version | None, why: str) -> None:
    decision = decide(NOW, candidate, None, 0, None)
    assert (decision.trains, decision.why, decision.aged) == (True, why, False)


def test_nothing_new_is_none() -> None:
    decision = decide(NOW, version(days=400), version(days=400), days_ago(400), None)
    assert not decision.trains
    assert decision.why == (
        "the data (source), params, code and limits are those of convoy/1, which has been judged"
    )


def test_nothing_new_says_what_the_verdict_was() -> None:
    tags = {RETRAIN_INPUTS: NOW.inputs, RETRAIN_SOURCE: NOW.fingerprint, "gate.verdict": "refuse"}
    assert decide(NOW, replace(version(), tags=tags), None, 0, None).why.endswith("(verdict: refuse)")


def test_age_counts_from_when_the_champion_became_one() -> None:
    old = version(days=400)
    assert not decide(NOW, old, old, days_ago(89), 90).trains
    decision = decide(NOW, old, old, days_ago(91), 90)
    assert (decision.trains, decision.aged) == (True, True)
    assert "more than gate.max_champion_age_days (90); nothing else changed" in decision.why


def test_one_training_per_span_is_enough() -> None:
    decision = decide(NOW, version("2", days=3), version(days=400), days_ago(91), 90)
    assert not decision.trains


def test_without_a_champion_there_is_no_age() -> None:
    assert not decide(NOW, version(days=400), None, 0, 90).trains
