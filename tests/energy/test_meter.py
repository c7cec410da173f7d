"""A stage's energy: figures, what they rest on, and that metering never costs a stage anything."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from convoy.core.errors import RequestError
from convoy.energy import meter as meters
from convoy.energy import parts
from convoy.energy.meter import Spent, metered, spoken


class Fake:
    """Use a fixed number of joules a reading."""

    def __init__(self, name: str = "cpu", *, measured: bool = False, each: float = 3_600.0) -> None:
        self.name = name
        self.measured = measured
        self.how = f"{name} {'measured' if measured else 'estimated'} by a fake"
        self.each = each
        self.used = 0.0

    def joules(self) -> float:
        self.used += self.each
        return self.used


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give the machine these parts."""

    def have(*found: Fake) -> None:
        monkeypatch.setattr(parts, "find", lambda *, gpu: list(found))

    return have


def test_a_stages_figures_carry_its_name_and_what_they_rest_on(machine: Callable[..., None]) -> None:
    machine(Fake("cpu", each=7_200_000.0), Fake("ram", each=1_800_000.0))
    with metered("train", "world") as meter:
        pass
    assert meter.result() == {"energy": {"train_kwh": 2.5, "train_co2_kg": 1.188, "train_how": "estimated"}}
    assert meter.tags() == {
        "convoy.energy.train": "estimated: cpu estimated by a fake; ram estimated by a fake; "
        "world average 475 g CO2 per kWh (IEA 2019)"
    }


@pytest.mark.parametrize(
    ("kinds", "word"),
    [((False, False), "estimated"), ((True, False), "partly measured"), ((True, True), "measured")],
)
def test_measured_is_said_of_counters_alone(
    machine: Callable[..., None], kinds: tuple[bool, bool], word: str
) -> None:
    machine(Fake("cpu", measured=kinds[0]), Fake("gpu", measured=kinds[1]))
    with metered("train", "DEU") as meter:
        pass
    assert meter.result()["energy"]["train_how"] == word
    assert meter.how.startswith(f"{word}: cpu ")


def test_energy_of_earlier_lives_is_counted(machine: Callable[..., None]) -> None:
    machine(Fake("cpu", each=3_600_000.0))
    with metered("train", "world") as meter:
        meter.resume(Spent(1.0, 0.5, 0.25, 9.0, 60.0))
        stored = meter.spent()
    assert stored is not None
    assert stored[:4] == (2.0, 0.5, 0.25, 9.475)
    assert stored.seconds >= 60
    assert Spent(*list(stored)).kwh == 2.75


def test_an_earlier_life_that_was_not_metered_leaves_the_figures_out(
    machine: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    machine(Fake())
    with metered("train", "world") as meter:
        meter.resume(None)
        assert meter.spent() is None
    assert meter.result() == meter.tags() == {}
    said = "Energy is left out: an earlier part of this work was not metered. The train stage goes on.\n"
    assert capsys.readouterr().out == said


def test_two_processes_of_a_stage_are_counted_together(machine: Callable[..., None], tmp_path: Path) -> None:
    machine(Fake("cpu", each=3_600_000.0))
    path = tmp_path / "energy.json"
    with metered("export", "world") as first:
        pass
    first.hand_over(path)
    with metered("export", "world") as second:
        second.take_over(path)
    assert second.result()["energy"]["export_kwh"] == 3.0
    assert not path.exists()


def test_a_process_that_handed_nothing_over_leaves_the_figures_out(
    machine: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(Fake())
    with metered("export", "world") as meter:
        meter.take_over(tmp_path / "energy.json")
    assert meter.result() == {}
    assert "an earlier part of this work was not metered" in capsys.readouterr().out


def test_a_failure_is_said_once_and_gives_no_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*, gpu: bool) -> list[parts.Part]:
        raise PermissionError("no such processor")

    monkeypatch.setattr(parts, "find", broken)
    with metered("train", "world") as meter:
        assert meter.spent() is None
        assert meter.spent() is None
    assert meter.result() == meter.tags() == {}
    assert capsys.readouterr().out == "Energy is left out: no such processor. The train stage goes on.\n"


def test_a_failure_on_the_way_is_said_once_and_gives_no_figure(
    machine: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    part = Fake("cpu")
    machine(part)
    with metered("evaluate", "world") as meter:
        assert meter.spent() is not None
        part.each = "spoilt"  # type: ignore[assignment]
        assert meter.spent() is None
    assert meter.result() == {}
    assert capsys.readouterr().out.count("Energy is left out") == 1


def test_a_hardware_counter_that_stands_still_is_no_zero(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(meters, "STILL_SECONDS", 0.0)
    machine(Fake("gpu", measured=True, each=0.0))
    with metered("train", "world") as meter:
        pass
    assert meter.result() == {}
    assert "Energy is left out: the counter of the gpu stands still" in capsys.readouterr().out


def test_the_reading_at_the_end_of_the_block_is_the_last(machine: Callable[..., None]) -> None:
    machine(Fake())
    with metered("train", "world") as meter:
        pass
    assert meter.spent() == meter.spent()


def test_counters_are_read_while_the_work_goes_on(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = threading.Event()

    class Watched(Fake):
        def joules(self) -> float:
            read.set()
            return super().joules()

    monkeypatch.setattr(meters, "SAMPLE_SECONDS", 0.01)
    machine(Watched())
    with metered("train", "world"):
        assert read.wait(5)


def test_an_unknown_country_is_refused_before_the_work_begins() -> None:
    with pytest.raises(RequestError, match="no such country: 'XYZ'"), metered("train", "XYZ"):
        pytest.fail("the block must not run")


def test_two_meters_at_once_each_count() -> None:
    with metered("train", "world") as first, metered("train", "world") as second:
        one, other = first.spent(), second.spent()
    assert one is not None
    assert other is not None
    assert one.kwh > 0
    assert other.kwh > 0


def test_metering_writes_no_file_opens_no_socket_and_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    home = tmp_path / "home"
    here = tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    before = set(Path("/tmp").iterdir())  # noqa: S108 (where codecarbon's tracker would put its lock)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    with metered("train", "DEU") as meter:
        pass
    assert meter.result()["energy"]["train_kwh"] >= 0  # type: ignore[operator]
    assert list(home.iterdir()) == list(here.iterdir()) == []
    assert not any("codecarbon" in path.name for path in set(Path("/tmp").iterdir()) - before)  # noqa: S108
    assert capfd.readouterr() == ("", "")


def test_a_metered_process_loads_no_pandas_asks_no_network_and_says_nothing(
    repository: Path, tmp_path: Path
) -> None:
    program = (
        "import logging, socket, sys\nfrom convoy.energy.meter import metered\n"
        "socket.socket.connect = socket.create_connection = lambda *_: 1 / 0\n"
        "assert 'codecarbon' not in sys.modules\n"
        "with metered('prepare', 'world', gpu=False) as meter:\n"
        "    logging.getLogger('codecarbon').warning('what codecarbon has to say')\n"
        "print(meter.result()['energy']['prepare_how'], 'pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(repository / "src"), "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.rsplit(maxsplit=1)[1] == "False"
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kwh", "co2_kg", "words"),
    [
        (0.19, 0.07, "0.19 kWh, 70 g CO2"),
        (12.34, 5.6, "12 kWh, 5.6 kg CO2"),
        (0.0000117, 0.0000045, "0.012 Wh, 0.0045 g CO2"),
    ],
)
def test_figures_are_spoken_with_two_digits_in_a_unit_that_fits(
    kwh: float, co2_kg: float, words: str
) -> None:
    assert spoken(kwh, co2_kg) == words
