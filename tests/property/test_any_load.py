"""What holds for admission under any load: whatever comes, ends or is given up, in whatever order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from service.admission import BACKGROUND_SHARE, LARGEST, SHARES, Admission, Job, choose
from service.deadline import Deadline
from service.domain import Priority
from service.errors import DeadlineTooNearError, OverloadedError
from tests.support import settle

MAX_CALLS, MAX_FOLLOWS, MAX_TOKENS = 3, 2, 100
NO_TIME = Deadline(0.0)

HALF = MAX_TOKENS * LARGEST

TOKENS = st.integers(0, 3 * MAX_TOKENS // 2) | st.integers(0, MAX_TOKENS // 4)
JOBS = st.lists(st.builds(Job, TOKENS, st.sampled_from(Priority)), max_size=5)
ENDINGS = st.sampled_from([None, RuntimeError(), asyncio.CancelledError(), GeneratorExit()])


@dataclass
class Load:
    """Everything under way, and what is checked after each step."""

    admission: Admission = field(default_factory=lambda: Admission(MAX_CALLS, MAX_TOKENS, MAX_FOLLOWS))
    under_way: list[AbstractContextManager[object]] = field(default_factory=list)

    def enter(self, work: AbstractContextManager[object]) -> None:
        with contextlib.suppress(OverloadedError, DeadlineTooNearError):
            work.__enter__()
            self.under_way.append(work)

    def end(self, place: int, how: BaseException | None) -> None:
        """End one thing under way, if there is any, as if its body had raised."""
        if not self.under_way:
            return
        work = self.under_way.pop(place % len(self.under_way))
        with contextlib.suppress(RuntimeError, asyncio.CancelledError, GeneratorExit):
            work.__exit__(type(how) if how else None, how, None)

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.admission.calls, self.admission.follows, self.admission.tokens


Step = Callable[[Load], None]


def admit(shared: int, jobs: list[Job], deadline: Deadline) -> Step:
    """Take on a fan-out, and check what may be in flight beside what was."""

    def step(load: Load) -> None:
        before = load.admission.tokens
        load.enter(load.admission.admit(shared, jobs, deadline))
        after = load.admission.tokens
        assert after >= before
        if before and after > before:
            assert before + min(after - before, HALF) <= MAX_TOKENS
            assert before + HALF <= MAX_TOKENS * max(SHARES[job.priority] for job in jobs)

    return step


STEPS = st.lists(
    st.one_of(
        st.builds(admit, TOKENS, JOBS.filter(bool), st.sampled_from([Deadline(), NO_TIME])),
        st.just(admit(0, [], NO_TIME)),
        st.just(lambda load: load.enter(load.admission.call())),
        st.just(lambda load: load.enter(load.admission.follow())),
        st.builds(lambda place, how: lambda load: load.end(place, how), st.integers(0, 99), ENDINGS),
        st.builds(lambda tokens: lambda load: load.admission.computed(tokens), st.integers(0, 10_000)),
    ),
    max_size=40,
)


@given(steps=STEPS)
def test_counts_stay_within_their_bounds_and_end_at_nothing(steps: list[Step]) -> None:
    load = Load()
    for step in steps:
        step(load)
        assert 0 <= load.admission.calls <= MAX_CALLS
        assert 0 <= load.admission.follows <= MAX_FOLLOWS
        assert load.admission.tokens >= 0
        assert load.admission.rate is None or load.admission.rate > 0
    while load.under_way:
        load.end(0, None)
    assert load.counts == (0, 0, 0)


@given(steps=STEPS, shared=TOKENS, jobs=JOBS)
def test_after_any_load_everything_is_taken_on_that_comes_alone(
    steps: list[Step], shared: int, jobs: list[Job]
) -> None:
    load = Load()
    for step in steps:
        step(load)
    while load.under_way:
        load.end(0, RuntimeError())
    with load.admission.admit(shared, jobs, Deadline()) as taken:
        assert taken == (True,) * len(jobs)


@given(in_flight=st.integers(1, MAX_TOKENS), shared=TOKENS, jobs=JOBS.filter(bool))
def test_nothing_is_shed_that_there_is_room_for_and_what_matters_more_comes_first(
    in_flight: int, shared: int, jobs: list[Job]
) -> None:
    taken = choose(shared, jobs, in_flight, MAX_TOKENS)
    kept = [job for job, wanted in zip(jobs, taken, strict=True) if wanted]
    shed = [job for job, wanted in zip(jobs, taken, strict=True) if not wanted]
    if not kept:
        assert in_flight + HALF > MAX_TOKENS * max(SHARES[job.priority] for job in shed)
    for job in shed if kept else []:
        beside = sum(each.tokens for each in kept if each.priority.rank <= job.priority.rank)
        assert in_flight + shared + job.tokens + beside > MAX_TOKENS * SHARES[job.priority]
        assert not any(each.priority.rank > job.priority.rank and each.tokens >= job.tokens for each in kept)


@dataclass
class InBackground:
    """Work of so many tokens that nobody waits for, until it is told to end."""

    admission: Admission
    tokens: int
    in_flight_before: int | None = None
    told: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        async with self.admission.admit_in_background(0, [Job(self.tokens)]):
            self.in_flight_before = self.admission.tokens - self.tokens
            await self.told.wait()


async def background_load(sizes: list[int], endings: list[tuple[int, bool]]) -> None:
    """Begin work of these sizes, end some of it by being done or cancelled, then all; checks what has begun."""
    admission = Admission(MAX_CALLS, MAX_TOKENS)
    works = [InBackground(admission, size) for size in sizes]
    tasks = [asyncio.create_task(work.run()) for work in works]
    await settle()
    for place, cancelled in endings:
        if cancelled:
            tasks[place % len(tasks)].cancel()
        works[place % len(works)].told.set()
        await settle()
        running = [w for w, t in zip(works, tasks, strict=True) if w.in_flight_before is not None and not t.done()]
        assert admission.tokens == sum(work.tokens for work in running)
    for work in works:
        work.told.set()
    async with asyncio.timeout(20.0):
        await asyncio.wait(tasks)
    for work, task in zip(works, tasks, strict=True):
        assert task.cancelled() or work.in_flight_before is not None
        beside = work.in_flight_before
        room = MAX_TOKENS * BACKGROUND_SHARE
        assert not beside or beside <= room * (1 - LARGEST)
    assert admission.tokens == 0


@given(sizes=st.lists(TOKENS, min_size=1, max_size=8), endings=st.lists(st.tuples(st.integers(0, 99), st.booleans())))
def test_all_background_work_begins_at_some_time_and_only_where_there_is_room(
    sizes: list[int], endings: list[tuple[int, bool]]
) -> None:
    asyncio.run(background_load(sizes, endings))
