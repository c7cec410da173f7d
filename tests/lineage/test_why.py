"""`convoy why`: what it foresees is what `dvc repro` does, and every change is named with its old and new state."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from convoy.core.errors import RequestError
from convoy.lineage.why import explain, lines
from small_pipeline import Small

FROM_TRAIN = {"train": "runs", "evaluate": "perhaps"}
LATER = {"prepare": "perhaps", "train": "perhaps", "evaluate": "perhaps"}

A_PARAM = ("edit", "params.yaml", "lr: 0.5", "lr: 0.25")
BACK_AGAIN = [A_PARAM, ("repro",), ("edit", "params.yaml", "lr: 0.25", "lr: 0.5")]
DATA_ADDED = ("write", "source/c.txt", "c\n")
MODEL_REMOVED = ("remove", "build/model")
TWO_AT_ONCE = [A_PARAM, ("edit", "prepare.sh", "cat", "cat -u")]
FROZEN = ("dvc", "freeze", "data.dvc")
FROZEN_AND_GONE = [FROZEN, ("remove", "data")]
PREPARED_ALONE = [
    ("edit", "prepare.sh", "cat data", "cat data/a.txt data"),
    ("dvc", "repro", "--single-item", "prepare"),
    ("remove", "build/dataset"),
]

# Name, edits between two runs (methods of the small pipeline with their arguments), verdicts that are foreseen, names of
# what changed, stages that ran, stages that came from the cache.
CASES: list[tuple[str, list[tuple[str, ...]], dict[str, str], str, str, str]] = [
    ("nothing", [], {}, "", "", ""),
    ("a param", [A_PARAM], FROM_TRAIN, "train: fit.lr", "train evaluate", ""),
    ("a code file", [("edit", "train.sh", "mkdir -p", "mkdir  -p")], FROM_TRAIN, "train: train.sh", "train", ""),
    ("the spec", [("edit", "nets/one.yaml", "1", "11")], FROM_TRAIN, "train: nets/one.yaml", "train evaluate", ""),
    ("another network", [("edit", "params.yaml", "name: one", "name: two")], FROM_TRAIN,
     "train: net.name nets/two.yaml", "train evaluate", ""),
    ("a param removed", [("edit", "params.yaml", "  steps: [1, 2]\n", "")], FROM_TRAIN,
     "train: fit.steps", "train evaluate", ""),
    ("a data file added", [DATA_ADDED], {"data.dvc": "runs", **LATER},
     "data.dvc: source", "data.dvc prepare train evaluate", ""),
    ("an output removed", [MODEL_REMOVED], {"train": "cached", "evaluate": "perhaps"},
     "train: build/model; evaluate: build/model", "", "train"),
    ("an output changed", [("write", "build/score", "9\n")], {"evaluate": "cached"},
     "evaluate: build/score", "", "evaluate"),
    ("another command", [("edit", "dvc.yaml", "sh evaluate.sh", "sh -e evaluate.sh")], {"evaluate": "runs"},
     "evaluate: cmd", "evaluate", ""),
    ("two at once", TWO_AT_ONCE, {"prepare": "runs", **FROM_TRAIN},
     "prepare: prepare.sh; train: fit.lr", "prepare train evaluate", ""),
    ("frozen and changed upstream", [FROZEN, DATA_ADDED], {}, "", "", ""),
    ("frozen and gone", FROZEN_AND_GONE, {"data.dvc": "stops", **LATER}, "data.dvc: data; prepare: data", "", ""),
    ("an input missing", [("remove", "nets/one.yaml")], {"train": "stops", "evaluate": "perhaps"},
     "train: nets/one.yaml", "", ""),
    ("an earlier stage ran alone, and its new outputs are gone", PREPARED_ALONE, {**LATER, "prepare": "cached"},
     "prepare: build/dataset; train: build/dataset; evaluate: build/dataset", "train evaluate", "prepare"),
    # An import is imported again, which brings the recorded content back.
    ("data changed by hand", [("write", "data/a.txt", "mine\n")], {"data.dvc": "cached", **LATER},
     "data.dvc: data; prepare: data", "data.dvc", ""),
    # DVC's run cache has the outputs of an earlier run: `runs` is what can be foreseen without DVC's own key of it.
    ("no lock", [("remove", "dvc.lock")], dict.fromkeys(LATER, "runs"), "", "", "prepare train evaluate"),
    ("back to an earlier value", BACK_AGAIN, FROM_TRAIN, "train: fit.lr", "", "train evaluate"),
    ("back and an output removed", [*BACK_AGAIN, ("remove", "build/dataset")], {"prepare": "cached", **FROM_TRAIN},
     "prepare: build/dataset; train: fit.lr build/dataset; evaluate: build/dataset", "", "prepare train evaluate"),
]  # fmt: skip


def change_pipeline(small: Small, *steps: tuple[str, ...]) -> None:
    for method, *words in steps:
        getattr(small, method)(*words)


def render(small: Small, stage: str = "") -> str:
    return "\n".join(lines(explain(small.folder, stage)))


def changes(small: Small, stage: str) -> dict[str, dict[str, Any]]:
    return {change["name"]: change for change in explain(small.folder, stage)["stages"][0]["changes"]}


@pytest.mark.parametrize(
    ("edits", "verdicts", "names", "ran", "cached"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_dvc_repro_does_what_is_foreseen(small, edits, verdicts, names, ran, cached):
    change_pipeline(small, *edits)
    explained = explain(small.folder)
    stages = {stage["stage"]: stage for stage in explained["stages"]}
    assert list(stages) == ["data.dvc", "prepare", "train", "evaluate"]
    foreseen = {name: stage["verdict"] for name, stage in stages.items()}
    assert foreseen == dict.fromkeys(stages, "unchanged") | verdicts
    assert explained["nothing_to_do"] is (verdicts == {})
    listed = {name: " ".join(change["name"] for change in stage["changes"]) for name, stage in stages.items()}
    assert "; ".join(f"{name}: {text}" for name, text in listed.items() if text) == names
    output = small.repro()
    imported = ["data.dvc"] * output.count("Importing")
    assert " ".join([*imported, *re.findall(r"Running stage '(.+?)'", output)]) == ran, output
    assert " ".join(re.findall(r"Stage '(.+?)' is cached", output)) == cached, output
    assert ("ERROR" in output) is ("stops" in verdicts.values()), output


def test_params_are_compared_with_those_of_the_last_run_down_to_the_last_key(small):
    change_pipeline(small, A_PARAM)
    small.edit("params.yaml", "steps: [1, 2]", "steps: [3]")
    small.commit("params that did not run")
    values = {name: (change["old"], change["new"]) for name, change in changes(small, "train").items()}
    assert values == {"fit.lr": (0.5, 0.25), "fit.steps": ([1, 2], [3])}
    assert re.search(r"fit\.lr +0\.5 → 0\.25\n +fit\.steps +\[1, 2\] → \[3\]", render(small, "train"))


def test_the_git_command_shows_the_edit_since_the_last_run(small):
    small.edit("train.sh", "\n", "\n# one\n")
    assert "+1 -0 lines: git diff HEAD -- train.sh" in render(small)
    ran = small.git("rev-parse", "--short", "HEAD")
    small.commit("an edit that did not run")
    small.edit("train.sh", "# one\n", "# one\n# two\n")
    change = changes(small, "train")["train.sh"]
    assert change["files"] == [{"name": "train.sh", "added": 2, "removed": 0}]
    assert change["diff"] == f"git diff {ran} -- train.sh"
    assert "+# two" in small.git(*change["diff"].split()[1:])


def test_files_of_a_folder_in_git_are_named_although_dvc_lists_none(small):
    for name in ("a.py", "b.py", "c.py"):
        small.write(f"code/{name}", "1\n")
    small.edit("dvc.yaml", "deps: [data, prepare.sh]", "deps: [data, prepare.sh, code]")
    small.git("add", "-A")
    small.repro()
    small.write("code/a.py", "2\n")
    not_committed = changes(small, "prepare")["code"]
    assert not_committed["run_committed"] is False
    assert "dvc.lock of the last run is not committed" in render(small)
    small.write("code/a.py", "1\n")
    small.commit("code that ran")
    small.write("code/a.py", "1\n2\n")
    small.remove("code/b.py")
    small.write("code/d.py", "new\n")
    change = changes(small, "prepare")["code"]
    assert (change["diff"], change["run_committed"]) == ("git diff HEAD -- code", True)
    assert change["files"] == [
        {"name": "code/a.py", "added": 1, "removed": 0},
        {"name": "code/b.py", "added": 0, "removed": 1},
        {"name": "code/d.py", "added": None, "removed": None},
    ]
    text = render(small)
    assert re.search(r"code/a.py +\+1 -0 lines: git diff HEAD -- code/a.py", text)
    assert re.search(r"code/d.py +new file, not tracked by git", text)


def test_of_files_that_git_never_had_only_the_change_is_listed(small):
    small.write("nets/mine.yaml", "layers: 3\n")
    small.edit("params.yaml", "name: one", "name: mine")
    small.dvc("import-url", "source/a.txt", "nets/start.txt")
    small.dvc("unfreeze", "nets/start.txt.dvc")
    small.repro()
    small.write("nets/mine.yaml", "layers: 30\n")
    small.write("source/a.txt", "longer\n")
    for stage, name in (("train", "nets/mine.yaml"), ("nets/start.txt.dvc", "source/a.txt")):
        assert changes(small, stage)[name]["state"] == "modified"
        assert "files" not in changes(small, stage)[name]
        assert re.search(rf"{name} +changed$", render(small, stage))


def test_files_of_a_data_folder_are_named_up_to_a_number(small):
    for number in range(9):
        small.write(f"source/n{number}.txt", "n\n")
    small.remove("source/b.txt")
    small.write("source/a.txt", "other\n")
    members = changes(small, "data.dvc")["source"]["members"]
    counts = {"before": 2, "now": 10, "added": 9, "removed": 1, "changed": 1}
    assert {name: members[name] for name in counts} == counts
    assert members["some"]["removed"] == ["b.txt"]
    assert "and 5 more" in render(small, "data.dvc")


def test_every_verdict_is_rendered_with_its_reason(small):
    change_pipeline(small, *TWO_AT_ONCE, MODEL_REMOVED)
    text = render(small)
    assert "evaluate  may run: only if outputs of prepare and train change" in text
    assert text.endswith("`dvc repro` would run prepare and train and perhaps run evaluate.")
    change_pipeline(small, FROZEN)
    assert "data.dvc  unchanged, frozen: its source is not checked" in render(small)
    small.remove("data")
    text = render(small)
    assert "Type: dvc checkout data.dvc" in text
    assert text.endswith("`dvc repro` would stop at data.dvc.")


def test_an_unknown_stage_is_refused_with_the_nearest(small):
    with pytest.raises(RequestError, match=r"`trian`.*did you mean `train`"):
        explain(small.folder, "trian")


def test_a_pipeline_that_dvc_cannot_read_names_the_mistake(small):
    small.edit("dvc.yaml", "net.name", "net.nmae")
    with pytest.raises(RequestError, match="nmae"):
        explain(small.folder)


def test_no_file_is_changed(small):
    change_pipeline(small, *TWO_AT_ONCE, MODEL_REMOVED)

    def state() -> dict[Path, float]:
        walked = (Path(folder) / name for folder, _, names in os.walk(small.folder) for name in names)
        return {path: path.stat().st_mtime_ns for path in walked if ".dvc/tmp" not in path.as_posix()}

    before = state()
    json.dumps(explain(small.folder))
    assert state() == before
