"""Takes many requests in one message, so that a fan-out is whole before the engine decides what to compute next.

vLLM takes one request per message and starts to compute with the first one it has. A fan-out then needs two steps, and
each step reads all weights of the base model once more.
"""

import msgspec
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCoreProc

ADD_REQUESTS = "fantail_add_requests"


class Requests(msgspec.Struct):
    """One message's requests."""

    requests: list[EngineCoreRequest]


def _add_requests(self: EngineCoreProc, together: Requests) -> None:
    """Of an engine core: add each as if it had come alone; what is wrong with one is answered to that one.

    vLLM decodes the argument by this annotation, so annotations must stay types in this file.
    """
    for request in together.requests:
        try:
            self.add_request(*self.preprocess_add_request(request))
        except Exception:
            self._handle_request_preproc_error(request)


def apply() -> None:
    setattr(EngineCoreProc, ADD_REQUESTS, _add_requests)


def inactive_because() -> str | None:
    """The message must still be one that vLLM's own requests fit into."""
    if getattr(EngineCoreProc, ADD_REQUESTS, None) is not _add_requests:
        return "the engine core takes requests one by one"
    request = EngineCoreRequest("id", [1], None, None, None, 0.0, None, None, None)
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(Requests([request])))
    return None if msgspec.convert(sent, Requests).requests == [request] else "a request changes on its way"
