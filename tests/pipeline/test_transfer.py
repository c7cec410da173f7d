"""Transfer through the pipeline: from one run's weights, on other classes."""

import re
import zipfile
from pathlib import Path

import pytest

from clones import Clone, artifacts, runs
from convoy.core.files import read_json

pytestmark = pytest.mark.pipeline


def use_three_digits(clone: Clone, folder: Path) -> None:
    """Deliver other classes than the shared clone was trained for."""
    with zipfile.ZipFile(clone.folder / "samples/digits/digits.zip") as archive:
        for digit in "357":
            for image in sorted(one for one in archive.namelist() if one.startswith(f"{digit}/"))[:60]:
                archive.extract(image, folder)
    clone.run("convoy", "data", "use", str(folder), PYTHONPATH=str(clone.folder / "src"))


def test_a_runs_weights_start_another_training_and_bring_mean_and_std(clone, tmp_path):
    before = read_json(clone.folder / "build/model/model.json")
    source = f"runs:/{runs(clone)[0].info.run_id}"
    use_three_digits(clone, tmp_path / "three")

    pinned = clone.run("convoy", "weights", "use", source, PYTHONPATH=str(clone.folder / "src"))
    clone.run("git", "add", "-A")
    clone.run("git", "commit", "-qm", "pinned")
    settings = {"network.weights": source, "train.transfer.freeze": "residual2", "train.epochs": 2}
    words = [word for key, value in settings.items() for word in ("-S", f"{key}={value}")]
    said = clone.run("dvc", "exp", "run", *words, "train")

    assert f"network.weights={source}" in pinned  # what to type next
    assert "3 classes instead of 10" in said
    assert "frozen:" in said
    model = read_json(clone.folder / "build/model/model.json")
    assert (model["classes"], model["mean"], model["std"]) == (["3", "5", "7"], before["mean"], before["std"])
    run = runs(clone)[0]
    assert run.data.params["network.weights"] == source
    assert run.data.params["train.transfer.freeze"] == "residual2"
    logged = {"network.png", "transfer.json", "weights/weights.pt", "weights/model.json"}
    assert logged <= artifacts(clone, run)


def test_weights_that_nobody_pinned_end_the_training_with_the_command_that_pins_them(clone):
    said = clone.run(
        "dvc", "exp", "run", "-S", "network.name=resnet18", "-S", "network.weights=imagenet", fails=True
    )

    assert "ERROR in train: network.weights is `imagenet`" in said
    assert "convoy weights use imagenet --network resnet18" in said
    assert "Traceback" not in said


def test_a_spec_that_git_does_not_track_is_named_when_its_experiment_fails(clone):
    (clone.folder / "networks/mine.yaml").write_text(
        "layers:\n  - flatten\n  - dense: classes\n", encoding="utf-8"
    )

    table = clone.run("convoy", "network", "show", "mine", PYTHONPATH=str(clone.folder / "src"))
    said = clone.run("dvc", "exp", "run", "--temp", "-S", "network.name=mine", fails=True)

    assert "networks/mine.yaml is not tracked by git" in table
    assert "Type: git add networks/mine.yaml" in table
    assert re.search(
        r"failed to reproduce 'train': .* No such file or directory: .*networks/mine\.yaml", said
    )
