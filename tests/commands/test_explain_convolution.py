"""`convoy explain convolution`, as it is typed."""

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from convoy.commands.explain_convolution import PICTURE, convolution
from convoy.core.errors import RequestError

app = typer.Typer()
app.command()(convolution)


@pytest.fixture
def convoy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, words, catch_exceptions=True)


def test_the_first_run_needs_no_decision(convoy):
    done = convoy()
    assert done.exit_code == 0
    assert "row 2, column 2:  0·(-1) + 0·0 + 1·1 + 0·(-1) + 1·0 + 1·1 + 0·(-1) + 0·0 + 1·1 = 3" in done.stdout
    assert done.stdout.endswith(f"Picture: {PICTURE}\n")
    assert PICTURE.read_bytes().startswith(b"\x89PNG")


def test_json_is_one_object_and_no_file(convoy):
    done = convoy("1 2 3; 4 5 6; 7 8 10", "--filter", "-1 0; 0 1", "--padding", "1", "--padding-mode", "replicate",
                  "--stride", "2", "--json")  # fmt: skip
    found = json.loads(done.stdout)
    assert found["operation"] == "cross-correlation"
    assert found["image"] == {"source": "typed", "shape": [3, 3, 1]}
    assert found["filters"] == [{"name": "typed", "weights": [[[-1], [0]], [[0], [1]]]}]
    assert (found["padding"], found["padding_mode"], found["stride"]) == (1, "replicate", 2)
    assert found["activation"] == {"shape": [2, 2, 1], "values": [[[0], [1]], [[3], [5]]]}
    assert found["relu"]["shape"] == [2, 2, 1]
    assert found["max_pool"] == {"shape": [1, 1, 1], "values": [[[5]]]}
    assert found["largest"] == {"value": 5, "row": 2, "column": 2, "filter": 1}
    assert not PICTURE.exists()


def test_a_picture_goes_where_it_is_asked_for_with_json_too(convoy, tmp_path):
    assert convoy("--json", "--picture", "mine.svg").exit_code == 0
    assert (tmp_path / "mine.svg").exists()


def test_each_filter_makes_one_map(convoy):
    done = convoy("--filter", "edge", "--filter", "blur")
    assert "Activation volume 5×5×2" in done.stdout


def test_every_named_filter_is_in_the_help(convoy):
    said = " ".join(convoy("--help").stdout.replace("│", " ").split())
    assert "blur: the weighted mean around each pixel." in said
    assert 'Example: convoy explain convolution "0 1 0;' in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["0 1; 2"], "ragged"),
        (["--filter", "nonsense"], "There is no filter"),
        (["1 2; 3 4"], "A 3×3 filter does not fit into the 2×2 image"),
        (["--stride", "0"], "The stride is 0"),
        (["--padding", "-1"], "The padding is -1"),
        (["--padding", "999999"], "The padding is 999999"),
        (["--picture", "out.gif"], "is no .png or .svg file"),
        (["no.jpg"], "no.jpg cannot be read"),
    ],
)
def test_a_wrong_request_is_refused_and_draws_nothing(convoy, tmp_path, words, said):
    done = convoy(*words)
    assert isinstance(done.exception, RequestError)
    assert said in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_it_works_without_torch(repository):
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['x', '--json']; import typer;"
        "from convoy.commands.explain_convolution import convolution; heavy = {'numpy', 'matplotlib'} & set(sys.modules);"
        "assert not heavy, heavy; typer.run(convolution)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(repository / "src")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout)["activation"]["shape"] == [5, 5, 1]
