"""The limits of one call by every way to ask: size of a message, turns, text, classifiers.

Those of `FanOut` are shown beside its other refusals, the number of conversations beside the batch.
"""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from service.api import servicer
from service.api.servicer import Limits
from service.classify import MAX_CLASSIFIERS
from service.client import RpcError
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.prompt.builder import PromptBuilder
from service.prompt.format import PromptFormat
from service.prompt.tokenizer import PromptTokenizer
from tests.integration.conftest import Serve
from tests.integration.harness import DEADLINE_S, PLAIN, REFUND, WatchedEngine, classify_request, fan_out_request

BYTES, TURNS, NAMES = 4096, 5, MAX_CLASSIFIERS
LIMIT = pytest.mark.parametrize(
    ("over", "accepted"), [(-1, True), (0, True), (1, False)], ids=["limit-1", "limit", "limit+1"]
)
EXHAUSTED, INVALID = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT
OK = (grpc.StatusCode.OK, "")


def batch_request(*names: str, turns: list[pb.Turn]) -> pb.ClassifyBatchRequest:
    return pb.ClassifyBatchRequest(conversations=[pb.Conversation(turns=turns)], classifiers=names)


MAKE: dict[str, Any] = {
    "Classify": lambda turns: classify_request(PLAIN, turns),
    "StreamFanOut": lambda turns: fan_out_request(PLAIN, turns=turns),
    "ClassifyBatch": lambda turns: batch_request(PLAIN, turns=turns),
    "Follow": lambda turns: pb.FollowRequest(turns=turns, classifiers=pb.ClassifierSelection(names=[PLAIN])),
}
METHOD = pytest.mark.parametrize("method", MAKE)
OF_A_CONVERSATION = pytest.mark.parametrize("method", ["Classify", "StreamFanOut", "ClassifyBatch"])
MAKE_FOR: dict[str, Any] = {"StreamFanOut": fan_out_request, "ClassifyBatch": batch_request}


async def end(channel: grpc.aio.Channel, method: str, request: Any) -> tuple[grpc.StatusCode, str]:
    """Code and reason with which a call ends, or those of the one conversation of a batch."""
    stub = ClassificationServiceStub(channel)
    try:
        if method == "StreamFanOut":
            assert [result async for result in stub.StreamFanOut(request, timeout=DEADLINE_S)]
        elif method == "Follow":
            call = stub.Follow(timeout=DEADLINE_S)
            await call.write(request)
            await call.read()
            call.cancel()
        else:
            response = await getattr(stub, method)(request, timeout=DEADLINE_S)
            if method == "ClassifyBatch" and response.items[0].HasField("status"):
                error = RpcError.of_status(response.items[0].status)
                return error.code, error.reason
    except grpc.aio.AioRpcError as failure:
        error = RpcError.of_call(failure)
        return error.code, error.reason
    return OK


def of_size(method: str, size: int) -> Any:
    """A request of so many bytes, most of them in the conversation's id."""
    request = MAKE[method](REFUND)
    place, name = {
        "ClassifyBatch": lambda: (request.conversations[0], "id"),
        "Follow": lambda: (request, "conversation_id"),
    }.get(method, lambda: (request.conversation, "id"))()
    setattr(place, name, "x" * (size // 2))
    setattr(place, name, "x" * (size // 2 + size - request.ByteSize()))
    assert request.ByteSize() == size
    return request


@LIMIT
@METHOD
async def test_a_message_over_the_size_limit_is_refused_by_grpc_itself(
    serve: Serve, engine: WatchedEngine, method: str, over: int, accepted: bool
) -> None:
    async with grpc.aio.insecure_channel(await serve(max_message_bytes=BYTES)) as channel:
        assert await end(channel, method, of_size(method, BYTES + over)) == (OK if accepted else (EXHAUSTED, ""))
    assert bool(engine.requests) == accepted


@METHOD
async def test_a_message_over_the_size_limit_leaves_the_connection_to_other_calls(serve: Serve, method: str) -> None:
    async with grpc.aio.insecure_channel(await serve(max_message_bytes=BYTES)) as channel:
        following = ClassificationServiceStub(channel).Follow(timeout=DEADLINE_S)
        await following.write(MAKE["Follow"](REFUND))
        assert (await following.read()).HasField("fan_out")
        await end(channel, method, of_size(method, 2 * BYTES))
        assert await end(channel, "Classify", classify_request(PLAIN)) == OK
        await following.write(MAKE["Follow"](REFUND))
        assert (await following.read()).HasField("fan_out")
        following.cancel()


@LIMIT
@OF_A_CONVERSATION
async def test_more_turns_than_the_limit_are_refused(
    serve: Serve, engine: WatchedEngine, method: str, over: int, accepted: bool
) -> None:
    async with grpc.aio.insecure_channel(await serve(limits=Limits(max_turns=TURNS))) as channel:
        ended = await end(channel, method, MAKE[method](REFUND * (TURNS + over)))
    assert ended == (OK if accepted else (INVALID, "ERROR_REASON_CONVERSATION_TOO_LONG"))
    assert bool(engine.requests) == accepted


@pytest.fixture(scope="session")
def longest_turn(builder: PromptBuilder, tokenizer: PromptTokenizer, prompt_format: PromptFormat) -> int:
    """Tokens of a customer's text that just fits the context."""
    around = (prompt_format.preamble, prompt_format.turn_start.customer, prompt_format.turn_end)
    return builder.max_prefix_tokens - sum(len(tokenizer.encode_control(each)) for each in around)


@LIMIT
@OF_A_CONVERSATION
async def test_a_turn_that_cannot_fit_the_context_is_refused(
    channel: grpc.aio.Channel, engine: WatchedEngine, longest_turn: int, method: str, over: int, accepted: bool
) -> None:
    turns = [pb.Turn(role=pb.ROLE_CUSTOMER, text=" a" * (longest_turn + over))]
    ended = await end(channel, method, MAKE[method](turns))
    assert ended == (OK if accepted else (INVALID, "ERROR_REASON_TURN_TOO_LONG"))
    assert bool(engine.requests) == accepted


@LIMIT
@pytest.mark.parametrize("method", MAKE_FOR)
async def test_more_names_than_any_server_has_classifiers_are_refused(
    channel: grpc.aio.Channel, engine: WatchedEngine, method: str, over: int, accepted: bool
) -> None:
    names = [PLAIN, *(f"nobody_{index}" for index in range(NAMES + over - 1))]
    ended = await end(channel, method, MAKE_FOR[method](*names, turns=REFUND))
    assert ended == (OK if accepted else (INVALID, "ERROR_REASON_CLASSIFIERS_TOO_MANY"))
    assert len(engine.requests) == accepted


async def test_a_client_of_any_language_can_receive_the_largest_batch(serve: Serve) -> None:
    names = [f"{index:064}" for index in range(64)]
    request = pb.ClassifyBatchRequest(classifiers=names)
    request.conversations.extend([pb.Conversation(turns=REFUND)] * (servicer.MAX_BATCH_RESULTS // len(names)))
    async with grpc.aio.insecure_channel(await serve()) as channel:  # which receives 4 MiB, as all do by themselves
        response = await ClassificationServiceStub(channel).ClassifyBatch(request, timeout=DEADLINE_S)
    assert sum(len(item.fan_out.results) for item in response.items) == servicer.MAX_BATCH_RESULTS


async def test_a_batch_that_asks_for_too_many_results_is_refused_whether_or_not_it_names_them(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "MAX_BATCH_RESULTS", 7)
    async with grpc.aio.insecure_channel(await serve()) as channel:
        for names, conversations, accepted in (
            ((PLAIN,), 7, True),
            ((PLAIN,), 8, False),
            ((), 1, True),
            ((), 2, False),
        ):
            request = batch_request(*names, turns=REFUND)
            request.conversations.extend([request.conversations[0]] * (conversations - 1))
            code, _ = await end(channel, "ClassifyBatch", request)
            assert code is (grpc.StatusCode.OK if accepted else INVALID)
