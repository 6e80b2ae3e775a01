"""How much is in flight at most. It bounds and never reorders: what is admitted goes straight to the engine.

Two bounds: calls under way, and tokens that the engine has yet to compute for them. Latency under load is the tokens in
flight over the engine's rate, so the second one keeps accepted calls fast, however many others are turned away. Live
conversations have two of their own: how many there are, and how much they hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

from service.deadline import Deadline
from service.domain import Priority
from service.errors import DeadlineExceededError, DeadlineTooNearError, OverloadedError, StoppingError

SHARES = {Priority.CRITICAL: 1.0, Priority.NORMAL: 0.9, Priority.LOW: 0.7}
"""Up to which share of the tokens in flight a priority is admitted by itself: what matters least is shed first."""

BACKGROUND_SHARE = 0.5
"""The same for work that nobody waits for, and up to which share of the calls under way batches are admitted."""

LARGEST = 0.5
"""The share of the bound that has to be free for a call, however short, and as which a long one counts at most.

Were each to ask for its own length, short ones would take the room under load and long ones never find any."""

OPTIMISM = 2.0
"""Work is refused for its deadline only if it could not be done in time at this many times the best rate seen."""

FADING = 0.98
"""How much of the best rate is left after a measurement that does not reach it."""

LEAST_MEASURED = 128
"""Computed tokens below which the time they took says more about fixed costs than about the rate."""

LEAST_RETRY_S = 0.05
MEMORY_RETRY_S = 5.0
"""How long live conversations may take to end and give back what they hold."""

GUESSED_RATE = 1000.0
"""Tokens per second that delays are reckoned with before anything has been measured."""


@dataclass(frozen=True, slots=True)
class Job:
    """One classifier's part of a fan-out: tokens to compute beside what is shared, and what it counts under load."""

    tokens: int
    priority: Priority = Priority.NORMAL


class Admission:
    """Counts what is in flight.

    `max_calls`: calls under way; `max_tokens`: tokens to compute for them; `max_follows`: live conversations, which
    cost nothing but memory between their turns; `max_follow_bytes`: that memory, of all of them together.

    `batches`: calls under way whose work is done in the background, counted apart. `rate`: tokens per second at the
    engine's best, None before anything has been measured; `stopping`: set by `stop`.
    """

    def __init__(
        self, max_calls: int, max_tokens: int, max_follows: int = 10_000, max_follow_bytes: int = 256 << 20
    ) -> None:
        self.max_calls, self.max_tokens = max_calls, max_tokens
        self.max_follows, self.max_follow_bytes = max_follows, max_follow_bytes
        self.calls = 0
        self.batches = 0
        self.follows = 0
        self.follow_bytes = 0
        self.tokens = 0
        self.rate: float | None = None
        self._computed = 0
        self.stopping = asyncio.Event()
        self._released = asyncio.Event()

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """One more call under way. Raises OverloadedError when there are too many, StoppingError after `stop`."""
        self._require_going_on()
        if self.calls >= self.max_calls:
            raise self._overloaded("calls", self.tokens)
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """One more batch under way, which waits where a call is turned away, and so never takes a call's place.

        Raises OverloadedError when there are too many, StoppingError after `stop`.
        """
        self._require_going_on()
        if self.batches >= max(1, BACKGROUND_SHARE * self.max_calls):
            raise self._overloaded("calls", self.tokens)
        self.batches += 1
        try:
            yield
        finally:
            self.batches -= 1

    @contextlib.contextmanager
    def follow(self) -> Iterator[None]:
        """One more live conversation. Raises OverloadedError when there are too many, StoppingError after `stop`."""
        self._require_going_on()
        if self.follows >= self.max_follows:
            raise self._overloaded("follows", self.tokens)
        self.follows += 1
        try:
            yield
        finally:
            self.follows -= 1

    @contextlib.contextmanager
    def memory(self) -> Iterator[Callable[[int], None]]:
        """What one live conversation holds: say how many bytes, before they become more and after they became fewer.

        Saying so raises OverloadedError for more than there is room for, which changes nothing.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if size > held and self.follow_bytes + size - held > self.max_follow_bytes:
                message = (
                    "The live conversations here hold as much memory as this server allows; end those that are over, "
                    "and follow this one again after the delay."
                )
                raise OverloadedError(message, MEMORY_RETRY_S, {"limit": "follow_bytes"})
            self.follow_bytes += size - held
            held = size

        try:
            yield hold
        finally:
            self.follow_bytes -= held

    def stop(self) -> None:
        """Take on no more calls; those under way go on."""
        self.stopping.set()

    def computed(self, tokens: int) -> None:
        """The engine has computed so many for an answer; the rate is measured by these, not by what was estimated.

        An answer's tokens are known all at once, and may have been computed before the call that is measured began.
        """
        self._computed += tokens

    @contextlib.contextmanager
    def admit(self, shared: int, jobs: Sequence[Job], deadline: Deadline) -> Iterator[tuple[bool, ...]]:
        """Take on a fan-out, or those of its jobs that there is room for; says of each whether it is taken.

        `shared`: tokens that are computed once for all of them. Raises OverloadedError when there is room for none,
        DeadlineTooNearError when none could be done in time.
        """
        taken = self._taken(shared, jobs, deadline)
        with self._in_flight(shared + sum(job.tokens for job in _kept(jobs, taken))):
            yield taken

    def require_chance(self, priorities: Sequence[Priority], deadline: Deadline) -> None:
        """Raise what `admit` would for jobs of these priorities however short they were, before anybody reads them."""
        self._taken(0, [Job(0, priority) for priority in priorities], deadline)

    def _taken(self, shared: int, jobs: Sequence[Job], deadline: Deadline) -> tuple[bool, ...]:
        taken = choose(shared, jobs, self.tokens, self.max_tokens)
        if jobs and not any(taken):
            in_the_way = self.tokens - max(_let_in(job, self.max_tokens) for job in jobs)
            raise self._overloaded("tokens", in_the_way)
        self._require_time(shared, _kept(jobs, taken), deadline)
        return taken

    @contextlib.asynccontextmanager
    async def admit_in_background(
        self, shared: int, jobs: Sequence[Job], deadline: Deadline = Deadline()
    ) -> AsyncIterator[None]:
        """Take on a fan-out that nobody waits for, once there is room for it beside what others need.

        Raises DeadlineExceededError when the deadline comes first, DeadlineTooNearError as soon as it could not be done
        in time.
        """
        room = self.max_tokens * BACKGROUND_SHARE
        try:
            async with asyncio.timeout(deadline.timeout()):
                self._require_time(shared, jobs, deadline)
                while self.tokens > room * (1 - LARGEST):
                    self._released.clear()
                    await self._released.wait()
                    self._require_time(shared, jobs, deadline)
        except TimeoutError:
            raise DeadlineExceededError(f"There was no room before {deadline.name}.") from None
        with self._in_flight(shared + sum(job.tokens for job in jobs)):
            yield

    def _require_going_on(self) -> None:
        if self.stopping.is_set():
            raise StoppingError("The server is stopping; another may answer.")

    def _require_time(self, shared: int, jobs: Sequence[Job], deadline: Deadline) -> None:
        """Raise DeadlineTooNearError where there is work and not even the shortest job could be done in time."""
        if not jobs or not self.rate:
            return
        needed = (self.tokens + shared + min(job.tokens for job in jobs)) / (OPTIMISM * self.rate)
        if needed > deadline.remaining():
            # A rate that was measured too low must not refuse everything for ever.
            self.rate /= FADING
            message = f"The work takes longer than until {deadline.name}; allow more time or send less."
            raise DeadlineTooNearError(message, {"needed_ms": str(math.ceil(1000 * needed))})

    def shed_error(self) -> OverloadedError:
        """What is said of a classifier that was left out, because what matters more has taken the room."""
        return self._overloaded("tokens", self.tokens * (1 - SHARES[Priority.LOW]))

    def _overloaded(self, limit: str, tokens_too_many: float) -> OverloadedError:
        delay = max(LEAST_RETRY_S, tokens_too_many / (self.rate or GUESSED_RATE))
        message = "The server has as much work as it can finish in time; try again after the delay."
        return OverloadedError(message, delay, {"limit": limit})

    @contextlib.contextmanager
    def _in_flight(self, tokens: int) -> Iterator[None]:
        ahead, computed, began = self.tokens, self._computed, time.monotonic()
        self.tokens += tokens
        try:
            yield
            if tokens >= LEAST_MEASURED:
                # What was ahead may have been all but done, so the rate is measured too low by it, never too high.
                self._measure(self._computed - computed - ahead, time.monotonic() - began)
        finally:
            self.tokens -= tokens
            self._released.set()

    def _measure(self, tokens: int, seconds: float) -> None:
        if tokens >= LEAST_MEASURED and seconds > 0:
            self.rate = max(tokens / seconds, FADING * (self.rate or 0.0))


def choose(shared: int, jobs: Sequence[Job], in_flight: int, limit: int) -> tuple[bool, ...]:
    """Which jobs there is room for, the ones of higher priority first; all of them where nothing else is in flight.

    The first one lets the call in, whatever its length, and pays for what is shared. A further one leaves room for what
    matters more by the part of its cost that it causes itself: three tokens after a conversation that is read anyway
    are left out only where they do not fit.
    """
    if not in_flight or not jobs:
        return (True,) * len(jobs)
    first, *others = sorted(range(len(jobs)), key=lambda index: jobs[index].priority.rank)
    if in_flight > _let_in(jobs[first], limit):
        return (False,) * len(jobs)
    taken = {first}
    total = in_flight + min(shared + jobs[first].tokens, limit * LARGEST)
    for index in others:
        job = jobs[index]
        if total + job.tokens <= limit * _share(job, shared):
            taken.add(index)
            total += job.tokens
    return tuple(index in taken for index in range(len(jobs)))


def _let_in(job: Job, limit: int) -> float:
    """Tokens that may be in flight for others when a call is let in by this job."""
    return limit * SHARES[job.priority] - limit * LARGEST


def _share(job: Job, paid: int) -> float:
    """Up to which share of the bound a job is taken whose call has paid so many tokens that it needs too."""
    share = SHARES[job.priority]
    return share + (1 - share) * paid / max(1, paid + job.tokens)


def _kept(jobs: Sequence[Job], taken: Sequence[bool]) -> list[Job]:
    return [job for job, wanted in zip(jobs, taken, strict=True) if wanted]
