"""Errors to statuses: one table, and the details of AIP-193."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from service import errors
from service.pb.fantail.v1 import error_reason_pb2 as reasons
from service.pb.fantail.v1.error_reason_pb2 import ErrorReason

DOMAIN = "fantail.v1"
DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata that carries a google.rpc.Status, as every gRPC library expects it."""

MAX_VIOLATIONS = 20

TABLE: dict[type[errors.FantailError], tuple[StatusCode, ErrorReason.ValueType]] = {
    errors.EmptyConversationError: (StatusCode.INVALID_ARGUMENT, reasons.ERROR_REASON_CONVERSATION_EMPTY),
    errors.RoleMissingError: (StatusCode.INVALID_ARGUMENT, reasons.ERROR_REASON_ROLE_MISSING),
    errors.TextMissingError: (StatusCode.INVALID_ARGUMENT, reasons.ERROR_REASON_TEXT_MISSING),
    errors.TurnTooLongError: (StatusCode.INVALID_ARGUMENT, reasons.ERROR_REASON_TURN_TOO_LONG),
    errors.ConversationTooLongError: (StatusCode.INVALID_ARGUMENT, reasons.ERROR_REASON_CONVERSATION_TOO_LONG),
    errors.ClassifierNameMissingError: (StatusCode.INVALID_ARGUMENT, reasons.ERROR_REASON_CLASSIFIER_NAME_MISSING),
    errors.ClassifierNameTooLongError: (StatusCode.INVALID_ARGUMENT, reasons.ERROR_REASON_CLASSIFIER_NAME_TOO_LONG),
    errors.DuplicateClassifierError: (StatusCode.INVALID_ARGUMENT, reasons.ERROR_REASON_CLASSIFIER_DUPLICATED),
    errors.TooManyClassifiersError: (StatusCode.INVALID_ARGUMENT, reasons.ERROR_REASON_CLASSIFIERS_TOO_MANY),
    errors.MalformedRequestError: (StatusCode.INVALID_ARGUMENT, reasons.ERROR_REASON_REQUEST_MALFORMED),
    errors.EmptyBatchError: (StatusCode.INVALID_ARGUMENT, reasons.ERROR_REASON_BATCH_EMPTY),
    errors.BatchTooLargeError: (StatusCode.INVALID_ARGUMENT, reasons.ERROR_REASON_BATCH_TOO_LARGE),
    errors.InvalidTimeoutError: (StatusCode.INVALID_ARGUMENT, reasons.ERROR_REASON_TIMEOUT_INVALID),
    errors.InvalidTrafficError: (StatusCode.INVALID_ARGUMENT, reasons.ERROR_REASON_TRAFFIC_INVALID),
    errors.FolderOutsideError: (StatusCode.INVALID_ARGUMENT, reasons.ERROR_REASON_FOLDER_OUTSIDE),
    errors.KeyInvalidError: (StatusCode.UNAUTHENTICATED, reasons.ERROR_REASON_KEY_INVALID),
    errors.ScopeMissingError: (StatusCode.PERMISSION_DENIED, reasons.ERROR_REASON_SCOPE_MISSING),
    errors.UnknownClassifierError: (StatusCode.NOT_FOUND, reasons.ERROR_REASON_CLASSIFIER_UNKNOWN),
    errors.ClassifierWithheldError: (StatusCode.FAILED_PRECONDITION, reasons.ERROR_REASON_CLASSIFIER_WITHHELD),
    errors.DeadlineExceededError: (StatusCode.DEADLINE_EXCEEDED, reasons.ERROR_REASON_DEADLINE_EXCEEDED),
    errors.DeadlineTooNearError: (StatusCode.DEADLINE_EXCEEDED, reasons.ERROR_REASON_DEADLINE_TOO_NEAR),
    errors.OverloadedError: (StatusCode.RESOURCE_EXHAUSTED, reasons.ERROR_REASON_OVERLOADED),
    errors.RateLimitedError: (StatusCode.RESOURCE_EXHAUSTED, reasons.ERROR_REASON_RATE_LIMITED),
    errors.StartingError: (StatusCode.UNAVAILABLE, reasons.ERROR_REASON_STARTING),
    errors.StoppingError: (StatusCode.UNAVAILABLE, reasons.ERROR_REASON_STOPPING),
    errors.UnknownRevisionError: (StatusCode.NOT_FOUND, reasons.ERROR_REASON_REVISION_UNKNOWN),
    errors.RevisionInUseError: (StatusCode.FAILED_PRECONDITION, reasons.ERROR_REASON_REVISION_IN_USE),
    errors.RevisionRefusedError: (StatusCode.FAILED_PRECONDITION, reasons.ERROR_REASON_REVISION_REFUSED),
    errors.EngineError: (StatusCode.INTERNAL, reasons.ERROR_REASON_ENGINE_FAILED),
    errors.EngineDeadError: (StatusCode.UNAVAILABLE, reasons.ERROR_REASON_ENGINE_DEAD),
}
"""Every error that can reach a caller. Errors of starting never do."""

DEFECT = errors.FantailError("The server has a defect; report it with the request id.")
"""Stands for every exception that is not ours: its text stays in the log."""


def reason_name(error: errors.FantailError) -> str:
    """The name of an error's reason, as its details have it."""
    return ErrorReason.Name(TABLE[type(error)][1] if type(error) in TABLE else reasons.ERROR_REASON_DEFECT)


def rpc_status(error: errors.FantailError, request_id: str) -> status_pb2.Status:
    """The status of an error with its details; an error outside the table is a defect."""
    code, reason = TABLE.get(type(error), (StatusCode.INTERNAL, reasons.ERROR_REASON_DEFECT))
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=ErrorReason.Name(reason), domain=DOMAIN, metadata=error.metadata),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    if isinstance(error, errors.InvalidRequestError):
        details.append(error_details_pb2.BadRequest(field_violations=_violations((error, *error.others))))
    if error.retry_after_s is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration(error.retry_after_s)))
    return status_pb2.Status(code=code.value[0], message=error.message, details=[_pack(detail) for detail in details])


def duration(seconds: float) -> Duration:
    """Seconds as the contract has them."""
    found = Duration()
    found.FromNanoseconds(round(seconds * 1e9))
    return found


def _violations(problems: Sequence[errors.InvalidRequestError]) -> list[error_details_pb2.BadRequest.FieldViolation]:
    """The first problems by field, and how many more there are: trailing metadata has room for 8 KiB."""
    violation = error_details_pb2.BadRequest.FieldViolation
    shown = [violation(field=each.field, description=each.message) for each in problems[:MAX_VIOLATIONS]]
    if len(problems) > MAX_VIOLATIONS:
        shown.append(violation(field="", description=f"and {len(problems) - MAX_VIOLATIONS} more problems"))
    return shown


def _pack(detail: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(detail)
    return packed
