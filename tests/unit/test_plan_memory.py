"""Memory by part: slots of the largest rank, copies in main memory, KV from what is left; beside published figures."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest

from service.cli.plan import DEFAULTS
from service.planning.deployment import TENSOR_BYTES, Machine
from service.planning.plan import make_plan
from tests.unit.planned import CPU, GPU, LLAMA_8B, MISTRAL_7B, deployment

GIB = 1 << 30
PUBLISHED = deployment(MISTRAL_7B, GPU, (16,) * 16, gpu_memory_share=1.0)
"""Mistral 7B in bfloat16 with sixteen adapters on a card of 24 GB, all 24e9 bytes of it, 0.7 GB assumed for the
runtime. Published: base 14 GB, adapters of about 85 MB and together 1.4 GB, about 1 GB of overhead, about 7 GB left for
KV. Their rank is said to be 32, of which bfloat16 needs twice as much on all linear layers; 84 MB are what 16 needs."""


def test_the_parts_of_a_7b_on_24_gb_are_the_published_ones() -> None:
    memory = PUBLISHED.memory
    assert memory.weights / 1e9 == pytest.approx(14, rel=0.05)
    assert memory.slots / 1e9 == pytest.approx(1.4, rel=0.05)
    assert (memory.step + memory.runtime) / 1e9 == pytest.approx(1, rel=0.05)
    assert memory.kv / 1e9 == pytest.approx(7, rel=0.05)


def test_with_the_published_rank_adapters_take_twice_the_published_memory_and_kv_gets_less() -> None:
    memory = replace(PUBLISHED, served=replace(PUBLISHED.served, ranks=(32,) * 16)).memory
    assert memory.slots / 1e9 == pytest.approx(2 * 1.4, rel=0.05)
    assert memory.kv / 1e9 == pytest.approx(7 - 1.4, rel=0.05)


def test_a_7b_on_24_gb_holds_30_to_40_conversations_only_when_they_are_a_third_of_the_published_length() -> None:
    full, third = make_plan(PUBLISHED, [4000, 1500]).lengths
    assert full.held == 13
    assert 30 <= third.held <= 40


@pytest.mark.parametrize(("rank", "published"), [(16, 42e6), (32, 85e6)])
def test_published_sizes_of_adapters_are_their_numbers_of_parameters(rank: int, published: float) -> None:
    shape = deployment(LLAMA_8B).shape
    assert shape.lora_parameters(rank, shape.linears) == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(("adapters", "measured"), [(16, 3.56), (64, 3.84), (128, 4.15), (200, 4.51)])
def test_memory_is_what_a_server_was_seen_to_hold(adapters: int, measured: float) -> None:
    """`python -m loadtest.growth memory`: resident GiB with sixteen slots and 1 GiB of KV."""
    machine = replace(CPU, runtime_bytes=DEFAULTS["cpu"]["runtime"] * GIB)
    memory = deployment(machine=machine, ranks=(4,) * adapters, slots=16, kv_gib=1.0).memory
    assert sum(astuple(memory)) / GIB == pytest.approx(measured, rel=0.1)


def test_a_held_adapter_takes_what_a_server_was_seen_to_grow_by() -> None:
    few, many = (deployment(ranks=(4,) * count, slots=16).memory.adapters for count in (16, 200))
    assert (many - few) / GIB == pytest.approx(4.51 - 3.56, rel=0.03)


def test_a_small_model_on_a_cpu() -> None:
    memory = deployment().memory
    assert memory.weights == 134_515_008 * 4
    assert memory.slots == 16 * 2_442_240 * 4
    assert memory.adapters == 16 * (2_442_240 // 2 * 4 + 2 * 7 * 30 * TENSOR_BYTES)
    assert memory.kv == 4 * GIB


@pytest.mark.parametrize(
    ("ranks", "max_rank", "expected"),
    [
        pytest.param((), None, 0, id="no adapters"),
        pytest.param((1,), None, 1, id="the least"),
        pytest.param((2,), None, 8, id="just above a size"),
        pytest.param((8,), None, 8, id="just a size"),
        pytest.param((9,), None, 16, id="just above the next"),
        pytest.param((4, 64, 4), None, 64, id="one large among small"),
        pytest.param((4,), 16, 16, id="a larger one may come later"),
        pytest.param((512,), 8, 512, id="the largest"),
    ],
)
def test_every_slot_has_room_for_the_largest_rank(ranks: tuple[int, ...], max_rank: int | None, expected: int) -> None:
    assert deployment(ranks=ranks, max_rank=max_rank).slot_rank == expected


@pytest.mark.parametrize(
    ("slots", "spare", "expected"),
    [(None, 0, 3), (None, 4, 7), (2, 4, 2), (3, 0, 3), (9, 4, 7)],
    ids=["all", "and the spare ones", "fewer", "just all", "no more than there are"],
)
def test_there_is_a_slot_for_each_adapter_unless_fewer_are_wanted(slots: int | None, spare: int, expected: int) -> None:
    assert deployment(ranks=(4, 4, 4), slots=slots, spare_adapters=spare).slot_count == expected


def test_without_adapters_there_are_no_slots() -> None:
    memory = deployment(ranks=(), spare_adapters=4).memory
    assert (memory.slots, memory.adapters) == (0, 0)


def test_adapters_are_float32_on_a_cpu_whatever_the_base_is() -> None:
    on_cpu, on_gpu = (deployment(machine=machine, dtype="bfloat16").memory for machine in (CPU, GPU))
    assert (on_cpu.slots, on_cpu.weights) == (2 * on_gpu.slots, on_gpu.weights)


def test_main_memory_holds_adapters_beside_their_slots_on_a_cpu_only() -> None:
    for machine, copies in ((CPU, 1), (GPU, 0)):
        roomy = replace(machine, memory_bytes=64 * GIB)
        one, two = (deployment(machine=roomy, ranks=(4,) * count, kv_gib=99).memory for count in (1, 2))
        assert one.kv - two.kv == (two.slots - one.slots) + copies * (two.adapters - one.adapters)


@pytest.mark.parametrize(
    ("memory_gib", "kv_gib", "expected"),
    [(8, None, 2), (64, None, 4), (8, 1.5, 1.5)],
    ids=["a quarter of what is free", "at most 4", "as set"],
)
def test_kv_on_a_cpu_is_what_the_server_takes(memory_gib: float, kv_gib: float | None, expected: float) -> None:
    machine = replace(CPU, memory_bytes=memory_gib * GIB)
    assert deployment(machine=machine, kv_gib=kv_gib).memory.kv == expected * GIB


def test_kv_on_a_gpu_is_what_is_left_of_the_share() -> None:
    whole, most = (deployment(machine=GPU, gpu_memory_share=share).memory for share in (1.0, 0.9))
    assert whole.kv - most.kv == pytest.approx(0.1 * GPU.memory_bytes)
    assert sum((whole.weights, whole.slots, whole.step, whole.runtime, whole.kv)) == pytest.approx(GPU.memory_bytes)


@pytest.mark.parametrize(
    ("tokens", "prefix"), [(1, 32), (31, 32), (32, 32), (33, 64), (8096, 8096), (8097, 8096)], ids=str
)
def test_a_conversation_fills_whole_blocks_of_the_context(tokens: int, prefix: int) -> None:
    (length,) = make_plan(deployment(), [tokens]).lengths
    assert length.prefix_tokens == prefix
    assert length.held == 4 * GIB // 46_080 // prefix
    assert length.at_once == 4 * GIB // 46_080 // (prefix + 16 * 32)


@pytest.mark.parametrize(("machine", "block_tokens"), [(CPU, 32), (GPU, 16)], ids=["CPU", "GPU"])
def test_each_tail_of_a_fan_out_takes_a_block(machine: Machine, block_tokens: int) -> None:
    plan = make_plan(deployment(machine=machine, max_tokens_in_flight=1 << 30), [320])
    assert plan.lengths[0].at_once == plan.kv_tokens // (320 + 16 * block_tokens)


@pytest.mark.parametrize(("bound", "expected"), [(1536, 2), (1 << 20, 112)], ids=["admission", "KV"])
def test_so_many_fan_outs_are_computed_at_once_as_are_let_in_and_have_room(bound: int, expected: int) -> None:
    (length,) = make_plan(deployment(max_tokens_in_flight=bound), [320]).lengths
    assert length.at_once == expected
