"""`convoy explain position`, as it is typed; trainings answer at once."""

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from convoy.commands.explain_position import PICTURE, position
from convoy.core.errors import DataError, RequestError
from convoy.explain import position as experiment
from convoy.explain.position_verdict import CNN

app = typer.Typer()
app.command()(position)


@pytest.fixture
def convoy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, words, catch_exceptions=True)


@pytest.fixture
def cnn_loses(monkeypatch):
    """Make trainings return at once: the CNN loses what is given, the dense network nothing."""

    def lose(loss):
        def train(spec, sheets, seed, *, shuffled):
            return 0.9 + seed / 1000 - loss * (shuffled and spec.name == CNN)

        monkeypatch.setattr(experiment, "train", train)

    return lose


def test_the_first_run_needs_no_decision(convoy, cnn_loses):
    cnn_loses(0.2)
    done = convoy()
    said = " ".join(done.stdout.split())
    assert done.exit_code == 0
    assert "500 of the 1,797 UCI digits, the other 1,297 to measure on" in said
    assert "Each of 8×8 px lies on a black sheet of 14×14, up to 2 px off the middle" in said
    assert "one shuffle of the 196 places, the same for every sheet" in said
    assert "CNN 90.2 (90.1 90.2 90.3) 70.2 (70.1 70.2 70.3) 20.0 0.6" in said
    assert "CNN: the loss of 20.0 points exceeds 3 × spread, 0.6: the shuffle hurts it." in said
    assert "the shuffle leaves it as it was" in said
    assert "Why: a filter sees a pixel together with its neighbours" in said
    assert done.stdout.endswith(f"Picture: {PICTURE}\n")
    assert PICTURE.read_bytes().startswith(b"\x89PNG")


def test_a_run_that_does_not_show_it_says_so_and_is_exit_1(convoy, cnn_loses):
    cnn_loses(0.005)
    done = convoy("--picture", "other.svg")
    said = " ".join(done.stdout.split())
    assert done.exit_code == 1
    assert "is no loss that exceeds 3 × spread" in said
    assert "So this run does not show what the experiment is about." in said
    assert "Picture: other.svg" in said


def test_json_is_one_object_and_no_file(convoy, cnn_loses, tmp_path):
    cnn_loses(0.2)
    done = convoy("--json", "--seed", "7")
    found = json.loads(done.stdout)
    assert done.exit_code == 0
    assert found["data"]["learnt"] == 500
    assert found["data"]["sheet_px"] == 14
    assert found["seeds"] == [7, 8, 9]
    assert found["cnn"]["in_place"] == pytest.approx([0.907, 0.908, 0.909])
    assert found["holds"] is True
    assert list(tmp_path.iterdir()) == []


def test_json_draws_where_it_is_told_and_says_exit_1_too(convoy, cnn_loses, tmp_path):
    cnn_loses(0.0)
    done = convoy("--json", "--picture", "position.png")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["cnn"]["is_hurt"] is False
    assert [path.name for path in tmp_path.iterdir()] == ["position.png"]


def test_a_picture_of_another_format_is_refused_before_anything_trains(convoy):
    done = convoy("--picture", "position.jpg")
    assert isinstance(done.exception, RequestError)
    assert str(done.exception).endswith("Try --picture position.png")


def test_a_folder_that_is_no_dataset_is_refused(convoy):
    done = convoy("--dataset", "nothing")
    assert isinstance(done.exception, DataError)
    assert str(done.exception).startswith("nothing is no packed dataset")


def test_a_negative_seed_is_exit_2(convoy):
    assert convoy("--seed", "-1").exit_code == 2


def test_importing_the_command_imports_no_torch():
    code = (
        "import sys, convoy.commands.explain_position; print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]
