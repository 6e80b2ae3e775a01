"""Each warning appears where there is reason for it, and only then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.planning.plan import make_plan
from tests.unit.planned import CPU, GPU, LLAMA_8B, MISTRAL_7B, deployment

GIB = 1 << 30

FAN_OUT_GIB = (320 + 16 * 32) * 46_080 / GIB
"""KV of one fan-out over 320 tokens: the prefix, and a block for each tail."""


def warnings(tokens: int = 320, **changes: Any) -> tuple[str, ...]:
    return make_plan(deployment(**changes), [tokens]).warnings


SOUND: dict[str, dict[str, Any]] = {
    "the shipped classifiers": {},
    "without adapters": {"ranks": ()},
    "one adapter": {"ranks": (64,)},
    "ranks that need the same slot": {"ranks": (2, 4, 8)},
    "just as many slots as adapters": {"slots": 16},
    "spare adapters without a slot": {"slots": 16, "spare_adapters": 4},
    "a conversation that just fits": {"tokens": 8096},
    "KV for just one fan-out": {"kv_gib": FAN_OUT_GIB},
    "a 7B on 24 GB": {"config": MISTRAL_7B, "machine": GPU, "tokens": 4000, "ranks": (16,) * 16},
    "traffic for several machines": {"calls_per_s": 100.0},
    "calls so rare that they seldom meet": {"tokens": 2000, "max_tokens_in_flight": 1536, "calls_per_s": 0.008},
    "a bound that lets in enough": {"tokens": 2000, "max_tokens_in_flight": 21_300},
}

UNSOUND: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a slot too few": ({"slots": 15}, ("thrash", "share 15 slots", "68 ms", "529 for 64", "16 or more")),
    "one large rank": ({"ranks": (4,) * 15 + (64,)}, ("uneven", "rank 64", "15 of 16", "0.96 GiB")),
    "a large rank that may come": ({"max_rank": 16}, ("uneven", "16 of 16", "FANTAIL_MAX_RANK")),
    "a conversation beyond the context": ({"tokens": 8097}, ("8,097 tokens", "context of 8,192", "8,096")),
    "weights that fill the GPU": ({"config": LLAMA_8B, "machine": GPU, "dtype": "float32"}, ("no room for KV",)),
    "weights that fill main memory": ({"config": LLAMA_8B}, ("no room for KV",)),
    "less main memory than KV wants": ({"kv_gib": 15.0}, ("left for KV", "takes 15.00", "FANTAIL_KV_GIB")),
    "KV for no fan-out": ({"kv_gib": 0.999 * FAN_OUT_GIB}, ("room for 0 fan-outs over 320", "1.0 are under way")),
    "a bound that lets in one at a time": (
        {"tokens": 2000, "max_tokens_in_flight": 1536},
        (
            "1,536 tokens in flight let in 1",
            "2,016 tokens",
            "1 machine,",
            "FANTAIL_MAX_TOKENS_IN_FLIGHT to",
        ),
    ),
    "KV for fewer than come": ({"kv_gib": 0.05, "calls_per_s": 0.6}, ("room for 1 fan-outs", "are under way")),
}


@pytest.mark.parametrize("changes", SOUND.values(), ids=SOUND)
def test_what_is_sound_is_not_warned_of(changes: dict[str, Any]) -> None:
    assert warnings(**changes) == ()


@pytest.mark.parametrize(("changes", "named"), UNSOUND.values(), ids=UNSOUND)
def test_what_is_unsound_is_warned_of_once_and_nothing_else(changes: dict[str, Any], named: tuple[str, ...]) -> None:
    (warning,) = warnings(**changes)
    assert [part for part in named if part not in warning] == []


def test_several_reasons_are_all_told() -> None:
    small = replace(CPU, memory_bytes=2 * GIB)
    assert len(warnings(tokens=9000, ranks=(4, 64), slots=1, machine=small, config=LLAMA_8B)) == 3
    assert len(warnings(tokens=33000, ranks=(4, 64), slots=1, machine=small, config=LLAMA_8B)) == 4
