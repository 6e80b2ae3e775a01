"""Profiles of traffic: what is shipped loads, and what cannot be meant is refused with all that is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtest.__main__ import PROFILES
from loadtest.profile import Length, ProfileError, load_profile
from tests.support import ABSENT
from tests.traffic import profile, profile_toml, write_profile

SHIPPED = sorted(PROFILES.iterdir())


def refusal(folder: Path, **changes: Any) -> str:
    path = write_profile(folder, **changes)
    with pytest.raises(ProfileError) as refused:
        load_profile(path)
    assert str(path) in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_profile_loads_under_its_name(path: Path) -> None:
    assert load_profile(path).name == path.stem


def test_profiles_are_shipped() -> None:
    assert {"fan-out-320", "overload", "short", "support"} <= {path.stem for path in SHIPPED}


def test_a_profile_is_what_its_file_says(tmp_path: Path) -> None:
    wanted = profile(follow_ups=0.25, skew=0.0, lengths=(Length(7, 0.5), Length(1000, 3)))
    path = write_profile(
        tmp_path, follow_ups=0.25, skew=0, lengths=[{"tokens": 7, "weight": 0.5}, {"tokens": 1000, "weight": 3}]
    )
    assert load_profile(path) == wanted


def test_a_key_that_is_left_out_has_its_default(tmp_path: Path) -> None:
    path = write_profile(tmp_path, deadline_s=ABSENT, fan_out=ABSENT, follow_ups=ABSENT)
    assert load_profile(path) == profile()


def test_a_trace_is_given_by_its_file(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_text("0\n1\n")
    loaded = load_profile(write_profile(tmp_path, arrivals="trace", trace=str(trace)))
    assert loaded == replace(profile(), arrivals="trace", trace=str(trace))


def test_an_unknown_key_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    said = refusal(tmp_path, deadline_ms=10)
    assert "unknown keys ['deadline_ms']" in said
    assert "deadline_s" in said.split("known:")[-1]
    assert "name" not in said.split("known:")[-1]


TABLES, SHARE = "lengths are tables of tokens and weight", "is a share from 0 to 1"
LENGTH = "each length has a whole number of tokens, one at least, and a positive weight"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param({"lengths": ABSENT}, TABLES, id="lengths missing"),
        pytest.param({"lengths": 320}, TABLES, id="lengths a number"),
        pytest.param({"lengths": [320]}, TABLES, id="a length that is no table"),
        pytest.param({"lengths": [{"tokens": 320}]}, TABLES, id="a length without weight"),
        pytest.param({"lengths": [{"tokens": 320, "weight": 1, "words": 3}]}, TABLES, id="a length with more"),
        pytest.param({"lengths": []}, LENGTH, id="no lengths"),
        pytest.param({"lengths": [{"tokens": 0, "weight": 1}]}, LENGTH, id="no tokens"),
        pytest.param({"lengths": [{"tokens": 1.5, "weight": 1}]}, LENGTH, id="half a token"),
        pytest.param({"lengths": [{"tokens": "many", "weight": 1}]}, LENGTH, id="tokens in words"),
        pytest.param({"lengths": [{"tokens": 320, "weight": 0}]}, LENGTH, id="no weight"),
        pytest.param({"lengths": [{"tokens": 320, "weight": float("nan")}]}, LENGTH, id="a weight that is no number"),
        pytest.param({"follow_ups": -0.1}, f"follow_ups {SHARE}", id="a share below 0"),
        pytest.param({"fan_out": 1.1}, f"fan_out {SHARE}", id="a share above 1"),
        pytest.param({"fan_out": "all"}, f"fan_out {SHARE}", id="a share in words"),
        pytest.param({"deadline_s": 0}, "deadline_s is above 0", id="no deadline"),
        pytest.param({"steady_s": -1}, "steady_s is above 0", id="a run that is over before"),
        pytest.param({"steady_s": float("inf")}, "steady_s is above 0", id="a run without end"),
        pytest.param({"warm_up_s": -1}, "warm_up_s is not below 0", id="a warm-up that is over before"),
        pytest.param({"skew": -1}, "skew is not below 0", id="a skew the other way"),
        pytest.param({"skew": "much"}, "every other key is a number", id="a skew in words"),
        pytest.param({"deadline_s": "soon"}, "every other key is a number", id="a deadline in words"),
        pytest.param({"arrivals": "bursts"}, "arrivals is one of poisson, constant, trace", id="unknown arrivals"),
        pytest.param({"arrivals": "trace"}, "a trace file is given", id="a trace without its file"),
        pytest.param({"trace": "times"}, "and only then", id="a file without a trace"),
        pytest.param(
            {"arrivals": "trace", "trace": "/nowhere"}, "there is no trace file /nowhere", id="a file is gone"
        ),
        pytest.param({"arrivals": "trace", "trace": 5}, "arrivals and trace are texts", id="a trace that is a number"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in refusal(tmp_path, **changes)


@pytest.mark.parametrize("share", [0, 0.0, 0.5, 1, 1.0], ids=repr)
def test_a_share_may_be_none_or_all(tmp_path: Path, share: float) -> None:
    assert load_profile(write_profile(tmp_path, follow_ups=share)).follow_ups == share


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    said = refusal(tmp_path, follow_ups=2, deadline_s=0, lengths=[])
    assert all(each in said for each in (f"follow_ups {SHARE}", "deadline_s is above 0", LENGTH))


@pytest.mark.parametrize("content", [b"arrivals =", profile_toml().encode() + b"# \xff"], ids=["not TOML", "not UTF-8"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=r"broken\.toml: "):
        load_profile(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"nowhere\.toml: "):
        load_profile(tmp_path / "nowhere.toml")
