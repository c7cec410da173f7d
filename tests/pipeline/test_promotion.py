"""register and promote as people type them, on models of the real pipeline."""

import json

import pytest
from mlflow.tracking import MlflowClient

from clones import Clone

pytestmark = pytest.mark.pipeline


def registered(clone: Clone) -> tuple[int, dict[str, str]]:
    """Count the versions of the registered model, and say where its aliases point."""
    client = MlflowClient(f"sqlite:///{clone.folder}/mlflow.db")
    aliases = client.get_registered_model("convoy").aliases
    return len(client.search_model_versions("name = 'convoy'")), {
        alias: str(number) for alias, number in aliases.items()
    }


def test_experiments_leave_the_aliases_and_a_candidate_needs_a_cause(compared, tmp_path):
    clone = compared.copy(tmp_path / "clone")
    clone.run("git", "checkout", "-q", ".")
    clone.run("dvc", "checkout", "-q", "--force")
    source = {"PYTHONPATH": str(clone.folder / "src")}
    clone.run("convoy", "register", **source)
    said = clone.run("convoy", "promote", **source)
    assert said.splitlines()[0].startswith("Promote convoy/1: it is the first champion")
    first = (1, {"candidate": "1", "champion": "1"})
    assert registered(clone) == first

    clone.run("dvc", "exp", "apply", "lr-0.1")
    assert registered(clone) == first, "trying something out changes nothing that serves"

    clone.run("convoy", "register", **source)
    said = clone.run("convoy", "promote", "--json", **source)
    found = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert (found["verdict"], found["promoted"]) in {("keep", False), ("refuse", False)}, found["reasons"]
    assert registered(clone) == (2, {"candidate": "2", "champion": "1"})
    verdict = json.loads((clone.folder / "build/gate/verdict.json").read_text(encoding="utf-8"))
    assert verdict["verdict"] == found["verdict"]
