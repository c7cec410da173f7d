"""Every stage says what it used, MLflow has the same figures, and the run has their sum."""

import json

import pytest

from clones import runs

pytestmark = pytest.mark.pipeline


def test_the_runs_energy_is_in_mlflow_and_is_the_sum_of_its_stages(finished):
    clone, said = finished
    stages = ("prepare", "train", "evaluate", "export")
    files = {name: json.loads((clone.folder / f"build/metrics/{name}.json").read_text()) for name in stages}
    energy = {key: value for name in stages for key, value in files[name]["energy"].items()}
    assert energy["how"] in {"measured", "estimated", "partly measured"}
    for figure in ("kwh", "co2_kg"):
        assert all(energy[f"{name}_{figure}"] > 0 for name in stages)
        assert energy[figure] == pytest.approx(sum(energy[f"{name}_{figure}"] for name in stages), rel=1e-3)
    [run] = runs(clone)
    logged = {key: value for key, value in run.data.metrics.items() if key.startswith("energy/")}
    numbers = {f"energy/{key}": value for key, value in energy.items() if isinstance(value, float)}
    assert logged == {key: value for key, value in numbers.items() if not key.startswith("energy/prepare")}
    for name in stages[1:]:
        assert "world average 475 g CO2 per kWh" in run.data.tags[f"convoy.energy.{name}"]
    assert "energy           " in said


def test_nothing_of_metering_stays_in_the_repository(finished):
    clone, _ = finished
    assert not (clone.folder / "build/deploy/energy.json").exists()
    assert not list(clone.folder.rglob("emissions*.csv"))
