"""`convoy why` in words: what changed from what to what, and what it comes to."""

import json
import os
import re
from pathlib import Path

import pytest

import pipeline_edits as of
from convoy.core.errors import RequestError
from convoy.lineage.why import explain, lines
from small_pipeline import Small


def told(small: Small, stage: str = "") -> str:
    return "\n".join(lines(explain(small.folder, stage)))


def test_a_changed_param_is_told_from_what_to_what(small: Small) -> None:
    of.a_param(small)
    small.edit("params.yaml", "steps: [1, 2]", "steps: [3]")
    text = told(small)
    assert re.search(r"fit\.lr +0\.5 → 0\.25", text)
    assert re.search(r"fit\.steps +\[1, 2\] → \[3\]", text)
    assert "pack" not in text
    a_param_removed_now = told(small, "train").replace("\n", " ")
    assert "prepare" not in a_param_removed_now


def test_a_code_file_s_edit_is_counted_and_its_git_command_shows_it(small: Small) -> None:
    small.edit("train.sh", "\n", "\n# a comment\n")
    command = "git diff HEAD -- train.sh"
    assert f"+1 -0 lines: {command}" in told(small)
    assert "+# a comment" in small.git(*command.split()[1:])


def test_the_git_command_names_the_commit_that_has_the_version_that_ran(small: Small) -> None:
    ran = small.git("rev-parse", "--short", "HEAD~1")
    small.write("train.sh", small.git("show", "HEAD:train.sh") + "\n# one\n")
    small.commit("an edit that did not run")
    small.edit("train.sh", "# one\n", "# one\n# two\n")
    assert f"+2 -0 lines: git diff {ran} -- train.sh" in told(small)


def test_a_file_that_git_never_had_is_told_by_size(small: Small) -> None:
    small.write("nets/mine.yaml", "layers: 3\n")
    small.edit("params.yaml", "name: one", "name: mine")
    small.repro()
    small.write("nets/mine.yaml", "layers: 30\n")
    assert "10 → 11 bytes; git has no copy of the earlier one" in told(small)


def test_members_of_a_folder_are_named_up_to_a_number(small: Small) -> None:
    for number in range(9):
        small.write(f"source/n{number}.txt", "n\n")
    small.remove("source/b.txt")
    small.write("source/a.txt", "other\n")
    text = told(small, "data.dvc")
    assert "9 added, 1 removed, 1 changed of 2 files: + n0.txt" in text
    assert "and 5 more" in text


def test_a_stage_after_one_that_reruns_is_a_perhaps_that_names_it(small: Small) -> None:
    of.a_param(small)
    text = told(small)
    assert "evaluate  perhaps: only if what train makes comes out different" in text
    assert text.endswith("`dvc repro` would run train and perhaps run evaluate.")


def test_nothing_changed_is_one_clear_line(small: Small) -> None:
    assert told(small).endswith("Nothing to do: `dvc repro` would leave everything as it is.")
    assert explain(small.folder)["nothing_to_do"] is True


def test_a_frozen_import_says_that_its_source_is_not_looked_at(small: Small) -> None:
    of.frozen_and_changed_upstream(small)
    assert "data.dvc  unchanged, frozen: its source is not looked at" in told(small)


def test_data_that_are_frozen_and_gone_come_with_the_command_that_brings_them_back(small: Small) -> None:
    of.frozen_and_gone(small)
    text = told(small)
    assert "Type: dvc checkout data.dvc (or: dvc pull)" in text
    assert text.endswith("`dvc repro` would stop at data.dvc.")


def test_a_stage_that_never_ran_lists_no_inputs(small: Small) -> None:
    of.no_lock(small)
    small.remove(".dvc/cache/runs")
    text = told(small)
    assert "prepare   runs: it never ran here" in text
    assert "train.sh" not in text


def test_outputs_in_the_cache_are_told_from_a_run(small: Small) -> None:
    of.an_output_removed(small)
    text = told(small)
    assert "train     DVC's cache has its outputs for these inputs; they are put back, nothing runs" in text
    assert "build/model  is missing" in text
    assert "put back train from the cache" in text


def test_a_changed_command_is_told_from_what_to_what(small: Small) -> None:
    of.another_command(small)
    assert re.search(r"cmd +sh evaluate.sh → sh -e evaluate.sh", told(small))


def test_an_unknown_stage_is_refused_with_the_nearest(small: Small) -> None:
    with pytest.raises(RequestError, match=r"there is no stage `trian`; did you mean `train`\?"):
        explain(small.folder, "trian")


def test_a_pipeline_that_dvc_cannot_read_is_a_message_of_convoy_s(small: Small) -> None:
    small.edit("dvc.yaml", "net.name", "net.nmae")
    with pytest.raises(
        RequestError, match=r"DVC cannot read the pipeline in .*nmae.*`dvc status` says where"
    ):
        explain(small.folder)


def test_looking_changes_no_file(small: Small) -> None:
    of.two_at_once(small)
    of.an_output_removed(small)

    def state() -> dict[Path, float]:
        walked = (Path(folder) / name for folder, _, names in os.walk(small.folder) for name in names)
        return {path: path.stat().st_mtime_ns for path in walked if ".dvc/tmp" not in path.as_posix()}

    before = state()
    json.dumps(explain(small.folder))
    assert state() == before
