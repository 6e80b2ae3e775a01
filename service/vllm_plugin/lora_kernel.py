"""The compiled product of a few rows with one adapter: what a fan-out's tails need, some hundred times in a step.

A tail is three rows. Its two products with a rank-8 adapter take a microsecond, less than it takes to call one batched
product of torch's, which moreover wants all adapters' matrices gathered in the order of the segments.
"""

from __future__ import annotations

import numba  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

_ARRAYS = "float32[:, ::1], float32[:, ::1], float32[:, :, :, ::1], float32[:, :, :, ::1]"


@numba.njit(f"void({_ARRAYS}, int64, int64[:, ::1], float32)", fastmath=True, nogil=True, cache=True)  # type: ignore[untyped-decorator]
def add_rows(
    y: NDArray[np.float32],
    x: NDArray[np.float32],
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    offset: int,
    segments: NDArray[np.int64],
    scale: float,
) -> None:
    """`y[:, offset : offset + outputs] += scale · x Aᵀ Bᵀ` for the rows of `segments`, in place.

    `y`: [rows, all outputs]; `x`: [rows, inputs]; `a`: [slots, 1, rank, inputs]; `b`: [slots, 1, rank, outputs], so
    transposed that the inner loops read what lies side by side; `segments`: [segments, 3] of first row, row after the
    last and slot. Rows of zeros that fill an adapter up to its slot's rank cost one of the two products.
    """
    rank, outputs = a.shape[2], b.shape[3]
    middle = np.empty(rank, np.float32)
    for s in range(segments.shape[0]):
        start, stop, slot = segments[s]
        a_slot, b_slot = a[slot, 0], b[slot, 0]
        for row in range(start, stop):
            x_row, y_row = x[row], y[row, offset : offset + outputs]
            for k in range(rank):
                total = np.float32(0)
                for i in range(a_slot.shape[1]):
                    total += a_slot[k, i] * x_row[i]
                middle[k] = total * scale
            for k in range(rank):
                weight = middle[k]
                if weight != 0:
                    for o in range(b_slot.shape[1]):
                        y_row[o] += weight * b_slot[k, o]
