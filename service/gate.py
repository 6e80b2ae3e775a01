"""The gate: a classifier answers only when the served engine gives PEFT's own answers to its probes.

Knows neither vLLM nor files. Each check stands for faults that were seen elsewhere and that nothing else would notice:

1. *As PEFT in float32 says*: weights of another classifier or base, a scale or rank exported wrongly, labels
   swapped, an adapter active on the wrong tokens, KV of earlier weights.
2. *Unlike the base model*, on one probe at least: an adapter that silently does nothing.
3. *Alone* (on one probe) *as beside others*: adapters that disturb each other, or the base model, in one batch, both
   on KV that was left and where the conversations themselves are read in that batch.

A classifier without adapter has nothing to be held against; it has to answer at all.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from service.asking import scoring_request
from service.call import Call
from service.domain import Classifier, Conversation, Probe, Role, Turn
from service.engine.base import ScoringEngine, ScoringRequest
from service.errors import EngineDeadError, EngineError, InvalidRequestError
from service.prompt.builder import PromptBuilder

Probabilities = tuple[float, ...]
"""Unconstrained, one per label."""

FLOOR = 1e-12
"""Below this, a label is out of the question and float32 has few digits left."""

MOST_LOGPROB = 1e-3
"""Rounding above 0 that a log probability may have; NaN and infinity are above everything."""

IN_BACKGROUND = Call(background=True)
"""A gate gives way to the calls that are served meanwhile."""

GREETING = Probe(Conversation("", (Turn(Role.CUSTOMER, "hi, is anybody there?"),)), ())
"""What a classifier without adapter is asked."""

DISTURBED = "beside adapters the base model answers otherwise"


@dataclass(frozen=True, slots=True)
class Gate:
    """`tolerance`: largest difference of a label's unconstrained log probability (natural) from its reference.

    Probabilities themselves would hide faults: a sure adapter answers 0.999 under half or twice its scale too, while
    the log probability of the label it rules out moves by whole units.
    """

    builder: PromptBuilder
    engine: ScoringEngine
    tolerance: float

    async def check(self, classifiers: Sequence[Classifier], beside: Sequence[Classifier] = ()) -> dict[str, str]:
        """Why a classifier must not be served, for each that must not; raises EngineDeadError.

        A classifier without adapter has no probes: it is withheld when it gives no answer or adapters disturb it.
        `beside`: classifiers that serve already and have passed; that they answer otherwise beside the new ones is held
        against those.
        """
        adapted = [each for each in classifiers if each.adapter is not None]
        bare = [each for each in classifiers if each.adapter is None]
        failures = {each.name: "it has no probes; run `fantail probes NAME`" for each in adapted if not each.probes}
        trials = [_Trial(each, probe) for each in adapted for probe in each.probes]
        alone = {trial: await self._ask(trial) for trial in trials if trial.number == 1}
        bases = await asyncio.gather(*(self._ask(trial, base=True) for trial in trials))
        neighbours = [_Trial(each, each.probes[0]) for each in beside if each.probes]
        silent = {trial.classifier.name for trial in trials}
        for salt in ("", secrets.token_hex(8)):  # on the KV that is there, and on none
            mixed, bases_mixed, beside_mixed = await asyncio.gather(
                asyncio.gather(*(self._ask(trial, salt=salt) for trial in trials)),
                asyncio.gather(*(self._ask(trial, base=True, salt=salt) for trial in trials)),
                asyncio.gather(*(self._ask(trial, salt=salt) for trial in neighbours)),
            )
            for trial, base, answer, base_mixed in zip(trials, bases, mixed, bases_mixed, strict=True):
                problem = self._problem(trial, alone.get(trial, answer), answer)
                if isinstance(base, str):
                    problem = problem or base
                elif self._differ(base, base_mixed):
                    problem = problem or DISTURBED
                    failures |= {each.name: DISTURBED for each in bare}
                if problem is not None:
                    failures.setdefault(trial.classifier.name, f"probe {trial.number}: {problem}")
                if self._differ(answer, base):
                    silent.discard(trial.classifier.name)
            for trial, answer in zip(neighbours, beside_mixed, strict=True):
                if (problem := self._problem(trial, answer, answer)) is not None:
                    failures |= {
                        each.name: f"beside it {trial.classifier.name} goes wrong: {problem}" for each in adapted
                    }
        for name in silent:
            failures.setdefault(name, "on every probe the engine answers as the base model; the adapter does nothing")
        return await self._speechless(bare) | failures

    async def _speechless(self, bare: Sequence[Classifier]) -> dict[str, str]:
        """Why each gives no answer, for those that give none."""
        answers = await asyncio.gather(*(self._ask(_Trial(each, GREETING)) for each in bare))
        return {each.name: answer for each, answer in zip(bare, answers, strict=True) if isinstance(answer, str)}

    def _problem(self, trial: _Trial, alone: Probabilities | str, beside: Probabilities | str) -> str | None:
        """What is wrong with a probe's answers; each answer is probabilities, or why there are none."""
        if isinstance(alone, str) or isinstance(beside, str):
            return alone if isinstance(alone, str) else str(beside)
        if (off := _difference(alone, beside)) > self.tolerance:
            return f"beside other adapters the answer changes by {off:.3f}"
        if (off := _difference(beside, trial.probe.probabilities)) > self.tolerance:
            return (
                f"the engine's log probabilities are {off:.3f} from PEFT's, tolerance {self.tolerance}; "
                "was the adapter or a label replaced without `fantail probes`?"
            )
        return None

    def _differ(self, one: Probabilities | str, other: Probabilities | str) -> bool:
        return isinstance(one, str) or isinstance(other, str) or _difference(one, other) > self.tolerance

    async def _ask(self, trial: _Trial, base: bool = False, salt: str = "") -> Probabilities | str:
        """The engine's answer to a probe, or why there is none; KV is shared by those of one salt."""
        try:
            call = replace(IN_BACKGROUND, cache_salt=salt)
            prompt = trial.classifier.own_prompt or self.builder
            request = scoring_request(prompt.prefix(trial.probe.conversation), trial.classifier, call)
            scored = await self.engine.score(_without_adapter(request) if base else request)
        except EngineDeadError:
            raise
        except (EngineError, InvalidRequestError) as error:
            return error.message
        if len(scored.logprobs) != len(request.label_ids) or not all(each <= MOST_LOGPROB for each in scored.logprobs):
            return "the engine gives no usable probabilities"
        return tuple(map(math.exp, scored.logprobs))


@dataclass(frozen=True, slots=True)
class _Trial:
    """One probe of one classifier."""

    classifier: Classifier
    probe: Probe

    @property
    def number(self) -> int:
        return self.classifier.probes.index(self.probe) + 1


def _without_adapter(request: ScoringRequest) -> ScoringRequest:
    return replace(request, adapter=None, activation_index=None)


def _difference(one: Probabilities, other: Probabilities) -> float:
    """Largest difference of a label's log probability; probabilities under `FLOOR` count as that."""
    return max(abs(math.log(max(a, FLOOR)) - math.log(max(b, FLOOR))) for a, b in zip(one, other, strict=True))
