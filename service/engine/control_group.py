"""What the control groups of this process leave it of memory and processor time: /proc and affinity show the host's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def free_bytes(root: Path = ROOT, own: Path = OWN) -> float:
    """Bytes left below the memory limits; infinite without one. Files that are only cached are free."""
    least = math.inf
    for group in groups("memory", root, own):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
        ):
            try:
                most, now = read(group / limit), read(group / used)
                facts = dict(line.split() for line in read(group / "memory.stat").splitlines())
                if most != "max":
                    least = min(least, max(0, int(most) - int(now) + int(facts.get(cached, 0))))
            except (OSError, ValueError):
                continue
    return least


def granted_cores(root: Path = ROOT, own: Path = OWN) -> float:
    """How many cores' worth of time the quotas grant; infinite without one. On which cores is not said."""
    least = math.inf
    for group in groups("cpu", root, own):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # the latter in version 1
            try:
                quota, period = " ".join(read(group / name) for name in names).split()
                if quota not in ("max", "-1"):
                    least = min(least, int(quota) / int(period))
            except (OSError, ValueError, ZeroDivisionError):
                continue
    return least


def groups(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """The groups that this process is in, the innermost first. The limits of all of them hold.

    A container is often shown its own group as `root` itself, and its path as the host knows it.
    """
    for line in read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            top = root / controller if controllers else root  # version 1 has a tree for each controller
            folder = top / path.strip("/")
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(top))


def read(path: Path) -> str:
    """Raises OSError."""
    return path.read_text(encoding="ascii").strip()
