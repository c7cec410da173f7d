"""Where the figures come from: counters in a folder like Linux's, codecarbon's tables, this process's own time."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from codecarbon.core import cpu as tables

from convoy.energy import parts


@pytest.fixture
def rapl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A processor's counter as Linux shows it, in a folder of the test; it runs over after 10 J."""
    package = tmp_path / "rapl" / "intel-rapl" / "intel-rapl:0"
    package.mkdir(parents=True)
    (package / "name").write_text("package-0\n")
    (package / "energy_uj").write_text("9000000\n")
    (package / "max_energy_range_uj").write_text("10000000\n")
    monkeypatch.setattr(parts, "RAPL", str(tmp_path / "rapl"))
    return package / "energy_uj"


def test_a_readable_counter_is_measured_and_may_run_over(rapl: Path) -> None:
    processor = parts.find(gpu=False)[0]
    assert processor.measured
    assert processor.how == "cpu measured by RAPL, of the whole machine"
    assert processor.joules() == pytest.approx(0, abs=1e-6)
    rapl.write_text("9500000\n")
    assert processor.joules() == pytest.approx(0.5)
    rapl.write_text("500000\n")
    assert processor.joules() == pytest.approx(1.5)


def test_without_a_counter_the_processor_is_estimated_and_the_figure_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "RAPL", str(tmp_path / "none"))
    processor, memory = parts.find(gpu=False)
    assert (processor.name, memory.name) == ("cpu", "ram")
    assert not processor.measured
    assert not memory.measured
    assert processor.how.startswith("cpu estimated: ")
    assert processor.how.endswith("processor time of this process")
    assert memory.how == "ram estimated: 10 W (codecarbon's model), memory of this process"


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("AMD EPYC 7742 64-Core Processor", "TDP 225 W of AMD EPYC 7742, 64 logical processors"),
        (
            "Intel(R) Xeon(R) CPU E5-2640 v4 @ 2.40GHz",
            "TDP 90 W of Intel Xeon E5-2640 v4, 64 logical processors",
        ),
        ("Abacus", "codecarbon's default, Abacus is not in its table"),
        ("", "codecarbon's default of 85 W, the processor has no name"),
    ],
)
def test_the_power_is_of_codecarbons_table_or_its_default(
    monkeypatch: pytest.MonkeyPatch, name: str, origin: str
) -> None:
    monkeypatch.setattr(parts, "count_cpus", lambda: 64)
    monkeypatch.setattr(parts, "count_physical_cpus", lambda: 1)
    monkeypatch.setattr(parts, "_processor_name", lambda: name)
    assert origin in parts.Estimated().how


def test_the_name_is_matched_as_codecarbon_matches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "detect_cpu_model", lambda: "AMD EPYC 7742 64-Core Processor")
    monkeypatch.setattr(parts, "_processor_name", lambda: "AMD EPYC 7742 64-Core Processor")
    assert f"TDP {tables.TDP().tdp:g} W" in parts.Estimated().how


def test_a_spoilt_power_in_the_table_counts_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("Name,TDP\nAbacus,27.29.5\n")
    monkeypatch.setattr(parts.DataSource, "cpu_power_path", tmp_path / "table.csv")
    monkeypatch.setattr(parts, "_processor_name", lambda: "Abacus")
    assert "codecarbon's default, Abacus is not in its table" in parts.Estimated().how


BUSY = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"


def test_processor_time_of_a_living_child_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_processor_watts", lambda: (2.0, "a test"))
    processor = parts.Estimated()
    child = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert processor.joules() >= 2 * 0.25
    child.communicate(b"\n")


def test_processor_time_of_an_ended_child_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_processor_watts", lambda: (2.0, "a test"))
    processor = parts.Estimated()
    subprocess.run([sys.executable, "-c", BUSY], input=b"\n", capture_output=True, check=True)
    assert processor.joules() >= 2 * 0.25


def test_a_child_that_leaves_for_another_parent_takes_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1.0, 5.0, 3.0])
    monkeypatch.setattr(parts, "_processor_watts", lambda: (2.0, "a test"))
    monkeypatch.setattr(parts.Estimated, "_seconds", lambda _: next(seconds))
    processor = parts.Estimated()
    assert processor.joules() == 8.0
    assert processor.joules() == 8.0


def test_memory_is_charged_for_the_time_that_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(parts, "time", clock)
    memory = parts.Memory()
    clock.now += 60
    assert memory.joules() == pytest.approx(10 * 60)
    clock.now += 30
    assert memory.joules() == pytest.approx(10 * 90)


def test_memory_that_cannot_be_read_is_a_failure_not_a_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.RAM, "process_memory_GB", property(lambda _: 1 / 0))
    with pytest.raises(OSError, match="the memory of this process cannot be read"):
        parts.Memory()


class Board:
    """Stand for codecarbon's reader of GPUs: a counter that moves 1 kJ a reading."""

    def __init__(self, ids: list[str]) -> None:
        self.gpu_ids = [int(each) for each in ids if int(each) < 2]
        self.devices = self

    @classmethod
    def from_utils(cls, ids: list[str]) -> "Board":
        return cls(ids)

    def start(self) -> None:
        pass

    def get_gpu_static_info(self) -> list[dict[str, object]]:
        return [{"name": f"Card {index}", "gpu_index": index} for index in range(2)]

    def measure_power_and_energy(self, _seconds: float) -> tuple[None, object]:
        return None, type("Energy", (), {"kWh": 1000 / parts.J_PER_KWH})


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs."""
    monkeypatch.setattr(parts, "GPU", Board)
    monkeypatch.setattr(parts.cards, "is_gpu_details_available", lambda: True)
    monkeypatch.setattr(parts.cards, "AllGPUDevices", lambda: type("All", (), {"device_count": 2}))


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(("visible", "card"), [(None, "Card 0"), ("1", "Card 1"), ("1,0", "Card 1")])
def test_the_gpu_that_training_takes_is_measured_alone(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, card: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    *_, graphics = parts.find(gpu=True)
    assert graphics.measured
    assert graphics.how == f"gpu measured by its driver, the whole {card}"
    assert graphics.joules() == pytest.approx(1000)
    assert graphics.joules() == pytest.approx(2000)


@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_is_hidden_or_not_used_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {part.name for part in parts.find(gpu=False)} == {"cpu", "ram"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert {part.name for part in parts.find(gpu=True)} == {"cpu", "ram"}


@pytest.mark.usefixtures("gpus")
def test_a_gpu_without_a_counter_is_a_failure_not_a_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(OSError, match="the GPU 7, which CUDA_VISIBLE_DEVICES names, has no readable counter"):
        parts.find(gpu=True)
