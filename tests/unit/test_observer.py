"""Several observers are told everything that one is."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from service.observer import Observer, Observers

NEWS = [name for name, _ in inspect.getmembers(Observer, inspect.isfunction) if not name.startswith("_")]


def test_there_is_something_to_be_told() -> None:
    assert {"asked", "answered", "finished", "reloaded", "shed", "late", "shadowed"} <= set(NEWS)


@pytest.mark.parametrize("news", NEWS)
def test_each_of_several_observers_is_told(news: str) -> None:
    told: list[tuple[int, Any]] = []

    def listener(number: int) -> Observer:
        observer = Observer()
        setattr(observer, news, lambda *what: told.append((number, what)))
        return observer

    what = tuple(object() for _ in list(inspect.signature(getattr(Observer, news)).parameters)[1:])
    getattr(Observers(listener(1), listener(2)), news)(*what)
    assert told == [(1, what), (2, what)]
