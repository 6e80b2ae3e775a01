"""A server with its operator's service, around classifier folders that the test writes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from service.api.server import Listening, listen
from service.client import FantailClient
from service.pb.fantail.v1 import admin_service_pb2 as pb
from service.pb.fantail.v1.admin_service_pb2_grpc import AdminServiceStub
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.pb.fantail.v1.classifier_pb2 import RevisionShare
from service.registry.loader import RegistryLoader
from tests.deployment import ACTIVATED, Served, serving
from tests.integration.harness import DEADLINE_S


@dataclass(frozen=True)
class Operated:
    """A running server, and who calls and operates it."""

    served: Served
    address: str
    client: FantailClient
    stub: ClassificationServiceStub
    admin: AdminServiceStub

    async def reload(self, *names: str) -> list[pb.ReloadResult]:
        return list((await self.admin.Reload(pb.ReloadRequest(classifiers=names), timeout=DEADLINE_S)).results)

    async def load(self, folder: str, name: str = ACTIVATED) -> str:
        """Load a candidate; returns its revision."""
        request = pb.LoadRevisionRequest(classifier=name, folder=folder)
        return (await self.admin.LoadRevision(request, timeout=DEADLINE_S)).revision

    async def revisions(self) -> dict[str, pb.Revision]:
        """What ListRevisions says, by revision."""
        response = await self.admin.ListRevisions(pb.ListRevisionsRequest(), timeout=DEADLINE_S)
        return {each.revision: each for each in response.revisions}


@contextlib.asynccontextmanager
async def operating(root: Path, loader: RegistryLoader, *names: str, **listening: Any) -> AsyncIterator[Operated]:
    """Serve these classifiers, or one of each kind, from folders in `root`. `listening`: how, see `Listening`."""
    how = Listening("127.0.0.1:0", grace_seconds=0.0, **listening)
    async with (
        serving(root, loader, *names) as served,
        listen(served.classify, how, served.metrics, served.deployer) as port,
        FantailClient(f"127.0.0.1:{port}") as client,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield Operated(
            served, f"127.0.0.1:{port}", client, ClassificationServiceStub(channel), AdminServiceStub(channel)
        )


def traffic(shares: Mapping[str, int], *shadows: str, name: str = ACTIVATED) -> pb.SetTrafficRequest:
    divided = [RevisionShare(revision=revision, percent=percent) for revision, percent in shares.items()]
    return pb.SetTrafficRequest(classifier=name, shares=divided, shadow_revisions=shadows)
