"""Leaves cached files out of what a container's memory is said to be used for: they go when memory is wanted.

vLLM refuses a start whose KV is more than the control group's limit leaves, and counts the cache of the weights that it
has just read, which the group pays for.
"""

from __future__ import annotations

from pathlib import Path

from vllm.utils import cpu_resource_utils

_NAME = "get_cgroup_memory_usage"
_stock = cpu_resource_utils.get_cgroup_memory_usage
_STATISTICS = (Path("/sys/fs/cgroup/memory.stat"), Path("/sys/fs/cgroup/memory/memory.stat"))
"""Where vLLM's own numbers come from, in version 2 of control groups and in version 1."""

_CACHED = {"active_file", "inactive_file"}, {"total_active_file", "total_inactive_file"}


def _usage_without_cache() -> int | None:
    """Bytes in use; None without a limit."""
    usage = _stock()
    return None if usage is None else max(0, usage - cached_bytes())


def cached_bytes() -> int:
    """Bytes of files in the group's cache; 0 where it is not said."""
    for path, names in zip(_STATISTICS, _CACHED, strict=True):
        try:
            facts = dict(line.split() for line in path.read_text(encoding="ascii").splitlines())
            return sum(int(facts.get(name, 0)) for name in names)
        except (OSError, ValueError):
            continue
    return 0


def apply() -> None:
    setattr(cpu_resource_utils, _NAME, _usage_without_cache)


def inactive_because() -> str | None:
    """What it answers depends on the container, so that only the function itself can be looked at."""
    active = getattr(cpu_resource_utils, _NAME) is _usage_without_cache
    return None if active else "cached files count as memory in use"
