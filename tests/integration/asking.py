"""The service's methods with a request that each of them answers, and how to make such a call or see it refused."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from service.client import RpcError
from service.pb.fantail.v1 import classification_service_pb2 as pb
from tests.integration.harness import DEADLINE_S, PLAIN, REFUND, classify_request, fan_out_request

ASKING = {"Classify": classify_request(PLAIN), "FanOut": fan_out_request(), "StreamFanOut": fan_out_request()}
BATCH = {"ClassifyBatch": pb.ClassifyBatchRequest(conversations=[pb.Conversation(turns=REFUND)])}
DESCRIBING = {
    "ListClassifiers": pb.ListClassifiersRequest(),
    "GetClassifier": pb.GetClassifierRequest(classifier=PLAIN),
}


def every(requests: dict[str, Any]) -> pytest.MarkDecorator:
    """A test's parameters `method` and `request_`."""
    return pytest.mark.parametrize(("method", "request_"), requests.items(), ids=requests)


async def answer(stub: Any, method: str, request: Any, timeout: float | None = DEADLINE_S, **options: Any) -> Any:
    """The response; of a stream, the first."""
    call = getattr(stub, method)(request, timeout=timeout, **options)
    return await (call.read() if method == "StreamFanOut" else call)


async def refusal(stub: Any, method: str, request: Any, timeout: float | None = DEADLINE_S, **options: Any) -> RpcError:
    """The error of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await answer(stub, method, request, timeout, **options)
    return RpcError.of_call(refused.value)
