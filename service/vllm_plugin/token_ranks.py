"""Leaves out the rank of the sampled token: nobody reads it, and it passes once more over all logits of every prompt.

What vLLM counts it with is also the one thing that it compiles for a prompt on a CPU: without a C++ compiler the engine
died at its first request.
"""

from __future__ import annotations

import torch
from vllm.v1.sample import sampler

_NAME = "batched_count_greater_than"


def _no_ranks(logprobs: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
    """Zeros [prompts], whatever `logprobs` [prompts, vocabulary] and `sampled` [prompts, 1] are."""
    return torch.zeros(logprobs.shape[0], dtype=torch.int64, device=logprobs.device)


def apply() -> None:
    setattr(sampler, _NAME, _no_ranks)


def inactive_because() -> str | None:
    """Ask for the rank of the least likely of two tokens."""
    rank = getattr(sampler, _NAME)(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0]]))
    return None if rank.tolist() == [0] else "ranks of tokens are counted"
