"""What is known of a call: changed for a while, and handed down to the tasks that work for it."""

from __future__ import annotations

import asyncio

import pytest

from service.call import Call, changed_call, current_call


def test_outside_of_calls_nothing_is_known() -> None:
    assert current_call() == Call()


def test_a_change_lasts_as_long_as_its_context() -> None:
    with changed_call(request_id="1") as call:
        assert call == current_call() == Call(request_id="1")
    assert current_call() == Call()


def test_changes_add_up_and_are_taken_back_one_by_one() -> None:
    with changed_call(request_id="1", caller="shop"):
        with changed_call(caller="other", cache_salt="s"):
            assert current_call() == Call(request_id="1", caller="other", cache_salt="s")
        assert current_call() == Call(request_id="1", caller="shop")


def test_a_change_is_taken_back_when_the_work_fails() -> None:
    with pytest.raises(ValueError, match="no"), changed_call(request_id="1"):
        raise ValueError("no")
    assert current_call() == Call()


async def test_a_task_works_for_the_call_that_started_it() -> None:
    async def request_id() -> str:
        await asyncio.sleep(0)
        return current_call().request_id

    with changed_call(request_id="1"):
        first = asyncio.create_task(request_id())
    with changed_call(request_id="2"):
        second = asyncio.create_task(request_id())
    assert (await first, await second, await request_id()) == ("1", "2", "")


async def test_what_a_task_changes_is_unknown_beside_it() -> None:
    async def change() -> None:
        with changed_call(request_id="inside"):
            await asyncio.sleep(0)
            assert current_call().request_id == "inside"

    with changed_call(request_id="outside"):
        await asyncio.gather(change(), change())
        assert current_call().request_id == "outside"
