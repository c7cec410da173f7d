"""What draws power: processor, GPU, memory, each with a counter where one can be read, else an estimate.

All of it is codecarbon's, without its tracker, which would start two threads, wait a second for the
processor's name, import pandas and print: its readers of RAPL (Intel's and AMD's counters on Linux) and
of NVML and AMD SMI, its table of thermal design powers and the way it matches names in it, its 4 W per
logical processor where a name is not in the table, and its model of memory. Its tracker estimates the
processor as here (power by the share of processor time that a process took), but from samples;
processor time is a counter itself, so nothing between two samples is lost here.

Nothing is written to disk, and no network is asked.
"""

import csv
import os
import re
import time
from pathlib import Path
from typing import Any, Protocol

import psutil
from codecarbon.core import cpu as tables
from codecarbon.core import gpu as cards
from codecarbon.core.util import count_cpus, count_physical_cpus, detect_cpu_model
from codecarbon.external.hardware import CPU, GPU, POWER_CONSTANT
from codecarbon.external.ram import RAM
from codecarbon.input import DataSource

RAPL = "/sys/class/powercap/intel-rapl/subsystem"
"""Where Linux shows the counters of the processor; codecarbon also looks beside it."""

J_PER_KWH = 3_600_000.0

MODEL_LINE = "model name"
"""Starts the line of /proc/cpuinfo that names the processor; codecarbon would start a second Python to ask."""


NUMBER = re.compile(r"\d+(\.\d+)?")
"""What the table's powers look like; a few are spoilt, such as `27.29.5`."""


class Part(Protocol):
    """Count what one part of the machine has used.

    Attributes:
        name: cpu, gpu or ram.
        measured: whether a counter of the hardware is read.
        how: what is counted or assumed, and of whom: this process, or the whole machine.
    """

    name: str
    measured: bool
    how: str

    def joules(self) -> float:
        """Read what was used since the part was made; never less than before."""
        ...


def find(*, gpu: bool) -> list[Part]:
    """Look for what this machine has; counters start at once.

    Args:
        gpu: whether to count the GPU that training takes, the first visible one.
    """
    processor: Part = Counted() if tables.is_rapl_available(RAPL) else Estimated()
    found = [processor, Memory()]
    if gpu and (card := _visible_gpu()) is not None and cards.is_gpu_details_available():
        devices = cards.AllGPUDevices().device_count
        found += [Graphics(card)] if devices else []
    return found


class Counted:
    """Read the processor's own counters, which know no processes: whatever else runs is counted too."""

    name = "cpu"
    measured = True
    how = "cpu measured by RAPL, of the whole machine"

    def __init__(self) -> None:
        self._cpu = CPU(output_dir="", mode="intel_rapl", model="", tdp=0, rapl_dir=RAPL)
        self._cpu.start()  # type: ignore[no-untyped-call] # codecarbon has half its types
        self._joules, self._read = 0.0, time.monotonic()

    def joules(self) -> float:
        """Add what the counters moved; to be called every few minutes, since they run over."""
        now = time.monotonic()
        _, energy = self._cpu.measure_power_and_energy(now - self._read)
        self._joules, self._read = self._joules + energy.kWh * J_PER_KWH, now
        return self._joules


class Estimated:
    """Charge every second of processor time of this process and its children with one processor's share of the TDP."""

    name = "cpu"
    measured = False

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._start = self._last = self._seconds()
        self._watts, origin = _processor_watts()
        self.how = f"cpu estimated: {self._watts:.3g} W for each logical processor in use ({origin}), processor time of this process"

    def joules(self) -> float:
        """Multiply; a child that left for another parent takes nothing away."""
        self._last = max(self._last, self._seconds())
        return self._watts * (self._last - self._start)

    def _seconds(self) -> float:
        """Sum the processor time of this process, its ended children and its living ones."""
        ended = os.times()
        total = ended.user + ended.system + ended.children_user + ended.children_system
        for child in self._process.children(recursive=True):
            try:
                used = child.cpu_times()
            except psutil.Error:
                continue  # ended meanwhile: in the next reading it is among the ended
            total += used.user + used.system
        return total


class Memory:
    """Apply codecarbon's model of memory modules to what this process holds; ten watts at least on x86."""

    name = "ram"
    measured = False

    def __init__(self) -> None:
        self._ram = RAM(tracking_mode="process")
        self._joules, self._read = 0.0, time.monotonic()
        self.how = f"ram estimated: {self._watts():.3g} W (codecarbon's model), memory of this process"

    def joules(self) -> float:
        """Add the power of now for the time since the last reading."""
        now = time.monotonic()
        self._joules, self._read = self._joules + self._watts() * (now - self._read), now
        return self._joules

    def _watts(self) -> float:
        watts = float(self._ram.total_power().W)
        if watts <= 0:  # what codecarbon says where it cannot read the process's memory
            raise OSError("the memory of this process cannot be read")
        return watts


class Graphics:
    """Read a GPU's own counter, which knows no processes."""

    name = "gpu"
    measured = True

    def __init__(self, card: str) -> None:
        self._gpu = GPU.from_utils([card])
        if not self._gpu.gpu_ids:
            raise OSError(f"the GPU {card}, which CUDA_VISIBLE_DEVICES names, has no readable counter")
        self._gpu.start()
        self._joules, self._read = 0.0, time.monotonic()
        names = {
            facts["name"]
            for facts in self._gpu.devices.get_gpu_static_info()
            if facts["gpu_index"] in self._gpu.gpu_ids
        }
        self.how = f"gpu measured by its driver, the whole {', '.join(sorted(names))}"

    def joules(self) -> float:
        """Add what the counter moved."""
        now = time.monotonic()
        _, energy = self._gpu.measure_power_and_energy(now - self._read)
        self._joules, self._read = self._joules + energy.kWh * J_PER_KWH, now
        return self._joules


def _visible_gpu() -> str | None:
    """Name the GPU that training takes, by number or UUID; None where CUDA is told to see none."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return listed if listed not in {"", "-1"} else None


def _processor_watts() -> tuple[float, str]:
    """Give the power of one logical processor at full load, and where the figure comes from."""
    processors = count_cpus()
    model = _processor_name()
    data: Any = DataSource()  # type: ignore[no-untyped-call] # codecarbon has half its types
    with Path(data.cpu_power_path).open(encoding="utf-8", newline="") as file:
        table = {row["Name"]: row["TDP"] for row in csv.DictReader(file)}
    # The method looks at the names alone, and a list of them saves importing pandas.
    match: Any = tables.TDP._get_matching_cpu  # noqa: SLF001 (the class cannot be made without pandas)
    matched = match(None, model, {"Name": list(table)}) if model else None
    if matched and NUMBER.fullmatch(table[matched]):
        watts = float(table[matched]) * count_physical_cpus()  # type: ignore[no-untyped-call] # codecarbon has half its types
        return watts / processors, f"TDP {watts:g} W of {matched}, {processors} logical processors"
    if model:
        return float(tables.DEFAULT_POWER_PER_CORE), f"codecarbon's default, {model} is not in its table"
    return (
        POWER_CONSTANT / processors,
        f"codecarbon's default of {POWER_CONSTANT} W, the processor has no name",
    )


def _processor_name() -> str:
    """Read the processor's name."""
    known = Path("/proc/cpuinfo")
    if known.exists():
        for line in known.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(MODEL_LINE):
                return line.partition(":")[2].strip()
    return str(detect_cpu_model() or "")
