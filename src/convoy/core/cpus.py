"""Count the CPUs that this process may use, for the size of thread and process pools."""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """Count the CPUs of this process: its affinity (taskset, Slurm), at most the quota of its container; at least 1.

    `os.cpu_count` counts those of the machine: 64 decoding threads on a quota of 2 take 32 times the memory and gain nothing.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(math.ceil(count) for count in (cpus, *_quotas())))


def _quotas() -> list[float]:
    """Read the CPU quotas of this process's control groups (Linux), outer ones included: `docker --cpus`, Kubernetes, systemd."""
    try:
        lines = OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:  # macOS
        return []
    quotas = []
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = (
            CGROUPS / controllers
        )  # version 1: a hierarchy per set of controllers; version 2: one, and controllers is empty
        group = top / own.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            quotas += [quota for quota in (_version2(folder), _version1(folder)) if quota]
    return quotas


def _version2(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(quota) else None


def _version1(folder: Path) -> float | None:
    quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(quota) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
