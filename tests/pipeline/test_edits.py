"""Edits and second experiments while a stage runs: what DVC and MLflow record is what the stage read."""

import re
import signal
import subprocess

import psutil
import pytest

from clones import Clone, runs
from convoy.core import yaml

pytestmark = pytest.mark.pipeline


def chosen(clone: Clone) -> Clone:
    clone.set_param("network.name", "lenet5")
    clone.set_param("train.epochs", "2")
    clone.set_param("export.latency_runs", "10")
    clone.set_param("energy.country", "none")
    return clone


def started(clone: Clone, *command: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    """Start a command, and suspend its training after an epoch."""
    process = clone.start(*command)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            break
    children = psutil.Process(process.pid).children(recursive=True)
    training = next(child for child in children if child.cmdline()[1:] == ["pipelines/train.py"])
    training.suspend()
    return process, training


def recorded(clone: Clone) -> float:
    lock = yaml.read(clone.folder / "dvc.lock")
    return float(lock["stages"]["train"]["params"]["params.yaml"]["train"]["lr"])


def test_params_and_spec_edited_while_it_trains_fail_the_stage_and_restoring_them_finishes_its_run(clone):
    chosen(clone)
    before, lock = len(runs(clone)), (clone.folder / "dvc.lock").read_bytes()
    process, training = started(clone, "dvc", "repro", "train")
    clone.set_param("train.lr", "0.0001")
    clone.edit("networks/lenet5.yaml", "layers:", "layers: ")
    training.resume()
    output = process.communicate()[0]
    assert process.returncode != 0
    assert "train.lr: 0.03 → 0.0001 (params.yaml)" in output
    assert "networks/lenet5.yaml (edited)" in output
    assert "The training is complete; its checkpoint and run" in output
    assert (clone.folder / "dvc.lock").read_bytes() == lock
    failed = runs(clone)[0]
    assert failed.info.status == "FAILED"
    assert failed.data.params["train.lr"] == "0.03"
    assert failed.data.tags["convoy.inputs_changed"].startswith("train.lr: 0.03 → 0.0001")

    clone.set_param("train.lr", "0.03")
    clone.edit("networks/lenet5.yaml", "layers: ", "layers:")
    said = clone.run("dvc", "repro", "train")
    assert "Training is already complete" in said
    assert recorded(clone) == 0.03
    finished = runs(clone)
    assert len(finished) == before + 1
    assert finished[0].data.tags["convoy.run_id"] == failed.data.tags["convoy.run_id"]
    assert finished[0].data.tags["convoy.inputs_changed"] == "no"


def test_a_second_experiment_is_refused_while_the_first_trains_and_does_it_no_harm(clone):
    chosen(clone)
    command = ("dvc", "exp", "run", "--name")
    process, training = started(clone, *command, "first", "-S", "train.lr=0.02", "train")
    said = clone.run(*command, "second", "-S", "train.lr=0.01", "train", fails=True)
    assert re.search(rf"\(PID {training.pid}\): train works in this folder", said)
    assert "dvc exp run --queue" in said
    said = clone.run("dvc", "repro", "train", fails=True)
    assert f"(PID {process.pid})" in said
    said = clone.run("python", "pipelines/repro.py", "--until", "train", fails=True, PYTHONPATH="src")
    assert f"another process runs the pipeline in this folder: process {training.pid}: train works" in said
    training.send_signal(signal.SIGCONT)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert recorded(clone) == 0.02
    assert runs(clone)[0].data.params["train.lr"] == "0.02"
    assert clone.run("git", "for-each-ref", "--format=%(refname:lstrip=-1)", "refs/exps").count("first") == 1
