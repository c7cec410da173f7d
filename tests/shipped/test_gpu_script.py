"""benchmarks/gpu.sh: what it would run, what it refuses, and a short run without a GPU."""

import json
import os
import subprocess
import sys

import pytest

RECORD = """
import torch
images = torch.load("cifar10/train.pt")["images"]
print("|  run  |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |")
for run in ["warm-up", *range(200)]:
    print(f"|  {run}  |  eval  |  0.9  |  0.9  |  {len(images) / 1000}  |  2.5  |")
"""
"""A stand-in for airbench94_muon.py: it reads the images where that does, and prints the same columns."""


@pytest.fixture
def gpu_sh(repository, tmp_path):
    def run(*words, status=0):
        done = subprocess.run(
            ["bash", repository / "benchmarks/gpu.sh", "--python", sys.executable, *map(str, words)],
            check=False,
            cwd=tmp_path,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "cifar 10.tar"
    path.touch()
    return path


def test_a_dry_run_prints_every_command_and_writes_nothing(gpu_sh, archive, tmp_path):
    output = gpu_sh(archive, "--record-script", "record.py", "--dry-run", "--seeds", "3 4", "--trials", "7")
    [recipes] = [line for line in output.splitlines() if "benchmarks/recipes.py" in line]
    assert r"cifar\ 10.tar" in recipes
    assert "cifar10-10min cifar10-96 --dry-run --seeds 3 4 --out" in recipes
    [ceilings] = [line for line in output.splitlines() if "benchmarks/train.py" in line]
    assert "--trials 7" in ceilings
    assert "record.py" in output
    [tests] = [line for line in output.splitlines() if "-m pytest" in line]
    assert " -m gpu " in tests
    assert "tests/pipeline/test_gpu.py" in tests
    assert list(tmp_path.iterdir()) == [archive]
    assert "record script: left out, since --record-script" in gpu_sh(archive, "--dry-run")


def test_a_machine_without_a_gpu_is_refused_with_what_it_has_and_what_to_do(gpu_sh, archive, tmp_path):
    output = gpu_sh(archive, "--out", "out", status=1)
    assert "no CUDA device: torch " in output
    assert "nvidia-smi" in output
    assert "--dry-run" in output
    assert "--device cpu --quick" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "CIFAR10, the archive, is missing"),
        (["nothing.tar"], 1, "nothing.tar does not exist"),
        (["a.tar", "b.tar"], 2, "a.tar and b.tar"),
        (["--trails", "3"], 2, "unknown option --trails"),
        (["a.tar", "--trials", "many"], 2, "--trials is many"),
        (["a.tar", "--seeds", "1,2"], 2, "--seeds is 1,2"),
        (["a.tar", "--device", "mps"], 2, "there are: cuda, cpu"),
        (["a.tar", "--device", "cpu"], 2, "--quick"),
        (["a.tar", "--trials"], 2, "--trials needs a value"),
        (["a.tar", "--dry-run", "--python", "python99"], 1, "no interpreter python99"),
    ],
)
def test_a_request_that_cannot_work_is_refused(gpu_sh, words, status, message):
    assert message in gpu_sh(*words, status=status)


@pytest.mark.slow
def test_a_short_run_without_a_gpu_writes_the_figures_and_the_table(gpu_sh, tmp_path):
    (tmp_path / "record.py").write_text(RECORD, encoding="utf-8")
    gpu_sh("--device", "cpu", "--quick", "--record-script", "record.py", "--out", "out")
    report = json.loads((tmp_path / "out/gpu.json").read_text(encoding="utf-8"))
    assert {step["name"]: step["status"] for step in report["steps"]} == dict.fromkeys(
        ("inputs", "recipes", "ceilings", "record", "gpu-tests"), "done"
    )
    [result] = report["recipes"]["cifar10-10min"]
    assert 0 < result["accuracy"] <= 1
    assert result["minutes"] > 0
    assert report["record_script"] == {"accuracies": [0.4], "seconds": [2.5]}
    assert report["images_per_s"]["convnet"].keys() == {"ceiling", "Convoy, shift, flip", "Convoy, photo"}
    assert report["gpu_tests"]["skipped"] == report["gpu_tests"]["tests"] > 0
    assert report["versions"]["torch"]
    table = (tmp_path / "out/gpu.md").read_text(encoding="utf-8")
    assert "| recipe `cifar10-10min` | " in table
    assert "| record script | 40.00 % in 2.5 s" in table
    assert "whose figures mean nothing" in table
