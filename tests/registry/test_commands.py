"""`convoy register` and `convoy rollback`, as text and as JSON."""

import json

from typer.testing import CliRunner

from convoy.cli import app
from convoy.registry.alias import create, move


def test_register_prints_the_version_and_the_next_command(project):
    run = project.train()
    done = CliRunner().invoke(app, ["register"])
    assert done.exit_code == 0
    facts, first, second, third = done.stdout.splitlines()
    assert "network lenet5, 3 classes (Bär, cat, x), data dddddddddddd, made less than a minute ago" in facts
    assert first.startswith("convoy/1 is registered: model.onnx ")
    assert first.endswith(f"of run {run.data.tags['convoy.run_id']}")
    assert second == "candidate is convoy/1, accuracy 90.00% (85.00% to 95.00%)"
    assert third == "Next: convoy promote"


def test_register_prints_a_json_object_and_messages_beside_it(project):
    run = project.train()
    done = CliRunner().invoke(app, ["register", run.data.tags["convoy.run_id"], "--json"])
    printed = json.loads(done.stdout)
    assert (printed["model"], printed["number"], printed["mlflow_run_id"]) == ("convoy", "1", run.info.run_id)
    assert "convoy/1 is registered" in done.stderr


def test_rollback_prints_the_move_and_the_command_that_undoes_it(memory):
    first, second = memory.versions(2)
    move(memory.registry, first, expected=None, kind="promote", reason="")
    move(memory.registry, second, expected=first, kind="promote", reason="")
    done = CliRunner().invoke(app, ["rollback", "--reason", "slow"])
    moved, undo = done.stdout.splitlines()
    assert (moved, undo) == ("champion is convoy/1 (before: convoy/2)", "To undo: convoy rollback --to 2")
    create(memory.registry, "interrupted", "promote", "1", second, "")
    done = CliRunner().invoke(app, ["rollback", "--to", "2", "--json"])
    assert "an earlier promote of convoy/2 was interrupted" in done.stderr
    printed = json.loads(done.stdout)
    assert (printed["before"]["number"], printed["to"]["number"], printed["kind"]) == ("1", "2", "rollback")


def test_their_help_teaches_by_an_example():
    for command, example in (("register", "convoy register"), ("rollback", "convoy rollback --reason")):
        assert f"Example: {example}" in CliRunner().invoke(app, [command, "--help"]).stdout
