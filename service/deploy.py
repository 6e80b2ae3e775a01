"""Changes what a running server answers with: loads, proves, switches, drains, unloads. One change at a time.

Whatever fails on the way changes nothing. Knows neither gRPC nor vLLM.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from service.catalogue import Catalogue
from service.domain import Classifier
from service.engine.base import AdapterPlace, EngineAdapter, ScoringEngine, engine_adapter
from service.errors import (
    EngineError,
    FantailError,
    FolderOutsideError,
    InvalidTrafficError,
    RegistryError,
    RevisionInUseError,
    RevisionRefusedError,
)
from service.gate import Gate
from service.observer import Observer
from service.registry.loader import RegistryLoader, classifier_folders
from service.registry.registry import Deployment, Registry
from service.registry.snapshots import Snapshots

logger = logging.getLogger(__name__)

NEIGHBOURS = 3
"""How many serving classifiers a new revision is proven beside, its own predecessor first."""


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


class Deployer:
    """Makes changes one after the other."""

    def __init__(
        self,
        catalogue: Catalogue,
        engine: ScoringEngine,
        gate: Gate,
        loader: RegistryLoader,
        snapshots: Snapshots,
        folders: Folders,
        observer: Observer,
    ) -> None:
        self._observer = observer
        self._catalogue, self._engine, self._gate = catalogue, engine, gate
        self._loader, self._snapshots = loader, snapshots
        self._folders = folders
        self._one_at_a_time = asyncio.Lock()

    async def reload(self, names: Collection[str] = ()) -> list[Reloaded]:
        """Make what is served what the folder holds; of these names only, unless there are none.

        Returns what became of each classifier that changed or was refused. Raises UnknownClassifierError for a name
        that is neither served nor a folder.
        """
        async with self._one_at_a_time:
            served = self._catalogue.current.classifiers
            try:
                folders = {folder.name: folder for folder in classifier_folders(self._folders.classifiers)}
            except RegistryError:
                folders = {}
            for name in names:
                if name not in folders:
                    self._catalogue.current.get(name)
            results = []
            for name in sorted(set(names) or {*folders, *served}):
                result = await self._reload_one(name, folders.get(name))
                if result is not None:
                    logger.info("reload: %s %s %s", name, result.outcome.value, "; ".join(result.problems))
                    self._observer.reloaded(name, result.outcome.value)
                    results.append(result)
            return results

    async def load(self, name: str, folder: str) -> Classifier:
        """Load a further revision from the candidates. Raises UnknownClassifierError, FolderOutsideError,
        RevisionRefusedError."""
        async with self._one_at_a_time:
            registry = self._catalogue.current
            registry.get(name)
            path = self._folders.candidates / folder
            if not folder or self._folders.candidates.resolve() not in path.resolve().parents:
                raise FolderOutsideError(
                    f"The folder must be named relative to {self._folders.candidates.name}/.", "folder"
                )
            found = await self._prepare(name, path, self._folders.candidates)
            if any(each.revision == found.revision for each in registry.revisions(name)):
                self._drop(found)
                return registry.revision(name, found.revision)
            deployment = registry.deployments.get(name, Deployment())
            more = replace(deployment, candidates=(*deployment.candidates, found))
            await self._switch(self._catalogue.current.with_deployment(name, more))
            return found

    async def unload(self, name: str, revision: str) -> None:
        """Unload a further revision. Raises UnknownClassifierError, UnknownRevisionError, RevisionInUseError."""
        async with self._one_at_a_time:
            registry = self._catalogue.current
            found = registry.revision(name, revision)
            deployment = registry.deployments.get(name, Deployment())
            used = registry.shares(name).get(revision, 0) or revision in deployment.shadows
            if used or found is registry.get(name):
                raise RevisionInUseError(
                    "The revision answers, shadows, or is the classifiers folder's own; take its traffic away first.",
                    {"classifier": name, "revision": revision},
                )
            rest = tuple(each for each in deployment.candidates if each is not found)
            shares = {each: percent for each, percent in deployment.shares.items() if each != revision}
            await self._switch(registry.with_deployment(name, replace(deployment, candidates=rest, shares=shares)))

    async def route(
        self, name: str, shares: Sequence[tuple[str, int]], shadows: Collection[str]
    ) -> tuple[Mapping[str, int], Collection[str]]:
        """Divide a classifier's conversations; returns shares and shadows as they are now.

        Raises UnknownClassifierError, UnknownRevisionError, InvalidTrafficError.
        """
        async with self._one_at_a_time:
            registry = self._catalogue.current
            divided = dict(shares)
            if len(divided) != len(shares):
                raise InvalidTrafficError("A revision is given two shares; name each once.", "shares")
            if shares and (sum(divided.values()) != 100 or any(not 0 <= each <= 100 for each in divided.values())):
                raise InvalidTrafficError("Shares are whole percentages from 0 to 100 that sum to 100.", "shares")
            for revision in (*divided, *shadows):
                registry.revision(name, revision)
            deployment = registry.deployments.get(name, Deployment())
            changed = replace(deployment, shares=divided, shadows=frozenset(shadows))
            self._catalogue.replace(registry.with_deployment(name, changed))
            logger.info("traffic of %s: %s, shadows %s", name, divided or "its folder's revision", sorted(shadows))
            return self._catalogue.current.shares(name), changed.shadows

    async def places(self) -> list[RevisionPlace]:
        """Every loaded revision and where its adapter is. Raises EngineDeadError, NotServingError."""
        registry = self._catalogue.current
        places = await self._engine.places()
        found = []
        for name in registry.classifiers:
            shares, shadows = registry.shares(name), registry.shadows(name)
            for each in registry.revisions(name):
                adapter = engine_adapter(each)
                place = places.get(adapter.name) if adapter else None
                found.append(RevisionPlace(each, shares.get(each.revision, 0), each in shadows, place))
        return found

    async def _reload_one(self, name: str, folder: Path | None) -> Reloaded | None:
        registry = self._catalogue.current
        before = registry.classifiers.get(name)
        previous = before.revision if before else ""
        if folder is None:
            if len(registry.classifiers) == 1:
                problem = "its folder is gone, but it is the last classifier; a server needs one"
                return Reloaded(name, ReloadOutcome.REFUSED, previous, previous, (problem,))
            await self._switch(registry.without_classifier(name))
            return Reloaded(name, ReloadOutcome.REMOVED, "", previous)
        try:
            found = await self._prepare(name, folder, self._folders.classifiers)
        except RevisionRefusedError as error:
            return Reloaded(name, ReloadOutcome.REFUSED, previous, previous, error.problems)
        same = before is not None and found.revision == before.revision and found.probes == before.probes
        if same and name not in registry.withheld:
            self._drop(found)
            return None
        await self._switch(self._catalogue.current.with_classifier(found))
        return Reloaded(name, ReloadOutcome.LOADED, found.revision, previous)

    async def _prepare(self, name: str, folder: Path, root: Path) -> Classifier:
        """Copy, check, load and prove what a folder holds, beside what is served. Raises RevisionRefusedError."""
        found, problems = await asyncio.to_thread(self._loader.load_confined, folder, root, self._snapshots, name)
        if found is None:
            raise RevisionRefusedError(name, problems)
        if found.flaw is not None:
            self._drop(found)
            raise RevisionRefusedError(name, [found.flaw])
        try:
            await self._prove(found)
        except FantailError as error:
            await self._forget(found)
            raise RevisionRefusedError(name, [error.message]) from error
        return found

    async def _prove(self, found: Classifier) -> None:
        """Load its adapter and pass it through the gate, beside some of those that serve. Raises EngineError."""
        registry = self._catalogue.current
        if (adapter := engine_adapter(found)) is not None:
            await self._engine.load(adapter)
        serving = [registry.classifiers[name] for name in registry.serving_names]
        serving.sort(key=lambda each: each.name != found.name)
        failures = await self._gate.check([found], beside=serving[:NEIGHBOURS])
        if failures:
            raise EngineError("; ".join(f"{name}: {why}" for name, why in failures.items()))

    async def _switch(self, registry: Registry) -> None:
        """Serve `registry` from now on; free what only calls of before needed, once they are done."""
        before = self._catalogue.current.loaded
        self._catalogue.replace(registry)
        await self._catalogue.drained()
        for each in before:
            if not any(each is other for other in registry.loaded):
                await self._forget(each)

    async def _forget(self, classifier: Classifier) -> None:
        """Free a revision's adapter, unless a served one has the same, and its files."""
        adapter = engine_adapter(classifier)
        if adapter is not None and adapter.name not in adapter_names(self._catalogue.current):
            try:
                await self._engine.unload(adapter)
            except FantailError as error:  # a dead engine holds nothing; a live one that fails must be seen
                logger.error("%s stays in the engine: %s", adapter.name, error.message)
        self._drop(classifier)

    def _drop(self, classifier: Classifier) -> None:
        if classifier.folder is not None:
            self._snapshots.drop(classifier.folder)


def adapters_of(registry: Registry) -> tuple[EngineAdapter, ...]:
    """Every adapter that a registry needs in the engine, each once."""
    found = (engine_adapter(each) for each in registry.loaded)
    return tuple({each.name: each for each in found if each is not None}.values())


def adapter_names(registry: Registry) -> set[str]:
    return {each.name for each in adapters_of(registry)}
