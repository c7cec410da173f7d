"""What stages are given is read from dvc.yaml; a failed replacement puts everything back."""

import pytest

from convoy.repo import dvc


def test_the_inputs_of_stages_are_commands_params_and_committed_files(small):
    def ids(*names: str) -> dict[str, str]:
        return {name: small.git("rev-parse", f"HEAD:{name}") for name in names}

    inputs = dvc.stage_inputs(small.folder)
    assert list(inputs) == ["prepare", "train", "evaluate"]
    assert inputs["train"] == {
        "cmd": "sh train.sh",
        "params": {"params.yaml:net": {"name": "one"}, "params.yaml:fit": {"lr": 0.5, "steps": [1, 2]}},
        "files": ids("nets/one.yaml", "train.sh"),
    }
    small.write("code/a.txt", "a\n")
    small.write("more.yaml", "a: {b: 1}\n")
    small.edit("dvc.yaml", "params: [pack]", "params: [pack.px, pack.none, {more.yaml: [a.b]}]")
    small.edit("dvc.yaml", "deps: [data, prepare.sh]", "deps: [data, code, prepare.sh]")
    small.commit("a folder and another file of params")
    small.write("code/a.txt", "not committed\n")
    prepare = dvc.stage_inputs(small.folder)["prepare"]
    assert prepare["params"] == {"params.yaml:pack.px": 8, "params.yaml:pack.none": None, "more.yaml:a.b": 1}
    assert prepare["files"] == ids("code", "prepare.sh")


def test_an_interrupted_replacement_puts_everything_back(small):
    def interrupted() -> None:
        with dvc.replacing(small.folder, ("data", "data.dvc", "nets/new")):
            assert not (small.folder / "data").exists()
            for name in ("data/a.txt", "nets/new", ".gitignore"):
                small.write(name, "new\n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (small.folder / "data/a.txt").read_text() == "a\n"
    assert not (small.folder / "nets/new").exists()
    assert small.git("status", "--porcelain") == ""
