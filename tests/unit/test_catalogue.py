"""What a call leases stays as it was, and who replaces it can wait until nobody holds it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from service.catalogue import Catalogue
from service.registry.registry import Registry

FIRST, SECOND, THIRD = (Registry({}, {"refund": name}) for name in ("first", "second", "third"))


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue(FIRST)


async def is_waiting(drained: asyncio.Task[None]) -> bool:
    """Whether it still waits after everything that could go on has gone on."""
    for _ in range(5):
        await asyncio.sleep(0)
    return not drained.done()


def test_a_lease_is_of_the_registry_of_its_moment(catalogue: Catalogue) -> None:
    with catalogue.lease() as registry:
        catalogue.replace(SECOND)
        assert registry is FIRST


def test_who_begins_after_a_replacement_sees_it(catalogue: Catalogue) -> None:
    with catalogue.lease():
        catalogue.replace(SECOND)
        with catalogue.lease() as registry:
            assert registry is catalogue.current is SECOND


async def test_a_catalogue_that_nobody_holds_is_drained_at_once(catalogue: Catalogue) -> None:
    catalogue.replace(SECOND)
    assert not await is_waiting(asyncio.create_task(catalogue.drained()))


async def test_those_who_hold_what_is_current_keep_nobody_waiting(catalogue: Catalogue) -> None:
    catalogue.replace(SECOND)
    with catalogue.lease():
        assert not await is_waiting(asyncio.create_task(catalogue.drained()))


@pytest.mark.parametrize("leases", [1, 2, 3])
async def test_draining_ends_with_the_last_lease_of_what_was_replaced(catalogue: Catalogue, leases: int) -> None:
    held = [contextlib.ExitStack() for _ in range(leases)]
    for each in held:
        each.enter_context(catalogue.lease())
    catalogue.replace(SECOND)
    drained = asyncio.create_task(catalogue.drained())
    for each in held:
        assert await is_waiting(drained)
        each.close()
    await drained


async def test_draining_waits_for_every_registry_that_was_replaced(catalogue: Catalogue) -> None:
    with contextlib.ExitStack() as first:
        first.enter_context(catalogue.lease())
        catalogue.replace(SECOND)
        with catalogue.lease():
            catalogue.replace(THIRD)
            drained = asyncio.create_task(catalogue.drained())
            assert await is_waiting(drained)
            first.close()
            assert await is_waiting(drained)
    await drained


async def test_what_is_leased_while_draining_is_not_waited_for(catalogue: Catalogue) -> None:
    with contextlib.ExitStack() as before:
        before.enter_context(catalogue.lease())
        catalogue.replace(SECOND)
        drained = asyncio.create_task(catalogue.drained())
        assert await is_waiting(drained)
        with catalogue.lease():
            before.close()
            await drained


async def test_what_is_replaced_while_draining_is_not_waited_for(catalogue: Catalogue) -> None:
    with contextlib.ExitStack() as before:
        before.enter_context(catalogue.lease())
        catalogue.replace(SECOND)
        drained = asyncio.create_task(catalogue.drained())
        assert await is_waiting(drained)
        with catalogue.lease():
            catalogue.replace(THIRD)
            before.close()
            await drained


async def test_several_wait_at_once(catalogue: Catalogue) -> None:
    with catalogue.lease():
        catalogue.replace(SECOND)
        drained = [asyncio.create_task(catalogue.drained()) for _ in range(3)]
        assert [await is_waiting(each) for each in drained] == [True] * 3
    await asyncio.gather(*drained)


async def test_a_call_that_fails_gives_its_lease_back(catalogue: Catalogue) -> None:
    with contextlib.suppress(ValueError), catalogue.lease():
        raise ValueError
    catalogue.replace(SECOND)
    assert not await is_waiting(asyncio.create_task(catalogue.drained()))
