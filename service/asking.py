"""One classifier's question about one prefix: to what the engine is asked, and from its logprobs to an answer."""

from __future__ import annotations

from dataclasses import dataclass

from service.call import Call
from service.domain import AdapterKind, Classification, Classifier, Prefix
from service.engine.base import LabelLogprobs, ScoringRequest, engine_adapter
from service.errors import EngineError
from service.scoring.calibration import calibrate
from service.scoring.decision import decide
from service.scoring.distribution import label_distribution

BACKGROUND_RANK = 10
"""Added to the engine's priority of work that nobody waits for: any other goes first."""


@dataclass(frozen=True, slots=True)
class Question:
    """One classifier, and the prefix of the conversation that it is asked about."""

    classifier: Classifier
    prefix: Prefix

    @property
    def reading(self) -> str:
        """The same for those that read a conversation together: all but plain ones, where they have one prompt."""
        own = self.classifier.own_prompt
        return self.classifier.revision if not self.classifier.shares_reading else own.prompt_digest if own else ""


def scoring_request(prefix: Prefix, classifier: Classifier, call: Call = Call()) -> ScoringRequest:
    """The prompt of one classifier: a conversation's prefix, its own tail, and where its adapter begins."""
    activated = classifier.adapter is not None and classifier.adapter.kind is AdapterKind.ACTIVATED
    return ScoringRequest(
        token_ids=prefix.token_ids + classifier.tail_ids,
        label_ids=classifier.label_ids,
        adapter=engine_adapter(classifier),
        activation_index=len(prefix.token_ids) if activated else None,
        priority=classifier.priority.rank + BACKGROUND_RANK * call.background,
        cache_salt=call.cache_salt,
        trace_headers=call.trace_headers,
    )


def answer(prefix: Prefix, classifier: Classifier, scored: LabelLogprobs) -> Classification:
    """What label logprobs mean for who was asked about a prefix. Raises EngineError for numbers that mean nothing."""
    try:
        if len(scored.logprobs) != len(classifier.labels):
            raise ValueError(f"{len(scored.logprobs)} logprobs for {len(classifier.labels)} labels")
        distribution = label_distribution(scored.logprobs)
    except ValueError as error:
        raise EngineError("The engine gave no usable probabilities for this prompt.") from error
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
        truncation=prefix.truncation,
        usage=scored.usage,
    )
