"""What a deployment can hold, what its calls take and cost, and what to be warned of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from service.engine.hardware import GIB
from service.engine.launch import slot_rank
from service.errors import ConfigurationError
from service.planning.deployment import Deployment, Memory
from service.planning.waiting import load_of
from service.planning.ways import MAX_BUSY, MAX_TURNED_AWAY, Way, let_in_of, ways_of
from service.planning.work import Work, work_of
from service.prompt.format import PREFIX_MULTIPLE


@dataclass(frozen=True, slots=True)
class Length:
    """Conversations of one length. `prefix_tokens`: what is computed of them: cut to the context, filled to a block;
    `new_tokens`: what a fan-out computes; `held`: how many fit into KV between their calls; `at_once`: how many
    fan-outs are computed at once at most: those that are let in and that KV has room for.
    """

    tokens: int
    prefix_tokens: int
    new_tokens: int
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
        warnings=(
            *_adapter_warnings(deployment),
            *_memory_warnings(deployment, memory, lengths),
            *_load_warnings(deployment, lengths),
        ),
    )


def _length(deployment: Deployment, tokens: int, kv_tokens: int) -> Length:
    fan, block = deployment.served.fan, 16 if deployment.machine.gpu else 32
    prefix = min(math.ceil(tokens / PREFIX_MULTIPLE) * PREFIX_MULTIPLE, deployment.max_prefix_tokens)
    tail_blocks = math.ceil(deployment.tail_tokens / block) * block
    new_tokens = fan.readings * prefix + fan.size * deployment.tail_tokens
    let_in = let_in_of(new_tokens, deployment.max_tokens_in_flight)
    return Length(
        tokens=tokens,
        prefix_tokens=prefix,
        new_tokens=new_tokens,
        held=kv_tokens // (fan.readings * prefix),
        at_once=min(let_in, kv_tokens // (fan.readings * prefix + fan.size * tail_blocks)),
        one=work_of(deployment, fan.one, prefix),
        fan_out=work_of(deployment, fan, prefix),
        ways=ways_of(deployment, prefix, let_in),
    )


def _adapter_warnings(deployment: Deployment) -> Iterator[str]:
    ranks, slots, largest = deployment.served.ranks, deployment.slot_count, deployment.slot_rank
    if slots < len(ranks):
        yield (
            f"{len(ranks)} adapters share {slots} slots: those in use push each other out (thrash), and every fan-out "
            "waits for it, which the times above leave out: with 16 slots on two cores a repeated fan-out took 68 ms "
            "for 16 classifiers, 176 for 17 and 529 for 64 (docs/performance.md); leave FANTAIL_SLOTS unset or set it "
            f"to {len(ranks)} or more"
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


def _load_warnings(deployment: Deployment, lengths: Sequence[Length]) -> Iterator[str]:
    """Where the bound on tokens in flight, and not the work, decides how many machines there are."""
    rate, bound = deployment.calls_per_s, deployment.max_tokens_in_flight
    for each in lengths:
        busy = math.ceil(rate * each.fan_out.seconds / MAX_BUSY)
        offered, let_in = rate * each.fan_out.seconds / busy, each.ways[0].let_in or 1
        turned_away = load_of(offered, let_in).turned_away
        if turned_away > MAX_TURNED_AWAY:
            enough = next(n for n in itertools.count(let_in) if load_of(offered, n).turned_away <= MAX_TURNED_AWAY)
            larger = next(n for n in itertools.count(bound, 512) if let_in_of(each.new_tokens, n) >= enough)
            yield (
                f"{bound:,} tokens in flight let in {let_in} of the fan-outs over {each.prefix_tokens:,} tokens at a "
                f"time: {turned_away:.0%} would be turned away by {_machines(busy)}, enough for the work alone, "
                f"so that {_machines(each.ways[0].machines)} are planned; set FANTAIL_MAX_TOKENS_IN_FLIGHT to {larger} "
                f"and {_machines(busy)} will do, where those who are let in wait longer"
            )


def _machines(count: int) -> str:
    return f"{count:,} machine{'' if count == 1 else 's'}"
