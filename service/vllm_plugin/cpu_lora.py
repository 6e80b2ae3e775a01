"""LoRA products on a CPU, grouped by segment: the rows of one adapter are multiplied by its matrices once.

The stock wrapper gathers a whole adapter for every token and lets "no adapter" (index -1) fall through to the last
slot's weights. Here a step's rows are cut into segments of one adapter; rows without one are never touched. Short
segments, the tails of a fan-out, go to a compiled kernel; long ones, and all where it cannot be compiled, are matrix
products of torch's.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform
from vllm.platforms.cpu import CpuPlatform

logger = logging.getLogger(__name__)

SHORT_ROWS = 32
"""Segments up to this long go to the kernel; a longer one fills a matrix product of torch's."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `start` to `stop` use the adapter in `slot`."""

    start: int
    stop: int
    slot: int


def find_segments(slots: Tensor) -> list[Segment]:
    """Runs of equal slot in `slots` (int64 [rows], -1 for no adapter), leaving out those without an adapter."""
    values, counts = torch.unique_consecutive(slots, return_counts=True)
    segments, start = [], 0
    for slot, count in zip(values.tolist(), counts.tolist(), strict=True):
        if slot >= 0:
            segments.append(Segment(start, start + count, slot))
        start += count
    return segments


@functools.cache
def compiled_kernel() -> Callable[..., None] | None:
    """`lora_kernel.add_rows`, or None where numba is missing, cannot compile or has nowhere to keep what it compiled.

    Imported when vLLM's worker has started: vLLM then looks through all that is imported for kernels of its own, and
    stumbles over a library that numba holds.
    """
    try:
        from service.vllm_plugin.lora_kernel import add_rows
    except Exception as error:
        logger.warning("adapters are multiplied without the compiled kernel, which is slower: %r", error)
        return None
    kernel: Callable[..., None] = add_rows
    return kernel


class SegmentedLora:
    """Adds the low-rank updates of one step's rows; built once per step, used by every layer."""

    def __init__(self, slots: Tensor) -> None:
        self.segments = find_segments(slots)
        self._add_rows = compiled_kernel()
        short_rows = SHORT_ROWS if self._add_rows else 0
        self._long = [s for s in self.segments if s.stop - s.start > short_rows]
        short = [s for s in self.segments if s.stop - s.start <= short_rows]
        self._short = np.array([(s.start, s.stop, s.slot) for s in short], np.int64).reshape(-1, 3)

    def add(self, y: Tensor, offset: int, width: int, x: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
        """`y[:, offset : offset + width] += scale · x Aᵀ Bᵀ` by each row's adapter, in place; the products in float32.

        `y`: [rows, all outputs]; `x`: [rows, inputs], of any dtype; `a`: [slots, 1, rank, inputs] and `b`:
        [slots, 1, width, rank], as `lay_out` leaves it, float32. Rows beyond the planned ones and rows without an
        adapter keep their bytes.
        """
        for s in self._long:
            update = (x[s.start : s.stop].float() @ a[s.slot, 0].T) @ b[s.slot, 0].T
            y[s.start : s.stop, offset : offset + width].add_(update, alpha=scale)
        if self._add_rows is None or not len(self._short):
            return
        if y.dtype == torch.float32:
            self._add_rows(y.numpy(), x.numpy(), a.numpy(), b.mT.numpy(), offset, self._short, scale)
            return
        rows, packed = self._packed
        taken, update = x.index_select(0, rows).float(), torch.zeros(len(rows), width)
        self._add_rows(update.numpy(), taken.numpy(), a.numpy(), b.mT.numpy(), 0, packed, scale)
        y[:, offset : offset + width].index_add_(0, rows, update.to(y.dtype))

    @functools.cached_property
    def _packed(self) -> tuple[Tensor, NDArray[np.int64]]:
        """The rows of short segments, and these segments as they stand when only those rows are kept."""
        starts, stops, slots = self._short.T
        rows = torch.tensor([row for s in self._short for row in range(s[0], s[1])], dtype=torch.int64)
        ends = np.cumsum(stops - starts)
        return rows, np.stack([ends - (stops - starts), ends, slots], axis=1)

    def shrink(self, y: Tensor, x: Tensor, a: Tensor, scale: float) -> None:
        """`y[:, :rank] = scale · x Aᵀ` for rows with an adapter."""
        for s in self.segments:
            y[s.start : s.stop, : a.shape[1]] = scale * (x[s.start : s.stop].to(y.dtype) @ a[s.slot].to(y.dtype).T)

    def expand(self, y: Tensor, x: Tensor, b: Tensor, add_inputs: bool) -> None:
        """`y += x Bᵀ` for rows with an adapter, or `y = x Bᵀ` without `add_inputs`."""
        for s in self.segments:
            update = x[s.start : s.stop].to(y.dtype) @ b[s.slot].to(y.dtype).T
            width = min(update.shape[1], y.shape[1])
            target = y[s.start : s.stop, :width]
            target.copy_(target + update[:, :width] if add_inputs else update[:, :width])


def lay_out(b: Tensor) -> None:
    """Put `b` [slots, 1, outputs, rank] so into memory that one rank's outputs lie side by side, its shape kept.

    Both products that use it read it in that order. What is written into it later, an adapter that is loaded into a
    slot, finds its place by the strides; vLLM writes it outside the inference mode of its steps, in one of which this
    is called, and a tensor made in that mode could not be written there.
    """
    if not b.mT.is_contiguous():
        with torch.inference_mode(mode=False):
            b.data = b.mT.contiguous().mT


class SegmentedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]  # mypy does not follow vLLM
    """The stock wrapper's interface over `SegmentedLora`, for token rows and for sampled rows."""

    def update_metadata(
        self,
        mapping: Any,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        # The stock prefill metadata has room for one segment per request, and an activated one makes two: left out.
        self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        self.is_prefill = True
        self.tokens = SegmentedLora(self.token_lora_indices)
        self.no_lora = not self.tokens.segments
        self._sampled: SegmentedLora | None = None

    @property
    def sampled(self) -> SegmentedLora:
        """Only adapters on the output layer need it, so it is made when first asked for."""
        if self._sampled is None:
            self._sampled = SegmentedLora(self.sampler_indices)
        return self._sampled

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.no_lora:
            return
        x, y = x.reshape(-1, x.shape[-1]).contiguous(), y.view(-1, y.shape[-1])
        offset = 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            lay_out(b)
            self.tokens.add(y, offset, width, x, a, b, scale)
            offset += width

    def _apply_shrink(self, y: Tensor, x: Tensor, w_t_all: Tensor, scale: float) -> None:
        self.tokens.shrink(y.view(-1, y.shape[-1]), x, _matrices(w_t_all), scale)

    def _apply_expand(
        self, y: Tensor, x: Tensor, w_t_all: Tensor, y_offset: int, y_slice_size: int, add_inputs: bool = True
    ) -> None:
        self.tokens.expand(y[:, y_offset : y_offset + y_slice_size], x, _matrices(w_t_all), add_inputs)

    def add_lora_embedding(
        self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        self.tokens.expand(y, x, _matrices(lora_b_stacked), add_inputs)

    def add_lora_logits(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Tensor,
        lora_b_stacked: Tensor,
        scale: float,
        *,
        buffer: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        a, b = _matrices(lora_a_stacked), _matrices(lora_b_stacked)
        middle = torch.zeros((x.shape[0], a.shape[1]), dtype=torch.float32, device=x.device)
        self.sampled.shrink(middle, x, a, scale)
        self.sampled.expand(y, middle, b, add_inputs=True)


def _matrices(stacked: Tensor) -> Tensor:
    """[slots, (1,) outputs, inputs] without the layer axis that some stacks carry."""
    return stacked.squeeze(1) if stacked.dim() == 4 else stacked


def _get_punica_wrapper(cls: type[CpuPlatform]) -> str:
    return f"{SegmentedPunicaWrapper.__module__}.{SegmentedPunicaWrapper.__qualname__}"


def apply() -> None:
    CpuPlatform.get_punica_wrapper = classmethod(_get_punica_wrapper)


def inactive_because() -> str | None:
    """On a CPU the platform must name our wrapper; elsewhere the stock Triton kernels are used as they are."""
    if not current_platform.is_cpu():
        return None
    named = current_platform.get_punica_wrapper()
    return None if named == _get_punica_wrapper(CpuPlatform) else f"the platform names {named}"
