"""What of a batch cannot be done in time gets its status at once, and the engine is not asked for it."""

from __future__ import annotations

import pytest

from service.admission import OPTIMISM, Admission, Job
from service.api.servicer import BATCH_AT_ONCE
from service.client import RpcError
from service.deadline import Deadline
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.prompt.builder import PromptBuilder
from tests.integration.harness import DEADLINE_S, PLAIN, WatchedEngine
from tests.integration.talking import customer
from tests.support import talk

LONG, SHORT = "word " * 380, "hi"
TOO_NEAR = "ERROR_REASON_DEADLINE_TOO_NEAR"


@pytest.fixture
def admission(builder: PromptBuilder) -> Admission:
    """With a rate, twice of which is two thirds of what a long conversation needs."""
    found = Admission(100, 1000)
    found.rate = len(builder.prefix(talk(LONG)).token_ids) / 1.5 / DEADLINE_S / OPTIMISM
    return found


async def reasons(stub: ClassificationServiceStub, *texts: str) -> list[str]:
    """Of the items of a batch; those that are answered have none."""
    conversations = [pb.Conversation(turns=[customer(text)]) for text in texts]
    request = pb.ClassifyBatchRequest(conversations=conversations, classifiers=[PLAIN])
    items = (await stub.ClassifyBatch(request, timeout=DEADLINE_S)).items
    return [RpcError.of_status(each.status).reason if each.HasField("status") else "" for each in items]


async def test_a_hopeless_batch_is_not_begun(stub: ClassificationServiceStub, engine: WatchedEngine) -> None:
    assert await reasons(stub, *[LONG] * 2 * BATCH_AT_ONCE) == [TOO_NEAR] * 2 * BATCH_AT_ONCE
    assert engine.requests == []


async def test_a_hopeless_item_leaves_the_others_of_its_batch(
    stub: ClassificationServiceStub, engine: WatchedEngine
) -> None:
    assert await reasons(stub, LONG, SHORT, LONG, f"{SHORT}!") == [TOO_NEAR, "", TOO_NEAR, ""]
    assert len(engine.requests) == 2


async def test_it_does_not_wait_for_room_to_be_told(
    stub: ClassificationServiceStub, engine: WatchedEngine, admission: Admission
) -> None:
    with admission.admit(0, [Job(1000)], Deadline()):
        assert await reasons(stub, LONG) == [TOO_NEAR]
    assert engine.requests == []
