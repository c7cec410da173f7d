"""The run's energy is the sum of its stages', or absent where a stage's is."""

from pathlib import Path

import pytest

from convoy.core import files
from convoy.energy.total import with_total


def stage(name: str, kwh: float, how: str = "estimated") -> dict[str, dict[str, float | str]]:
    return {"energy": {f"{name}_kwh": kwh, f"{name}_co2_kg": kwh / 2, f"{name}_how": how}}


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    """Files of the first three stages."""
    for name, kwh in (("prepare", 0.001), ("train", 0.2), ("evaluate", 0.03)):
        files.write_json(tmp_path / f"{name}.json", {"test": {"accuracy": 0.9}} | stage(name, kwh))
    return tmp_path


def test_the_runs_energy_is_the_sum_of_its_stages(metrics: Path) -> None:
    assert with_total(metrics, stage("export", 0.004)) == {
        "energy": {
            "export_kwh": 0.004,
            "export_co2_kg": 0.002,
            "export_how": "estimated",
            "kwh": 0.235,
            "co2_kg": 0.1175,
            "how": "estimated",
        }
    }


def test_stages_that_differ_in_kind_make_it_partly_measured(metrics: Path) -> None:
    files.write_json(metrics / "train.json", stage("train", 0.2, "measured"))
    assert with_total(metrics, stage("export", 0.004))["energy"]["how"] == "partly measured"


@pytest.mark.parametrize(
    "spoil", [Path.unlink, lambda path: files.write_json(path, {"train": {"loss": 1.0}})]
)
def test_a_stage_without_figures_leaves_the_sum_out_and_is_named(
    metrics: Path, capsys: pytest.CaptureFixture[str], spoil: object
) -> None:
    spoil(metrics / "train.json")  # type: ignore[operator]
    assert with_total(metrics, stage("export", 0.004)) == stage("export", 0.004)
    assert capsys.readouterr().out == f"Energy of the run is left out: {metrics}/train.json has none.\n"


def test_a_last_stage_without_figures_has_no_sum_either(metrics: Path) -> None:
    assert with_total(metrics, {}) == {}
