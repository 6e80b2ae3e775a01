"""The gRPC server: services, health, reflection and interceptors, for as long as its context lasts."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service.admission import BACKGROUND_SHARE, Admission
from service.api.admin import AdminServicer
from service.api.health import MAX_WATCHERS, Health
from service.api.interceptors.admission import AdmissionInterceptor
from service.api.interceptors.auth import AuthInterceptor
from service.api.interceptors.deadline import DeadlineInterceptor
from service.api.interceptors.decode import DecodeInterceptor
from service.api.interceptors.errors import ErrorInterceptor
from service.api.interceptors.message import MessageInterceptor
from service.api.interceptors.metrics import MetricsInterceptor
from service.api.interceptors.tracing import TracingInterceptor
from service.api.servicer import ClassificationServicer, Limits
from service.api.tls import TlsFiles, server_credentials
from service.classify import Classify
from service.deploy import Deployer
from service.errors import ConfigurationError
from service.keys import KeyRing
from service.metrics import Metrics
from service.pb.fantail.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    classification_service_pb2,
    classification_service_pb2_grpc,
)
from service.tracing import Tracing

SERVICE = classification_service_pb2.DESCRIPTOR.services_by_name["ClassificationService"].full_name
ADMIN = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

TELLING_SECONDS = 1.0
"""How long a stopping server refuses calls before it sends its callers, held to it by their connections, elsewhere."""

LEAVING_SECONDS = 1.0
"""How long a stopping server that has answered what it accepted leaves everything else open."""

CLOSING_SECONDS = 0.1
"""The least of that, also after the grace: within it gRPC has closed the port, at which it must not be disturbed."""

SPARE_CALLS = 1000
"""Beside those that may be accepted: what is about to be refused, and those of health, reflection and the operator."""

MOST_CALLS = (1 << 31) - 1
"""Up to which gRPC can count."""

KEEPALIVE = (
    # A caller whose connection was dropped on the way is found out, and what he held is free again.
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # The one that gRPC (1.85) keeps to, instead of the one above (https://github.com/grpc/grpc/pull/39239).
    ("grpc.http2.ping_timeout_ms", 20_000),
    # Callers may look as well, every 20 s and also while a live conversation is quiet: gRPC itself would end them.
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
)


@dataclass(frozen=True, slots=True)
class Listening:
    """How a server is reached and by whom.

    `address`: host and port, 0 for any free one; `longest_seconds`, `longest_batch_seconds`: after which a call or a
    batch ends; `grace_seconds`: how long accepted calls may take when the server stops; `keys`, `tls`: None lets
    everybody in, in the clear.
    """

    address: str
    max_message_bytes: int = 4 << 20
    longest_seconds: float = 60.0
    longest_batch_seconds: float = 3600.0
    grace_seconds: float = 30.0
    limits: Limits = Limits()
    reflection: bool = True
    keys: KeyRing | None = None
    tls: TlsFiles | None = None


@contextlib.asynccontextmanager
async def listen(
    classify: Classify,
    listening: Listening,
    metrics: Metrics,
    deployer: Deployer | None = None,
    tracing: Tracing | None = None,
) -> AsyncIterator[int]:
    """Serve and yield the port; at the end take on nothing more and finish accepted calls within the grace.

    `deployer`: None serves no admin service; `tracing`: None makes no spans. Raises ConfigurationError when the address
    cannot be bound.
    """
    admission = classify.admission
    accepting = AdmissionInterceptor(admission)
    server = grpc.aio.server(
        interceptors=[
            MetricsInterceptor(metrics),
            ErrorInterceptor(),
            AuthInterceptor(listening.keys),
            MessageInterceptor(),
            DeadlineInterceptor(listening.longest_seconds, listening.longest_batch_seconds),
            TracingInterceptor(tracing),
            accepting,
            DecodeInterceptor(),
        ],
        options=[
            ("grpc.max_receive_message_length", listening.max_message_bytes),
            ("grpc.so_reuseport", 0),
            *KEEPALIVE,
        ],
        # No bound of streams per connection: a proxy may be one for everybody, and clients wait there and hear nothing.
        maximum_concurrent_rpcs=most_open(admission),
    )
    services = [SERVICE]
    classification_service_pb2_grpc.add_ClassificationServiceServicer_to_server(
        ClassificationServicer(classify, listening.limits), server
    )
    if deployer is not None:
        services.append(ADMIN)
        admin_service_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(deployer, metrics.last_used), server)
    health = Health(classify.engine, classify.catalogue, services, SERVICE)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    if listening.reflection:
        reflection.enable_server_reflection((*services, HEALTH, reflection.SERVICE_NAME), server)
    port = bind(server, listening)
    await health.update()
    await server.start()
    following = asyncio.create_task(health.follow())
    try:
        yield port
    finally:
        following.cancel()
        admission.stop()
        health.drain()
        await finish(server, accepting, listening.grace_seconds)


async def finish(server: grpc.aio.Server, accepting: AdmissionInterceptor, grace_seconds: float) -> None:
    """Stop: what was accepted is waited for within the grace; whatever else is open ends shortly after it."""
    clock = asyncio.get_running_loop().time
    ends = clock() + grace_seconds

    async def accepted_ended(by: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(by):
                await accepting.idle()

    await accepted_ended(min(ends, clock() + TELLING_SECONDS))  # who calls meanwhile is told that another may answer
    # Tells every connection to go elsewhere, and would wait for all that is open. It is given up before another `stop`
    # ends that: of two that wait, gRPC (1.85) lets the later one end the calls of a server that the other has freed.
    telling = asyncio.create_task(server.stop(math.inf))
    await accepted_ended(ends)
    await asyncio.wait({telling}, timeout=max(CLOSING_SECONDS, min(LEAVING_SECONDS, ends - clock())))
    telling.cancel()
    await asyncio.wait({telling})
    await server.stop(0)


def most_open(admission: Admission) -> int:
    """How many calls may be open at once, heard of by anybody or not; gRPC itself refuses more.

    All that can be accepted or watch health at once are fewer, so that who is turned away is told by us, with a delay.
    """
    accepted = admission.max_calls + math.ceil(BACKGROUND_SHARE * admission.max_calls) + admission.max_follows
    return min(accepted + MAX_WATCHERS + SPARE_CALLS, MOST_CALLS)


def bind(server: grpc.aio.Server, listening: Listening) -> int:
    """Bind the address; returns the port. Raises ConfigurationError."""
    try:
        if listening.tls is None:
            return server.add_insecure_port(listening.address)
        return server.add_secure_port(listening.address, server_credentials(listening.tls))
    except RuntimeError as error:
        raise ConfigurationError(
            f"FANTAIL_ADDRESS: cannot listen on {listening.address}; is another server running there?"
        ) from error
