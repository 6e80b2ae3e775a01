"""What a deployment can hold and what its answers cost beside other ways to serve them, with warnings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from service.engine.hardware import GIB
from service.engine.launch import slot_rank
from service.errors import ConfigurationError
from service.planning.classifiers import Fan
from service.planning.deployment import Deployment, Memory
from service.planning.work import Work, work_of
from service.prompt.format import PREFIX_MULTIPLE

MAX_BUSY = 0.7
"""Share of its time that a machine is planned to compute; nearer to 1, waiting grows without bound."""

OURS, SEPARATE, UNSHARED = "Fantail", "separate servers", "multi-LoRA, unshared"
"""One reading for all; a merged model and a machine for each classifier; one server that reads once per adapter."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to answer the traffic. `machines`: enough that none is busy beyond `MAX_BUSY`; `latency_s`: mean of a
    fan-out, waiting included; `under_way`: fan-outs at once on average; `cost`: of a million classifications.
    """

    name: str
    machines: int
    busy: float
    latency_s: float
    under_way: float
    cost: float


@dataclass(frozen=True, slots=True)
class Length:
    """Conversations of one length. `prefix_tokens`: what is computed of them: cut to the context, filled to a block;
    `held`: how many fit into KV between their calls; `at_once`: how many fan-outs do.
    """

    tokens: int
    prefix_tokens: int
    held: int
    at_once: int
    one: Work
    fan_out: Work
    ways: tuple[Way, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """`warnings`: a sentence each, with what to do."""

    deployment: Deployment
    memory: Memory
    kv_tokens: int
    slot_count: int
    slot_rank: int
    slot_bytes: int
    lengths: tuple[Length, ...]
    warnings: tuple[str, ...]


def make_plan(deployment: Deployment, tokens: Sequence[int]) -> Plan:
    """The plan for conversations of these lengths in tokens. Raises ConfigurationError for a context without room."""
    if deployment.max_prefix_tokens < PREFIX_MULTIPLE:
        raise ConfigurationError(f"a context of {deployment.context_tokens} tokens leaves no room for a conversation")
    memory = deployment.memory
    kv_tokens = memory.kv // deployment.kv_token_bytes
    lengths = tuple(_length(deployment, each, kv_tokens) for each in tokens)
    return Plan(
        deployment=deployment,
        memory=memory,
        kv_tokens=kv_tokens,
        slot_count=deployment.slot_count,
        slot_rank=deployment.slot_rank,
        slot_bytes=deployment.slot_parameters * deployment.adapter_bytes,
        lengths=lengths,
        warnings=(*_adapter_warnings(deployment), *_memory_warnings(deployment, memory, lengths)),
    )


def _length(deployment: Deployment, tokens: int, kv_tokens: int) -> Length:
    fan, block = deployment.served.fan, 16 if deployment.machine.gpu else 32
    prefix = min(math.ceil(tokens / PREFIX_MULTIPLE) * PREFIX_MULTIPLE, deployment.max_prefix_tokens)
    tail_blocks = math.ceil(deployment.tail_tokens / block) * block
    fan_out = work_of(deployment, fan, prefix)
    merged, unshared = work_of(deployment, Fan(bare=1), prefix), work_of(deployment, Fan(plain=fan.size), prefix)
    return Length(
        tokens=tokens,
        prefix_tokens=prefix,
        held=kv_tokens // (fan.readings * prefix),
        at_once=kv_tokens // (fan.readings * prefix + fan.size * tail_blocks),
        one=work_of(deployment, fan.one, prefix),
        fan_out=fan_out,
        ways=(
            _way(deployment, OURS, fan_out.seconds, 1),
            _way(deployment, SEPARATE, merged.seconds, fan.size),
            _way(deployment, UNSHARED, unshared.seconds, 1),
        ),
    )


def _way(deployment: Deployment, name: str, seconds: float, servers: int) -> Way:
    """`seconds`: one server's for its part of a fan-out; `servers`: that a fan-out needs, each on its own machine.

    Waiting is that of calls which come at random and take equally long (M/D/1); under way follows by Little's law.
    """
    rate = deployment.calls_per_s
    copies = max(1, math.ceil(rate * seconds / MAX_BUSY))
    busy = rate * seconds / copies
    latency = seconds * (1 + busy / (2 * (1 - busy)))
    price_per_s = servers * copies * deployment.machine.price_per_hour / 3600
    return Way(
        name, servers * copies, busy, latency, rate * latency, 1e6 * price_per_s / (rate * deployment.served.fan.size)
    )


def _adapter_warnings(deployment: Deployment) -> Iterator[str]:
    ranks, slots, largest = deployment.served.ranks, deployment.slot_count, deployment.slot_rank
    if slots < len(ranks):
        yield (
            f"{len(ranks)} adapters share {slots} slots: those in use push each other out (thrash), and every fan-out "
            f"waits for it; leave FANTAIL_SLOTS unset or set it to {len(ranks)} or more"
        )
    small = [rank for rank in ranks if slot_rank(rank) < largest]
    if small:
        needed = slot_rank(max(small))
        slot_bytes = deployment.slot_parameters * deployment.adapter_bytes
        empty = len(small) * slot_bytes * (largest - needed) / largest
        yield (
            f"ranks are uneven: every slot has room for rank {largest}, and {len(small)} of {len(ranks)} adapters "
            f"need at most {needed}; {empty / GIB:.2f} GiB stay empty and are multiplied all the same; bring the "
            "largest rank down (an adapter's, or FANTAIL_MAX_RANK), or serve that adapter apart"
        )


def _memory_warnings(deployment: Deployment, memory: Memory, lengths: Sequence[Length]) -> Iterator[str]:
    if not memory.kv:
        yield "weights, slots and a step leave no room for KV; take more memory, a smaller dtype or lower ranks"
    elif not deployment.machine.gpu and memory.kv < int(deployment.wanted_kv_bytes):
        yield (
            f"only {memory.kv / GIB:.2f} GiB are left for KV, and the server takes "
            f"{deployment.wanted_kv_bytes / GIB:.2f}; take more memory, or set FANTAIL_KV_GIB to what is left"
        )
    for each in lengths:
        under_way = max(1.0, each.ways[0].under_way / each.ways[0].machines)
        if each.tokens > deployment.max_prefix_tokens:
            yield (
                f"conversations of {each.tokens:,} tokens do not fit a context of {deployment.context_tokens:,}: "
                f"their oldest turns are left out, down to {deployment.max_prefix_tokens:,} tokens"
            )
        if memory.kv and each.at_once < under_way:
            yield (
                f"KV has room for {each.at_once} fan-outs over {each.prefix_tokens:,} tokens at once, where "
                f"{under_way:.1f} are under way; take more memory for KV, or more machines"
            )
