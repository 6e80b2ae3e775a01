"""The whole service as a process: the real command, the real engine, a real socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from grpc import StatusCode

from service.client import FantailClient, RpcError, Turns
from service.registry.registry import Registry
from service.start import Prompting
from tests.vllm.comparing import conversation_of
from tests.vllm.conftest import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

TURNS: Turns = [(t["role"], t["text"]) for t in json.loads((ROOT / "examples/conversation.json").read_text())["turns"]]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = os.environ | {"FANTAIL_ADDRESS": address, "FANTAIL_KV_GIB": "1"}
    process = subprocess.Popen([sys.executable, "-m", "service", "serve"], cwd=ROOT, env=environment)
    yield process, address
    if process.poll() is None:
        process.kill()
        process.wait()


async def reachable(server: tuple[subprocess.Popen[bytes], str]) -> FantailClient:
    client = FantailClient(server[1])
    await client.wait_until_serving()
    return client


async def test_one_call_answers_all_classifiers_and_reads_the_conversation_once(
    server: tuple[subprocess.Popen[bytes], str], prompting: Prompting, registry: Registry
) -> None:
    async with await reachable(server) as client:
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
    server: tuple[subprocess.Popen[bytes], str], registry: Registry
) -> None:
    async with await reachable(server) as client:
        first = await client.fan_out(TURNS, timeout=60)
        again = await client.fan_out(TURNS, timeout=60)
    assert again.usage.computed_tokens <= sum(len(each.tail_ids) for each in registry.select(()))
    for one, other in zip(first.results, again.results, strict=True):
        assert one.classification.label == other.classification.label
        assert one.classification.confidence == pytest.approx(other.classification.confidence, abs=1e-3)


def test_buf_curl_makes_a_fan_out_by_reflection_alone(server: tuple[subprocess.Popen[bytes], str]) -> None:
    body = {"conversation": {"turns": [{"role": f"ROLE_{role.upper()}", "text": text} for role, text in TURNS]}}
    url = f"http://{server[1]}/fantail.v1.ClassificationService/FanOut"
    command = [Path(sys.executable).parent / "buf", "curl", "--http2-prior-knowledge", "--protocol", "grpc"]
    done = subprocess.run([*command, "--data", json.dumps(body), url], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    results = {each["classifier"]: each["classification"] for each in json.loads(done.stdout)["results"]}
    assert len(results) == 16
    assert results["refund_request"]["label"] in {"yes", "no"}


async def test_a_killed_engine_is_said_to_be_unavailable_and_the_server_still_stops_cleanly(
    server: tuple[subprocess.Popen[bytes], str],
) -> None:
    process, _ = server
    async with await reachable(server) as client:
        await client.classify(TURNS, "sentiment", timeout=60)
        for child in psutil.Process(process.pid).children(recursive=True):
            if "resource_tracker" not in " ".join(child.cmdline()):
                child.send_signal(signal.SIGKILL)
        with pytest.raises(RpcError) as caught:
            await client.classify(TURNS, "sentiment", timeout=60)
    assert caught.value.code is StatusCode.UNAVAILABLE
    assert caught.value.reason == "ERROR_REASON_ENGINE_DEAD"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
