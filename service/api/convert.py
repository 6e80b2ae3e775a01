"""Messages to domain values and back; what a message lacks is refused here, all of it at once."""

from __future__ import annotations

from collections.abc import Sequence

from service.api.status import duration, rpc_status
from service.classify import Answers, Outcome, Result
from service.domain import (
    AdapterKind,
    Classification,
    Classifier,
    Conversation,
    Priority,
    Role,
    StageSeconds,
    TokenUsage,
    Turn,
)
from service.errors import (
    ConversationTooLongError,
    EmptyConversationError,
    FantailError,
    InvalidRequestError,
    InvalidTimeoutError,
    RoleMissingError,
    TextMissingError,
)
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1 import classifier_pb2
from service.registry.registry import Registry
from service.scoring.decision import BELOW_THRESHOLD, LABEL_MASS_TOO_LOW

ROLES = {pb.ROLE_CUSTOMER: Role.CUSTOMER, pb.ROLE_AGENT: Role.AGENT, pb.ROLE_SYSTEM: Role.SYSTEM}
ABSTAIN_REASONS = {
    None: pb.ABSTAIN_REASON_UNSPECIFIED,
    LABEL_MASS_TOO_LOW: pb.ABSTAIN_REASON_LABEL_MASS_TOO_LOW,
    BELOW_THRESHOLD: pb.ABSTAIN_REASON_BELOW_THRESHOLD,
}
ADAPTER_KINDS = {
    AdapterKind.ACTIVATED: classifier_pb2.ADAPTER_KIND_ACTIVATED,
    AdapterKind.PLAIN: classifier_pb2.ADAPTER_KIND_PLAIN,
    None: classifier_pb2.ADAPTER_KIND_NONE,
}
PRIORITIES = {
    Priority.CRITICAL: classifier_pb2.PRIORITY_CRITICAL,
    Priority.NORMAL: classifier_pb2.PRIORITY_NORMAL,
    Priority.LOW: classifier_pb2.PRIORITY_LOW,
}


def conversation_problems(
    message: pb.Conversation, max_turns: int, field: str = "conversation"
) -> list[InvalidRequestError]:
    """Everything that is wrong with a conversation before it is tokenised. `field`: its path in the request."""
    if not message.turns:
        return [EmptyConversationError("The conversation has no turns; send at least one.", f"{field}.turns")]
    return turns_problems(message.turns, 0, max_turns, f"{field}.turns")


def turns_problems(turns: Sequence[pb.Turn], before: int, max_turns: int, field: str) -> list[InvalidRequestError]:
    """Everything that is wrong with turns that come after `before` others."""
    if before + len(turns) > max_turns:
        size = (
            f"The conversation has {before + len(turns)} turns, this server accepts {max_turns}; send the latest ones."
        )
        return [ConversationTooLongError(size, field, {"max_turns": str(max_turns)})]
    return [problem for index, turn in enumerate(turns) for problem in _turn_problems(index, turn, field)]


def text_problems(turns: Sequence[pb.Turn], before: int, max_bytes: int, field: str) -> list[InvalidRequestError]:
    """What is wrong with how much is said, after `before` bytes of text."""
    size = before + sum(len(turn.text.encode()) for turn in turns)
    if size > max_bytes:
        what = f"The conversation has {size} bytes of text, this server accepts {max_bytes}; follow its latest turns."
        return [ConversationTooLongError(what, field, {"max_bytes": str(max_bytes)})]
    return []


def timeout_problems(message: pb.FollowRequest) -> list[InvalidRequestError]:
    """What is wrong with the time a message of a live conversation may take."""
    if message.HasField("timeout") and message.timeout.ToNanoseconds() <= 0:
        return [InvalidTimeoutError("The timeout is not positive; leave it out for none.", "timeout")]
    return []


def conversation_from_proto(message: pb.Conversation) -> Conversation:
    """A conversation that has no problems."""
    return Conversation(message.id, turns_from_proto(message.turns))


def turns_from_proto(turns: Sequence[pb.Turn]) -> tuple[Turn, ...]:
    """Turns that have no problems."""
    return tuple(Turn(ROLES[turn.role], turn.text) for turn in turns)


def _turn_problems(index: int, turn: pb.Turn, field: str) -> list[InvalidRequestError]:
    problems: list[InvalidRequestError] = []
    if turn.role not in ROLES:
        problems.append(
            RoleMissingError(
                f"Turn {index} has no known role; say ROLE_CUSTOMER, ROLE_AGENT or ROLE_SYSTEM.",
                f"{field}[{index}].role",
            )
        )
    if not turn.text.strip():
        problems.append(TextMissingError(f"Turn {index} has no text; leave empty turns out.", f"{field}[{index}].text"))
    return problems


def classify_response_to_proto(classification: Classification, answers: Answers) -> pb.ClassifyResponse:
    return pb.ClassifyResponse(
        classification=classification_to_proto(classification),
        durations=durations_to_proto(answers.stages),
        usage=usage_to_proto(answers.usage),
    )


def fan_out_response_to_proto(answers: Answers, request_id: str) -> pb.FanOutResponse:
    return pb.FanOutResponse(
        results=[_result_to_proto(name, outcome, request_id) for name, outcome in answers.results],
        durations=durations_to_proto(answers.stages),
        usage=usage_to_proto(answers.usage),
    )


def stream_result_to_proto(result: Result, request_id: str) -> pb.FanOutResult:
    found = _result_to_proto(result.name, result.outcome, request_id)
    found.durations.CopyFrom(durations_to_proto(result.stages))
    return found


def batch_item_to_proto(outcome: Answers | FantailError, request_id: str) -> pb.ClassifyBatchItem:
    if isinstance(outcome, FantailError):
        return pb.ClassifyBatchItem(status=rpc_status(outcome, request_id))
    return pb.ClassifyBatchItem(fan_out=fan_out_response_to_proto(outcome, request_id))


def follow_response_to_proto(
    message: int, turns: int, outcome: Answers | FantailError, request_id: str
) -> pb.FollowResponse:
    if isinstance(outcome, FantailError):
        return pb.FollowResponse(message=message, turns=turns, status=rpc_status(outcome, request_id))
    return pb.FollowResponse(message=message, turns=turns, fan_out=fan_out_response_to_proto(outcome, request_id))


def _result_to_proto(name: str, outcome: Outcome, request_id: str) -> pb.FanOutResult:
    if isinstance(outcome, FantailError):
        return pb.FanOutResult(classifier=name, status=rpc_status(outcome, request_id))
    return pb.FanOutResult(classifier=name, classification=classification_to_proto(outcome))


def classification_to_proto(value: Classification) -> pb.Classification:
    return pb.Classification(
        classifier=value.classifier,
        label=value.label,
        confidence=value.confidence,
        scores=[
            pb.LabelScore(label=label, probability=p, raw_probability=raw)
            for label, p, raw in zip(value.labels, value.probabilities, value.raw_probabilities, strict=True)
        ],
        label_mass=value.label_mass,
        abstained=value.abstain_reason is not None,
        abstain_reason=ABSTAIN_REASONS[value.abstain_reason],
        revision=value.revision,
        truncation=pb.Truncation(
            dropped_turns=value.truncation.dropped_turns, dropped_tokens=value.truncation.dropped_tokens
        ),
        usage=usage_to_proto(value.usage),
    )


def usage_to_proto(value: TokenUsage) -> pb.TokenUsage:
    return pb.TokenUsage(computed_tokens=value.computed, reused_tokens=value.reused)


def durations_to_proto(value: StageSeconds) -> pb.StageDurations:
    return pb.StageDurations(
        prompt=duration(value.prompt),
        engine=duration(value.engine),
        scoring=duration(value.scoring),
        total=duration(value.total),
    )


def classifier_to_proto(value: Classifier, registry: Registry) -> classifier_pb2.Classifier:
    withheld_because = registry.withheld.get(value.name)
    return classifier_pb2.Classifier(
        name=value.name,
        description=value.description,
        labels=[label.name for label in value.labels],
        adapter_kind=ADAPTER_KINDS[value.adapter.kind if value.adapter else None],
        revision=value.revision,
        tail_tokens=len(value.tail_ids),
        state=classifier_pb2.SERVING_STATE_WITHHELD if withheld_because else classifier_pb2.SERVING_STATE_SERVING,
        withheld_because=withheld_because or "",
        calibrated=value.calibration is not None,
        thresholds=_thresholds_to_proto(value),
        priority=PRIORITIES[value.priority],
        traffic=[
            classifier_pb2.RevisionShare(revision=revision, percent=percent)
            for revision, percent in registry.shares(value.name).items()
        ],
    )


def _thresholds_to_proto(value: Classifier) -> list[classifier_pb2.LabelThreshold]:
    thresholds = value.calibration.thresholds if value.calibration else ()
    return [
        classifier_pb2.LabelThreshold(label=label.name, probability=threshold)
        for label, threshold in zip(value.labels, thresholds, strict=False)
        if threshold > 0
    ]
