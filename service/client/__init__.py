"""The Python client: needs grpcio and protobuf only."""

from service.client.client import FantailClient, RpcError, Turns

__all__ = ["FantailClient", "RpcError", "Turns"]
