"""Operations and bytes of answering classifiers about one conversation, and the time that a machine takes for them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from service.planning.classifiers import Fan
from service.planning.deployment import Deployment


@dataclass(frozen=True, slots=True)
class Work:
    """Operations by part (a multiplication and an addition are two), the bytes that memory has to deliver for them, the
    seconds of arithmetic and of memory, and those of all.
    """

    prefix: int
    tails: int
    adapters: int
    attention: int
    head: int
    memory_bytes: int
    arithmetic_s: float
    memory_s: float
    seconds: float


def work_of(deployment: Deployment, fan: Fan, prefix_tokens: int) -> Work:
    """What a fan over a conversation that nobody has seen before takes.

    Each step reads all weights once, each adapter is read once, and each tail reads the KV of its prefix. Arithmetic or
    memory counts, whichever takes longer (the roofline), of the base and of the adapters apart: these have kernels of
    their own, so that reading them is not hidden behind the base's arithmetic. `call_s` and `classifier_s` are added.
    """
    shape, machine, tail_tokens = deployment.shape, deployment.machine, deployment.tail_tokens
    read, tails = fan.readings * prefix_tokens, fan.size * tail_tokens
    adapter_rows = fan.activated * tail_tokens + fan.plain * (prefix_tokens + tail_tokens)
    pairs = fan.readings * prefix_tokens * (prefix_tokens + 1) // 2  # a token sees itself and those before it
    pairs += fan.size * (tail_tokens * prefix_tokens + tail_tokens * (tail_tokens + 1) // 2)
    parts = (
        2 * shape.linear_parameters * read,
        2 * shape.linear_parameters * tails,
        2 * deployment.slot_parameters * adapter_rows,
        4 * shape.layers * shape.heads * shape.head_numbers * pairs,
        2 * shape.head_parameters * fan.size,
    )
    steps = math.ceil((read + tails) / deployment.step_tokens)
    weights = (shape.linear_parameters + shape.head_parameters) * deployment.number_bytes
    adapters = (fan.activated + fan.plain) * deployment.slot_parameters * deployment.adapter_bytes
    kv = (read + tails + fan.size * prefix_tokens) * deployment.kv_token_bytes
    memory_bytes = steps * weights + adapters + kv
    arithmetic_s, memory_s = sum(parts) / machine.operations_per_s, memory_bytes / machine.memory_bytes_per_s
    adapter_times = parts[2] / machine.operations_per_s, adapters / machine.memory_bytes_per_s
    base_times = arithmetic_s - adapter_times[0], memory_s - adapter_times[1]
    seconds = machine.call_s + fan.size * machine.classifier_s + max(base_times) + max(adapter_times)
    return Work(*parts, memory_bytes, arithmetic_s, memory_s, seconds)
