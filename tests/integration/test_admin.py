"""Operating a running server over gRPC: what each method changes, answers and refuses."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message

from service.client import RpcError
from service.pb.fantail.v1 import admin_service_pb2 as pb
from service.pb.fantail.v1.classifier_pb2 import RevisionShare
from service.registry.loader import RegistryLoader
from tests.deployment import ACTIVATED, BARE, PLAIN, Served, change_adapter, change_manifest
from tests.integration.harness import DEADLINE_S, HELLO
from tests.integration.operated import Operated, operating, traffic

UNKNOWN = "f" * 16


@pytest.fixture
async def operated(tmp_path: Path, loader: RegistryLoader) -> AsyncIterator[Operated]:
    async with operating(tmp_path, loader) as found:
        yield found


@pytest.fixture
def served(operated: Operated) -> Served:
    return operated.served


async def test_a_reload_serves_what_the_folders_hold(operated: Operated, served: Served) -> None:
    before = {name: served.current(name).revision for name in (ACTIVATED, PLAIN, BARE)}
    change_adapter(served.classifiers / ACTIVATED, lora_alpha=9)
    shutil.rmtree(served.classifiers / BARE)
    (served.classifiers / PLAIN / "classifier.toml").unlink()
    served.write("spam")
    assert await operated.reload() == [
        pb.ReloadResult(
            classifier=PLAIN,
            outcome=pb.RELOAD_OUTCOME_REFUSED,
            revision=before[PLAIN],
            previous_revision=before[PLAIN],
            problems=["classifier.toml is missing"],
        ),
        pb.ReloadResult(
            classifier=ACTIVATED,
            outcome=pb.RELOAD_OUTCOME_LOADED,
            revision=served.current().revision,
            previous_revision=before[ACTIVATED],
        ),
        pb.ReloadResult(classifier="spam", outcome=pb.RELOAD_OUTCOME_LOADED, revision=served.current("spam").revision),
        pb.ReloadResult(classifier=BARE, outcome=pb.RELOAD_OUTCOME_REMOVED, previous_revision=before[BARE]),
    ]
    answers = (await operated.client.fan_out(HELLO, timeout=DEADLINE_S)).results
    assert {each.classifier: each.classification.revision for each in answers} == {
        name: served.current(name).revision for name in (PLAIN, ACTIVATED, "spam")
    }
    assert served.current().revision != before[ACTIVATED]


async def test_a_reload_of_nothing_new_says_nothing(operated: Operated) -> None:
    assert await operated.reload() == []


async def test_a_reload_looks_at_the_named_alone(operated: Operated, served: Served) -> None:
    for name in (ACTIVATED, PLAIN):
        change_manifest(served.classifiers / name, description="Another.")
    assert [each.classifier for each in await operated.reload(PLAIN)] == [PLAIN]


async def test_a_reload_whose_caller_goes_away_is_made_to_its_end(operated: Operated, served: Served) -> None:
    change_adapter(served.classifiers / ACTIVATED, lora_alpha=9)
    with served.catalogue.lease():
        call = operated.admin.Reload(pb.ReloadRequest(), timeout=DEADLINE_S)
        await served.catalogue.until_replaced()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await operated.revisions()  # by then the server knows too
    assert await operated.reload() == []
    served.require_tidy()


async def test_a_candidate_answers_once_it_is_given_traffic(operated: Operated, served: Served) -> None:
    own = served.current().revision
    revision = await operated.load(served.candidate(2))
    assert (await operated.client.classify(HELLO, ACTIVATED, timeout=DEADLINE_S)).classification.revision == own
    response = await operated.admin.SetTraffic(traffic({own: 0, revision: 100}, own), timeout=DEADLINE_S)
    assert {each.revision: each.percent for each in response.shares} == {own: 0, revision: 100}
    assert response.shadow_revisions == [own]
    assert (await operated.client.classify(HELLO, ACTIVATED, timeout=DEADLINE_S)).classification.revision == revision


async def test_no_shares_are_all_the_folders_own(operated: Operated, served: Served) -> None:
    await operated.load(served.candidate(2))
    response = await operated.admin.SetTraffic(traffic({}), timeout=DEADLINE_S)
    assert list(response.shares) == [RevisionShare(revision=served.current().revision, percent=100)]


async def test_traffic_is_in_the_description_of_the_classifier(operated: Operated, served: Served) -> None:
    own, revision = served.current().revision, await operated.load(served.candidate(2))
    await operated.admin.SetTraffic(traffic({own: 90, revision: 10}), timeout=DEADLINE_S)
    described = await operated.client.get_classifier(ACTIVATED, timeout=DEADLINE_S)
    assert {each.revision: each.percent for each in described.traffic} == {own: 90, revision: 10}


async def test_an_unloaded_revision_is_gone(operated: Operated, served: Served) -> None:
    revision = await operated.load(served.candidate(2))
    request = pb.UnloadRevisionRequest(classifier=ACTIVATED, revision=revision)
    assert await operated.admin.UnloadRevision(request, timeout=DEADLINE_S) == pb.UnloadRevisionResponse()
    assert revision not in await operated.revisions()
    served.require_tidy()


REFUSALS: dict[str, tuple[str, Callable[[Served], Message], str, str, dict[str, str]]] = {
    "reload an unknown name": (
        "Reload", lambda served: pb.ReloadRequest(classifiers=["ham"]),
        "NOT_FOUND", "CLASSIFIER_UNKNOWN", {"classifier": "ham"},
    ),
    "load for an unknown name": (
        "LoadRevision", lambda served: pb.LoadRevisionRequest(classifier="ham", folder=served.candidate(2)),
        "NOT_FOUND", "CLASSIFIER_UNKNOWN", {"classifier": "ham"},
    ),
    "load no folder": (
        "LoadRevision", lambda served: pb.LoadRevisionRequest(classifier=ACTIVATED),
        "INVALID_ARGUMENT", "FOLDER_OUTSIDE", {"field": "folder"},
    ),
    "load a folder outside": (
        "LoadRevision", lambda served: pb.LoadRevisionRequest(classifier=ACTIVATED, folder="../classifiers/refund"),
        "INVALID_ARGUMENT", "FOLDER_OUTSIDE", {"field": "folder"},
    ),
    "load a folder that is not there": (
        "LoadRevision", lambda served: pb.LoadRevisionRequest(classifier=ACTIVATED, folder="missing"),
        "FAILED_PRECONDITION", "REVISION_REFUSED", {"classifier": ACTIVATED},
    ),
    "load what fails its gate": (
        "LoadRevision",
        lambda served: pb.LoadRevisionRequest(
            classifier=ACTIVATED, folder=served.candidate(2, probabilities=(0.5, 0.1))
        ),
        "FAILED_PRECONDITION", "REVISION_REFUSED", {"classifier": ACTIVATED},
    ),
    "unload for an unknown name": (
        "UnloadRevision", lambda served: pb.UnloadRevisionRequest(classifier="ham", revision=UNKNOWN),
        "NOT_FOUND", "CLASSIFIER_UNKNOWN", {"classifier": "ham"},
    ),
    "unload an unknown revision": (
        "UnloadRevision", lambda served: pb.UnloadRevisionRequest(classifier=ACTIVATED, revision=UNKNOWN),
        "NOT_FOUND", "REVISION_UNKNOWN", {"classifier": ACTIVATED, "revision": UNKNOWN},
    ),
    "unload what answers": (
        "UnloadRevision",
        lambda served: pb.UnloadRevisionRequest(classifier=ACTIVATED, revision=served.current().revision),
        "FAILED_PRECONDITION", "REVISION_IN_USE", {"classifier": ACTIVATED},
    ),
    "traffic for an unknown name": (
        "SetTraffic", lambda served: traffic({}, name="ham"), "NOT_FOUND", "CLASSIFIER_UNKNOWN", {"classifier": "ham"},
    ),
    "traffic for an unknown revision": (
        "SetTraffic", lambda served: traffic({UNKNOWN: 100}),
        "NOT_FOUND", "REVISION_UNKNOWN", {"classifier": ACTIVATED, "revision": UNKNOWN},
    ),
    "an unknown shadow": (
        "SetTraffic", lambda served: traffic({}, UNKNOWN),
        "NOT_FOUND", "REVISION_UNKNOWN", {"classifier": ACTIVATED, "revision": UNKNOWN},
    ),
    "shares of 99": (
        "SetTraffic", lambda served: traffic({served.current().revision: 99}),
        "INVALID_ARGUMENT", "TRAFFIC_INVALID", {"field": "shares"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("method", "request_of", "code", "reason", "facts"), REFUSALS.values(), ids=REFUSALS)
async def test_what_cannot_be_done_is_refused_with_a_reason(
    operated: Operated,
    served: Served,
    method: str,
    request_of: Callable[[Served], Message],
    code: str,
    reason: str,
    facts: dict[str, str],
) -> None:
    before = served.catalogue.current
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(operated.admin, method)(request_of(served), timeout=DEADLINE_S)
    error = RpcError.of_call(caught.value)
    assert (error.code.name, error.reason) == (code, f"ERROR_REASON_{reason}")
    assert facts.items() <= error.metadata.items()
    assert served.catalogue.current is before
    served.require_tidy()
