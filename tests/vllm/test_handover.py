"""Requests of one turn of the event loop go to the engine core in one message, and none is lost on that way."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.exceptions import EngineDeadError

from service.engine.handover import Handover
from service.vllm_plugin import handover
from service.vllm_plugin.handover import Requests
from service.vllm_plugin.position import POSITION_KEY
from tests.support import settle


def request(name: str) -> EngineCoreRequest:
    params = SamplingParams(max_tokens=1, logprob_token_ids=[5, 7], extra_args={POSITION_KEY: 2})
    return EngineCoreRequest(
        name, [1, 2, 3], None, params, None, 1.5, LoRARequest("a@1", 3, "/a"), "salt", None, priority=-1
    )


class Core:
    """The client's end of an engine core. `messages`: ids in each message; `failure`: raised when it is sent."""

    client_index = 4

    def __init__(self, failure: Exception | None = None, dead: bool = False) -> None:
        self.messages: list[list[str]] = []
        self.failure, self.dead = failure, dead
        self.add_request_async: Any = None

    def ensure_alive(self) -> None:
        if self.dead:
            raise EngineDeadError()

    async def call_utility_async(self, method: str, together: Requests) -> None:
        assert method == handover.ADD_REQUESTS
        if self.failure is not None:
            raise self.failure
        assert all(each.client_index == self.client_index for each in together.requests)
        self.messages.append([each.request_id for each in together.requests])


def front(core: Core, *waiting: str) -> SimpleNamespace:
    """An AsyncLLM in whose output processor the named requests wait for their answers."""
    states = {name: SimpleNamespace(queue=SimpleNamespace(put=lambda error: None)) for name in waiting}
    return SimpleNamespace(engine_core=core, output_processor=SimpleNamespace(request_states=states))


async def test_what_is_asked_in_one_turn_goes_in_one_message_and_the_next_turn_in_another() -> None:
    core = Core()
    Handover(front(core, "a", "b", "c", "d"))
    await asyncio.gather(*(core.add_request_async(request(name)) for name in "abc"))
    await settle()
    await core.add_request_async(request("d"))
    await settle()
    assert core.messages == [["a", "b", "c"], ["d"]]


async def test_a_request_given_up_before_it_was_sent_is_not_sent() -> None:
    core = Core()
    llm = front(core, "a", "b")
    Handover(llm)
    await core.add_request_async(request("a"))
    await core.add_request_async(request("b"))
    del llm.output_processor.request_states["a"]
    await settle()
    assert core.messages == [["b"]]


async def test_a_dead_engine_takes_no_request() -> None:
    core = Core(dead=True)
    Handover(front(core, "a"))
    with pytest.raises(EngineDeadError):
        await core.add_request_async(request("a"))


async def test_everybody_is_told_when_the_message_cannot_be_sent() -> None:
    core, told = Core(failure=EngineDeadError()), []
    llm = front(core, "a", "b")
    for state in llm.output_processor.request_states.values():
        state.queue.put = told.append
    Handover(llm)
    await asyncio.gather(*(core.add_request_async(request(name)) for name in "ab"))
    await settle()
    assert told == [core.failure, core.failure]


def test_a_message_brings_every_field_of_its_requests() -> None:
    sent = msgspec.msgpack.encode(Requests([request("a"), request("b")]))
    found = msgspec.convert(msgspec.msgpack.decode(sent), Requests).requests
    assert [each.request_id for each in found] == ["a", "b"]
    assert found[0].lora_request == LoRARequest("a@1", 3, "/a")
    assert (found[0].priority, found[0].cache_salt, found[0].prompt_token_ids) == (-1, "salt", [1, 2, 3])
    params = found[0].sampling_params
    assert params is not None
    assert (params.extra_args, params.logprob_token_ids) == ({POSITION_KEY: 2}, [5, 7])


def test_a_request_that_the_engine_core_cannot_take_does_not_stop_the_others() -> None:
    added, failed = [], []

    def preprocess(each: EngineCoreRequest) -> tuple[str, int]:
        if each.request_id == "b":
            raise ValueError("nothing it knows")
        return each.request_id, 0

    core: Any = SimpleNamespace(
        preprocess_add_request=preprocess,
        add_request=lambda each, wave: added.append(each),
        _handle_request_preproc_error=lambda each: failed.append(each.request_id),
    )
    handover._add_requests(core, Requests([request(name) for name in "abc"]))
    assert (added, failed) == (["a", "c"], ["b"])
