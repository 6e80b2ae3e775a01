"""The gRPC server: services, health, reflection and interceptors, for as long as its context lasts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service.api.health import Health
from service.api.interceptors.errors import ErrorInterceptor
from service.api.servicer import ClassificationServicer
from service.classify import Classify
from service.errors import ConfigurationError
from service.pb.fantail.v1 import classification_service_pb2, classification_service_pb2_grpc

SERVICE = classification_service_pb2.DESCRIPTOR.services_by_name["ClassificationService"].full_name


@contextlib.asynccontextmanager
async def listen(
    classify: Classify, address: str, max_turns: int, max_message_bytes: int, grace_seconds: float
) -> AsyncIterator[int]:
    """Serve on `address` (port 0: any free one) and yield the port; at the end finish accepted calls within the grace.

    Raises ConfigurationError when the address cannot be bound.
    """
    server = grpc.aio.server(
        interceptors=[ErrorInterceptor()],
        options=[("grpc.max_receive_message_length", max_message_bytes), ("grpc.so_reuseport", 0)],
    )
    registry = classify.registry
    classifiers = {name: f"{SERVICE}/{name}" for name in registry.classifiers}
    withheld = {classifiers[name] for name in registry.withheld}
    health = Health(classify.engine, (SERVICE, *classifiers.values()), withheld)
    classification_service_pb2_grpc.add_ClassificationServiceServicer_to_server(
        ClassificationServicer(classify, max_turns), server
    )
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    reflection.enable_server_reflection(
        (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
    )
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigurationError(
            f"FANTAIL_ADDRESS: cannot listen on {address}; is another server running there?"
        ) from error
    await health.update()
    await server.start()
    following = asyncio.create_task(health.follow())
    try:
        yield port
    finally:
        following.cancel()
        await health.drain()
        await server.stop(grace_seconds)
