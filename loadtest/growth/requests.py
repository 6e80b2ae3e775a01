"""What a request costs: over its tokens, its classifiers, the turns of its conversation, and the calls beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from loadtest.contestants import CALL_SECONDS, timed, timed_fan_out, whole
from loadtest.conversations import conversation, with_next_turn
from loadtest.growth.curve import Curve, spread
from loadtest.growth.places import classifiers, many_classifiers, seconds_of, serving

CONVERSATION_TOKENS = 1000
TURNS = 20
MOST_CLASSIFIERS = 64
COUNTS = (1, 2, 4, 8, *(16, 17, 17, 16) * 2, 24, 32, 48, MOST_CLASSIFIERS)
"""Of classifiers, in a round. Each 16 has its 17 beside it, before it as often as after it, so that their difference is
not that of a machine which is slower at one time than at another."""


async def per_token(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
    async with serving() as client:
        name = (await classifiers(client))[0]
        for number in range(rounds):
            for tokens in (100, 200, 320, 500, 1000, 1500, 2000):
                for series, names in (("one classification", [name]), ("fan-out of 16", [])):
                    turns = conversation(tokens, f"{tokens} {number} {series}")
                    curve.add(series, tokens, (await timed_fan_out(client, turns, names))[0])
                advance()


async def per_classifier(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
    with many_classifiers(MOST_CLASSIFIERS) as folder:
        async with serving(FANTAIL_CLASSIFIERS=str(folder)) as client:
            names = await classifiers(client)
            for number in range(rounds):
                for place, count in enumerate(COUNTS):
                    turns = conversation(CONVERSATION_TOKENS, f"{place} {number}")
                    curve.add("fan-out", count, (await timed_fan_out(client, turns, names[:count]))[0])
                    advance()
    note_classifiers(curve)


def note_classifiers(curve: Curve) -> None:
    """What one more classifier costs: after the sixteenth, pair by pair; by the slope; and many of them."""
    medians, taken = curve.medians("fan-out"), curve.values["fan-out"]
    one, most = medians[1], medians[MOST_CLASSIFIERS]
    more = [100 * (after - before) / one for before, after in zip(taken[16], taken[17], strict=True)]
    curve.notes.append(f"the 17th classifier costs {spread(more)} % of one classification")
    slope = curve.line("fan-out")[1]
    curve.notes.append(f"one more classifier costs {slope / one:.2%} of one classification by the slope")
    curve.notes.append(f"{MOST_CLASSIFIERS} classifiers cost {most / one:.2f} classifications")


async def per_turn(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
    """A live conversation, and the same number of tokens scored anew: another conversation of the same shape."""
    async with serving() as client:
        for number in range(rounds):
            anew, told = conversation(40, f"anew {number}"), conversation(40, f"told {number}")
            async with client.follow(timeout=CALL_SECONDS) as live:
                await live.tell(told, timeout=CALL_SECONDS)
                for turn in range(2, TURNS + 1):
                    longer = with_next_turn(told, f"{number} {turn}")
                    seconds, reply = await timed(live.tell(longer[len(told) :], timeout=CALL_SECONDS))
                    whole(reply)
                    curve.add("Follow", turn, seconds)
                    told = longer
                    anew = conversation(sum(len(text.split()) + 6 for _, text in told), f"anew {number} {turn}")
                    curve.add("anew", turn, (await timed_fan_out(client, anew))[0])
                    advance()
    ratio = curve.medians("Follow")[TURNS] / curve.medians("anew")[TURNS]
    curve.notes.append(f"turn {TURNS} costs {ratio:.2f} of scoring the conversation anew")


async def per_call(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
    """Cold fan-outs at once: when the last of them has its answer. Admission must not turn any of them away."""
    async with serving(FANTAIL_MAX_TOKENS_IN_FLIGHT="1000000") as client:
        for number in range(rounds):
            for count in (1, 2, 4, 8, 16):
                asked = [conversation(320, f"{count} {number} {each}") for each in range(count)]
                calls = asyncio.gather(*(timed_fan_out(client, turns) for turns in asked))
                curve.add("all of them", count, await seconds_of(calls))
                advance()
    curve.notes.append(f"{1 / curve.line('all of them')[1]:.2f} fan-outs a second at the slope")
