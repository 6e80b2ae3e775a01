"""The generator is open loop: calls are sent when they are due, however slow the answers are, and count from then."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import grpc
import pytest

from loadtest.generator import LATE_SEND_S, Share, told
from loadtest.outcome import STAGES, Outcome, seconds
from loadtest.profile import Length
from loadtest.run import is_generator_the_limit
from loadtest.schedule import calls
from loadtest.target import Credentials, Target
from tests.traffic import profile
from tests.unit.jumping_loop import JumpingLoop
from tests.unit.stub_server import NAMES, PARTLY, WHOLE, Generating, StubServer, failure, generating

DIGITS = 2e-3
"""Histograms keep three digits."""

PAUSE_S = 0.55
"""For so long a call that is sent at 0.5 seconds holds the generator up in some tests; five more are due meanwhile."""


@pytest.fixture
def loop() -> Iterator[JumpingLoop]:
    loop = JumpingLoop()
    yield loop
    loop.close()


@pytest.fixture
def generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: JumpingLoop) -> Generating:
    return generating(tmp_path, monkeypatch, loop)


@pytest.fixture
def server(generator: Generating) -> StubServer:
    return generator.server


def stall_until(end_s: float, begin_s: float = 0.0) -> Callable[[float], float]:
    """A server that answers nobody between these moments, and anybody at once before and after."""
    return lambda at_s: max(0.001, end_s - at_s if at_s > begin_s - 1e-6 else 0.0)


def pause(at_s: float) -> float:
    return PAUSE_S if at_s == pytest.approx(0.5) else 0.0


def percentiles(outcome: Outcome, count: int) -> list[float]:
    """The latencies of so many answered calls, in seconds, the shortest first."""
    assert outcome.latency.get_total_count() == count
    return [seconds(outcome.latency, 100 * (place + 0.5) / count) for place in range(count)]


def test_every_call_is_sent_when_it_is_due(generator: Generating, server: StubServer) -> None:
    outcome = generator.run(arrivals="poisson", fan_out=0.5, follow_ups=0.3)
    wanted = list(calls(profile(arrivals="poisson", fan_out=0.5, follow_ups=0.3), 10.0, NAMES, 1))
    assert [each.at_s for each in server.sent] == pytest.approx([call.at_s for call in wanted])
    assert [(each.turns, each.classifier) for each in server.sent] == [
        (call.turns, "".join(call.classifiers)) for call in wanted
    ]
    assert (outcome.sent, outcome.late_sends) == (len(wanted), 0)


def test_calls_that_are_due_while_the_server_stalls_are_sent_on_time(generator: Generating, server: StubServer) -> None:
    server.takes_s = stall_until(1.5, begin_s=0.5)
    outcome = generator.run()
    assert [each.at_s for each in server.sent] == pytest.approx([number / 10 for number in range(20)])
    assert outcome.late_sends == 0
    assert outcome.by_status == {"OK": 20}


def test_a_stall_is_seen_by_every_call_that_is_due_in_it(generator: Generating, server: StubServer) -> None:
    server.takes_s = stall_until(1.5, begin_s=0.5)
    slow = percentiles(generator.run(), 20)[10:]
    assert slow == pytest.approx([each / 10 for each in range(1, 11)], rel=DIGITS)


def test_an_answer_counts_from_when_its_call_was_due_not_from_when_it_was_sent(
    generator: Generating, server: StubServer
) -> None:
    server.hold_up_s = pause
    late = percentiles(generator.run(), 20)[-6:]
    assert late == pytest.approx([0.051, 0.151, 0.251, 0.351, 0.451, 0.551], rel=DIGITS)


def test_calls_that_the_generator_sends_late_are_counted(generator: Generating, server: StubServer) -> None:
    server.hold_up_s = pause
    outcome = generator.run()
    assert outcome.late_sends == 5
    assert is_generator_the_limit(outcome)


@pytest.mark.parametrize(
    ("lateness_s", "late_sends"), [(LATE_SEND_S * 0.9, 0), (LATE_SEND_S * 1.1, 1)], ids=["just in time", "just late"]
)
def test_a_send_is_late_from_some_milliseconds_on(
    generator: Generating, server: StubServer, lateness_s: float, late_sends: int
) -> None:
    server.hold_up_s = lambda at_s: 0.1 + lateness_s if at_s == pytest.approx(0.5) else 0.0
    assert generator.run().late_sends == late_sends


def test_a_generator_that_starts_after_the_run_has_begun_says_so(generator: Generating, server: StubServer) -> None:
    outcome = generator.run(starts_late_s=1.05)
    assert (outcome.sent, outcome.late_sends) == (20, 11)
    assert [each.at_s for each in server.sent[:11]] == pytest.approx([1.05] * 11)


def test_a_slow_server_is_not_taken_for_a_slow_generator(generator: Generating, server: StubServer) -> None:
    server.takes_s = lambda at_s: 5.0
    outcome = generator.run()
    assert outcome.by_status == {"OK": 20}
    assert not is_generator_the_limit(outcome)


def test_a_deadline_counts_from_when_the_call_was_due(generator: Generating, server: StubServer) -> None:
    server.hold_up_s = pause
    generator.run(deadline_s=3.0)
    assert [each.timeout_s for each in server.sent[5:12]] == pytest.approx([3, 2.55, 2.65, 2.75, 2.85, 2.95, 3])


def test_a_call_without_an_answer_by_its_deadline_is_no_goodput(generator: Generating, server: StubServer) -> None:
    server.takes_s = stall_until(1.5, begin_s=0.5)
    outcome = generator.run(deadline_s=0.45)
    assert outcome.by_status == {"OK": 14, "DEADLINE_EXCEEDED": 6}
    assert outcome.goodput == 14 / 2
    assert outcome.latency.get_total_count() == 14


def test_a_call_that_is_sent_after_its_deadline_is_no_goodput(generator: Generating, server: StubServer) -> None:
    server.takes_s = lambda at_s: 0.0
    outcome = generator.run(starts_late_s=1.05, deadline_s=0.5)
    assert outcome.by_status == {"OK": 14, "DEADLINE_EXCEEDED": 6}


def test_an_answer_that_comes_through_after_the_deadline_is_no_goodput(
    generator: Generating, server: StubServer
) -> None:
    server.hold_up_s = pause  # so that the answer to that call is seen late, too
    outcome = generator.run(deadline_s=0.5)
    assert outcome.by_status == {"OK": 19, "DEADLINE_EXCEEDED": 1}
    assert percentiles(outcome, 19)[-1] < 0.5


def test_calls_of_the_warm_up_are_sent_but_not_counted(generator: Generating, server: StubServer) -> None:
    server.takes_s = stall_until(0.9)
    outcome = generator.run(warm_up_s=1.0, steady_s=2.0)
    assert len(server.sent) == 30
    assert (outcome.sent, outcome.by_status, outcome.offered_rate) == (20, {"OK": 20}, 10.0)
    assert percentiles(outcome, 20)[-1] < 0.1


def test_late_sends_of_the_warm_up_are_not_counted(generator: Generating, server: StubServer) -> None:
    server.hold_up_s = lambda at_s: PAUSE_S if at_s == 0 else 0.0
    assert generator.run(warm_up_s=1.0).late_sends == 0


def test_what_the_server_says_of_an_answer_is_taken_down(generator: Generating) -> None:
    outcome = generator.run()
    assert [seconds(outcome.stages[stage], 50) for stage in STAGES] == pytest.approx([0.03] * 4, rel=DIGITS)
    assert outcome.tokens == {"computed": 20 * 40, "reused": 20 * 60}


def test_an_answer_and_a_refusal_count_for_the_length_that_the_conversation_began_with(
    generator: Generating, server: StubServer
) -> None:
    server.answer = lambda at_s: WHOLE if at_s < 1.0 else failure(grpc.StatusCode.RESOURCE_EXHAUSTED)
    traffic = {"lengths": [{"tokens": 40, "weight": 1}, {"tokens": 90, "weight": 1}], "follow_ups": 0.5}
    outcome = generator.run(**traffic)
    wanted = calls(profile(lengths=(Length(40, 1), Length(90, 1)), follow_ups=0.5), 10.0, NAMES, 1)
    of = Counter((call.length, call.at_s < 1.0) for call in wanted)
    assert len(of) == 4
    for length in (40, 90):
        found = outcome.lengths[length]
        assert (found.good, found.sent) == (of[length, True], of[length, True] + of[length, False])
        assert found.latency.get_total_count() == found.good


def test_an_answer_of_one_classifier_is_taken_down(generator: Generating, server: StubServer) -> None:
    outcome = generator.run(fan_out=0.0)
    assert {each.classifier for each in server.sent} == set(NAMES)
    assert outcome.by_status == {"OK": 20}
    assert seconds(outcome.stages["total"], 50) == pytest.approx(0.02, rel=DIGITS)


def test_a_fan_out_of_which_a_part_failed_is_an_answer_but_no_goodput(
    generator: Generating, server: StubServer
) -> None:
    server.answer = lambda at_s: PARTLY
    outcome = generator.run()
    assert outcome.by_status == {"PARTLY": 20}
    assert outcome.goodput == 0
    assert outcome.latency.get_total_count() == 20


def test_calls_that_are_turned_away_are_no_answers_and_stop_nothing(generator: Generating, server: StubServer) -> None:
    server.answer = lambda at_s: failure(grpc.StatusCode.RESOURCE_EXHAUSTED)
    outcome = generator.run()
    assert outcome.by_status == {"RESOURCE_EXHAUSTED": 20}
    assert outcome.shed_share == 1.0
    assert outcome.latency.get_total_count() == 0


def test_a_call_is_made_once_with_the_key(generator: Generating, server: StubServer) -> None:
    generator.run(key="secret")
    assert server.options == {"key": "secret", "tls": None, "retries": False}


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_several_processes_send_the_whole_schedule_together(
    generator: Generating, server: StubServer, processes: int
) -> None:
    for index in range(processes):
        generator.run(arrivals="poisson", fan_out=0.5, follow_ups=0.5, index=index, processes=processes)
    wanted = list(calls(profile(arrivals="poisson", fan_out=0.5, follow_ups=0.5), 10.0, NAMES, 1))
    assert len(wanted) > processes
    assert Counter(str(each.turns) for each in server.sent) == Counter(str(call.turns) for call in wanted)
    assert sorted(each.at_s for each in server.sent) == pytest.approx([call.at_s for call in wanted])


def test_no_process_sends_much_more_than_the_others(generator: Generating) -> None:
    sent = [generator.run(index=index, processes=3).sent for index in range(3)]
    assert sent == [7, 7, 6]


def test_a_process_is_told_everything() -> None:
    target = Target("127.0.0.1:1", NAMES, "secret", Credentials("ca.pem", "cert.pem", "key.pem"))
    share = Share("short.toml", target, 2.5, 3, 1, 2, 1e9)
    heard = json.loads(told(share))
    assert Target.from_json(heard.pop("target")) == target
    assert heard == {name: value for name, value in asdict(share).items() if name != "target"}
