"""The energy that a stage uses and the CO2 that comes with it, read from codecarbon's offline tracker.

    with metered("train", "DEU") as meter:
        …
    metrics |= meter.result()

The tracker uses no network and writes no files. If it fails, that is reported once and the figures are absent.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from convoy.core import files
from convoy.core.console import info
from convoy.energy import settings

if TYPE_CHECKING:
    from codecarbon import OfflineEmissionsTracker

STAGES = ("prepare", "train", "evaluate", "export")

START_S = 120.0  # longest wait at the end for a tracker that is still starting: 1.5 s, or 30 on busy cores
ATTEMPTS = 3  # readings may fail once while codecarbon's own thread samples
STILL_S = 2.0  # age at which a hardware counter that has not moved counts as broken, as on some VMs

DIGITS = 4  # significant digits of published figures; the estimates are far coarser


class Spent(NamedTuple):
    """What was used: kilowatt-hours, and kilograms of CO2."""

    kwh: float = 0.0
    co2_kg: float = 0.0


class Readings:
    """Keep the latest reading: an output handler of codecarbon's tracker."""

    latest: Any = None

    def out(self, total: Any, _delta: Any) -> None:  # noqa: ANN401 (codecarbon's EmissionsData)
        """Receive a reading."""
        self.latest = total

    def live_out(self, total: Any, delta: Any) -> None:  # noqa: ANN401 (codecarbon's EmissionsData)
        """Receive a reading while the work goes on: every two minutes."""
        self.out(total, delta)

    def exit(self) -> None:
        """Close nothing; codecarbon calls this at the end."""


class Meter:
    """Meter the work of one stage; made by `metered`."""

    def __init__(self, stage: str, country: str, *, gpu: bool) -> None:
        """Start codecarbon's tracker in a thread, as it takes 1.5 s to look the hardware up; not for the country `none`."""
        self.stage = stage
        is_off = country == settings.OFF
        self.grid = settings.find_grid(settings.WORLD if is_off else country)
        # Training takes the first GPU that CUDA shows; codecarbon would count every GPU.
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
        self._gpu_ids = [first] if gpu and first not in {"", "-1"} else None
        self._gpu_model = self._cpu_model = ""
        self._cpu_counter = self._ended = False
        self._failed = is_off
        self._readings = Readings()
        self._earlier = self._last = Spent()
        self._tracker: OfflineEmissionsTracker | None = None
        self._started = time.monotonic()
        self._delay = 0.0  # until the tracker has started, in seconds
        self._starting = threading.Thread(target=self._start, name="energy", daemon=True)
        if not is_off:
            self._starting.start()

    def _start(self) -> None:
        try:
            logging.getLogger("codecarbon").disabled = True  # `how` has what matters of its messages
            from codecarbon import OfflineEmissionsTracker  # noqa: PLC0415 (only a stage that runs pays for it)
            from codecarbon.core.cpu import is_rapl_available  # noqa: PLC0415

            self._cpu_counter = is_rapl_available()
            tracker = OfflineEmissionsTracker(
                tracking_mode="process",
                output_methods=[],
                output_handlers=[self._readings],
                gpu_ids=self._gpu_ids,
                force_carbon_intensity_g_co2e_kwh=self.grid.g_per_kwh,  # so it looks nothing up
                allow_multiple_runs=True,  # else it writes a lock file
            )
            tracker.start()
            self._delay = time.monotonic() - self._started
            self._tracker = tracker
        except Exception as error:  # noqa: BLE001 (whatever odd machines raise, the stage matters more)
            self._fail(error)

    def stop(self) -> None:
        """Take the last reading and stop the tracker."""
        seconds = time.monotonic() - self._started
        if self._starting.ident:
            self._starting.join(START_S)
        if self._tracker is None:
            self._fail(f"codecarbon did not start within {START_S:.0f} s")
        self._read(seconds)
        if self._tracker:
            self._tracker.stop()
        self._ended = True

    def spent(self) -> Spent | None:
        """Return what was used until now, or until the end; None if metering failed. Takes milliseconds.

        Until the tracker has started, this is what earlier processes used.
        """
        if not self._ended:
            self._read(time.monotonic() - self._started)
        return None if self._failed else self._last

    def _read(self, seconds: float) -> None:
        """Read the tracker; the time before its start counts with the mean power since."""
        if self._failed or self._tracker is None:
            return
        self._readings.latest = None
        for _ in range(ATTEMPTS):
            self._tracker.flush()  # swallows errors; no reading arrives then
            if self._readings.latest is not None:
                break
        reading = self._readings.latest
        if reading is None:
            self._fail("codecarbon has no reading")
            return
        self._cpu_model = reading.cpu_model or "of unknown model"
        self._gpu_model = reading.gpu_model or "" if self._gpu_ids else ""
        parts = ["cpu", "ram", "gpu"] if self._gpu_model else ["cpu", "ram"]
        kwh = {part: getattr(reading, f"{part}_energy") for part in parts}
        for part, has_counter in (("cpu", self._cpu_counter), ("gpu", bool(self._gpu_model))):
            if has_counter and seconds > STILL_S and kwh[part] <= 0:
                self._fail(f"the energy counter of the {part} stands still")
        # The mean of few samples is too low: a process's first sample is zero.
        sampled_w = sum(getattr(reading, f"{part}_power") for part in parts)
        mean_kw = max(sampled_w / 1000, sum(kwh.values()) / max(reading.duration, 0.1) * 3600)
        used = sum(kwh.values()) + mean_kw * min(self._delay, seconds) / 3600
        self._last = Spent(self._earlier.kwh + used, self._earlier.co2_kg + used * self.grid.g_per_kwh / 1000)

    def resume(self, earlier: Spent | None) -> None:
        """Add what `spent` returned in an earlier process of this stage; after None no figures are published, as they would be partial."""
        if earlier is None:
            self._fail("an earlier part of this work was not metered")
        self._earlier = self._last = earlier or Spent()

    def hand_over(self, path: Path) -> None:
        """Write what was used to a file, for another process of the same stage."""
        files.write_json(path, {"spent": self.spent()})

    def take_over(self, path: Path) -> None:
        """Count on top of what another process of the stage used, and remove the file."""
        spent = files.read_json(path)["spent"] if path.exists() else None
        path.unlink(missing_ok=True)
        self.resume(Spent(*spent) if spent else None)

    def result(self) -> dict[str, dict[str, float | str]]:
        """Return the stage's metrics, `{"energy": {"train_kwh": …, "train_co2_kg": …, "train_how": …}}`; {} if it failed."""
        if (spent := self.spent()) is None:
            return {}
        figures: dict[str, float | str] = {
            "kwh": _rounded(spent.kwh),
            "co2_kg": _rounded(spent.co2_kg),
            "how": self.word,
        }
        return {"energy": {f"{self.stage}_{name}": figure for name, figure in figures.items()}}

    def tags(self) -> dict[str, str]:
        """Return the tag of the MLflow run that describes what was measured or estimated, and from what; {} if it failed."""
        if self.spent() is None:
            return {}
        parts = [
            f"cpu {self._cpu_model} measured by RAPL, of the whole machine"
            if self._cpu_counter
            else f"cpu {self._cpu_model} estimated from its thermal design power and this process's time",
            "ram estimated from this process's memory",
            *([f"gpu {self._gpu_model} measured by its driver, of all processes"] if self._gpu_model else []),
        ]
        return {f"convoy.energy.{self.stage}": f"{self.word}: {'; '.join(parts)}; {self.grid}"}

    @property
    def word(self) -> str:
        """`partly measured` if a part has a hardware counter, which memory never has; else `estimated`."""
        return "partly measured" if self._cpu_counter or self._gpu_model else "estimated"

    def _fail(self, reason: object) -> None:
        """Report once that there will be no figures, and why."""
        if not self._failed:
            self._failed = True
            info(f"Energy is not metered: {reason!s:.300}. The {self.stage} stage continues.")


@contextmanager
def metered(stage: str, country: str, *, gpu: bool = True) -> Iterator[Meter]:
    """Meter the block, whose figures are named after `stage`; `gpu`: whether it may use a GPU.

    Raises:
        RequestError: no figure exists for the country.
    """
    meter = Meter(stage, country, gpu=gpu)
    try:
        yield meter
    finally:
        meter.stop()


def with_total(metrics: Path, last: dict[str, Any]) -> dict[str, Any]:
    """Add the run's `kwh`, `co2_kg` and `how` to the energy figures of its last stage.

    A stage that came from the cache counts with what it used when it ran: the sum is what it
    took to make the content of `build/`, not what the latest `dvc repro` used.

    Args:
        metrics: folder of the stages' metrics files.
        last: what `Meter.result` returned for the last stage; {} if it was not metered.
    """
    if not last:
        return {}
    figures: dict[str, Any] = dict(last["energy"])
    for name in STAGES[:-1]:
        path = metrics / f"{name}.json"
        figures |= files.read_json(path).get("energy", {}) if path.exists() else {}
    absent = [name for name in STAGES if f"{name}_kwh" not in figures]
    if absent:
        info(f"The energy of the run is left out: {metrics}/{absent[0]}.json has no figures.")
        return last
    words = {figures[f"{name}_how"] for name in STAGES}
    total = {
        "kwh": _rounded(sum(figures[f"{name}_kwh"] for name in STAGES)),
        "co2_kg": _rounded(sum(figures[f"{name}_co2_kg"] for name in STAGES)),
        "how": words.pop() if len(words) == 1 else "partly measured",
    }
    return {"energy": last["energy"] | total}


def format_energy(kwh: float, co2_kg: float) -> str:
    """Format figures with two significant digits, small ones in Wh and g, such as `0.19 kWh, 70 g CO2`."""
    energy = f"{_short(kwh)} kWh" if kwh >= 0.01 else f"{_short(kwh * 1000)} Wh"
    co2 = f"{_short(co2_kg)} kg CO2" if co2_kg >= 0.1 else f"{_short(co2_kg * 1000)} g CO2"
    return f"{energy}, {co2}"


def _rounded(value: float) -> float:
    """Round to the digits that are published."""
    return float(f"{value:.{DIGITS}g}")


def _short(value: float) -> str:
    """Format two significant digits, never as a power of ten."""
    return f"{float(f'{value:.2g}'):,.10f}".rstrip("0").rstrip(".")
