"""Which revision answers which conversation, which are asked in the shadow, and what a change leaves of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from service.domain import Classifier, Label
from service.errors import ClassifierWithheldError, UnknownClassifierError, UnknownRevisionError
from service.registry.registry import Deployment, Registry, pick

KEYS = [f"conversation-{number}" for number in range(20_000)]
OWN, SECOND, THIRD = "1" * 16, "2" * 16, "3" * 16
SHARES: dict[str, dict[str, int]] = {
    "1 and 99": {OWN: 1, SECOND: 99},
    "half": {OWN: 50, SECOND: 50},
    "90 and 10": {SECOND: 90, OWN: 10},
    "three": {OWN: 20, SECOND: 30, THIRD: 50},
}


def revision(name: str, digest: str) -> Classifier:
    labels = (Label("yes", 1), Label("no", 2))
    return Classifier(name, "Decides.", labels, (1, 2), adapter=None, revision=digest, min_label_mass=0.5)


def deployment(shares: Mapping[str, int] | None = None, shadows: frozenset[str] = frozenset()) -> Deployment:
    return Deployment((revision("refund", SECOND), revision("refund", THIRD)), shares or {}, shadows)


@pytest.fixture
def registry() -> Registry:
    """`fraud` as its folder has it, `refund` with two further revisions."""
    names = ("fraud", "refund")
    return Registry({name: revision(name, OWN) for name in names}).with_deployment("refund", deployment())


def split(registry: Registry, shares: Mapping[str, int], **changes: frozenset[str]) -> Registry:
    return registry.with_deployment("refund", deployment(shares, **changes))


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_keys_are_spread_as_the_shares_say(shares: Mapping[str, int]) -> None:
    picked = Counter(pick(shares, key) for key in KEYS)
    for each, percent in shares.items():
        assert 100 * picked[each] / len(KEYS) == pytest.approx(percent, abs=1)


def test_a_key_falls_to_the_same_revision_in_every_process() -> None:
    places = [12, 81, 30, 4, 82, 33, 3, 21]  # printf conversation-0 | sha256sum: its first 16 digits modulo 100
    for place, key in zip(places, KEYS[:8], strict=True):
        assert pick({OWN: place, SECOND: 100 - place}, key) == SECOND
        assert pick({OWN: place + 1, SECOND: 99 - place}, key) == OWN


@pytest.mark.parametrize("percent", range(0, 101, 10))
def test_a_share_that_grows_takes_conversations_and_gives_none_back(percent: int) -> None:
    before = {key for key in KEYS if pick({OWN: percent, SECOND: 100 - percent}, key) == OWN}
    more = min(100, percent + 5)
    assert before <= {key for key in KEYS if pick({OWN: more, SECOND: 100 - more}, key) == OWN}


@pytest.mark.parametrize(
    "shares", [{OWN: 0, SECOND: 100}, {SECOND: 100, OWN: 0}, {OWN: 0, SECOND: 100, THIRD: 0}], ids=str
)
def test_all_go_to_a_share_of_100_and_none_to_one_of_0(shares: Mapping[str, int]) -> None:
    assert {pick(shares, key) for key in KEYS} == {SECOND}


def test_without_shares_the_folders_revision_answers_all(registry: Registry) -> None:
    assert {registry.serving("refund", key).revision for key in KEYS[:500]} == {OWN}


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_a_conversation_is_answered_by_the_revision_that_it_falls_to(
    registry: Registry, shares: Mapping[str, int]
) -> None:
    registry = split(registry, shares)
    served = {key: registry.serving("refund", key).revision for key in KEYS[:500]}
    assert served == {key: pick(shares, f"refund {key}") for key in KEYS[:500]}
    assert set(served.values()) == set(shares)


def test_two_classifiers_split_the_same_conversations_otherwise(registry: Registry) -> None:
    other = Deployment((revision("fraud", SECOND),), {OWN: 50, SECOND: 50})
    registry = split(registry, {OWN: 50, SECOND: 50}).with_deployment("fraud", other)
    both = Counter(
        (registry.serving("refund", key).revision, registry.serving("fraud", key).revision) for key in KEYS[:4000]
    )
    assert all(both[each] == pytest.approx(1000, abs=150) for each in ((OWN, OWN), (OWN, SECOND), (SECOND, OWN)))


def test_one_that_has_no_shares_is_not_split(registry: Registry) -> None:
    assert split(registry, {SECOND: 100}).serving("fraud").revision == OWN


def test_the_shares_are_those_that_were_set(registry: Registry) -> None:
    assert split(registry, {OWN: 20, SECOND: 80}).shares("refund") == {OWN: 20, SECOND: 80}


@pytest.mark.parametrize("name", ["refund", "fraud"], ids=["with further revisions", "without"])
def test_without_shares_they_are_all_the_folders_own(registry: Registry, name: str) -> None:
    assert registry.shares(name) == {OWN: 100}


def test_revisions_are_the_folders_own_and_then_the_others(registry: Registry) -> None:
    assert [each.revision for each in registry.revisions("refund")] == [OWN, SECOND, THIRD]
    assert [each.revision for each in registry.revisions("fraud")] == [OWN]


def test_all_revisions_of_all_are_loaded(registry: Registry) -> None:
    loaded = [(each.name, each.revision) for each in registry.loaded]
    assert loaded == [("fraud", OWN), ("refund", OWN), ("refund", SECOND), ("refund", THIRD)]


def test_a_revision_is_found_by_its_digest(registry: Registry) -> None:
    assert registry.revision("refund", THIRD) is registry.deployments["refund"].candidates[1]


def test_a_revision_that_is_not_loaded_is_unknown_and_quoted_up_to_64_characters(registry: Registry) -> None:
    with pytest.raises(UnknownRevisionError) as caught:
        registry.revision("fraud", "x" * 65)
    assert caught.value.metadata == {"classifier": "fraud", "revision": "x" * 64}


UNKNOWN: dict[str, Callable[[Registry], object]] = {
    "serving": lambda registry: registry.serving("spam"),
    "revisions": lambda registry: registry.revisions("spam"),
    "revision": lambda registry: registry.revision("spam", OWN),
    "shares": lambda registry: registry.shares("spam"),
    "shadows": lambda registry: registry.shadows("spam"),
}


@pytest.mark.parametrize("ask", UNKNOWN.values(), ids=UNKNOWN)
def test_a_name_that_is_not_served_is_unknown(registry: Registry, ask: Callable[[Registry], object]) -> None:
    with pytest.raises(UnknownClassifierError):
        ask(registry)


@pytest.mark.parametrize(
    "shadows", [frozenset(), frozenset({SECOND}), frozenset({OWN, THIRD})], ids=["none", "one", "two"]
)
def test_shadows_are_the_named_revisions(registry: Registry, shadows: frozenset[str]) -> None:
    found = split(registry, {}, shadows=shadows).shadows("refund")
    assert {each.revision for each in found} == shadows


def test_a_shadow_answers_nobody(registry: Registry) -> None:
    registry = split(registry, {}, shadows=frozenset({SECOND}))
    assert {registry.serving("refund", key).revision for key in KEYS[:500]} == {OWN}


@pytest.mark.parametrize("flawed", [True, False], ids=["a flaw", "a failed gate"])
def test_a_further_revision_answers_in_the_place_of_one_that_is_withheld(registry: Registry, flawed: bool) -> None:
    if flawed:
        own = replace(registry.get("refund"), flaw="It is stale.")
        registry = replace(registry, classifiers={**registry.classifiers, "refund": own})
    else:
        registry = registry.without({"refund": "It is off."})
    assert split(registry, {SECOND: 100}).serving("refund").revision == SECOND
    with pytest.raises(ClassifierWithheldError):
        split(registry, {OWN: 100}).serving("refund")


def test_a_new_revision_of_the_folder_answers_all_and_drops_the_split(registry: Registry) -> None:
    new = revision("refund", "4" * 16)
    after = split(registry, {SECOND: 100}, shadows=frozenset({THIRD})).with_classifier(new)
    assert {after.serving("refund", key) for key in KEYS[:500]} == {new}
    assert (after.revisions("refund"), after.shadows("refund")) == ((new,), ())


def test_a_new_revision_leaves_the_splits_of_others(registry: Registry) -> None:
    after = split(registry, {SECOND: 100}).with_classifier(revision("fraud", "4" * 16))
    assert after.serving("refund").revision == SECOND


def test_a_new_revision_is_no_longer_withheld(registry: Registry) -> None:
    after = registry.without({"refund": "It is off."}).with_classifier(revision("refund", "4" * 16))
    assert after.withheld == {}


def test_a_new_classifier_takes_its_place_by_name(registry: Registry) -> None:
    assert list(registry.with_classifier(revision("ham", OWN)).classifiers) == ["fraud", "ham", "refund"]


def test_a_classifier_that_goes_takes_all_its_revisions_along(registry: Registry) -> None:
    after = split(registry, {SECOND: 100}).without({"refund": "It is off."}).without_classifier("refund")
    assert after == Registry({"fraud": registry.get("fraud")})


def test_what_is_set_back_to_nothing_leaves_no_trace(registry: Registry) -> None:
    assert "refund" not in registry.with_deployment("refund", Deployment()).deployments


def test_no_change_changes_the_registry_that_it_is_made_from(registry: Registry) -> None:
    before = (dict(registry.classifiers), dict(registry.deployments), dict(registry.failures))
    split(registry, {SECOND: 100}).with_classifier(revision("ham", OWN)).without_classifier("fraud")
    assert (dict(registry.classifiers), dict(registry.deployments), dict(registry.failures)) == before


def test_the_order_in_which_shares_are_given_moves_no_conversation() -> None:
    shares = {THIRD: 20, OWN: 30, SECOND: 50}
    again = dict(reversed(shares.items()))
    assert [pick(shares, key) for key in KEYS[:500]] == [pick(again, key) for key in KEYS[:500]]


def test_one_whose_own_revision_failed_serves_while_another_has_all_its_traffic(registry: Registry) -> None:
    failed = registry.without({"refund": "its gate says no"})
    assert list(failed.withheld) == ["refund"]
    elsewhere = split(failed, {OWN: 0, SECOND: 100})
    assert (elsewhere.withheld, elsewhere.serving_names) == ({}, ("fraud", "refund"))
    assert list(split(failed, {OWN: 1, SECOND: 99}).withheld) == ["refund"]
