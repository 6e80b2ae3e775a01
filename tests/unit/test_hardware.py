"""What is chosen for a machine, and that the reasons say where each choice comes from."""

from __future__ import annotations

import math
import os

import pytest

from service.engine.hardware import GIB, Choice, Dtype, Hardware, choose, detect_hardware
from service.errors import ConfigurationError

CORES = (0, 1, 4, 5)


def cpu(free_gib: float = 8.0, granted_cores: float = math.inf) -> Hardware:
    return Hardware(gpu=False, cores=CORES, free_bytes=int(free_gib * GIB), granted_cores=granted_cores)


def gpu(capability: tuple[int, int] = (9, 0)) -> Hardware:
    return Hardware(gpu=True, cores=CORES, free_bytes=8 * GIB, capability=capability)


def reason(choice: Choice, about: str) -> str:
    (found,) = [each for each in choice.reasons if each.startswith(about)]
    return found


@pytest.mark.parametrize(
    ("hardware", "asked", "dtype"),
    [
        pytest.param(cpu(), "auto", "float32", id="CPU"),
        pytest.param(cpu(), "bfloat16", "bfloat16", id="CPU as set"),
        pytest.param(gpu(), "auto", "bfloat16", id="GPU"),
        pytest.param(gpu((8, 0)), "auto", "bfloat16", id="the oldest GPU with bfloat16"),
        pytest.param(gpu((7, 5)), "auto", "float16", id="the youngest GPU without"),
        pytest.param(gpu(), "float16", "float16", id="GPU as set"),
        pytest.param(gpu((7, 5)), "float16", "float16", id="GPU without bfloat16 as set"),
    ],
)
def test_the_dtype_follows_the_machine_unless_set(hardware: Hardware, asked: Dtype, dtype: str) -> None:
    choice = choose(hardware, asked, None, None)
    assert choice.dtype == dtype
    assert reason(choice, "dtype").startswith(f"dtype {dtype}: ")
    assert reason(choice, "dtype").endswith("as set") == (asked != "auto")


@pytest.mark.parametrize(("hardware", "tokens"), [(cpu(), 32), (gpu(), 16)], ids=["CPU", "GPU"])
def test_the_block_is_the_attention_kernels_unit(hardware: Hardware, tokens: int) -> None:
    choice = choose(hardware, "auto", None, None)
    assert choice.block_tokens == tokens
    assert f"KV blocks of {tokens} tokens" in reason(choice, "KV blocks")


@pytest.mark.parametrize(
    ("free_gib", "asked", "gib", "why"),
    [
        pytest.param(1.0, None, 0.25, "a quarter of free memory, at most 4 GiB", id="a quarter"),
        pytest.param(15.0, None, 3.75, "a quarter of free memory, at most 4 GiB", id="below the cap"),
        pytest.param(16.0, None, 4.0, "a quarter of free memory, at most 4 GiB", id="at the cap"),
        pytest.param(64.0, None, 4.0, "a quarter of free memory, at most 4 GiB", id="above the cap"),
        pytest.param(1.0, 6.5, 6.5, "as set", id="as set"),
    ],
)
def test_kv_memory_follows_free_memory_unless_set(free_gib: float, asked: float | None, gib: float, why: str) -> None:
    choice = choose(cpu(free_gib), "auto", None, asked)
    assert choice.kv_bytes == int(gib * GIB)
    assert reason(choice, "KV memory") == f"KV memory {gib:.1f} GiB: {why}"


ALL = "cores 0,1,4,5: all that this process may use"
GRANTED = "cores any of 4, {} threads: a control group grants the time of {}"
THREADS: dict[str, tuple[float, int | None, int, tuple[int, ...], str]] = {
    "all": (math.inf, None, 4, CORES, ALL),
    "as many as there are": (math.inf, 4, 4, CORES, "cores 0,1,4,5: as set"),
    "one more than there are": (math.inf, 5, 4, CORES, ALL),
    "one short of all": (math.inf, 3, 3, (), "cores any of 4, 3 threads: as set"),
    "half a core is granted": (0.5, None, 1, (), GRANTED.format(1, 0.5)),
    "two and a half are": (2.5, None, 2, (), GRANTED.format(2, 2.5)),
    "more is set than is granted": (2.5, 3, 3, (), "cores any of 4, 3 threads: as set"),
    "as much is granted as is seen": (4.0, None, 4, CORES, ALL),
    "more is granted than is seen": (9.0, None, 4, CORES, ALL),
}


@pytest.mark.parametrize(("granted", "asked", "threads", "bound", "said"), THREADS.values(), ids=THREADS)
def test_threads_are_bound_to_cores_that_nobody_else_is_told_to_use(
    granted: float, asked: int | None, threads: int, bound: tuple[int, ...], said: str
) -> None:
    choice = choose(cpu(granted_cores=granted), "auto", asked, None)
    assert (choice.threads, choice.cores, reason(choice, "cores")) == (threads, bound, said)


@pytest.mark.parametrize(
    ("hardware", "dtype", "says"),
    [
        pytest.param(gpu(), "float32", "is for a CPU", id="float32"),
        pytest.param(gpu((7, 5)), "bfloat16", "this GPU has no bfloat16", id="bfloat16 on an old one"),
    ],
)
def test_a_dtype_that_a_gpu_cannot_serve_is_refused(hardware: Hardware, dtype: Dtype, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        choose(hardware, dtype, None, None)


def test_on_a_gpu_memory_and_cores_are_left_to_vllm() -> None:
    choice = choose(gpu(), "auto", None, None)
    assert (choice.kv_bytes, choice.threads, choice.on_cpu) == (None, None, False)


def test_this_machine_is_detected() -> None:
    hardware = detect_hardware()
    assert set(hardware.cores) == os.sched_getaffinity(0)
    assert list(hardware.cores) == sorted(hardware.cores)
    assert hardware.free_bytes > GIB // 16


@pytest.mark.parametrize(("cores", "kv_gib"), [(2, None), (None, 1.0)], ids=["cores", "KV memory"])
def test_a_cpus_setting_is_refused_on_a_gpu_rather_than_ignored(cores: int | None, kv_gib: float | None) -> None:
    with pytest.raises(ConfigurationError, match="FANTAIL_GPU_MEMORY_SHARE"):
        choose(gpu(), "auto", cores, kv_gib)
