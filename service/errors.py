"""Every error that Fantail raises on purpose. Knows nothing of gRPC: `api/status.py` maps these to statuses.

    FantailError
    ├── InvalidRequestError        the caller must change the request
    │   ├── EmptyConversationError
    │   ├── RoleMissingError
    │   ├── TextMissingError
    │   ├── TurnTooLongError
    │   ├── ConversationTooLongError
    │   ├── ClassifierNameMissingError
    │   ├── DuplicateClassifierError
    │   ├── TooManyClassifiersError
    │   └── MalformedRequestError
    ├── UnknownClassifierError     no such classifier is served here
    ├── ClassifierWithheldError    it is here and did not pass its gate; a wrong answer is worse than none
    ├── EngineError                the engine failed on this request
    │   └── EngineDeadError        the engine is gone; every call fails until it is back
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
    """Root of the tree. `metadata`: machine-readable facts for the caller, never conversation text."""

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


class DuplicateClassifierError(InvalidRequestError):
    """A classifier is asked for twice in one call."""


class TooManyClassifiersError(InvalidRequestError):
    """A fan-out names more classifiers than any server has."""


class MalformedRequestError(InvalidRequestError):
    """The request's bytes are not the message that the method takes."""


class UnknownClassifierError(FantailError):
    """No classifier of that name is served."""


class ClassifierWithheldError(FantailError):
    """The classifier did not pass its gate and is not asked."""


class EngineError(FantailError):
    """The engine failed on this request; another attempt may succeed."""


class EngineDeadError(EngineError):
    """The engine is gone."""


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
