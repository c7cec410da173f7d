"""Inputs of a stage that were edited while it ran fail it, by name; what no stage depends on may change."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from convoy.core import files, inputs, params
from convoy.core.errors import RequestError
from convoy.core.inputs import InputsChanged
from ignored import IGNORED, VERDICTS

PIPELINE = """\
stages:
  train:
    desc: Train
    cmd: python train.py
    params: [seed, network, train, {more.yaml: [a.b]}]
    deps: [data, "networks/${network.name}.yaml", src, weights]
  evaluate:
    cmd: python evaluate.py
    params: [evaluate]
    deps: [missing]
"""
PARAMS = """\
seed: 1
network: {name: one}
train: {lr: 0.03, augment: [crop], transfer: {release: 0}}
evaluate: {batch_size: 4}
tracking: {experiment: convoy}
"""


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inputs, "CONTENT_FILES", 3)
    contents = {"dvc.yaml": PIPELINE, "params.yaml": PARAMS, "more.yaml": "a: {b: 1, c: 2}\n"}
    contents |= {
        "src/core/fit.py": "1",
        "src/core/optim.py": "2",
        "networks/one.yaml": "1",
        ".dvcignore": "*.tmp\n/src/notes\n",
    }
    contents |= {f"data/cats/{number}.png": "cat" for number in range(4)}
    contents |= {"networks/two.yaml": "2", "weights/a/weights.pt": "w"}
    for name, text in contents.items():
        write(name, text)
    yield
    assert inputs.watch._inputs is None


def write(name: str, text: str) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_later(name: str, text: str) -> None:
    """Write once the clock of the file system, which counts in some ms, has moved on."""
    time.sleep(0.02)
    write(name, text)


def replace(name: str, old: str, new: str) -> None:
    text = Path(name).read_text()
    assert old in text
    write(name, text.replace(old, new))


EDITS = {
    "a value": (lambda: replace("params.yaml", "0.03", "0.0001"), ["train.lr: 0.03 → 0.0001 (params.yaml)"]),
    "a seed": (lambda: replace("params.yaml", "seed: 1", "seed: 2"), ["seed: 1 → 2 (params.yaml)"]),
    "a list": (lambda: replace("params.yaml", "[crop]", "[]"), ["train.augment: [crop] → [] (params.yaml)"]),
    "another type": (
        lambda: replace("params.yaml", "release: 0", "release: {conv3: 2}"),
        ["train.transfer.release: 0 → (none) (params.yaml)", "train.transfer.release.conv3: (none) → 2 (params.yaml)"],
    ),
    "another file of params": (lambda: replace("more.yaml", "b: 1", "b: 3"), ["a.b: 1 → 3 (more.yaml)"]),
    "the network": (lambda: replace("params.yaml", "name: one", "name: two"), ["network.name: one → two (params.yaml)"]),
    "invalid YAML": (lambda: write("params.yaml", "train: ["), ["params.yaml:1 is not valid YAML"]),
    "a spec": (lambda: write("networks/one.yaml", "3"), ["networks/one.yaml (edited)"]),
    "code": (lambda: write("src/core/fit.py", "3"), ["src/core/fit.py (edited)"]),
    "new code": (lambda: write("src/core/new.py", "3"), ["src/core/new.py (new)"]),
    "removed code": (lambda: Path("src/core/fit.py").unlink(), ["src/core/fit.py (removed)"]),
    "data of equal size": (lambda: write_later("data/cats/2.png", "dog"), ["data/cats/2.png (edited)"]),
    "new data": (lambda: write("data/dogs/1.png", "dog"), ["data/dogs/1.png (new)"]),
    "weights": (lambda: write("weights/a/weights.pt", "v"), ["weights/a/weights.pt (edited)"]),
    "the stage": (lambda: replace("dvc.yaml", "python train.py", "python -O train.py"), ["dvc.yaml: cmd of stage train"]),
    "no stage": (lambda: replace("dvc.yaml", "  train:", "  fit:"), ["dvc.yaml has no stage train"]),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_input_fails_the_stage_and_is_named_with_both_values(edit):
    change, expected = EDITS[edit]
    with pytest.raises(InputsChanged) as caught, inputs.watch.held("train"):
        change()
    assert caught.value.exit_code == 1
    assert len(caught.value.changes) == len(expected), caught.value.changes
    for line, start in zip(caught.value.changes, expected, strict=True):
        assert line.startswith(start)
        assert start in str(caught.value)
    assert "`dvc repro`" in str(caught.value)
    assert "--queue" in str(caught.value)


def preserve_time() -> None:
    """Write other content, and set the time of the file back, as `cp -p` does."""
    before = Path("data/cats/2.png").stat()
    write_later("data/cats/2.png", "dog")
    os.utime("data/cats/2.png", ns=(before.st_atime_ns, before.st_mtime_ns))


def test_data_that_keep_their_time_are_found():
    with pytest.raises(InputsChanged, match=r"data/cats/2\.png \(edited\)"), inputs.watch.held("train"):
        preserve_time()


HARMLESS = {
    "nothing": lambda: None,
    "a section of no stage": lambda: replace("params.yaml", "convoy", "other"),
    "another stage's section": lambda: replace("params.yaml", "batch_size: 4", "batch_size: 8"),
    "a comment": lambda: write("params.yaml", f"# lr\n{PARAMS}"),
    "another key of the file": lambda: replace("more.yaml", "c: 2", "c: 3"),
    "another network": lambda: write("networks/two.yaml", "3"),
    "another stage": lambda: replace("dvc.yaml", "evaluate.py", "judge.py"),
    "a description": lambda: replace("dvc.yaml", "desc: Train", "desc: Fit"),
    "code as before, with another time": lambda: write("src/core/fit.py", "1"),
    "another link to data": lambda: time.sleep(0.02) or Path("copy.png").hardlink_to("data/cats/2.png"),
    "bytecode": lambda: write("src/core/__pycache__/fit.pyc", "1"),
    "an ignored file": lambda: write("src/core/fit.tmp", "1"),
    "an ignored folder": lambda: write("src/notes/a/b.txt", "1"),
}  # fmt: skip


@pytest.mark.parametrize("edit", HARMLESS)
def test_what_a_stage_does_not_read_may_change(edit):
    os.utime("data/cats/1.png", (time.time() + 86_400,) * 2)
    with inputs.watch.held("train"):
        HARMLESS[edit]()


def run(work: Callable[[], None]) -> None:
    """Do the work of a stage."""
    with inputs.watch.held("train"):
        work()


def test_dvcignore_files_have_negations_wildcards_folders_and_nested_files():
    for name, text in IGNORED.items():
        write(name, text)
    assert {name: inputs.is_ignored(name) for name in VERDICTS} == VERDICTS


def test_what_a_nested_dvcignore_names_may_change_and_what_it_brings_back_may_not():
    write("src/core/.dvcignore", "*.log\n!fit.tmp\n")

    def work() -> None:
        for name in ("a.log", "a.tmp", "fit.tmp"):
            write(f"src/core/{name}", "1")

    with pytest.raises(InputsChanged) as caught:
        run(work)
    assert caught.value.changes == ["src/core/fit.tmp (new)"]


def test_many_edited_files_are_counted():
    def work() -> None:
        for number in range(8):
            write(f"src/n{number}.py", "")

    with pytest.raises(InputsChanged, match=r"n0\.py \(new\), .*n4\.py \(new\) and 3 more"):
        run(work)


def test_a_stage_reads_params_as_they_were_at_its_start():
    def work() -> None:
        write("params.yaml", "seed: 7")
        assert params.read()["train"]["lr"] == 0.03
        params.read()["train"]["lr"] = 1
        assert params.read()["train"]["lr"] == 0.03, "readers share nothing"
        assert params.seed() == 1

    with pytest.raises(InputsChanged):
        run(work)
    assert params.seed() == 7


def test_an_error_of_the_stage_is_not_replaced_by_that_of_its_inputs():
    def work() -> None:
        write("src/core/fit.py", "3")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(work)


def test_the_comparison_inside_a_stage_names_what_is_kept_and_does_nothing_outside():
    def work() -> None:
        write("src/core/fit.py", "3")
        inputs.watch.check("All is kept.")

    inputs.watch.check("All is kept.")
    with pytest.raises(InputsChanged, match=r"All is kept\. Restore these"):
        run(work)


@pytest.mark.parametrize(("name", "text"), [("data/cats/2.png", "dog"), ("src/core/fit.py", "3")])
def test_the_second_command_of_a_stage_compares_with_the_first(name, text):
    handed = Path("build/inputs.json")
    for edited in (False, True):
        with inputs.watch.held("train"):
            inputs.watch.hand_over(handed)
        if edited:
            write_later(name, text)
            with pytest.raises(InputsChanged, match=name), inputs.watch.held("train", handed):
                pass
        else:
            with inputs.watch.held("train", handed):
                pass
        assert not handed.exists()


def test_the_second_command_of_a_stage_reads_the_params_of_the_first():
    handed = Path("build/inputs.json")
    with inputs.watch.held("train"):
        inputs.watch.hand_over(handed)
    replace("params.yaml", "convoy", "other")
    with inputs.watch.held("train", handed):
        assert params.read()["tracking"] == {"experiment": "convoy"}


def test_params_are_read_once_so_that_those_served_are_those_compared(monkeypatch):
    real = inputs.yaml.read

    def edited_after(path: Path) -> dict[str, object]:
        content = real(path)
        if path == params.PARAMS_FILE:
            replace("params.yaml", "lr: 0.0", "lr: 0.00")
        return content

    monkeypatch.setattr(inputs.yaml, "read", edited_after)

    def work() -> None:
        monkeypatch.setattr(inputs.yaml, "read", real)
        assert params.read()["train"]["lr"] == 0.03

    with pytest.raises(InputsChanged, match=r"train\.lr: 0\.03 → 0\.003 "):
        run(work)


def test_edits_are_reported_once_while_they_can_still_be_restored(capsys):
    inputs.watch.warn()
    with inputs.watch.held("train"):
        inputs.watch.warn()
        assert capsys.readouterr().out == ""
        write("src/core/fit.py", "3")
        inputs.watch.warn()
        inputs.watch.warn()
        assert capsys.readouterr().out.count("src/core/fit.py (edited)") == 1
        write("src/core/fit.py", "1")
        inputs.watch.warn()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["train", "dvc.yaml:train", "ml/dvc.yaml:train@lenet5"])
def test_a_stage_is_found_by_dvcs_address(name):
    with pytest.raises(InputsChanged), inputs.watch.held(name):
        write("src/core/fit.py", "3")


def test_an_unknown_stage_is_refused_with_those_that_exist():
    with (
        pytest.raises(RequestError, match="no stage trian; did you mean `train`"),
        inputs.watch.held("trian"),
    ):
        pass


def test_a_linked_folder_is_followed_and_a_dangling_link_is_no_error():
    Path("data").rename("elsewhere")
    Path("data").symlink_to("elsewhere")
    Path("src/gone.py").symlink_to("nowhere")
    with inputs.watch.held("train"):
        pass
    with pytest.raises(InputsChanged, match=r"data/cats/0\.png \(edited\)"), inputs.watch.held("train"):
        write_later("elsewhere/cats/0.png", "dogs")


def test_files_of_a_large_dependency_are_not_read(monkeypatch):
    hashed: list[str] = []
    real = files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: hashed.append(path.as_posix()) or real(path))
    with inputs.watch.held("train"):
        pass
    code = ["src/core/fit.py", "src/core/optim.py"]
    assert sorted(hashed) == sorted(2 * ["networks/one.yaml", *code, "weights/a/weights.pt"])
    monkeypatch.setattr(inputs, "CONTENT_BYTES", 1)
    hashed.clear()
    with inputs.watch.held("train"):
        pass
    assert hashed == 2 * ["networks/one.yaml", "weights/a/weights.pt"], "the code has two bytes"


def test_names_that_are_not_utf_8_are_compared_and_spelled_out():
    def work() -> None:
        time.sleep(0.02)
        Path(os.fsdecode(b"data/caf\xe9.png")).write_text("new")

    Path(os.fsdecode(b"data/a\xe9.png")).write_text("old")
    with inputs.watch.held("train"):
        inputs.watch.hand_over(Path("handed.json"))
    with inputs.watch.held("train", Path("handed.json")):
        pass
    with pytest.raises(InputsChanged, match=r"data/caf\\xe9\.png \(new\)"):
        run(work)
