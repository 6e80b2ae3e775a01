"""The segmented CPU kernel against a slow, obvious reference, over random batches with the awkward shapes in them."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from service.vllm_plugin.cpu_lora import (
    SHORT_ROWS,
    Segment,
    SegmentedLora,
    SegmentedPunicaWrapper,
    compiled_kernel,
    find_segments,
    lay_out,
)

LENGTHS = [0, 1, 2, 6, 7, SHORT_ROWS - 1, SHORT_ROWS, SHORT_ROWS + 1, 90]


def one_row_at_a_time(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, slots: Tensor) -> Tensor:
    """What the kernel must compute, in float64."""
    expected = y.double().clone()
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[row] += scale * (b[slot].double() @ (a[slot].double() @ x[row].double()))
    return expected


def add(slots: Tensor, y: Tensor, offset: int, x: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """The kernel's sum over adapters `a` [slots, rank, inputs] and `b` [slots, outputs, rank], in place."""
    a, b = a[:, None], b[:, None].clone()
    lay_out(b)
    SegmentedLora(slots).add(y, offset, b.shape[2], x, a, b, scale)


def random_slots(rng: random.Random, adapters: int) -> Tensor:
    """Segments of random adapters or none, of lengths around every limit; the same adapter may come twice in a row."""
    slots = [slot for _ in range(rng.randint(1, 12)) for slot in [rng.randint(-1, adapters - 1)] * rng.choice(LENGTHS)]
    return torch.tensor(slots or [-1])


@pytest.mark.parametrize("seed", range(60))
def test_updates_equal_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    adapters, rank = rng.choice([1, 2, 5, 16]), rng.choice([1, 4, 8, 16])
    inputs, outputs = rng.choice([8, 24, 65]), rng.choice([8, 40])
    slots = random_slots(rng, adapters)
    rows, scale = len(slots), rng.choice([1.0, 0.5])
    x, y = torch.randn(rows, inputs), torch.randn(rows, outputs + 5)
    a, b = torch.randn(adapters, rank, inputs), torch.randn(adapters, outputs, rank)
    a[0, rank // 2 :] = 0  # as a rank smaller than the slots' leaves it
    slice_of_y = slice(3, 3 + outputs)
    expected = y.double().clone()
    expected[:, slice_of_y] = one_row_at_a_time(y[:, slice_of_y], x, a, b, scale, slots)
    margins = y[:, :3].clone(), y[:, 3 + outputs :].clone()
    add(slots, y, 3, x, a, b, scale)
    # float32 sums of up to 65 x 16 products of unit normals: 1e-3 is a hundred times their rounding
    assert torch.allclose(y.double(), expected, atol=1e-3, rtol=1e-4)
    assert torch.equal(y[:, :3], margins[0]), "one slice of the output is changed and nothing beside it"
    assert torch.equal(y[:, 3 + outputs :], margins[1])


@pytest.mark.parametrize("seed", range(5))
def test_a_base_in_half_precision_is_added_to_within_its_rounding(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    slots = random_slots(rng, 4)
    x, y = torch.randn(len(slots), 24).bfloat16(), torch.randn(len(slots), 40).bfloat16()
    a, b = torch.randn(4, 8, 24), torch.randn(4, 40, 8)
    expected = one_row_at_a_time(y, x, a, b, 0.1, slots)
    add(slots, y, 0, x, a, b, 0.1)
    assert torch.allclose(y.double(), expected, atol=0.05, rtol=0.01)  # bfloat16 has eight bits


def test_an_adapter_loaded_into_a_slot_after_the_matrices_were_laid_out_is_computed_with() -> None:
    torch.manual_seed(0)
    slots = torch.tensor([1, 1, 0])
    x, y = torch.randn(3, 6), torch.zeros(3, 5)
    a, b = torch.randn(2, 1, 4, 6), torch.randn(2, 1, 5, 4)
    before = b.clone()
    with torch.inference_mode():  # as a step of vLLM's calls it; adapters are written outside
        lay_out(b)
    assert torch.equal(b, before), "the same numbers at the same indices"
    b[1, 0, :, :].copy_(torch.randn(5, 4), non_blocking=True)  # as vLLM does it
    address = b.data_ptr()
    lay_out(b)
    assert b.data_ptr() == address, "it is laid out once"
    SegmentedLora(slots).add(y, 0, 5, x, a, b, 1.0)
    assert torch.allclose(y.double(), one_row_at_a_time(torch.zeros(3, 5), x, a[:, 0], b[:, 0], 1.0, slots), atol=1e-4)


def test_rows_without_an_adapter_keep_their_bytes() -> None:
    slots = torch.tensor([-1, 0, 0, -1, 1, -1])
    y = torch.randn(6, 4)
    before = y.clone()
    add(slots, y, 0, torch.randn(6, 3), torch.randn(2, 2, 3), torch.randn(2, 4, 2))
    assert torch.equal(y[slots < 0], before[slots < 0])
    assert not torch.equal(y[slots >= 0], before[slots >= 0])


def test_rows_beyond_the_planned_ones_keep_their_bytes() -> None:
    y = torch.zeros(5, 4)
    add(torch.tensor([0, 0]), y, 0, torch.randn(5, 3), torch.randn(1, 2, 3), torch.randn(1, 4, 2))
    assert torch.equal(y[2:], torch.zeros(3, 4))


def test_without_the_compiled_kernel_the_updates_are_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "service.vllm_plugin.lora_kernel", None)
    compiled_kernel.cache_clear()
    try:
        torch.manual_seed(0)
        slots = random_slots(random.Random(0), 5)
        x, y, a, b = (
            torch.randn(len(slots), 24),
            torch.randn(len(slots), 40),
            torch.randn(5, 8, 24),
            torch.randn(5, 40, 8),
        )
        expected = one_row_at_a_time(y, x, a, b, 0.5, slots)
        add(slots, y, 0, x, a, b, 0.5)
        assert torch.allclose(y.double(), expected, atol=1e-3, rtol=1e-4)
    finally:
        compiled_kernel.cache_clear()
    assert "without the compiled kernel" in caplog.text


def test_a_step_without_rows_is_no_work() -> None:
    assert find_segments(torch.tensor([], dtype=torch.long)) == []
    y = torch.empty(0, 4)
    add(torch.tensor([], dtype=torch.long), y, 0, torch.empty(0, 3), torch.randn(1, 2, 3), torch.randn(1, 4, 2))
    assert y.shape == (0, 4)


def test_segments_are_runs_of_one_adapter() -> None:
    assert find_segments(torch.tensor([-1, -1, 3, 3, 0, -1, 0])) == [
        Segment(2, 4, 3),
        Segment(4, 5, 0),
        Segment(6, 7, 0),
    ]


def test_a_step_may_have_more_segments_than_requests() -> None:
    wrapper = SegmentedPunicaWrapper(64, max_batches=2, device="cpu")
    mapping = SimpleNamespace(index_mapping=(0, 7, 0, 7, 0, 7), prompt_mapping=(7, 7, 7), is_prefill=True)
    wrapper.update_metadata(mapping, [7], 1, 100)
    assert [(s.start, s.stop) for s in wrapper.tokens.segments] == [(1, 2), (3, 4), (5, 6)]


def test_packed_slices_each_get_their_own_update() -> None:
    torch.manual_seed(0)
    wrapper = SegmentedPunicaWrapper(64, max_batches=4, device="cpu")
    mapping = SimpleNamespace(index_mapping=(5, 5, 0, 9), prompt_mapping=(5, 0, 9), is_prefill=True)
    wrapper.update_metadata(mapping, [9, 5], 2, 100)
    slots = torch.tensor([1, 1, -1, 0])
    widths = (4, 2)
    a = tuple(torch.randn(2, 1, 3, 6) for _ in widths)
    b = tuple(torch.randn(2, 1, width, 3) for width in widths)
    x, y = torch.randn(4, 6), torch.randn(4, 6)
    expected = torch.cat(
        [
            one_row_at_a_time(part, x, a[i][:, 0], b[i][:, 0], 1.0, slots)
            for i, part in enumerate(y.split(widths, dim=1))
        ],
        dim=1,
    )
    wrapper.add_lora_linear(y, x, a, b, 1.0, widths)
    assert torch.allclose(y.double(), expected, atol=1e-4)


def test_logits_of_sampled_rows_without_an_adapter_are_left_alone() -> None:
    torch.manual_seed(0)
    wrapper = SegmentedPunicaWrapper(64, max_batches=4, device="cpu")
    mapping = SimpleNamespace(index_mapping=(9, 0), prompt_mapping=(9, 0), is_prefill=True)
    wrapper.update_metadata(mapping, [9], 1, 100)
    a, b = torch.randn(1, 1, 2, 6), torch.randn(1, 1, 5, 2)
    x, y = torch.randn(2, 6), torch.randn(2, 5)
    expected = one_row_at_a_time(y, x, a[:, 0], b[:, 0], 1.0, torch.tensor([0, -1]))
    wrapper.add_lora_logits(y, x, a, b, 1.0)
    assert torch.allclose(y.double(), expected, atol=1e-4)
