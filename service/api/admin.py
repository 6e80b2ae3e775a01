"""The operator's methods: message in, a change by the deployer, message out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpc.aio import ServicerContext

from service.deploy import Deployer
from service.engine.base import engine_adapter
from service.pb.fantail.v1 import admin_service_pb2 as pb
from service.pb.fantail.v1 import classifier_pb2
from service.pb.fantail.v1.admin_service_pb2_grpc import AdminServiceServicer
from service.revisions import Reloaded, ReloadOutcome, RevisionPlace

Context = ServicerContext[Any, Any]

OUTCOMES = {
    ReloadOutcome.LOADED: pb.RELOAD_OUTCOME_LOADED,
    ReloadOutcome.REMOVED: pb.RELOAD_OUTCOME_REMOVED,
    ReloadOutcome.REFUSED: pb.RELOAD_OUTCOME_REFUSED,
}


class AdminServicer(AdminServiceServicer):
    """`last_used`: when each revision was last asked, on `time.time`'s clock, kept by whoever counts answers."""

    def __init__(self, deployer: Deployer, last_used: Mapping[tuple[str, str], float]) -> None:
        self._deployer, self._last_used = deployer, last_used

    async def Reload(self, request: pb.ReloadRequest, context: Context) -> pb.ReloadResponse:
        return pb.ReloadResponse(
            results=[reloaded_to_proto(each) for each in await self._deployer.reload(request.classifiers)]
        )

    async def LoadRevision(self, request: pb.LoadRevisionRequest, context: Context) -> pb.LoadRevisionResponse:
        found = await self._deployer.load(request.classifier, request.folder)
        return pb.LoadRevisionResponse(revision=found.revision)

    async def UnloadRevision(self, request: pb.UnloadRevisionRequest, context: Context) -> pb.UnloadRevisionResponse:
        await self._deployer.unload(request.classifier, request.revision)
        return pb.UnloadRevisionResponse()

    async def SetTraffic(self, request: pb.SetTrafficRequest, context: Context) -> pb.SetTrafficResponse:
        shares = [(each.revision, each.percent) for each in request.shares]
        divided, shadows = await self._deployer.route(request.classifier, shares, request.shadow_revisions)
        return pb.SetTrafficResponse(
            shares=[classifier_pb2.RevisionShare(revision=name, percent=share) for name, share in divided.items()],
            shadow_revisions=sorted(shadows),
        )

    async def ListRevisions(self, request: pb.ListRevisionsRequest, context: Context) -> pb.ListRevisionsResponse:
        return pb.ListRevisionsResponse(
            revisions=[revision_to_proto(each, self._last_used) for each in await self._deployer.places()]
        )


def reloaded_to_proto(value: Reloaded) -> pb.ReloadResult:
    return pb.ReloadResult(
        classifier=value.classifier,
        outcome=OUTCOMES[value.outcome],
        revision=value.revision,
        previous_revision=value.previous_revision,
        problems=value.problems,
    )


def revision_to_proto(value: RevisionPlace, last_used: Mapping[tuple[str, str], float]) -> pb.Revision:
    classifier = value.classifier
    found = pb.Revision(
        classifier=classifier.name, revision=classifier.revision, percent=value.percent, shadow=value.shadow
    )
    if (adapter := engine_adapter(classifier)) is not None:
        place = value.place
        found.adapter.name = adapter.name
        found.adapter.resident = place is not None
        found.adapter.slot = -1 if place is None or place.slot is None else place.slot
        found.adapter.slot_loads = 0 if place is None else place.slot_loads
        if (used := last_used.get((classifier.name, classifier.revision))) is not None:
            found.adapter.last_used_time.FromNanoseconds(round(used * 1e9))
    return found
