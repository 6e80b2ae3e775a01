"""How often a key may be used, and which callers share no KV."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.errors import RateLimitedError
from service.keys import LOOK_SECONDS, Key, KeyRing
from tests.clock import HandTurned, hand_turned

MakeRing = Callable[..., KeyRing]
ENTRY = '[[key]]\nname = "support"\nsha256 = "{}"\nscopes = ["classify"]\n'


def key(name: str = "support", **more: Any) -> Key:
    return Key(name=name, sha256="0" * 64, scopes=frozenset({"classify"}), **more)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandTurned:
    return hand_turned(monkeypatch, "service.keys")


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    (tmp_path / "keys.toml").write_text(ENTRY.format("0" * 64))
    return tmp_path / "keys.toml"


@pytest.fixture
def ring(keys_file: Path, clock: HandTurned) -> KeyRing:
    return KeyRing(keys_file)


def accepted(ring: KeyRing, key: Key, calls: int) -> int:
    """How many of so many calls are accepted."""
    return sum(is_accepted(ring, key) for _ in range(calls))


def is_accepted(ring: KeyRing, key: Key) -> bool:
    try:
        ring.count(key)
    except RateLimitedError:
        return False
    return True


def test_a_key_without_rate_is_never_refused(ring: KeyRing) -> None:
    assert accepted(ring, key(), 10_000) == 10_000


@pytest.mark.parametrize(("calls", "most"), [(4, 4), (5, 5), (6, 5)], ids=["burst-1", "burst", "burst+1"])
def test_no_more_calls_than_the_burst_are_accepted_at_once(ring: KeyRing, calls: int, most: int) -> None:
    assert accepted(ring, key(calls_per_second=2, burst=5), calls) == most


@pytest.mark.parametrize(("rate", "most"), [(0.5, 1), (1, 1), (3, 3), (3.5, 3)], ids=str)
def test_without_a_burst_as_many_are_accepted_at_once_as_in_a_second_and_one_at_least(
    ring: KeyRing, rate: float, most: int
) -> None:
    assert accepted(ring, key(calls_per_second=rate), 10) == most


@pytest.mark.parametrize(
    ("waited_s", "more"), [(0.25, 0), (0.5, 1), (0.75, 1), (1.0, 2), (2.5, 5), (3600.0, 5)], ids=str
)
def test_calls_come_back_with_time_up_to_the_burst(
    ring: KeyRing, clock: HandTurned, waited_s: float, more: int
) -> None:
    limited = key(calls_per_second=2, burst=5)
    accepted(ring, limited, 5)
    clock.now += waited_s
    assert accepted(ring, limited, 10) == more


def test_a_refused_call_costs_nothing(ring: KeyRing, clock: HandTurned) -> None:
    limited = key(calls_per_second=1, burst=1)
    assert accepted(ring, limited, 100) == 1
    clock.now += 1.0
    assert accepted(ring, limited, 100) == 1


@pytest.mark.parametrize(("rate", "waited_s", "delay_s"), [(1, 0.0, 1.0), (1, 0.75, 0.25), (0.25, 1.0, 3.0)])
def test_a_refusal_says_when_the_next_call_is_accepted_and_how_many_may_be_made(
    ring: KeyRing, clock: HandTurned, rate: float, waited_s: float, delay_s: float
) -> None:
    limited = key(calls_per_second=rate, burst=1)
    ring.count(limited)
    clock.now += waited_s
    with pytest.raises(RateLimitedError) as refusal:
        ring.count(limited)
    assert refusal.value.retry_after_s == delay_s
    assert refusal.value.metadata == {"calls_per_second": f"{rate:g}"}
    clock.now += delay_s
    assert is_accepted(ring, limited)


def test_keys_of_one_name_share_their_rate(ring: KeyRing) -> None:
    old, new = (key(calls_per_second=1, burst=4, isolated=isolated) for isolated in (True, False))
    assert [is_accepted(ring, each) for each in (old, new, old, new, old, new)] == [True] * 4 + [False] * 2


def test_callers_of_different_names_have_rates_of_their_own(ring: KeyRing) -> None:
    assert accepted(ring, key("a", calls_per_second=1, burst=2), 5) == 2
    assert accepted(ring, key("b", calls_per_second=1, burst=2), 5) == 2


def test_reading_the_file_again_gives_nobody_new_calls(ring: KeyRing, keys_file: Path, clock: HandTurned) -> None:
    limited = key(calls_per_second=0.25, burst=3)
    assert accepted(ring, limited, 5) == 3
    keys_file.write_text(ENTRY.format(hashlib.sha256(b"new").hexdigest()))
    clock.now += LOOK_SECONDS
    assert ring.find("new") is not None
    assert accepted(ring, limited, 5) == 0


@pytest.mark.parametrize(
    ("isolated", "isolate_all", "salted"),
    [(False, False, False), (True, False, True), (False, True, True), (True, True, True)],
    ids=["nobody", "by the key", "by the server", "by both"],
)
def test_who_is_isolated_has_a_salt_and_nobody_else(
    keys_file: Path, isolated: bool, isolate_all: bool, salted: bool
) -> None:
    assert bool(KeyRing(keys_file, isolate_all).salt(key(isolated=isolated))) == salted


def test_keys_of_one_name_share_their_salt(ring: KeyRing) -> None:
    old, new = (key(isolated=True, calls_per_second=rate) for rate in (None, 1.0))
    assert ring.salt(old) == ring.salt(new)


def test_isolated_callers_have_different_salts(ring: KeyRing) -> None:
    salts = [ring.salt(key(name, isolated=True)) for name in ("a", "b", "ab", "A")]
    assert [a == b for a, b in itertools.combinations(salts, 2)] == [False] * 6


def test_a_salt_cannot_be_told_from_the_callers_name(keys_file: Path) -> None:
    one, another = (KeyRing(keys_file).salt(key(isolated=True)) for _ in range(2))
    assert one != another
