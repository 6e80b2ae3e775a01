"""What there is to say of loaded revisions, and of changes to them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from service.domain import Classifier
from service.engine.base import AdapterPlace, EngineAdapter, engine_adapter
from service.registry.registry import Registry


class ReloadOutcome(enum.Enum):
    """What a reload did to a classifier."""

    LOADED = "loaded"
    REMOVED = "removed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What became of one classifier; revisions are empty where there is none."""

    classifier: str
    outcome: ReloadOutcome
    revision: str
    previous_revision: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RevisionPlace:
    """A loaded revision, what it answers, and where its adapter is; `place`: None without an adapter or an engine."""

    classifier: Classifier
    percent: int
    shadow: bool
    place: AdapterPlace | None


@dataclass(frozen=True, slots=True)
class Folders:
    """`classifiers`: whose content is served; `candidates`: where further revisions come from."""

    classifiers: Path
    candidates: Path


def adapters_of(registry: Registry) -> tuple[EngineAdapter, ...]:
    """Every adapter that a registry needs in the engine, each once."""
    found = (engine_adapter(each) for each in registry.loaded)
    return tuple({each.name: each for each in found if each is not None}.values())
