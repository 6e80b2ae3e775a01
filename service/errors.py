"""Every error that Fantail raises on purpose. Knows nothing of gRPC: `api/status.py` maps these to statuses.

    FantailError
    ├── InvalidRequestError        the caller must change the request
    │   ├── EmptyConversationError
    │   ├── RoleMissingError
    │   ├── TextMissingError
    │   ├── TurnTooLongError
    │   ├── ConversationTooLongError
    │   ├── ClassifierNameMissingError
    │   ├── ClassifierNameTooLongError
    │   ├── DuplicateClassifierError
    │   ├── TooManyClassifiersError
    │   ├── EmptyBatchError
    │   ├── BatchTooLargeError
    │   ├── InvalidTimeoutError
    │   ├── InvalidTrafficError
    │   ├── FolderOutsideError
    │   └── MalformedRequestError
    ├── CallerError                the caller must present another key
    │   ├── KeyInvalidError
    │   └── ScopeMissingError
    ├── UnknownClassifierError     no such classifier is served here
    ├── ClassifierWithheldError    it is here and did not pass its gate; a wrong answer is worse than none
    ├── DeadlineError              the caller must allow more time
    │   ├── DeadlineExceededError  the answer was not ready in time
    │   └── DeadlineTooNearError   it could not have been, so nothing was begun
    ├── OverloadedError            the caller must wait before another attempt
    │   └── RateLimitedError       because of their own calls
    ├── NotServingError            another server may answer, or this one later
    │   ├── StartingError
    │   └── StoppingError
    ├── EngineError                the engine failed on this request
    │   └── EngineDeadError        the engine is gone; every call fails until it is back
    ├── DeploymentError            the operator's change was not made
    │   ├── UnknownRevisionError
    │   ├── RevisionInUseError
    │   └── RevisionRefusedError   what the folder holds cannot be served
    └── StartError                 the operator must act; the server does not start
        ├── ConfigurationError     a setting
        ├── RegistryError          one or more classifier folders, all problems together
        ├── BaseModelError         the base model's folder
        └── PluginInactiveError    a vLLM patch is not active in some process

A message says what is wrong and what to do next, and never holds conversation text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class FantailError(Exception):
    """Root of the tree.

    `metadata`: machine-readable facts for the caller, never conversation text; `retry_after_s`: seconds after which
    another attempt makes sense, None where it does not or where nobody knows.
    """

    retry_after_s: float | None = None

    def __init__(self, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: Mapping[str, str] = dict(metadata or {})


class InvalidRequestError(FantailError):
    """The request can never succeed as it is.

    `field`: path of the offending field in the request; `others`: what else is wrong with the same request.
    """

    def __init__(self, message: str, field: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message, {"field": field, **(metadata or {})})
        self.field = field
        self.others: tuple[InvalidRequestError, ...] = ()


def raise_all(problems: Sequence[InvalidRequestError]) -> None:
    """Raise the first problem with the others attached; do nothing when there are none."""
    if problems:
        first, *others = problems
        first.others = tuple(others)
        raise first


class EmptyConversationError(InvalidRequestError):
    """The conversation has no turns."""


class RoleMissingError(InvalidRequestError):
    """A turn's role is unspecified or unknown."""


class TextMissingError(InvalidRequestError):
    """A turn's text is empty or blank."""


class TurnTooLongError(InvalidRequestError):
    """One turn alone does not fit the context."""


class ConversationTooLongError(InvalidRequestError):
    """The conversation has more turns than this server accepts."""


class ClassifierNameMissingError(InvalidRequestError):
    """A classifier's name is empty where one is needed."""


class ClassifierNameTooLongError(InvalidRequestError):
    """A classifier's name is longer than any can be, and would be repeated in every result."""


class DuplicateClassifierError(InvalidRequestError):
    """A classifier is asked for twice in one call."""


class TooManyClassifiersError(InvalidRequestError):
    """A fan-out names more classifiers than any server has."""


class EmptyBatchError(InvalidRequestError):
    """A batch has no conversations."""


class BatchTooLargeError(InvalidRequestError):
    """A batch has more conversations than this server accepts."""


class InvalidTimeoutError(InvalidRequestError):
    """A timeout is not positive."""


class InvalidTrafficError(InvalidRequestError):
    """Shares of traffic are no percentages, do not sum to 100, or name a revision twice."""


class FolderOutsideError(InvalidRequestError):
    """A folder's name leads out of where revisions are loaded from, or is longer than any path."""


class MalformedRequestError(InvalidRequestError):
    """The request's bytes are not the message that the method takes."""


class UnknownClassifierError(FantailError):
    """No classifier of that name is served."""


class ClassifierWithheldError(FantailError):
    """The classifier did not pass its gate and is not asked."""


class CallerError(FantailError):
    """Who calls may not do this."""


class KeyInvalidError(CallerError):
    """The call has no key, or one that is unknown or expired."""


class ScopeMissingError(CallerError):
    """The key's scopes do not cover the method."""


class DeadlineError(FantailError):
    """There was too little time."""


class DeadlineExceededError(DeadlineError):
    """The answer was not ready at the deadline."""


class DeadlineTooNearError(DeadlineError):
    """The work cannot be done by the deadline, so it was not begun."""


class OverloadedError(FantailError):
    """There is no room for this work now."""

    def __init__(self, message: str, retry_after_s: float, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message, metadata)
        self.retry_after_s = retry_after_s


class RateLimitedError(OverloadedError):
    """The caller asks more often than they may."""


class NotServingError(FantailError):
    """This server takes no calls at the moment."""

    retry_after_s = 5.0


class StartingError(NotServingError):
    """The engine is being started and proven."""


class StoppingError(NotServingError):
    """The server is about to end."""


class EngineError(FantailError):
    """The engine failed on this request; another attempt may succeed."""


class EngineDeadError(EngineError):
    """The engine is gone."""

    retry_after_s = 5.0


class DeploymentError(FantailError):
    """What is served stays as it is."""


class UnknownRevisionError(DeploymentError):
    """No such revision is loaded."""


class RevisionInUseError(DeploymentError):
    """The revision answers or shadows."""


class RevisionRefusedError(DeploymentError):
    """What a folder holds cannot be served. `problems`: a sentence for each reason.

    The message says the first few: a status has room for 8 KiB, and a wrong rank is a problem of every single weight.
    """

    SAID = 10

    def __init__(self, classifier: str, problems: Sequence[str]) -> None:
        more = len(problems) - self.SAID
        said = [*problems[: self.SAID], *([f"and {more} more problems"] if more > 0 else [])]
        super().__init__("; ".join(said), {"classifier": classifier})
        self.problems = tuple(problems)


class StartError(FantailError):
    """The server must not start."""


class ConfigurationError(StartError):
    """A setting is unknown, malformed or contradicts another."""


class BaseModelError(StartError):
    """The base model is missing, damaged or of an unsupported kind."""


class PluginInactiveError(StartError):
    """A vLLM patch is not active in an engine process, so answers would be wrong."""


class RegistryError(StartError):
    """Classifier folders are not servable. `problems`: one sentence each, for all folders."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{len(self.problems)} problem(s) in the classifier folders:\n{lines}")
