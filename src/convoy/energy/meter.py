"""What a stage's work uses in energy, and the CO2 that comes with it.

    with metered("train", "DEU") as meter:
        …
    metrics |= meter.result()

The readings are codecarbon's ways of measuring and estimating (`parts`), its figures for CO2 are in `grid`.
Metering serves nobody's result: it is cheap, and where it fails it says so once and the figures are absent.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from convoy.core import files
from convoy.core.console import info
from convoy.energy import grid

if TYPE_CHECKING:
    from convoy.energy.parts import Part

SAMPLE_SECONDS = 15.0
"""Between two readings: counters of a busy server's processor run over after minutes, memory grows slowly."""

STILL_SECONDS = 2.0
"""Time after which a hardware counter that has not moved is none, as on some virtual machines."""

DIGITS = 4
"""Significant digits of published figures; the estimates are far coarser."""


class Spent(NamedTuple):
    """Hold what was used: kilowatt-hours by part, kilograms of CO2, and the seconds that it took."""

    cpu_kwh: float = 0.0
    gpu_kwh: float = 0.0
    ram_kwh: float = 0.0
    co2_kg: float = 0.0
    seconds: float = 0.0

    @property
    def kwh(self) -> float:
        """Sum the parts."""
        return self.cpu_kwh + self.gpu_kwh + self.ram_kwh


NOTHING = Spent()


class Meter:
    """Read what the work so far has used; made by `metered`."""

    def __init__(self, stage: str, country: str) -> None:
        """Count for `stage`, with the CO2 of `country`."""
        self.stage = stage
        self.grid = grid.find(country)
        self._earlier = NOTHING
        self._parts: list[Part] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._failed = False
        self._last = NOTHING
        self._started = time.monotonic()

    def start(self, *, gpu: bool) -> None:
        """Find what can be read, and read it every few seconds from a thread."""
        try:
            # It would say on stderr what it finds and misses; what matters of that stands in `how`.
            logging.getLogger("codecarbon").disabled = True
            from convoy.energy import parts  # noqa: PLC0415 (codecarbon: only a stage that runs pays for it)

            self._parts = parts.find(gpu=gpu)
        except Exception as error:  # noqa: BLE001 (whatever odd machines raise, the stage matters more)
            self._fail(error)
        else:
            threading.Thread(target=self._sample, name="energy", daemon=True).start()

    def resume(self, earlier: Spent | None) -> None:
        """Count on top of what the same work used before, in a process that was stopped.

        Args:
            earlier: what `spent` gave there; None, and there will be no figures: a part would pass for the whole.
        """
        with self._lock:
            if earlier is None and not self._failed:
                self._fail("an earlier part of this work was not metered")
            self._earlier = earlier or NOTHING

    def hand_over(self, path: Path) -> None:
        """Write what was used to a file, for another process of the same stage."""
        files.write_json(path, {"spent": self.spent()})

    def take_over(self, path: Path) -> None:
        """Count on top of what another process of the stage used, and remove the file."""
        spent = files.read_json(path)["spent"] if path.exists() else None
        path.unlink(missing_ok=True)
        self.resume(Spent(*spent) if spent else None)

    def stop(self) -> None:
        """Take the last reading."""
        self.spent()
        self._ended.set()

    def spent(self) -> Spent | None:
        """Read what was used until now, or until the end; None where metering failed. Takes milliseconds."""
        with self._lock:
            if not (self._failed or self._ended.is_set()):
                try:
                    self._last = self._read()
                except Exception as error:  # noqa: BLE001 (as at the start)
                    self._fail(error)
            return None if self._failed else self._last

    def result(self) -> dict[str, dict[str, float | str]]:
        """Give the stage's metrics, `{"energy": {"train_kwh": …, "train_co2_kg": …, "train_how": …}}`; {} where it failed."""
        if (spent := self.spent()) is None:
            return {}
        return {
            "energy": {
                f"{self.stage}_kwh": rounded(spent.kwh),
                f"{self.stage}_co2_kg": rounded(spent.co2_kg),
                f"{self.stage}_how": self.word,
            }
        }

    def tags(self) -> dict[str, str]:
        """Say in a tag of the MLflow run what was measured, what estimated and from what; {} where it failed."""
        return {} if self.spent() is None else {f"convoy.energy.{self.stage}": self.how}

    @property
    def word(self) -> str:
        """Say measured, estimated or partly measured."""
        kinds = {part.measured for part in self._parts}
        return "partly measured" if len(kinds) > 1 else "measured" if True in kinds else "estimated"

    @property
    def how(self) -> str:
        """Say what was measured, what estimated, from what, and whose electricity was assumed."""
        return f"{self.word}: {'; '.join(part.how for part in self._parts)}; {self.grid}"

    def _read(self) -> Spent:
        """Add up the parts, and what earlier lives used."""
        seconds = time.monotonic() - self._started
        used = dict.fromkeys(("cpu", "gpu", "ram"), 0.0)
        for part in self._parts:
            joules = part.joules()
            if part.measured and seconds > STILL_SECONDS and joules <= 0:
                raise OSError(f"the counter of the {part.name} stands still")
            used[part.name] += joules / 3_600_000
        before = self._earlier
        return Spent(
            before.cpu_kwh + used["cpu"],
            before.gpu_kwh + used["gpu"],
            before.ram_kwh + used["ram"],
            before.co2_kg + sum(used.values()) * self.grid.g_per_kwh / 1000,
            before.seconds + seconds,
        )

    def _sample(self) -> None:
        """Read now and then, so that counters do not run over unseen."""
        while not self._ended.wait(SAMPLE_SECONDS):
            if self.spent() is None:
                return

    def _fail(self, reason: object) -> None:
        """Say once that there will be no figures, and why."""
        self._failed = True
        info(f"Energy is left out: {reason!s:.300}. The {self.stage} stage goes on.")


@contextmanager
def metered(stage: str, country: str, *, gpu: bool = True) -> Iterator[Meter]:
    """Meter the block.

    Args:
        stage: names the figures, such as `train`.
        country: as `energy.country` in params.yaml.
        gpu: whether the block may use a GPU.

    Raises:
        RequestError: there is no such country.
    """
    meter = Meter(stage, country)
    meter.start(gpu=gpu)
    try:
        yield meter
    finally:
        meter.stop()


def rounded(value: float) -> float:
    """Round to the digits that are published."""
    return float(f"{value:.{DIGITS}g}")


def spoken(kwh: float, co2_kg: float) -> str:
    """Put figures in words of two significant digits, small ones in Wh and g, such as `0.19 kWh, 70 g CO2`."""
    energy = f"{_short(kwh)} kWh" if kwh >= 0.01 else f"{_short(kwh * 1000)} Wh"
    return (
        f"{energy}, {_short(co2_kg)} kg CO2" if co2_kg >= 0.1 else f"{energy}, {_short(co2_kg * 1000)} g CO2"
    )


def _short(value: float) -> str:
    """Write two significant digits, never as a power of ten."""
    return f"{float(f'{value:.2g}'):,.10f}".rstrip("0").rstrip(".")
