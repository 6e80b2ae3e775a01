"""A failed call as an exception with everything that the server said."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"
CODES = {code.value[0]: code for code in grpc.StatusCode}


class RpcError(Exception):
    """A call, or a message of a live conversation, that failed.

    `code`: the gRPC status; `reason`: an `ErrorReason` name, empty when the failure is not the server's own;
    `metadata`: its facts; `request_id`: what to quote to the operator; `violations`: field to what is wrong with it;
    `retry_after_s`: seconds to wait before another attempt, None where the server names none; `messages_ago`: how many
    messages of a live conversation before the one just told this is about, 0 for that one itself.
    """

    messages_ago = 0

    def __init__(self, code: grpc.StatusCode, message: str, status: status_pb2.Status) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code, self.message, self._status = code, message, status
        info, request, invalid, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.RequestInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        for detail in status.details:
            for known in (info, request, invalid, retry):
                if detail.Is(known.DESCRIPTOR):
                    detail.Unpack(known)
        self.reason = info.reason
        self.metadata: Mapping[str, str] = dict(info.metadata)
        self.request_id = request.request_id
        self.violations = {violation.field: violation.description for violation in invalid.field_violations}
        self.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None

    def __reduce__(self) -> tuple[Any, ...]:
        """For those who carry it from one process to another."""
        return type(self), (self.code, self.message, self._status), {"messages_ago": self.messages_ago}

    @classmethod
    def of_call(cls, error: grpc.aio.AioRpcError) -> RpcError:
        """What gRPC raised."""
        raw = next((value for key, value in error.trailing_metadata() or () if key == DETAILS_KEY), None)
        status = status_pb2.Status.FromString(raw) if isinstance(raw, bytes) else status_pb2.Status()
        return cls(error.code(), error.details() or "", status)

    @classmethod
    def of_status(cls, status: status_pb2.Status, messages_ago: int = 0) -> RpcError:
        """A status that stands in a response."""
        error = cls(CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, status)
        error.messages_ago = messages_ago
        return error


@contextlib.contextmanager
def typed_errors() -> Iterator[None]:
    """Turn what gRPC raises into RpcError."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise RpcError.of_call(error) from error
