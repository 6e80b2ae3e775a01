"""A client of the contract; needs grpcio and protobuf alone."""

from service.client.client import FantailClient, Tls
from service.client.conversation import Turns
from service.client.errors import RpcError
from service.client.following import FollowedConversation
from service.client.sync import FantailSyncClient

__all__ = ["FantailClient", "FantailSyncClient", "FollowedConversation", "RpcError", "Tls", "Turns"]
