"""What a container's or a service's control groups leave it, in both versions of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from service.engine.control_group import free_bytes, granted_cores

ALONE = "0::/"
"""How a container of version 2 sees its own group."""

HYBRID = "9:name=systemd:/\n4:memory:/docker/ab12\n2:cpu,cpuacct:/docker/ab12\n0::/"
"""How one of version 1 does: its trees are mounted as its own, under another path than the host's."""

MEMORY: dict[str, tuple[str, dict[str, str], float]] = {
    "no control group": (ALONE, {}, math.inf),
    "version 2 without a limit": (
        ALONE, {"memory.max": "max", "memory.current": "5", "memory.stat": "anon 1"}, math.inf
    ),
    "version 2": (ALONE, {"memory.max": "100", "memory.current": "70", "memory.stat": "anon 50\ninactive_file 20"}, 50),
    "version 1": (
        HYBRID,
        {
            "memory/memory.limit_in_bytes": "100",
            "memory/memory.usage_in_bytes": "70",
            "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 10",
        },
        40,
    ),
    "more used than allowed": (
        ALONE, {"memory.max": "100", "memory.current": "170", "memory.stat": "anon 1"}, 0
    ),
    "a service in a slice that has less": (
        "0::/system.slice/fantail.service",
        {
            "system.slice/memory.max": "100",
            "system.slice/memory.current": "80",
            "system.slice/memory.stat": "anon 1",
            "system.slice/fantail.service/memory.max": "70",
            "system.slice/fantail.service/memory.current": "30",
            "system.slice/fantail.service/memory.stat": "anon 1",
        },
        20,
    ),
}  # fmt: skip

CORES: dict[str, tuple[str, dict[str, str], float]] = {
    "no control group": (ALONE, {}, math.inf),
    "version 2 without a quota": (ALONE, {"cpu.max": "max 100000"}, math.inf),
    "version 2": (ALONE, {"cpu.max": "250000 100000"}, 2.5),
    "version 1 without a quota": (HYBRID, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
    "version 1": (HYBRID, {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
    "a service in a slice that has less": (
        "0::/user.slice/fantail.scope",
        {"user.slice/cpu.max": "150000 100000", "user.slice/fantail.scope/cpu.max": "400000 100000"},
        1.5,
    ),
    "no sense": (ALONE, {"cpu.max": "a lot"}, math.inf),
}  # fmt: skip


def control_groups(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A tree of control groups, and the file in which a process reads which are its own."""
    root, mine = folder / "root", folder / "own"
    mine.write_text(own + "\n")
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_text(text + "\n")
    return root, mine


@pytest.mark.parametrize(("own", "files", "free"), MEMORY.values(), ids=MEMORY)
def test_the_tightest_limit_says_what_memory_is_free(
    tmp_path: Path, own: str, files: dict[str, str], free: float
) -> None:
    assert free_bytes(*control_groups(tmp_path, own, files)) == free


@pytest.mark.parametrize(("own", "files", "cores"), CORES.values(), ids=CORES)
def test_the_tightest_quota_says_how_many_cores_are_granted(
    tmp_path: Path, own: str, files: dict[str, str], cores: float
) -> None:
    assert granted_cores(*control_groups(tmp_path, own, files)) == cores


def test_this_processs_own_can_be_read() -> None:
    assert free_bytes() > 0
    assert granted_cores() > 0
