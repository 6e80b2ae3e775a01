"""The whole service as a process: the real command, the real engine, a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode

from loadtest.growth.reloads import change_slightly
from service.client import FantailAdminClient, FantailClient, RpcError, Turns
from service.domain import AdapterKind
from service.pb.fantail.v1 import admin_service_pb2 as admin
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.registry.registry import Registry
from service.start import Prompting
from tests.faults.server import GRACE_SECONDS
from tests.vllm.asking import (
    KINDS,
    TRACE,
    TURNS,
    asked_all_along,
    comes_to_be_said_not_to_serve,
    each_kind_of_call,
    is_traced,
    labels_of,
    long_talk,
    probe_turns,
    require_pefts_answer,
    require_same,
    what_became_of,
)
from tests.vllm.comparing import conversation_of
from tests.vllm.conftest import ROOT, STEP_TOKENS, Served
from tests.vllm.faults import halved, with_own_prompt

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

AGREES = 'fantail_shadowed_total{classifier="sentiment",outcome="agrees"}'


async def test_one_call_answers_all_classifiers_and_reads_the_conversation_once(
    client: FantailClient, prompting: Prompting, registry: Registry
) -> None:
    conversation = conversation_of(prompting.builder, 500)
    response = await client.fan_out([(turn.role.value, turn.text) for turn in conversation.turns], timeout=60)
    assert [result.classifier for result in response.results] == sorted(registry.classifiers)
    for result in response.results:
        answer = result.classification
        assert sum(score.probability for score in answer.scores) == pytest.approx(1.0)
        assert answer.revision == registry.get(answer.classifier).revision
        assert 0.5 < answer.label_mass <= 1.0
    prefix = len(prompting.builder.prefix(conversation).token_ids)
    tails = sum(len(each.tail_ids) for each in registry.select(()))
    assert response.usage.computed_tokens <= prefix + tails + 32
    assert response.usage.computed_tokens + response.usage.reused_tokens == 16 * prefix + tails


async def test_the_same_conversation_gets_the_same_answers_from_cache(
    client: FantailClient, registry: Registry
) -> None:
    first = await client.fan_out(TURNS, timeout=60)
    again = await client.fan_out(TURNS, timeout=60)
    assert again.usage.computed_tokens <= sum(len(each.tail_ids) for each in registry.select(()))
    for one, other in zip(first.results, again.results, strict=True):
        require_same(one.classification, other.classification)


async def test_what_is_served_is_what_peft_says(client: FantailClient, registry: Registry) -> None:
    for each in registry.select(()):
        results = (await client.fan_out(probe_turns(each), timeout=60)).results
        (found,) = [result.classification for result in results if result.classifier == each.name]
        require_pefts_answer(found, each)


async def test_a_stream_and_a_batch_answer_as_a_fan_out_does(client: FantailClient) -> None:
    talks: list[Turns] = [TURNS, [("customer", "thanks, that was all, bye!")]]
    wanted = [labels_of((await client.fan_out(talk, timeout=60)).results) for talk in talks]
    batch = await client.classify_batch(talks, timeout=120)
    assert [labels_of(item.fan_out.results) for item in batch.items] == wanted
    async with contextlib.aclosing(client.stream_fan_out(TURNS, timeout=60)) as stream:
        assert labels_of([result async for result in stream]) == wanted[0]


async def test_a_live_conversation_computes_no_turn_twice(client: FantailClient, registry: Registry) -> None:
    async with client.follow(timeout=120) as conversation:
        await conversation.tell([("customer", "hello from Porto, " + "my parcel is late and late again. " * 20)])
        await conversation.tell([("agent", "Let me look.")])
        answer = await conversation.tell([("customer", "please do")])
    assert answer is not None
    assert answer.usage.computed_tokens <= sum(len(each.tail_ids) for each in registry.select(())) + 3 * 32


def test_buf_curl_makes_a_fan_out_by_reflection_alone(served: Served, client: FantailClient) -> None:
    body = {"conversation": {"turns": [{"role": f"ROLE_{role.upper()}", "text": text} for role, text in TURNS]}}
    url = f"http://{served.server.address}/fantail.v1.ClassificationService/FanOut"
    key = f"authorization: Bearer {served.server.key}"
    command = [Path(sys.executable).parent / "buf", "curl", "--http2-prior-knowledge", "--protocol", "grpc"]
    command += ["--header", key, "--reflect-header", key, "--data", json.dumps(body), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    results = {each["classifier"]: each["classification"]["label"] for each in json.loads(done.stdout)["results"]}
    assert (len(results), results["refund_request"] in {"yes", "no"}) == (16, True)


async def test_the_engines_own_spans_stand_below_the_callers_trace(served: Served, client: FantailClient) -> None:
    metadata = (("authorization", f"Bearer {served.server.key}"), ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"))
    request = pb.FanOutRequest(conversation=pb.Conversation(turns=[pb.Turn(role=pb.ROLE_CUSTOMER, text="traced, hi")]))
    async with grpc.aio.insecure_channel(served.server.address) as channel:
        await ClassificationServiceStub(channel).FanOut(request, metadata=metadata, timeout=60)
    spans = await asyncio.to_thread(served.collector.wait_for, lambda spans: sum(map(is_traced, spans)) >= 17 + 3, 60)
    traced = [span for span in spans if is_traced(span)]
    (call,) = [span for span in traced if span.name.endswith("/FanOut")]
    engines = [span for span in traced if span.name == "llm_request"]
    assert [span.parent_span_id for span in engines] == [call.span_id] * 16


async def test_a_call_that_is_given_up_is_not_computed_to_its_end(served: Served, client: FantailClient) -> None:
    async with asyncio.timeout(180):
        for number in itertools.count():
            call = asyncio.create_task(client.fan_out(long_talk(f"given up {number}"), timeout=60))
            await served.server.is_busy_with(call)
            if call.cancel():
                break
    assert await served.server.is_idle(30)
    again = await client.fan_out(long_talk(f"given up {number}"), timeout=60)
    assert again.usage.computed_tokens > STEP_TOKENS, "the engine had all but computed it"


@pytest.mark.parametrize("method", KINDS)
async def test_a_call_of_any_kind_that_is_given_up_is_not_computed_to_its_end(
    served: Served, client: FantailClient, method: str
) -> None:
    talk = long_talk(f"{method} given up", 3)
    served.server.suspend_engine()
    call = asyncio.create_task(KINDS[method](client, talk))
    await asyncio.sleep(0.5)
    assert call.cancel()
    served.server.resume_engine()
    assert await served.server.is_idle(30)
    again = await client.fan_out(talk, timeout=60)
    assert again.usage.computed_tokens > STEP_TOKENS, "the engine had all but computed it"


async def test_a_call_whose_deadline_passes_is_not_computed_to_its_end(served: Served, client: FantailClient) -> None:
    clock, seconds = asyncio.get_running_loop().time, []
    for number in range(2):
        began = clock()
        await client.fan_out(long_talk(f"in time {number}"), timeout=60)
        seconds.append(clock() - began)
    with pytest.raises(RpcError) as caught:
        await client.fan_out(long_talk("too late"), timeout=0.6 * min(seconds))
    assert caught.value.code is StatusCode.DEADLINE_EXCEEDED
    assert caught.value.reason != "ERROR_REASON_DEADLINE_TOO_NEAR"
    assert await served.server.is_idle(30)
    again = await client.fan_out(long_talk("too late"), timeout=60)
    assert again.usage.computed_tokens > STEP_TOKENS, "the engine had all but computed it"


async def test_under_load_changed_adapters_take_over_and_every_answer_is_its_revisions_own(
    served: Served, client: FantailClient, registry: Registry, prompting: Prompting
) -> None:
    old = {name: registry.get(name) for name in ("cancellation_intent", "topic")}
    new = {name: halved(served.server.folder / name, prompting) for name in old}
    async with asked_all_along(client, [*old.values()]) as answers:
        results = {each.classifier: each for each in await served.server.reload()}
        for name, each in results.items():
            assert (each.outcome, list(each.problems)) == (admin.RELOAD_OUTCOME_LOADED, [])
            assert (each.previous_revision, each.revision) == (old[name].revision, new[name].revision)
            after = (await client.classify(probe_turns(old[name]), name, timeout=60)).classification
            require_pefts_answer(after, new[name])
    assert results.keys() == old.keys()
    for found in answers:
        known = {each.revision: each for each in (old[found.classifier], new[found.classifier])}
        require_pefts_answer(found, known[found.revision])
    seen = {(found.classifier, found.revision) for found in answers}
    assert seen == {(each.name, each.revision) for each in (*old.values(), *new.values())}
    served_now = {each.name: each for each in registry.select(())} | new
    assert await served.server.comes_to_hold(served_now.values(), 30), "the engine holds others than those that answer"


async def test_a_further_revision_answers_in_the_shadow_then_in_earnest_and_goes(
    served: Served, client: FantailClient, registry: Registry
) -> None:
    own, candidate = registry.get("sentiment").revision, served.server.candidates / "sentiment-2"
    shutil.copytree(served.server.folder / "sentiment", candidate)
    change_slightly(candidate)
    async with FantailAdminClient(served.server.address, key=served.server.key) as operator:
        revision = await operator.load_revision("sentiment", candidate.name, timeout=120)
        await operator.set_traffic("sentiment", {own: 100}, [revision], timeout=60)
        before = await client.classify(TURNS, "sentiment", timeout=60)
        assert before.classification.revision == own
        assert await served.server.comes_to_count(AGREES, 30)

        await operator.set_traffic("sentiment", {revision: 100, own: 0}, timeout=60)
        after = await client.classify(TURNS, "sentiment", timeout=60)
        assert after.classification.revision == revision
        require_same(before.classification, after.classification)
        listed = {each.revision: each for each in await operator.list_revisions(timeout=60)}
        assert listed[revision].adapter.resident
        assert listed[revision].adapter.slot >= 0

        await operator.set_traffic("sentiment", {}, timeout=60)
        await operator.unload_revision("sentiment", revision, timeout=60)
        listed = {each.revision: each for each in await operator.list_revisions(timeout=60)}
    assert revision not in listed
    assert all(each.adapter.resident for each in listed.values())


async def test_a_classifier_that_is_added_answers(served: Served, client: FantailClient) -> None:
    shutil.copytree(served.server.folder / "topic", served.server.folder / "subject")
    (result,) = await served.server.reload()
    assert (result.classifier, result.outcome) == ("subject", admin.RELOAD_OUTCOME_LOADED)
    first, second = (await client.fan_out(TURNS, ["subject", "topic"], timeout=60)).results
    assert first.classification.label == second.classification.label
    shutil.rmtree(served.server.folder / "subject")
    (result,) = await served.server.reload()
    assert (result.classifier, result.outcome) == ("subject", admin.RELOAD_OUTCOME_REMOVED)


@pytest.mark.parametrize("kind", AdapterKind)
async def test_a_classifier_with_a_prompt_of_its_own_is_proven_and_answers_as_peft_does(
    served: Served, client: FantailClient, prompting: Prompting, kind: AdapterKind
) -> None:
    folder = shutil.copytree(ROOT / "classifiers" / "refund_request", served.server.candidates / "theirs")
    classifier = with_own_prompt(folder, kind, prompting)
    folder.rename(served.server.folder / "theirs")
    (result,) = await served.server.reload()
    assert (result.classifier, result.outcome) == ("theirs", admin.RELOAD_OUTCOME_LOADED), result.problems
    first, _ = (await client.fan_out(probe_turns(classifier), ["theirs", "refund_request"], timeout=60)).results
    require_pefts_answer(first.classification, classifier)
    shutil.rmtree(served.server.folder / "theirs")
    await served.server.reload()


async def test_another_classifiers_adapter_is_refused_by_the_gate_and_changes_nothing(
    served: Served, client: FantailClient, registry: Registry
) -> None:
    folder = served.server.folder / "urgency"
    shutil.copytree(served.server.folder / "sentiment" / "adapter", folder / "adapter", dirs_exist_ok=True)
    (folder / "calibration.json").unlink()
    (result,) = await served.server.reload()
    assert (result.classifier, result.outcome) == ("urgency", admin.RELOAD_OUTCOME_REFUSED)
    assert result.problems[0].startswith("urgency: probe 1: ")
    answer = await client.classify(TURNS, "urgency", timeout=60)
    assert answer.classification.revision == registry.get("urgency").revision
    shutil.rmtree(folder)
    shutil.copytree(ROOT / "classifiers" / "urgency", folder)


async def test_a_killed_engine_is_said_to_be_unavailable_and_comes_back_with_the_same_answers(
    served: Served, client: FantailClient
) -> None:
    before = await client.classify(TURNS, "sentiment", timeout=60)
    served.server.suspend_engine()  # so that all of them are under way when it dies
    async with served.server.client() as impatient, each_kind_of_call(impatient) as calls:
        await asyncio.sleep(1.0)
        served.server.kill_engine()
        became = {method: await what_became_of(call) for method, call in calls.items()}
        became["Classify"] = await what_became_of(
            asyncio.create_task(impatient.classify(TURNS, "sentiment", timeout=2))
        )
    died = {"UNAVAILABLE ERROR_REASON_ENGINE_DEAD"}
    assert became == dict.fromkeys([*calls, "Classify"], died) | {"ClassifyBatch": {"UNAVAILABLE"}}
    await comes_to_be_said_not_to_serve(served.server.address)
    async with asyncio.timeout(300):
        await client.wait_until_serving()
    after = await client.classify(TURNS, "sentiment", timeout=60)
    assert after.classification.revision == before.classification.revision
    require_same(before.classification, after.classification)


async def test_a_stopped_server_answers_whom_it_accepted_ends_with_0_and_leaves_no_process_or_socket(
    served: Served, client: FantailClient
) -> None:
    engines = served.server.engine_processes()
    accepted = asyncio.create_task(client.fan_out(long_talk("at the end"), timeout=60))
    await served.server.is_busy_with(accepted)
    code, seconds = await asyncio.to_thread(served.server.terminate)
    assert (code, seconds < GRACE_SECONDS, len(labels_of((await accepted).results))) == (0, True, 16)
    assert [process.wait(30) for process in engines]
    assert not any(each.is_socket() for each in served.server.temporary.rglob("*"))


def test_its_log_is_json_of_us_and_vllm_and_nothing_that_was_said_is_in_it_or_in_its_spans(served: Served) -> None:
    log = served.server.log.read_bytes()
    spans = b"".join(span.SerializeToString() for span in served.collector.spans)
    objects = [json.loads(line) for line in log.splitlines() if line.startswith(b"{")]
    assert {"service", "vllm"} <= {str(each.get("logger", each.get("name"))).split(".")[0] for each in objects}
    assert spans
    assert not [each for each in (b"charged twice", b"hello from Porto", b"where is it?") if each in log + spans]
