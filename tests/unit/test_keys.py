"""API keys: what a file of them may hold, which presented key is found, and how the file is rotated."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service import keys
from service.errors import ConfigurationError
from service.keys import KEY_BYTES, LOOK_SECONDS, Key, KeyRing, load_keys, new_key
from tests.clock import HandTurned, hand_turned
from tests.support import ABSENT, changed

OURS, OTHER = "key-of-support-4f1c", "key-of-billing-77aa"
NOTHING = hashlib.sha256(b"").hexdigest()
Write = Callable[..., Path]


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def entry(key: str = OURS, **values: Any) -> str:
    """An entry of the file with these changes; `ABSENT` leaves a value out."""
    plain = {"name": "support", "sha256": sha256(key), "scopes": ["classify"]}
    lines = [f"{name} = {as_toml(value)}" for name, value in changed(plain, values).items()]
    return "\n".join(["[[key]]", *lines, ""])


def as_toml(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str | bool | list) else str(value)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandTurned:
    return hand_turned(monkeypatch, "service.keys")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Replaces the file of keys by one with these entries, as an operator's tools do."""

    def replaced(*entries: str) -> Path:
        (tmp_path / "new.toml").write_text("\n".join(entries))
        return (tmp_path / "new.toml").replace(tmp_path / "keys.toml")

    return replaced


def problems(path: Path) -> list[str]:
    """What the refusal of a file says is wrong with it."""
    with pytest.raises(ConfigurationError) as refusal:
        load_keys(path)
    message = refusal.value.message.removeprefix(f"FANTAIL_KEYS: {path}: ")
    message, known, names = message.partition("; known keys of an entry: ")
    assert (known, names.split(", ")) == ("; known keys of an entry: ", list(Key.model_fields))
    return message.split("; ")


def test_an_entry_is_read_with_everything_it_may_say(write: Write) -> None:
    more = {"calls_per_second": 2.5, "burst": 7, "expires": datetime(2027, 6, 30, tzinfo=UTC), "isolated": True}
    (key,) = load_keys(write(entry(scopes=["classify", "admin"], **more)))
    assert (key.name, key.sha256, key.scopes) == ("support", sha256(OURS), {"classify", "admin"})
    assert (key.calls_per_second, key.burst, key.expires, key.isolated) == (2.5, 7, more["expires"], True)


def test_an_entry_needs_no_more_than_name_hash_and_scopes(write: Write) -> None:
    (key,) = load_keys(write(entry()))
    assert (key.calls_per_second, key.burst, key.expires, key.isolated) == (None, None, None, False)


MALFORMED = {
    "no name": ({"name": ABSENT}, "name: Field required"),
    "empty name": ({"name": ""}, "name: String should match pattern '^[A-Za-z0-9._-]{1,64}$'"),
    "a name of 65": ({"name": "x" * 65}, "name: String should match pattern '^[A-Za-z0-9._-]{1,64}$'"),
    "a name of two words": ({"name": "two words"}, "name: String should match pattern '^[A-Za-z0-9._-]{1,64}$'"),
    "no hash": ({"sha256": ABSENT}, "sha256: Field required"),
    "the key itself": ({"sha256": OURS}, "sha256: String should match pattern '^[0-9a-f]{64}$'"),
    "a hash of 63": ({"sha256": "a" * 63}, "sha256: String should match pattern '^[0-9a-f]{64}$'"),
    "a hash of 65": ({"sha256": "a" * 65}, "sha256: String should match pattern '^[0-9a-f]{64}$'"),
    "a hash in capitals": ({"sha256": "A" * 64}, "sha256: String should match pattern '^[0-9a-f]{64}$'"),
    "the hash of nothing": (
        {"sha256": NOTHING}, "sha256: is the hash of nothing, which is what a call without key presents",
    ),
    "no scopes": ({"scopes": ABSENT}, "scopes: Field required"),
    "empty scopes": ({"scopes": []}, "scopes: Frozenset should have at least 1 item after validation, not 0"),
    "an unknown scope": ({"scopes": ["classify", "root"]}, "scopes.1: Input should be 'classify' or 'admin'"),
    "a scope that is no list": ({"scopes": "classify"}, "scopes: Input should be a valid frozenset"),
    "a rate of 0": ({"calls_per_second": 0}, "calls_per_second: Input should be greater than 0"),
    "an endless rate": ({"calls_per_second": float("inf")}, "calls_per_second: Input should be a finite number"),
    "a rate that is none": ({"calls_per_second": float("nan")}, "calls_per_second: Input should be a finite number"),
    "a rate in words": (
        {"calls_per_second": "many"},
        "calls_per_second: Input should be a valid number, unable to parse string as a number",
    ),
    "a burst of 0": ({"calls_per_second": 1, "burst": 0}, "burst: Input should be greater than or equal to 1"),
    "half a call": (
        {"calls_per_second": 1, "burst": 1.5},
        "burst: Input should be a valid integer, got a number with a fractional part",
    ),
    "a burst without a rate": ({"burst": 5}, "burst limits nothing without calls_per_second"),
    "a time without zone": (
        {"expires": datetime(2027, 6, 30)}, "expires: Input should have timezone info",
    ),
    "a time in words": (
        {"expires": "soon"}, "expires: Input should be a valid datetime or date, input is too short",
    ),
    "isolated by half": (
        {"isolated": "somewhat"}, "isolated: Input should be a valid boolean, unable to interpret input",
    ),
    "an unknown key": ({"scope": "classify"}, "scope: unknown key"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "problem"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_entry_is_refused_with_its_place_and_the_known_keys(
    write: Write, changes: dict[str, Any], problem: str
) -> None:
    place = "key.1: " if problem.startswith("burst limits") else "key.1."
    assert problems(write(entry(OTHER), entry(**changes))) == [f"{place}{problem}"]


@pytest.mark.parametrize("name", ["x", "x" * 64, "A-z_0.9"])
def test_a_name_may_be_up_to_64_plain_characters(write: Write, name: str) -> None:
    assert [key.name for key in load_keys(write(entry(name=name)))] == [name]


WHOLE = {
    "no entry": ("", "key: Field required"),
    "an empty list": ("key = []", "key: List should have at least 1 item after validation, not 0"),
    "one table": (entry().replace("[[key]]", "[key]"), "key: Input should be a valid list"),
    "an unknown table": (f"{entry()}[other]", "other: unknown key"),
    "a hash twice": (
        entry() + entry(name="b"),
        "two entries have the same sha256: say it all in one",
    ),
}


@pytest.mark.parametrize(("text", "problem"), WHOLE.values(), ids=WHOLE)
def test_a_file_that_is_wrong_as_a_whole_is_refused(write: Write, text: str, problem: str) -> None:
    assert "; ".join(problems(write(text))) == problem


def test_every_problem_of_a_file_is_told_at_once(write: Write) -> None:
    found = problems(write(entry(name="", sha256="x"), entry(OTHER, scopes=[], burst=0, colour="red")))
    assert [problem.split(":")[0] for problem in found] == [
        "key.0.name", "key.0.sha256", "key.1.scopes", "key.1.burst", "key.1.colour",
    ]  # fmt: skip


UNREADABLE = {
    "missing": (lambda path: None, "cannot be read: FileNotFoundError"),
    "a folder": (lambda path: path.mkdir(), "cannot be read: IsADirectoryError"),
    "half a line": (lambda path: path.write_text('[[key]]\nname = "supp'), "is not valid TOML"),
    "not UTF-8": (lambda path: path.write_bytes(b'a = "\xff"'), "is not valid TOML"),
}


@pytest.mark.parametrize(("make", "problem"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_cannot_be_read_is_refused_by_its_setting(
    tmp_path: Path, make: Callable[[Path], object], problem: str
) -> None:
    make(path := tmp_path / "keys.toml")
    with pytest.raises(ConfigurationError) as refusal:
        KeyRing(path)
    assert refusal.value.message == f"FANTAIL_KEYS: {path} {problem}"


@pytest.mark.parametrize(("presented", "name"), [(OURS, "support"), (OTHER, "billing")])
def test_a_known_key_is_found_among_others(write: Write, presented: str, name: str) -> None:
    found = KeyRing(write(entry(), entry(OTHER, name="billing"))).find(presented)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    "presented", ["", " ", "unknown", OURS[:-1], f"{OURS} ", OURS.upper(), sha256(OURS), "support", "key-🙂"]
)
def test_nothing_else_is_found(write: Write, presented: str) -> None:
    assert KeyRing(write(entry())).find(presented) is None


@pytest.mark.parametrize(("left_s", "found"), [(-1, False), (0, False), (1, True)], ids=["over", "now", "to come"])
def test_a_key_is_found_until_it_expires(
    write: Write, monkeypatch: pytest.MonkeyPatch, left_s: int, found: bool
) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2027, 6, 30, tzinfo=tz)

    monkeypatch.setattr(keys, "datetime", Stopped)
    path = write(entry(expires=Stopped.now(UTC) + timedelta(seconds=left_s)))
    assert (KeyRing(path).find(OURS) is not None) == found


@pytest.mark.parametrize("presented", [OURS, OTHER, "unknown"], ids=["the first", "the last", "none"])
def test_the_presented_key_is_compared_with_every_entry_in_constant_time(
    write: Write, monkeypatch: pytest.MonkeyPatch, presented: str
) -> None:
    compared, compare = [], hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append({a, b}) or compare(a, b))
    KeyRing(write(entry(), entry("second"), entry(OTHER))).find(presented)
    assert compared == [{sha256(each), sha256(presented)} for each in (OURS, "second", OTHER)]


def test_two_keys_of_one_name_are_both_known(write: Write) -> None:
    ring = KeyRing(write(entry("old"), entry("new")))
    assert [getattr(ring.find(each), "name", None) for each in ("old", "new")] == ["support", "support"]


@pytest.mark.parametrize(
    ("waited_s", "seen"), [(LOOK_SECONDS / 2, False), (LOOK_SECONDS, True), (LOOK_SECONDS * 2, True)], ids=str
)
def test_a_file_that_changed_is_read_again_but_not_looked_at_all_the_time(
    write: Write, clock: HandTurned, waited_s: float, seen: bool
) -> None:
    ring = KeyRing(write(entry("old")))
    write(entry("new"))
    clock.now += waited_s
    assert [ring.find(each) is not None for each in ("old", "new")] == [not seen, seen]


@pytest.mark.parametrize("in_place", [True, False], ids=["written over", "replaced"])
def test_a_change_that_keeps_size_and_age_is_seen(write: Write, clock: HandTurned, in_place: bool) -> None:
    path = write(entry("old"))
    os.utime(path, (1, 1))
    ring = KeyRing(path)
    path.write_text(entry("new")) if in_place else write(entry("new"))
    os.utime(path, (1, 1))
    clock.now += LOOK_SECONDS
    assert [ring.find(each) is not None for each in ("old", "new")] == [False, True]


WENT_WRONG = {
    "gone": lambda path: path.unlink(),
    "half written": lambda path: path.write_text(entry(OTHER)[:40]),
    "empty": lambda path: path.write_text(""),
    "malformed": lambda path: path.write_text(entry(OTHER) + entry(name="")),
}


@pytest.mark.parametrize("spoil", WENT_WRONG.values(), ids=WENT_WRONG)
def test_a_file_that_went_wrong_leaves_the_keys_as_they_were_and_is_told_once(
    write: Write, clock: HandTurned, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], object]
) -> None:
    ring = KeyRing(path := write(entry()))
    spoil(path)
    for _ in range(3):
        clock.now += LOOK_SECONDS
        assert (ring.find(OURS) is not None, ring.find(OTHER)) == (True, None)
    (record,) = caplog.records
    assert (record.levelno, str(path) in record.getMessage()) == (logging.ERROR, True)


@pytest.mark.parametrize("spoil", WENT_WRONG.values(), ids=WENT_WRONG)
def test_a_file_that_is_right_again_is_read(write: Write, clock: HandTurned, spoil: Callable[[Path], object]) -> None:
    ring = KeyRing(path := write(entry()))
    spoil(path)
    clock.now += LOOK_SECONDS
    ring.find(OURS)
    write(entry(OTHER))
    clock.now += LOOK_SECONDS
    assert [ring.find(each) is not None for each in (OURS, OTHER)] == [False, True]


def test_a_new_key_is_found_by_its_hash_and_beyond_guessing(write: Write) -> None:
    (made, digest), (another, _) = new_key(), new_key()
    assert digest == sha256(made)
    assert made != another
    assert len(made) >= KEY_BYTES * 8 / 6
    assert KeyRing(write(entry(sha256=digest))).find(made) is not None


def test_no_key_shows_in_a_repr_a_log_or_an_error(
    write: Write, clock: HandTurned, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ring = KeyRing(path := write(entry()))
    write(entry(sha256=OURS))
    clock.now += LOOK_SECONDS
    found = ring.find(OURS)
    ring.find(OTHER)
    with pytest.raises(ConfigurationError) as refusal:
        load_keys(path)
    shown = f"{ring!r} {vars(ring)} {found!r} {caplog.text} {traceback.format_exception(refusal.value)}"
    assert sha256(OURS) in shown
    assert [key for key in (OURS, OTHER) if key in shown] == []
