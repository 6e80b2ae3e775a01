"""No peer but a measure: the rate at which this machine multiplies large float32 matrices on all cores.

2,048 × 2,048 × 2,048, by torch's own library (MKL) and by the oneDNN that vLLM brings; the best of some repetitions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from vllm import _custom_ops as ops

from loadtest.baselines.worker import Baseline, run_worker

SIZE = 2048
REPETITIONS = 5


def start(model: Path, classifiers: Path) -> Baseline:
    x, weight = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    packed = ops.create_onednn_mm(weight.t(), SIZE)

    @torch.inference_mode()
    def measure(turns: Sequence[Sequence[str]]) -> list[list[float]]:
        seconds = []
        for _ in range(REPETITIONS):
            for multiply in (lambda: torch.nn.functional.linear(x, weight), lambda: ops.onednn_mm(packed, x, None)):
                began = time.perf_counter()
                multiply()
                seconds.append(time.perf_counter() - began)
        return [[2 * SIZE**3 / min(seconds)]]

    return Baseline(measure)


if __name__ == "__main__":
    run_worker(start)
