"""An async client of those who operate a server. Knows the contract alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.client.connection import Connection, Tls
from service.client.errors import typed_errors
from service.pb.fantail.v1 import admin_service_pb2 as pb
from service.pb.fantail.v1.admin_service_pb2_grpc import AdminServiceStub
from service.pb.fantail.v1.classifier_pb2 import RevisionShare


class FantailAdminClient(Connection):
    """Changes what one server answers with, while it runs; use it as an async context manager.

    >>> async with FantailAdminClient("127.0.0.1:50051", key=key) as admin:
    ...     revision = await admin.load_revision("topic", "topic-2", timeout=60)

    `key`: an API key with the scope "admin"; `tls`: None talks in the clear, over which no key should travel beyond
    this machine. A call has a deadline in seconds and is made once. When it passes, the server goes on with what it
    began: `list_revisions` tells what became of it.
    """

    def __init__(self, address: str, *, key: str, tls: Tls | None = None) -> None:
        super().__init__(address, key, tls)
        self._stub = AdminServiceStub(self._channel)

    async def reload(self, classifiers: Sequence[str] = (), *, timeout: float) -> Sequence[pb.ReloadResult]:
        """Serve what the classifiers folder holds now, of the named or of all; what became of each that changed.

        One that cannot be served is reported with its problems and changes nothing. Raises RpcError.
        """
        request = pb.ReloadRequest(classifiers=classifiers)
        with typed_errors():
            return (await self._stub.Reload(request, timeout=timeout, metadata=self._metadata)).results

    async def load_revision(self, classifier: str, folder: str, *, timeout: float) -> str:
        """Load a further revision from the server's folder of candidates; it answers nothing yet. Raises RpcError."""
        request = pb.LoadRevisionRequest(classifier=classifier, folder=folder)
        with typed_errors():
            return (await self._stub.LoadRevision(request, timeout=timeout, metadata=self._metadata)).revision

    async def unload_revision(self, classifier: str, revision: str, *, timeout: float) -> None:
        """Unload a revision that neither answers nor shadows. Raises RpcError."""
        request = pb.UnloadRevisionRequest(classifier=classifier, revision=revision)
        with typed_errors():
            await self._stub.UnloadRevision(request, timeout=timeout, metadata=self._metadata)

    async def set_traffic(
        self, classifier: str, percent: Mapping[str, int], shadows: Sequence[str] = (), *, timeout: float
    ) -> pb.SetTrafficResponse:
        """Divide a classifier's conversations between loaded revisions. Raises RpcError.

        `percent`: of each revision, 100 in all, or empty for the classifiers folder's own alone; `shadows`: revisions
        that are scored on the same conversations and never answer.
        """
        shares = [RevisionShare(revision=revision, percent=share) for revision, share in percent.items()]
        request = pb.SetTrafficRequest(classifier=classifier, shares=shares, shadow_revisions=shadows)
        with typed_errors():
            return await self._stub.SetTraffic(request, timeout=timeout, metadata=self._metadata)

    async def list_revisions(self, *, timeout: float) -> Sequence[pb.Revision]:
        """All loaded revisions by classifier, with the place of their adapters in the engine. Raises RpcError."""
        request = pb.ListRevisionsRequest()
        with typed_errors():
            return (await self._stub.ListRevisions(request, timeout=timeout, metadata=self._metadata)).revisions
