"""A client of the contract; needs grpcio and protobuf alone."""

from service.client.admin import FantailAdminClient
from service.client.client import FantailClient
from service.client.connection import Tls
from service.client.conversation import Turns
from service.client.errors import RpcError
from service.client.following import FollowedConversation
from service.client.sync import FantailSyncClient

__all__ = [
    "FantailAdminClient",
    "FantailClient",
    "FantailSyncClient",
    "FollowedConversation",
    "RpcError",
    "Tls",
    "Turns",
]
