"""The number of threads: all cores, fewer where other work takes some of them, and that of its start for a resumed training."""

from types import SimpleNamespace

import pytest
import torch

from convoy.training import threads
from convoy.training.threads import RETURN_S, WATCH_S, Threads, ThreadWatch


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of eight CPUs without a GPU, on which torch takes eight threads and nothing is measured."""
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(threads, "usable_cpus", lambda: 8)
    monkeypatch.setattr(threads, "seconds", lambda number: 1 / number)
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


class Machine:
    """Compute with so many free cores, from one measurement of all threads to the next; waiting takes no time here."""

    def __init__(self, monkeypatch, *free):
        self.free, self.seen, self.now = list(free), [], 0.0
        monkeypatch.setattr(threads.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(threads.time, "sleep", self.sleep)

    def sleep(self, seconds):
        self.now += seconds
        self.free = self.free[1:] or self.free

    def seconds(self, number):
        """Threads beyond the free cores stop all others for a time slice."""
        self.seen.append(number)
        return 1 / number if number <= self.free[0] else 1.0 + 2 * (number - self.free[0])


@pytest.mark.parametrize("limit", [2, 8, 64])
def test_a_quiet_machine_computes_with_all_threads_after_a_single_look(monkeypatch, limit):
    machine = Machine(monkeypatch, limit)
    assert threads.on_busy_machine(limit, machine.seconds) == Threads(limit)
    assert machine.seen == [limit, limit - 1]


@pytest.mark.parametrize(
    ("limit", "free", "number"), [(2, 1, 1), (8, 7, 7), (8, 4, 4), (8, 1, 1), (6, 3, 3), (64, 20, 16)]
)
def test_a_machine_that_stays_busy_computes_with_the_fastest_number(monkeypatch, limit, free, number):
    machine = Machine(monkeypatch, free)
    chosen = threads.on_busy_machine(limit, machine.seconds)
    assert chosen.number == number
    assert "busy" in chosen.reason
    assert "OMP_NUM_THREADS" in chosen.reason
    assert machine.now >= threads.PATIENCE_S


def test_work_that_ends_soon_costs_no_thread(monkeypatch):
    machine = Machine(monkeypatch, 1, 1, 2)
    assert threads.on_busy_machine(2, machine.seconds) == Threads(2)
    assert machine.now == 2 * threads.PAUSE_S


def test_a_machine_that_is_a_little_slower_with_all_threads_keeps_them(monkeypatch):
    assert threads.on_busy_machine(2, {2: 1.4, 1: 1.0}.get).number == 2


@pytest.mark.parametrize(
    ("usable", "env", "before", "number", "reason"),
    [
        (8, {}, None, 8, ""),
        (3, {}, None, 3, ""),
        (1, {}, None, 1, ""),
        (3, {"OMP_NUM_THREADS": "8"}, None, 8, "OMP_NUM_THREADS is set"),
        (3, {"MKL_NUM_THREADS": "8"}, None, 8, "MKL_NUM_THREADS is set"),
        (8, {}, 8, 8, ""),
        (8, {}, 1, 1, "as at the last checkpoint; now it would be 8"),
        (8, {"OMP_NUM_THREADS": "8"}, 2, 2, "as at the last checkpoint; now it would be 8"),
        (2, {}, 4, 2, "the last checkpoint was computed with 4, so results may differ in the last bits"),
    ],
)
def test_the_number_follows_the_variables_the_cpus_and_the_last_checkpoint(
    monkeypatch, usable, env, before, number, reason
):
    monkeypatch.setattr(threads, "usable_cpus", lambda: usable)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    chosen = threads.choose(before)
    assert chosen == Threads(number, reason, most=0 if env else number)
    assert torch.get_num_threads() == number


@pytest.mark.parametrize(
    ("env", "gpu", "before"),
    [({"OMP_NUM_THREADS": "8"}, False, None), ({}, True, None), ({}, False, 8)],
)
def test_nothing_is_measured_where_the_number_is_given_or_a_gpu_computes(monkeypatch, env, gpu, before):
    monkeypatch.setattr(threads, "seconds", lambda number: pytest.fail("measured"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert threads.choose(before).number == 8


def test_a_busy_machine_is_described_with_the_number_that_is_set(monkeypatch, capsys):
    monkeypatch.setattr(threads, "seconds", Machine(monkeypatch, 1).seconds)
    assert threads.choose().number == 1
    assert capsys.readouterr().out.startswith(
        "1 thread: this machine is busy with other work, and 8 would be"
    )
    assert torch.get_num_threads() == 1
    assert threads.Threads(2).line() == "2 threads"


def test_a_measurement_takes_the_time_of_a_convolution_with_so_many_threads(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(threads, "REPEATS", 1)
    assert threads.seconds(2) > 0
    assert torch.get_num_threads() == 2


class Steps:
    """Train in steps of a second, in which as many images are computed as free cores and threads allow."""

    def __init__(self, machine, watch):
        self.machine, self.watch = machine, watch

    def take(self, seconds, px=32):
        """Train for so long, by the machine's clock."""
        until = self.machine.now + seconds
        while self.machine.now < until:
            self.watch.on_train_batch_start()
            took = self.machine.seconds(torch.get_num_threads()) * (px / 32) ** 2
            self.machine.now += took
            batch = SimpleNamespace(labels=[0])
            self.watch.on_train_batch_end(None, None, None, batch)


@pytest.fixture
def steps(monkeypatch):
    """Steps on a quiet machine."""
    machine = Machine(monkeypatch, 8)
    return Steps(machine, ThreadWatch(Threads(8, most=8), machine.seconds))


def test_other_work_takes_threads_and_gives_them_back(steps, capsys):
    steps.take(3 * WATCH_S)
    assert steps.watch.changes == 0
    steps.machine.free = [4]
    steps.take(2 * WATCH_S - 5)
    assert torch.get_num_threads() == 8, "not for a moment"
    steps.take(WATCH_S + 5)
    assert torch.get_num_threads() == 4
    assert "4 threads: this machine is busy with other work, and 8 would be" in capsys.readouterr().out
    steps.take(3 * RETURN_S)
    assert steps.watch.line() == "8 threads; changed once, as other work came or ended", "it is still busy"
    steps.machine.free = [8]
    steps.take(RETURN_S + 5)
    assert torch.get_num_threads() == 8
    assert "8 threads: the other work on this machine has ended" in capsys.readouterr().out
    steps.machine.free = [1]
    assert steps.watch.line() == "8 threads; changed 2 times, as other work came or ended"
    steps.take(3 * WATCH_S + 20)
    assert torch.get_num_threads() == 1


def test_work_that_ends_within_two_looks_takes_no_thread(steps):
    steps.take(WATCH_S)
    for _ in range(3):
        steps.machine.free = [4]
        steps.take(WATCH_S)
        steps.machine.free = [8]
        steps.take(2 * WATCH_S)
    assert steps.watch.changes == 0


def test_larger_images_are_no_other_work_and_steady_steps_are_not_measured(steps):
    looks = []
    steps.watch.measure = lambda number: looks.append(number) or 1 / number
    steps.take(10 * WATCH_S)
    assert looks == [8, 7] * 2, "at first, since the training may have begun beside other work"
    steps.take(10 * WATCH_S, px=64)
    assert looks == [8, 7] * 4
    assert steps.watch.changes == 0


def test_a_pause_of_the_other_work_is_not_taken_for_its_end(steps):
    steps.take(3 * WATCH_S)
    looks, busy = iter([False, True, True]), []

    def measure(number):
        if number == 8:  # a look begins with all threads
            busy.append(next(looks))
        return number if busy[-1] else 1 / number

    steps.machine.free, steps.watch.measure = [4], measure
    steps.take(5 * WATCH_S)
    assert busy == [False, True, True]
    assert torch.get_num_threads() < 8


def test_work_from_before_a_resumed_training_takes_threads(steps):
    steps.machine.free = [1]
    steps.take(2 * WATCH_S + 40)
    assert torch.get_num_threads() == 1


def test_a_training_that_was_stopped_with_fewer_threads_takes_all_again_later(steps):
    resumed = ThreadWatch(Threads(4, most=4), steps.machine.seconds)
    resumed.load_state_dict(steps.watch.state_dict())
    torch.set_num_threads(4)
    steps.watch = resumed
    steps.take(RETURN_S + 5)
    assert torch.get_num_threads() == 8


def test_a_number_that_is_given_stays_in_a_resumed_training(steps):
    resumed = ThreadWatch(Threads(1, most=0), lambda _: pytest.fail("measured"))
    resumed.load_state_dict(steps.watch.state_dict())
    torch.set_num_threads(1)
    steps.watch = resumed
    steps.take(10 * WATCH_S)


@pytest.mark.parametrize("most", [0, 1])
def test_a_single_cpu_or_a_given_number_is_not_measured(steps, most):
    torch.set_num_threads(1)
    steps.watch = ThreadWatch(Threads(1, most=most), lambda _: pytest.fail("measured"))
    steps.take(10 * WATCH_S)
