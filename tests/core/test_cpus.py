import os

import pytest

from convoy.core import cpus

V1 = "cpu,cpuacct/a/cpu.cfs_"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of 64 CPUs, of which 16 may be used, whose control groups are files in `tmp_path`."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(cpus, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cpus, "OWN_CGROUP", tmp_path / "own")

    def set_up(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return set_up


def test_the_affinity_limits_the_cpus_and_its_absence_leaves_all(machine, monkeypatch):
    assert cpus.usable_cpus() == 16
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cpus.usable_cpus() == 64


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # a quota of 1.5 keeps two busy
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "3200000 100000\n"}, 16),
        ("0::/jobs/7\n", {"jobs/7/cpu.max": "max 100000", "jobs/cpu.max": "300000 100000"}, 3),
        ("4:memory:/a\n3:cpu,cpuacct:/a\n", {V1 + "quota_us": "400000", V1 + "period_us": "100000"}, 4),
        ("3:cpu,cpuacct:/a\n", {V1 + "quota_us": "-1", V1 + "period_us": "100000"}, 16),
        ("4:memory:/a\n", {V1 + "quota_us": "400000", V1 + "period_us": "100000"}, 16),
        ("0::/\n", {}, 16),
    ],
)
def test_the_quota_of_the_container_limits_the_cpus(machine, own, files, expected):
    machine(own, files)
    assert cpus.usable_cpus() == expected
