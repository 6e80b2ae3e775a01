"""`buf curl` against the server, with no proto file at hand: reflection tells it everything."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import pytest
from google.rpc import error_details_pb2

from service.api.server import SERVICE
from tests.integration.harness import ACTIVATED, NAMES, PLAIN, Ended, run_command

BUF = str(Path(sys.executable).with_name("buf"))
REFUND = {"turns": [{"role": "ROLE_CUSTOMER", "text": "where is my refund??"}]}


async def _curl(*arguments: str, cwd: Path) -> Ended:
    """Run in an empty folder, so that no proto file lies around."""
    return await run_command(
        BUF, "curl", "--http2-prior-knowledge", "--protocol", "grpc", *arguments, cwd=cwd, XDG_CACHE_HOME=str(cwd)
    )


async def _call(address: str, method: str, body: object, cwd: Path) -> Ended:
    return await _curl("--data", json.dumps(body), f"http://{address}/{SERVICE}/{method}", cwd=cwd)


async def test_the_services_are_listed_by_reflection(address: str, tmp_path: Path) -> None:
    ended = await _curl(f"http://{address}", "--list-services", cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert {SERVICE, "grpc.health.v1.Health"} <= set(ended.out.split())


async def test_the_methods_are_listed_by_reflection(address: str, tmp_path: Path) -> None:
    ended = await _curl(f"http://{address}", "--list-methods", cwd=tmp_path)
    assert ended.code == 0
    methods = {f"{SERVICE}/{name}" for name in ("Classify", "FanOut", "ListClassifiers", "GetClassifier")}
    assert methods <= set(ended.out.split())


async def test_a_fan_out_in_json_gives_every_result_in_json(address: str, tmp_path: Path) -> None:
    ended = await _call(address, "FanOut", {"conversation": REFUND}, tmp_path)
    assert (ended.code, ended.err) == (0, "")
    response = json.loads(ended.out)
    assert [result["classifier"] for result in response["results"]] == NAMES
    for result in response["results"]:
        answer = result["classification"]
        assert sum(score["probability"] for score in answer["scores"]) == pytest.approx(1)
        assert answer["revision"]
    assert set(response["durations"]) == {"prompt", "engine", "scoring", "total"}
    assert int(response["usage"]["computedTokens"]) > 0


async def test_a_status_within_a_fan_out_is_shown_with_its_details(address: str, tmp_path: Path) -> None:
    body = {"conversation": REFUND, "classifiers": [ACTIVATED, "nobody", PLAIN]}
    ended = await _call(address, "FanOut", body, tmp_path)
    assert ended.code == 0
    results = json.loads(ended.out)["results"]
    assert ["classification" in result for result in results] == [True, False, True]
    assert results[1]["status"]["details"][0]["reason"] == "ERROR_REASON_CLASSIFIER_UNKNOWN"


async def test_a_refusal_is_shown_with_its_code_and_reason(address: str, tmp_path: Path) -> None:
    ended = await _call(address, "FanOut", {"conversation": {}}, tmp_path)
    assert ended.code != 0
    error = json.loads(ended.err)
    assert error["code"] == "invalid_argument"
    assert "no turns" in error["message"]
    details = {detail["type"].split(".")[-1]: _decoded(detail["value"]) for detail in error["details"]}
    info = error_details_pb2.ErrorInfo.FromString(details["ErrorInfo"])
    assert (info.reason, info.domain) == ("ERROR_REASON_CONVERSATION_EMPTY", "fantail.v1")
    (violation,) = error_details_pb2.BadRequest.FromString(details["BadRequest"]).field_violations
    assert violation.field == "conversation.turns"
    assert error_details_pb2.RequestInfo.FromString(details["RequestInfo"]).request_id


def _decoded(value: str) -> bytes:
    """buf shows details as base64 without its padding."""
    return base64.b64decode(value + "=" * (-len(value) % 4))
