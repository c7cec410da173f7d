"""A stage's energy: figures, what they rest on, and that metering never costs a stage anything."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import codecarbon
import pytest
from codecarbon.core import cpu
from codecarbon.output_methods.base_output import BaseOutput

from convoy.core import files
from convoy.core.errors import RequestError
from convoy.energy import meter as meters
from convoy.energy.meter import Spent, format_energy, metered, with_total


class FakeTracker:
    """Stand for codecarbon's tracker: each reading adds the same energy."""

    started = threading.Event()
    flushes = 0
    reading: dict[str, Any]

    def __init__(self, *, output_handlers: list[meters.Readings], **options: Any) -> None:
        self.handlers = output_handlers
        FakeTracker.options = options

    def start(self) -> None:
        self.started.wait()

    def flush(self) -> None:
        FakeTracker.flushes += 1
        for handler in self.handlers:
            handler.out(SimpleNamespace(**self.reading), None)

    def stop(self) -> None:
        pass


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Replace codecarbon's tracker, and set what it reads; power and duration do not matter here."""

    def read(*, rapl: bool = False, **values: Any) -> None:
        FakeTracker.reading = {
            **{f"{part}_{what}": 0.0 for part in ("cpu", "gpu", "ram") for what in ("energy", "power")},
            "cpu_model": "A CPU",
            "gpu_model": None,
            "duration": 1e9,
            **values,
        }
        monkeypatch.setattr(cpu, "is_rapl_available", lambda: rapl)

    read()
    FakeTracker.started.set()
    monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", FakeTracker)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    yield read
    FakeTracker.started.set()


def test_a_stages_figures_carry_its_name_and_what_they_rest_on(tracker):
    tracker(cpu_energy=2.0, ram_energy=0.5)
    with metered("train", "world") as meter:
        pass
    assert meter.result() == {"energy": {"train_kwh": 2.5, "train_co2_kg": 1.188, "train_how": "estimated"}}
    [(name, how)] = meter.tags().items()
    assert name == "convoy.energy.train"
    assert how.startswith("estimated: cpu A CPU estimated")
    assert how.endswith("; world average 475 g CO2 per kWh (IEA 2019)")


@pytest.mark.parametrize(
    ("values", "gpu", "kwh", "word"),
    [
        ({"rapl": True}, True, 3.0, "partly measured"),
        ({"gpu_model": "1 x Card", "gpu_energy": 4.0}, True, 7.0, "partly measured"),
        ({"gpu_model": "1 x Card", "gpu_energy": 4.0}, False, 3.0, "estimated"),
    ],
)
def test_a_part_with_a_counter_is_measured_and_a_gpu_counts_where_used(tracker, values, gpu, kwh, word):
    tracker(cpu_energy=2.0, ram_energy=1.0, **values)
    with metered("train", "DEU", gpu=gpu) as meter:
        pass
    energy = meter.result()["energy"]
    assert (energy["train_kwh"], energy["train_how"]) == (kwh, word)
    assert ("Card" in meter.tags()["convoy.energy.train"]) == (kwh == 7.0)


@pytest.mark.parametrize(
    ("visible", "gpu", "ids"),
    [("3,5", True, ["3"]), ("3,5", False, None), ("", True, None), ("-1", True, None)],
)
@pytest.mark.usefixtures("tracker")
def test_the_tracker_meters_this_process_and_the_gpu_that_training_takes(monkeypatch, visible, gpu, ids):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with metered("train", "DEU", gpu=gpu) as meter:
        pass
    options = FakeTracker.options
    assert (options["tracking_mode"], options["gpu_ids"], options["output_methods"]) == ("process", ids, [])
    assert options["force_carbon_intensity_g_co2e_kwh"] == meter.grid.g_per_kwh


def test_the_time_before_the_tracker_has_started_counts_with_the_mean_power(tracker, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(meters.time, "monotonic", lambda: clock[0])
    tracker(cpu_energy=1.0, ram_energy=0.5, duration=3600.0, cpu_power=100.0)
    FakeTracker.started.clear()
    with metered("train", "world") as meter:
        assert meter.spent() == Spent(), "the block has begun, codecarbon has not"
        clock[0] += 1800
        FakeTracker.started.set()
        meter._starting.join()
        clock[0] += 3600
    assert meter.result()["energy"]["train_kwh"] == 1.5 + 0.75


def test_energy_of_earlier_processes_is_added(tracker):
    tracker(cpu_energy=1.0)
    with metered("train", "world") as meter:
        meter.resume(Spent(2.0, 0.7))
        meter._starting.join()
        assert meter.spent() == pytest.approx((3.0, 0.7 + 0.475))


@pytest.mark.usefixtures("tracker")
def test_an_earlier_process_that_was_not_metered_leaves_the_figures_out(tmp_path, capsys):
    with metered("train", "world") as meter:
        meter.resume(None)
        assert meter.spent() is None
    with metered("export", "world") as second:
        second.take_over(tmp_path / "absent.json")
    assert meter.result() == meter.tags() == second.result() == {}
    assert capsys.readouterr().out.count("Energy is not metered: an earlier part") == 2


def test_two_processes_of_a_stage_are_counted_together(tracker, tmp_path):
    tracker(cpu_energy=1.0)
    path = tmp_path / "energy.json"
    with metered("export", "world") as first:
        pass
    first.hand_over(path)
    with metered("export", "world") as second:
        second.take_over(path)
    assert second.result()["energy"]["export_kwh"] == 2.0
    assert not path.exists()


@pytest.mark.parametrize("part", ["cpu", "gpu"])
def test_a_hardware_counter_that_stands_still_is_no_zero(tracker, monkeypatch, capsys, part):
    monkeypatch.setattr(meters, "STILL_S", 0.0)
    tracker(rapl=part == "cpu", gpu_model="1 x Card" if part == "gpu" else None, ram_energy=1.0)
    with metered("train", "world") as meter:
        pass
    assert meter.result() == {}
    assert f"the energy counter of the {part} stands still" in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["start", "flush"])
def test_a_failure_is_reported_once_and_gives_no_figure(tracker, monkeypatch, capsys, broken):
    def start(_self: FakeTracker) -> None:
        raise PermissionError("no such processor")

    monkeypatch.setattr(FakeTracker, broken, start if broken == "start" else lambda _self: None)
    with metered("train", "world") as meter:
        meter._starting.join()
        assert meter.spent() is None
        assert meter.spent() is None
    assert meter.result() == meter.tags() == {}
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("Energy is not metered: ")
    assert ("no such processor" in line) == (broken == "start")


def test_the_reading_at_the_end_of_the_block_is_the_last(tracker):
    tracker(cpu_energy=1.0)
    with metered("train", "world") as meter:
        pass
    before = FakeTracker.flushes
    assert meter.spent() == pytest.approx((1.0, 0.475))
    assert FakeTracker.flushes == before


def test_for_the_country_none_no_tracker_is_started_and_there_are_no_figures(monkeypatch, capsys, tmp_path):
    trackers = []
    monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", lambda **options: trackers.append(options))
    with metered("train", "none") as meter:
        meter.resume(Spent(1.0, 0.5))
    meter.hand_over(tmp_path / "energy.json")
    assert files.read_json(tmp_path / "energy.json") == {"spent": None}
    assert (meter.spent(), meter.result(), meter.tags(), trackers) == (None, {}, {}, [])
    assert capsys.readouterr().out == "", "absent as it was typed: no failure"


def test_an_unknown_country_is_refused_before_the_work_begins():
    with pytest.raises(RequestError, match="no such country: 'XYZ'"), metered("train", "XYZ"):
        pytest.fail("the block must not run")


def test_metering_writes_no_file_uses_no_network_and_prints_nothing(python, tmp_path):
    program = (
        "import socket, time\nfrom convoy.energy.meter import metered\n"
        "socket.socket.connect = socket.create_connection = lambda *_: 1 / 0\n"
        "with metered('prepare', 'world', gpu=False) as one, metered('train', 'DEU') as two:\n"
        "    [sum(range(10_000)) for _ in range(3_000)]\n"
        "print(one.result()['energy']['prepare_kwh'], two.result()['energy']['train_kwh'])"
    )
    done = python("-c", program, cwd=tmp_path, HOME=str(tmp_path), TMPDIR=str(tmp_path))
    first, second = map(float, done.stdout.split())
    assert min(first, second) > 0
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kwh", "co2_kg", "text"),
    [
        (0.19, 0.07, "0.19 kWh, 70 g CO2"),
        (12.34, 5.6, "12 kWh, 5.6 kg CO2"),
        (0.0000117, 0.0000045, "0.012 Wh, 0.0045 g CO2"),
    ],
)
def test_figures_have_two_digits_in_a_unit_that_fits(kwh, co2_kg, text):
    assert format_energy(kwh, co2_kg) == text


def stage(name: str, kwh: float, how: str = "estimated") -> dict[str, dict[str, float | str]]:
    return {"energy": {f"{name}_kwh": kwh, f"{name}_co2_kg": kwh / 2, f"{name}_how": how}}


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    """Files of the first three stages."""
    for name, kwh in (("prepare", 0.001), ("train", 0.2), ("evaluate", 0.03)):
        files.write_json(tmp_path / f"{name}.json", {"test": {"accuracy": 0.9}} | stage(name, kwh))
    return tmp_path


@pytest.mark.parametrize("how", ["estimated", "partly measured"])
def test_the_runs_energy_is_the_sum_of_its_stages(metrics, how):
    files.write_json(metrics / "train.json", stage("train", 0.2, how))
    last = stage("export", 0.004)
    total = {"kwh": 0.235, "co2_kg": 0.1175, "how": how}
    assert with_total(metrics, last) == {"energy": last["energy"] | total}


@pytest.mark.parametrize(
    "spoil", [Path.unlink, lambda path: files.write_json(path, {"train": {"loss": 1.0}})]
)
def test_a_stage_without_figures_leaves_the_sum_out_and_is_named(metrics, capsys, spoil):
    assert with_total(metrics, {}) == {}
    spoil(metrics / "train.json")
    assert with_total(metrics, stage("export", 0.004)) == stage("export", 0.004)
    assert f"{metrics}/train.json has no figures" in capsys.readouterr().out


def test_readings_take_every_call_that_the_tracker_makes_of_an_output_handler():
    """The tracker calls `live_out` every two minutes, which no short test reaches."""
    calls = [name for name in vars(BaseOutput) if not name.startswith("_")]
    assert {"out", "live_out", "exit"} <= set(calls)
    readings = meters.Readings()
    readings.live_out("total", None)
    assert readings.latest == "total"
