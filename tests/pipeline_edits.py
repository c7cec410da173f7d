"""Edits of the small pipeline between two runs, each as a function."""

from small_pipeline import Small


def nothing(small: Small) -> None:
    pass


def a_param(small: Small) -> None:
    small.edit("params.yaml", "lr: 0.5", "lr: 0.25")


def a_code_file(small: Small) -> None:
    small.edit("train.sh", "mkdir -p", "mkdir  -p")


def the_network_s_spec(small: Small) -> None:
    small.edit("nets/one.yaml", "1", "11")


def another_network(small: Small) -> None:
    small.edit("params.yaml", "name: one", "name: two")


def a_data_file_added(small: Small) -> None:
    small.write("source/c.txt", "c\n")


def an_output_removed(small: Small) -> None:
    small.remove("build/model")


def an_output_changed(small: Small) -> None:
    small.write("build/score", "9\n")


def no_lock(small: Small) -> None:
    small.remove("dvc.lock")


def another_command(small: Small) -> None:
    small.edit("dvc.yaml", "sh evaluate.sh", "sh -e evaluate.sh")


def two_at_once(small: Small) -> None:
    a_param(small)
    small.edit("prepare.sh", "cat", "cat -u")


def frozen_and_changed_upstream(small: Small) -> None:
    small.dvc("freeze", "data.dvc")
    a_data_file_added(small)


def frozen_and_gone(small: Small) -> None:
    small.dvc("freeze", "data.dvc")
    small.remove("data")


def an_input_missing(small: Small) -> None:
    small.remove("nets/one.yaml")


def a_param_removed(small: Small) -> None:
    small.edit("params.yaml", "  steps: [1, 2]\n", "")


def data_changed_by_hand(small: Small) -> None:
    small.write("data/a.txt", "mine\n")


def back_to_an_earlier_value(small: Small) -> None:
    """A param as it was before the last run: DVC's run cache has its outputs."""
    a_param(small)
    small.repro()
    small.edit("params.yaml", "lr: 0.25", "lr: 0.5")


def back_and_an_output_removed(small: Small) -> None:
    back_to_an_earlier_value(small)
    small.remove("build/dataset")


def an_earlier_stage_ran_alone(small: Small) -> None:
    """Its new outputs, which no later stage has used, are then removed."""
    small.edit("prepare.sh", "cat data", "cat data/a.txt data")
    small.dvc("repro", "--single-item", "prepare")
    small.remove("build/dataset")
