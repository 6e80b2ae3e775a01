"""What holds for any bytes on the wire: an answer in time, never a defect, and nothing left behind.

A few hundred of the calls of which `python -m tools.fuzz` sends a hundred thousand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.pb.fantail.v1 import classification_service_pb2 as pb
from tools.fuzz import chunk_of
from tools.fuzz_inputs import METHODS, OPERATOR, Input, inputs, inputs_of, varied
from tools.fuzz_target import BY_GRPC, DEFECTS, MOST_MESSAGE_BYTES, NO_REPLY, Ended, Target, problem, target

CALLS = partial(settings, derandomize=True, database=None)
SEEDS = st.integers(0, 1 << 32)

FAN_OUT = "/fantail.v1.ClassificationService/FanOut"
TURN = pb.Turn(role=pb.ROLE_CUSTOMER, text="where is my refund??")
GOOD = pb.FanOutRequest(conversation=pb.Conversation(turns=[TURN])).SerializeToString()
ANSWER = pb.FanOutResponse(results=[pb.FanOutResult(classifier="topic")]).SerializeToString()
DEFECTIVE = b"\n\x20" + DEFECTS[0]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as running:
        yield running


@pytest.fixture(scope="module")
def server(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One for all tests here, whose loop runs while a test sends something."""
    serving = target(tmp_path_factory.mktemp("fuzz"))
    yield runner.run(serving.__aenter__())
    runner.run(serving.__aexit__(None, None, None))


def wrong_with(each: Input, server: Target, runner: asyncio.Runner) -> str | None:
    return problem(each, runner.run(server.send(each)))


@pytest.mark.parametrize("method", METHODS, ids=[each.name for each in METHODS.values()])
@CALLS(max_examples=40)
@given(data=st.data())
def test_a_hostile_call_is_answered(server: Target, runner: asyncio.Runner, method: str, data: st.DataObject) -> None:
    each = data.draw(inputs_of(method, server.revisions))
    assert wrong_with(each, server, runner) is None


@CALLS(max_examples=150)
@given(data=st.data(), seed=SEEDS)
def test_a_call_of_spoilt_bytes_is_answered(
    server: Target, runner: asyncio.Runner, data: st.DataObject, seed: int
) -> None:
    each = varied(data.draw(inputs(server.revisions)), seed)
    assert wrong_with(each, server, runner) is None


def test_hostile_calls_side_by_side_leave_nothing_behind(server: Target, runner: asyncio.Runner) -> None:
    async def all_at_once() -> list[str]:
        await asyncio.gather(*map(server.send, chunk_of(200, 5, server.revisions)))
        return await server.wrong_when_idle()

    assert runner.run(all_at_once()) == []


def test_a_call_that_is_in_order_is_answered_amid_hostile_ones(server: Target, runner: asyncio.Runner) -> None:
    good = Input(FAN_OUT, (GOOD,), (("authorization", f"Bearer {OPERATOR}".encode()),))

    async def amid_others() -> Ended:
        return (await asyncio.gather(server.send(good), *map(server.send, chunk_of(50, 9, server.revisions))))[0]

    (reply,) = runner.run(amid_others()).replies
    assert {each.WhichOneof("outcome") for each in pb.FanOutResponse.FromString(reply).results} == {"classification"}


def test_a_seed_always_makes_the_same_calls() -> None:
    first, again, other = (chunk_of(90, seed, ("a",)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_every_method_is_called() -> None:
    assert {each.method for each in chunk_of(600, 1, ("a",))} == set(METHODS)


@pytest.mark.parametrize("raw", [False, True], ids=["client", "by hand"])
@pytest.mark.parametrize(
    ("key", "request_bytes", "expected"),
    [
        pytest.param(OPERATOR, GOOD, "OK", id="in order"),
        pytest.param(OPERATOR, b"", "INVALID_ARGUMENT", id="no conversation"),
        pytest.param(OPERATOR, b"\xff", "INVALID_ARGUMENT", id="no message"),
        pytest.param("wrong", GOOD, "UNAUTHENTICATED", id="no key"),
    ],
)
def test_a_call_by_hand_ends_as_one_by_a_client(
    server: Target, runner: asyncio.Runner, raw: bool, key: str, request_bytes: bytes, expected: str
) -> None:
    each = Input(FAN_OUT, (request_bytes,), (("authorization", f"Bearer {key}".encode()),), raw=raw)
    ended = runner.run(server.send(each))
    assert ended.how == expected
    assert ended.detailed == (expected != "OK")


@pytest.mark.parametrize(
    ("header", "value", "expected"),
    [
        pytest.param("grpc-timeout", b"abc", BY_GRPC, id="a timeout that is none"),
        pytest.param("x-a-bin", b"!", BY_GRPC, id="a binary header that is not base64"),
        pytest.param("x-request-id", b"\xff\n", "OK", id="a request id that no log can hold"),
        pytest.param("traceparent", b"\xff", "OK", id="a trace that is none"),
        pytest.param("authorization", b"Bearer \xff", "OK", id="a second key that is no text"),
    ],
)
def test_a_header_that_no_client_sends_is_refused_by_grpc_or_ignored(
    server: Target, runner: asyncio.Runner, header: str, value: bytes, expected: str
) -> None:
    metadata = (("authorization", f"Bearer {OPERATOR}".encode()), (header, value))
    assert runner.run(server.send(Input(FAN_OUT, (GOOD,), metadata, raw=True))).how == expected


@pytest.mark.parametrize(
    ("raw", "ended", "expected"),
    [
        pytest.param(False, Ended(NO_REPLY), NO_REPLY, id="no reply in time"),
        pytest.param(True, Ended(NO_REPLY), NO_REPLY, id="no reply in time to a call by hand"),
        pytest.param(False, Ended("INTERNAL", (), True), "INTERNAL", id="a defect"),
        pytest.param(False, Ended("UNKNOWN"), "UNKNOWN", id="an exception that no interceptor saw"),
        pytest.param(False, Ended("OK", (DEFECTIVE,)), "a defect within the answer", id="a defect in one result"),
        pytest.param(False, Ended("OK", (b"\xff",)), "an answer that is not the method's", id="unreadable"),
        pytest.param(False, Ended("NOT_FOUND"), "NOT_FOUND without details", id="a status without details"),
        pytest.param(False, Ended("OK", (ANSWER,)), None, id="an answer"),
        pytest.param(False, Ended("INVALID_ARGUMENT", (), True), None, id="a refusal"),
        pytest.param(False, Ended("DEADLINE_EXCEEDED"), None, id="a deadline that the client kept"),
        pytest.param(True, Ended(BY_GRPC), None, id="malformed headers that gRPC refuses"),
    ],
)
def test_what_counts_as_wrong(raw: bool, ended: Ended, expected: str | None) -> None:
    assert problem(Input(FAN_OUT, (b"",), raw=raw), ended) == expected


@pytest.mark.parametrize(
    ("over", "expected"),
    [(-1, "RESOURCE_EXHAUSTED without details"), (0, "RESOURCE_EXHAUSTED without details"), (1, None)],
    ids=["limit-1", "limit", "limit+1"],
)
def test_only_a_message_over_grpcs_limit_may_be_refused_without_details(over: int, expected: str | None) -> None:
    each = Input(FAN_OUT, (bytes(MOST_MESSAGE_BYTES + over),))
    assert problem(each, Ended("RESOURCE_EXHAUSTED")) == expected
