"""Operations against a slow, obvious count, times against the roofline and against what was measured here."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from service.cli.plan import DEFAULTS
from service.planning.classifiers import Fan
from service.planning.deployment import Deployment
from service.planning.work import Work, work_of
from tests.unit.planned import CPU, GPU, LLAMA_8B, MISTRAL_7B, QWEN3_06B, SMOLLM2_135M, deployment

MEASURED = {128: (0.126, 0.175), 320: (0.238, 0.286), 1024: (0.678, 0.737), 2016: (1.864, 1.967)}
"""Prefix tokens, with filler, to seconds of one classification and of a fan-out of 16: `python -m loadtest.limit`, two
cores of an AMD EPYC (Zen 5), 2026-11-25, of conversations of 100, 320, 1,000 and 2,000 tokens. The machine's rate and
its time per call are fitted to these."""

GROWN = {1: 0.668, 16: 0.765, 32: 0.816, 64: 1.119}
"""Classifiers to seconds of a fan-out over 1,000 tokens: `python -m loadtest.growth classifiers` on the same machine
and day. Nothing is fitted to these."""


def measured_machine() -> Deployment:
    """SmolLM2-135M with the sixteen shipped adapters' rank, on the machine that the command assumes."""
    usual = DEFAULTS["cpu"]
    machine = replace(
        CPU,
        operations_per_s=usual["tflops"] * 1e12,
        memory_bytes_per_s=usual["bandwidth"] * 1e9,
        call_s=usual["call-ms"] / 1e3,
        classifier_s=usual["classifier-ms"] / 1e3,
    )
    return deployment(machine=machine, tail_tokens=3)


@pytest.mark.parametrize(("prefix", "seconds"), MEASURED.items(), ids=MEASURED)
def test_times_are_those_that_they_are_fitted_to(prefix: int, seconds: tuple[float, float]) -> None:
    planned = measured_machine()
    one, fan_out = (work_of(planned, Fan(activated=count), prefix).seconds for count in (1, 16))
    assert [one, fan_out] == pytest.approx(seconds, rel=0.15)


@pytest.mark.parametrize(("classifiers", "seconds"), GROWN.items(), ids=str)
def test_times_of_more_classifiers_are_the_measured_ones(classifiers: int, seconds: float) -> None:
    fan = Fan(activated=classifiers)
    assert work_of(measured_machine(), fan, 1024).seconds == pytest.approx(seconds, rel=0.15)


def test_a_published_median_beats_one_reading_of_the_weights_so_it_is_no_reference() -> None:
    card = deployment(MISTRAL_7B, GPU)
    assert work_of(card, Fan(activated=1), 32).memory_s > 0.018


def counted(planned: Deployment, fan: Fan, prefix: int) -> int:
    """Operations token by token: matrices, causal attention, adapters on their rows, the head on each last token."""
    shape, total = planned.shape, 0
    readings = ["bare"] * (1 if fan.activated or fan.bare else 0) + ["plain"] * fan.plain
    tails = ["activated"] * fan.activated + ["bare"] * fan.bare + ["plain"] * fan.plain
    rows = [(who, position) for who in readings for position in range(prefix)]
    rows += [(who, prefix + position) for who in tails for position in range(planned.tail_tokens)]
    for who, position in rows:
        for name, (outputs, inputs) in shape.linears.items():
            total += shape.layers * 2 * outputs * inputs
            if who != "bare" and name in shape.slot_modules(planned.served.modules):
                total += shape.layers * 2 * planned.slot_rank * (outputs + inputs)
        total += shape.layers * shape.heads * (position + 1) * 2 * 2 * shape.head_numbers
    return total + len(tails) * 2 * shape.vocabulary * shape.hidden


def operations(work: Work) -> int:
    return work.prefix + work.tails + work.adapters + work.attention + work.head


@pytest.mark.parametrize("seed", range(12))
def test_operations_are_those_of_a_count_token_by_token(seed: int) -> None:
    rng = random.Random(seed)
    planned = deployment(
        rng.choice([SMOLLM2_135M, QWEN3_06B, MISTRAL_7B]),
        ranks=tuple(rng.choices([1, 4, 16, 64], k=3)),
        modules=tuple(rng.sample(["q_proj", "o_proj", "up_proj", "down_proj"], k=rng.randint(1, 4))),
        tail_tokens=rng.randint(1, 9),
    )
    fan = Fan(rng.randint(1, 3), rng.randint(0, 2), rng.randint(0, 2))
    prefix = 32 * rng.randint(1, 4)
    assert operations(work_of(planned, fan, prefix)) == counted(planned, fan, prefix)


def test_the_slower_of_arithmetic_and_memory_decides() -> None:
    fast = replace(CPU, operations_per_s=1e30, call_s=0.5)
    bound = work_of(deployment(machine=fast), Fan(activated=1), 32)
    assert bound.seconds == pytest.approx(0.5 + bound.memory_s)
    slow = replace(CPU, memory_bytes_per_s=1e30, call_s=0.5)
    bound = work_of(deployment(machine=slow), Fan(activated=1), 32)
    assert bound.seconds == pytest.approx(0.5 + bound.arithmetic_s)


def test_reading_adapters_and_a_request_for_each_are_not_hidden_behind_arithmetic() -> None:
    planned = deployment(machine=replace(CPU, classifier_s=0.25))
    one, two = (work_of(planned, Fan(activated=count), 1024) for count in (1, 2))
    adapters_s = (one.adapters / 1e11, planned.slot_parameters * 4 / 2e10)
    assert adapters_s[0] < adapters_s[1]
    more_arithmetic_s = two.arithmetic_s - one.arithmetic_s - adapters_s[0]
    assert two.seconds - one.seconds == pytest.approx(more_arithmetic_s + adapters_s[1] + 0.25)


def test_a_small_step_costs_one_reading_of_the_weights_and_a_long_one_several() -> None:
    planned = deployment(LLAMA_8B, GPU, ranks=())
    weights = 2 * (planned.shape.parameters - 128256 * 4096)  # the embedding table is looked up, not read
    small, long = (work_of(planned, Fan(bare=1), prefix) for prefix in (32, 4096))
    assert small.memory_bytes == pytest.approx(weights, rel=0.002)
    assert long.memory_bytes == pytest.approx(3 * weights, rel=0.05)  # 4,103 tokens in steps of 2,048


def test_each_further_classifier_reads_the_prefix_and_its_adapter_from_memory() -> None:
    planned = deployment(MISTRAL_7B, GPU, (16,) * 16)
    one, two = (work_of(planned, Fan(activated=count), 320).memory_bytes for count in (1, 2))
    assert two - one == (320 + 7) * 131_072 + 2 * planned.shape.lora_parameters(16, planned.shape.linears)


def test_classifiers_with_a_prompt_of_their_own_do_not_share_a_reading() -> None:
    planned = deployment()
    fans = [Fan(1), Fan(3, prompts=2), Fan(3, prompts=3), Fan(2, 1, 2, prompts=2), Fan(0, 2, 0)]
    prefixes = [work_of(planned, fan, 320).prefix for fan in fans]
    assert [each // prefixes[0] for each in prefixes] == [1, 2, 3, 3, 2]


def test_activated_and_bare_classifiers_share_a_reading_and_plain_ones_do_not() -> None:
    planned = deployment()
    prefixes = [
        work_of(planned, fan, 320).prefix for fan in (Fan(1), Fan(9, 0, 7), Fan(0, 1), Fan(0, 16), Fan(1, 2, 3))
    ]
    assert [each // prefixes[0] for each in prefixes] == [1, 1, 1, 16, 3]
