"""One request, start to end: conversation to answers. Read this first.

Knows neither gRPC nor vLLM: what comes in and goes out are domain values, and the engine is an interface.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from service.domain import AdapterKind, Classification, Classifier, Conversation, StageSeconds, TokenUsage, Truncation
from service.engine.base import LabelLogprobs, ScoringEngine, ScoringRequest, engine_adapter
from service.errors import (
    ClassifierNameMissingError,
    ClassifierWithheldError,
    DuplicateClassifierError,
    EngineDeadError,
    EngineError,
    FantailError,
    InvalidRequestError,
    TooManyClassifiersError,
    UnknownClassifierError,
    raise_all,
)
from service.prompt.builder import Prefix, PromptBuilder
from service.registry.registry import Registry
from service.request_id import request_id
from service.scoring.calibration import calibrate
from service.scoring.decision import decide
from service.scoring.distribution import label_distribution

logger = logging.getLogger(__name__)

MAX_CLASSIFIERS = 1000
"""Names in one call beyond which it is refused unread."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What came of a fan-out: for each classifier, in order, its answer or the error that took its place."""

    results: tuple[tuple[str, Classification | FantailError], ...]
    truncation: Truncation
    usage: TokenUsage
    stages: StageSeconds


@dataclass(frozen=True, slots=True)
class Classify:
    """Answers classifiers' questions about conversations."""

    registry: Registry
    builder: PromptBuilder
    engine: ScoringEngine

    async def one(self, conversation: Conversation, name: str) -> tuple[Classification, Answers]:
        """Ask one classifier. Raises what `fan_out` raises, and the classifier's own error."""
        if not name:
            raise ClassifierNameMissingError(
                "Name the classifier to ask; ListClassifiers names them all.", "classifier"
            )
        answers = await self.fan_out(conversation, [name])
        outcome = answers.results[0][1]
        if isinstance(outcome, FantailError):
            raise outcome
        return outcome, answers

    async def fan_out(self, conversation: Conversation, names: Sequence[str]) -> Answers:
        """Ask the named classifiers, or all when `names` is empty; the conversation is read once for all of them.

        A classifier that is unknown or withheld, or that the engine fails on, gets its error as result and does not
        disturb the others. Raises InvalidRequestError for what is wrong with the request, EngineDeadError.
        """
        started = time.perf_counter()
        raise_all(name_problems(names))
        names = names or tuple(self.registry.classifiers)
        chosen = [self._find(name) for name in names]
        prefix = self.builder.prefix(conversation)
        prompted = time.perf_counter()
        scored = await self._score(prefix, [each for each in chosen if isinstance(each, Classifier)])
        computed = time.perf_counter()
        results = [
            (each.name, _answer(each, scored[each.name])) if isinstance(each, Classifier) else (name, each)
            for name, each in zip(names, chosen, strict=True)
        ]
        usage = sum((a.usage for _, a in results if isinstance(a, Classification)), TokenUsage())
        done = time.perf_counter()
        stages = StageSeconds(prompted - started, computed - prompted, done - computed, done - started)
        return Answers(tuple(results), prefix.truncation, usage, stages)

    def _find(self, name: str) -> Classifier | UnknownClassifierError | ClassifierWithheldError:
        try:
            return self.registry.serving(name)
        except (UnknownClassifierError, ClassifierWithheldError) as error:
            return error

    async def _score(self, prefix: Prefix, classifiers: Sequence[Classifier]) -> dict[str, LabelLogprobs | EngineError]:
        """Score one prefix under every classifier at once; cancelling cancels all of them."""
        async with asyncio.TaskGroup() as group:
            tasks = {each.name: group.create_task(self._score_one(prefix, each)) for each in classifiers}
        scored = {name: task.result() for name, task in tasks.items()}
        for outcome in scored.values():
            if isinstance(outcome, EngineDeadError):
                raise outcome
        return scored

    async def _score_one(self, prefix: Prefix, classifier: Classifier) -> LabelLogprobs | EngineError:
        try:
            return await self.engine.score(scoring_request(prefix, classifier))
        except EngineError as error:
            _log(classifier, error)
            return error


def scoring_request(prefix: Prefix, classifier: Classifier) -> ScoringRequest:
    """The prompt of one classifier: the shared prefix, its own tail, and where its adapter begins."""
    activated = classifier.adapter is not None and classifier.adapter.kind is AdapterKind.ACTIVATED
    return ScoringRequest(
        token_ids=prefix.token_ids + classifier.tail_ids,
        label_ids=classifier.label_ids,
        adapter=engine_adapter(classifier),
        activation_index=len(prefix.token_ids) if activated else None,
    )


def _answer(classifier: Classifier, scored: LabelLogprobs | EngineError) -> Classification | EngineError:
    if isinstance(scored, EngineError):
        return scored
    try:
        if len(scored.logprobs) != len(classifier.labels):
            raise ValueError(f"{len(scored.logprobs)} logprobs for {len(classifier.labels)} labels")
        distribution = label_distribution(scored.logprobs)
    except ValueError as error:
        problem = EngineError("The engine gave no usable probabilities for this prompt.")
        problem.__cause__ = error
        _log(classifier, problem)
        return problem
    calibration = classifier.calibration
    probabilities = distribution.probabilities
    if calibration is not None:
        probabilities = calibrate(probabilities, calibration.scale, calibration.bias)
    thresholds = calibration.thresholds if calibration else ()
    decision = decide(probabilities, distribution.mass, classifier.min_label_mass, thresholds)
    labels = tuple(label.name for label in classifier.labels)
    return Classification(
        classifier=classifier.name,
        label=labels[decision.index],
        confidence=decision.confidence,
        labels=labels,
        probabilities=probabilities,
        raw_probabilities=distribution.probabilities,
        label_mass=distribution.mass,
        abstain_reason=decision.abstain_reason,
        revision=classifier.revision,
        usage=scored.usage,
    )


def _log(classifier: Classifier, error: EngineError) -> None:
    """A failed classifier may stand in one result of a call that succeeds, so it is logged where it happens."""
    logger.error("request %s: %s has no answer", request_id(), classifier.name, exc_info=error)


def name_problems(names: Sequence[str]) -> list[InvalidRequestError]:
    """Everything that is wrong with a fan-out's list of classifiers, whatever is served."""
    if len(names) > MAX_CLASSIFIERS:
        message = f"The call names {len(names)} classifiers, more than {MAX_CLASSIFIERS}; leave the list empty for all."
        return [TooManyClassifiersError(message, "classifiers", {"max_classifiers": str(MAX_CLASSIFIERS)})]
    problems: list[InvalidRequestError] = []
    seen: set[str] = set()
    for index, name in enumerate(names):
        if not name:
            problems.append(ClassifierNameMissingError(f"Name {index} is empty.", f"classifiers[{index}]"))
        elif name in seen:
            message = f"Classifier {name[:64]!r} is asked for twice; ask once."
            problems.append(DuplicateClassifierError(message, f"classifiers[{index}]"))
        seen.add(name)
    return problems
