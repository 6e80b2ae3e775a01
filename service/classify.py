"""One request, start to end: conversation to answers. Read this first.

Knows neither gRPC nor vLLM: what comes in and goes out are domain values, and the engine is an interface.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from service.admission import Admission, Job
from service.asking import Question, answer, scoring_request
from service.call import Call
from service.catalogue import Catalogue
from service.domain import MAX_NAME, Classification, Classifier, Conversation, Priority, StageSeconds, TokenUsage
from service.engine.base import ScoringEngine
from service.errors import (
    ClassifierNameMissingError,
    ClassifierNameTooLongError,
    ClassifierWithheldError,
    DeadlineExceededError,
    DuplicateClassifierError,
    EngineDeadError,
    EngineError,
    FantailError,
    InvalidRequestError,
    TooManyClassifiersError,
    UnknownClassifierError,
    raise_all,
)
from service.observer import Observer
from service.prefix_memory import PrefixMemory
from service.prompt.builder import PromptBuilder
from service.reading import Reading, read
from service.registry.registry import Registry
from service.shadow import Shadows
from service.stages import Clock

logger = logging.getLogger(__name__)

MAX_CLASSIFIERS = 256
"""Names in one call beyond which it is refused unread."""

SHOWN_NAME = 24
"""Characters of a name that a refusal repeats: all refusals of a call together have to fit into its metadata."""

ANSWER_SECONDS = 0.02
"""How long before the deadline an answer is sent, so that it arrives in time."""

Outcome = Classification | FantailError


@dataclass(frozen=True, slots=True)
class Result:
    """One classifier's part of a fan-out. `index`: its place in the request; `stages`: up to this result."""

    index: int
    name: str
    outcome: Outcome
    stages: StageSeconds


@dataclass(frozen=True, slots=True)
class Answers:
    """What came of a fan-out: for each classifier, in order, its answer or the error that took its place."""

    results: tuple[tuple[str, Outcome], ...]
    usage: TokenUsage
    stages: StageSeconds


@dataclass(frozen=True, slots=True)
class Classify:
    """Answers classifiers' questions about conversations."""

    catalogue: Catalogue
    builder: PromptBuilder
    engine: ScoringEngine
    admission: Admission
    memory: PrefixMemory
    shadows: Shadows
    observer: Observer

    async def one(self, conversation: Conversation, name: str, call: Call = Call()) -> tuple[Classification, Answers]:
        """Ask one classifier. Raises what `fan_out` raises, and the classifier's own error."""
        if not name:
            raise ClassifierNameMissingError(
                "Name the classifier to ask; ListClassifiers names them all.", "classifier"
            )
        answers = await self.fan_out(conversation, [name], call)
        outcome = answers.results[0][1]
        if isinstance(outcome, FantailError):
            raise outcome
        return outcome, answers

    async def fan_out(self, conversation: Conversation, names: Sequence[str], call: Call = Call()) -> Answers:
        """Ask the named classifiers, or all when `names` is empty; the conversation is read once for all of them.

        A classifier that is unknown or withheld, whose own prompt has no room for the conversation, that the engine
        fails on, that there is no room or no time for, gets its error as result and does not disturb the others.
        Raises InvalidRequestError for what is wrong with the request, EngineDeadError, NotServingError, and
        OverloadedError or DeadlineError when that is all there is.
        """
        results: list[Result] = []
        async with contextlib.aclosing(self.stream(conversation, names, call)) as stream:
            async for result in stream:
                results.append(result)
        answered = [each.outcome for each in results if isinstance(each.outcome, Classification)]
        late = [each.outcome for each in results if isinstance(each.outcome, DeadlineExceededError)]
        if late and not answered:
            raise late[0]
        stages = results[-1].stages
        results.sort(key=lambda each: each.index)
        usage = sum((each.usage for each in answered), TokenUsage())
        return Answers(tuple((each.name, each.outcome) for each in results), usage, stages)

    async def stream(
        self, conversation: Conversation, names: Sequence[str], call: Call = Call()
    ) -> AsyncGenerator[Result, None]:
        """The same, each result as soon as it is known. Close it to cancel what is still under way."""
        clock = Clock()
        raise_all(name_problems(names))
        call = replace(call, deadline=call.deadline.earlier(ANSWER_SECONDS))
        if not call.deadline.remaining():
            raise DeadlineExceededError(f"The work could not begin before {call.deadline.name}.")
        self.observer.asked(conversation, call)
        await self.engine.check()  # before room is looked for: no engine is another thing than no room
        if not call.background:
            self.admission.require_chance(self._priorities(names, conversation), call.deadline)
        reading = await read(self.builder, conversation)
        clock.prompted()
        async with self._turn(reading, names, call):
            with self.catalogue.lease() as registry:
                names = tuple(names) or tuple(registry.classifiers)
                chosen = dict(enumerate(_question(registry, name, reading) for name in names))
                known: dict[int, Outcome] = {i: each for i, each in chosen.items() if isinstance(each, FantailError)}
                asked = {i: each for i, each in chosen.items() if isinstance(each, Question)}
                with self._room_for(asked, call) as shed:
                    known |= shed
                    for index, error in known.items():
                        yield Result(index, names[index], error, clock.stages())
                    rest = {index: each for index, each in asked.items() if index not in shed}
                    remembered: set[str] = set()
                    async with contextlib.aclosing(self._outcomes(rest, call, clock)) as outcomes:
                        async for index, outcome in outcomes:
                            if isinstance(outcome, Classification):
                                self._remember(rest[index], call.cache_salt, remembered)
                                self._tell(registry, reading, rest[index].classifier, outcome, call)
                            # Whoever leaves with this result ends everything here.
                            yield Result(index, names[index], outcome, clock.stages())
                    self.observer.finished(clock.stages())

    def _priorities(self, names: Sequence[str], conversation: Conversation) -> list[Priority]:
        """Of those that would be asked if it were now."""
        registry = self.catalogue.current
        found = (_find(registry, name, conversation) for name in names or registry.classifiers)
        return [each.priority for each in found if isinstance(each, Classifier)]

    @contextlib.asynccontextmanager
    async def _turn(self, reading: Reading, names: Sequence[str], call: Call) -> AsyncIterator[None]:
        """In the background, wait for room and hold it, before any revision is held that a change would wait for.

        Raises DeadlineError when the deadline comes first, or would.
        """
        if not call.background:
            yield
            return
        registry = self.catalogue.current
        found = [_question(registry, name, reading) for name in names or registry.classifiers]
        work = self._work([each for each in found if isinstance(each, Question)], call.cache_salt)
        async with self.admission.admit_in_background(*work, call.deadline):
            yield

    @contextlib.contextmanager
    def _room_for(self, asked: Mapping[int, Question], call: Call) -> Iterator[dict[int, Outcome]]:
        """Hold room for what is asked; yields an error for each classifier that there is no room for.

        Raises OverloadedError, DeadlineTooNearError.
        """
        if call.background:
            yield {}
            return
        shared, jobs = self._work(asked.values(), call.cache_salt)
        with self.admission.admit(shared, jobs, call.deadline) as taken:
            error = self.admission.shed_error()
            shed = [index for index, wanted in zip(asked, taken, strict=True) if not wanted]
            for index in shed:
                self.observer.shed(asked[index].classifier)
            yield dict.fromkeys(shed, error)

    def _work(self, asked: Collection[Question], salt: str) -> tuple[int, list[Job]]:
        """Tokens that the engine probably has to compute: once for all, and for each."""
        jobs = []
        for classifier, prefix in ((each.classifier, each.prefix) for each in asked):
            own = len(classifier.tail_ids)
            if not classifier.shares_reading:
                own += self.memory.new_tokens(prefix.token_ids, f"{salt} {classifier.revision}")
            jobs.append(Job(own, classifier.priority))
        shared = {each.reading: each.prefix for each in asked if each.classifier.shares_reading}
        return sum(self.memory.new_tokens(prefix.token_ids, salt) for prefix in shared.values()), jobs

    def _remember(self, answered: Question, salt: str, remembered: set[str]) -> None:
        """The engine's cache holds what it has answered; what was refused or given up is as new when it comes back.

        `remembered`: what of this fan-out already is, changed in place.
        """
        if answered.reading not in remembered:
            classifier = answered.classifier
            own_salt = salt if classifier.shares_reading else f"{salt} {classifier.revision}"
            self.memory.remember(answered.prefix.token_ids, own_salt)
            remembered.add(answered.reading)

    async def _outcomes(
        self, asked: Mapping[int, Question], call: Call, clock: Clock
    ) -> AsyncGenerator[tuple[int, Outcome], None]:
        """Ask every classifier at once; what is not ready at the deadline is too late."""
        tasks = {asyncio.create_task(self._answer(each, call, clock)): i for i, each in asked.items()}
        pending = set(tasks)
        try:
            while pending:
                done, pending = await asyncio.wait(
                    pending, timeout=call.deadline.timeout(), return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for task in sorted(done, key=tasks.__getitem__):
                    yield tasks[task], task.result()
            for task in sorted(pending, key=tasks.__getitem__):
                self.observer.late(asked[tasks[task]].classifier)
                yield tasks[task], DeadlineExceededError(f"The answer was not ready at {call.deadline.name}.")
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, question: Question, call: Call, clock: Clock) -> Outcome:
        prefix, classifier = question.prefix, question.classifier
        try:
            scored = await self.engine.score(scoring_request(prefix, classifier, call))
            with clock.scoring():
                return answer(prefix, classifier, scored)
        except EngineDeadError:
            raise
        except EngineError as error:
            # It may stand in one result of a call that succeeds, so it is logged where it happens.
            logger.error("request %s: %s has no answer", call.request_id, classifier.name, exc_info=error)
            self.observer.failed(classifier)
            return error

    def _tell(self, registry: Registry, reading: Reading, asked: Classifier, given: Classification, call: Call) -> None:
        """Let those know who watch answers: admission, metrics, and revisions in the shadow."""
        self.admission.computed(given.usage.computed)
        self.observer.answered(asked, given)
        for shadow in registry.shadows(asked.name):
            if shadow is not asked:
                self.shadows.ask(reading, shadow, given, call)


def _find(registry: Registry, name: str, conversation: Conversation) -> Classifier | FantailError:
    try:
        return registry.serving(name, conversation.key)
    except (UnknownClassifierError, ClassifierWithheldError) as error:
        return error


def _question(registry: Registry, name: str, reading: Reading) -> Question | FantailError:
    found = _find(registry, name, reading.conversation)
    if isinstance(found, FantailError):
        return found
    try:
        return Question(found, reading.prefix_for(found))
    except InvalidRequestError as error:
        return error


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
        elif len(name) > MAX_NAME:
            facts = {"max_characters": str(MAX_NAME)}
            message = f"Name {index} has {len(name)} characters, no classifier's more than {MAX_NAME}."
            problems.append(ClassifierNameTooLongError(message, f"classifiers[{index}]", facts))
        elif name in seen:
            shown = name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}…"
            message = f"Classifier {shown!r} is asked for twice; ask once."
            problems.append(DuplicateClassifierError(message, f"classifiers[{index}]"))
        seen.add(name)
    return problems
