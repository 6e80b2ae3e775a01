"""Changes what a running server answers with: loads, proves, switches, drains, unloads. One change at a time.

Whatever fails on the way changes nothing. Knows neither gRPC nor vLLM.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from service.catalogue import Catalogue
from service.domain import Classifier
from service.engine.base import ScoringEngine, engine_adapter
from service.errors import (
    EngineError,
    FantailError,
    FolderOutsideError,
    InvalidTrafficError,
    RevisionInUseError,
    RevisionRefusedError,
)
from service.gate import Gate
from service.observer import Observer
from service.registry.loader import RegistryLoader, folders_by_name
from service.registry.registry import Deployment, Registry
from service.registry.snapshots import Snapshots, is_inside
from service.revisions import Folders, Reloaded, ReloadOutcome, RevisionPlace, adapters_of

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

MAX_FOLDER = 4096
"""Characters; Linux opens no longer path, and following one that is a message long would hold up every call."""


class Deployer:
    """Makes changes one after the other, each to its end: one that its caller gives up goes on."""

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
        self._refusals: set[str] = set()
        self._one_at_a_time = asyncio.Lock()
        self._under_way: set[asyncio.Task[Any]] = set()

    async def reload(self, names: Collection[str] = ()) -> list[Reloaded]:
        """Make what is served what the folder holds; of these names only, unless there are none.

        Returns what became of each classifier that changed or was refused. Raises UnknownClassifierError for a name
        that is neither served nor a folder.
        """
        return await self._carry_out(self._reload(names))

    async def load(self, name: str, folder: str) -> Classifier:
        """Load a further revision from the candidates. Raises UnknownClassifierError, FolderOutsideError,
        RevisionRefusedError."""
        return await self._carry_out(self._load(name, folder))

    async def unload(self, name: str, revision: str) -> None:
        """Unload a further revision. Raises UnknownClassifierError, UnknownRevisionError, RevisionInUseError."""
        await self._carry_out(self._unload(name, revision))

    async def route(
        self, name: str, shares: Sequence[tuple[str, int]], shadows: Collection[str]
    ) -> tuple[Mapping[str, int], Collection[str]]:
        """Divide a classifier's conversations; returns shares and shadows as they are now.

        Raises UnknownClassifierError, UnknownRevisionError, InvalidTrafficError.
        """
        async with self._one_at_a_time:
            registry = self._catalogue.current
            registry.get(name)
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
            for each in sorted(registry.revisions(name), key=lambda each: each.revision):
                adapter = engine_adapter(each)
                place = places.get(adapter.name) if adapter else None
                found.append(RevisionPlace(each, shares.get(each.revision, 0), each in shadows, place))
        return found

    @contextlib.asynccontextmanager
    async def no_change(self) -> AsyncIterator[None]:
        """Let every change wait as long as this lasts."""
        async with self._one_at_a_time:
            yield

    async def _carry_out(self, change: Coroutine[Any, Any, Value]) -> Value:
        """Make a change once those before it are made, whether or not the caller still waits for it: half a change
        would leave adapters in the engine and files on disk."""

        async def alone() -> Value:
            async with self._one_at_a_time:
                return await change

        def made(task: asyncio.Task[Value]) -> None:
            self._under_way.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                # Told here too, because a caller that has gone away is told nothing.
                logger.info("a change was not made: %s", type(error).__name__)

        task = asyncio.create_task(alone())
        self._under_way.add(task)
        task.add_done_callback(made)
        return await asyncio.shield(task)

    async def _reload(self, names: Collection[str]) -> list[Reloaded]:
        served = self._catalogue.current.classifiers
        folders = await asyncio.to_thread(folders_by_name, self._folders.classifiers)
        if not folders:
            lost = "there are no classifier folders at all; is a mount lost?"
            results = [self._refused(name, lost) for name in served]
            for each in results:
                self._tell(each.classifier, each)
            return results
        for name in names:
            if name not in folders:
                self._catalogue.current.get(name)
        for name in self._refusals - {*folders, *served}:
            self._tell(name, Reloaded(name, ReloadOutcome.REMOVED, "", ""))
        results = []
        # What goes, goes last: what comes may be all that is left.
        for name in sorted(set(names) or {*folders, *served}, key=lambda name: (name not in folders, name)):
            result = await self._reload_one(name, folders.get(name))
            self._tell(name, result)
            if result is not None:
                results.append(result)
        return results

    def _tell(self, name: str, result: Reloaded | None) -> None:
        """Let the observer and the log know what became of a classifier; None: it stays as it was."""
        self._observer.reloaded(name, result.outcome.value if result else "unchanged")
        self._refusals.discard(name)
        if result is None:
            return
        if result.outcome is ReloadOutcome.REFUSED:
            self._refusals.add(name)
        logger.info("reload: %s %s %s", name, result.outcome.value, "; ".join(result.problems))

    def _refused(self, name: str, *problems: str) -> Reloaded:
        """What becomes of a classifier that stays as it is, against what the folder says."""
        answers = _answering(self._catalogue.current, name)
        return Reloaded(name, ReloadOutcome.REFUSED, answers, answers, problems)

    async def _reload_one(self, name: str, folder: Path | None) -> Reloaded | None:
        registry = self._catalogue.current
        before = registry.classifiers.get(name)
        previous = _answering(registry, name)
        if folder is None:
            try:
                await self._engine.check()  # one that is being started may be about to read what would be removed
            except FantailError as error:
                return self._refused(name, error.message)
            rest = registry.without_classifier(name)
            if not rest.serving_names:
                return self._refused(name, "its folder is gone, but nothing else would be left to answer")
            await self._switch(rest)
            return Reloaded(name, ReloadOutcome.REMOVED, "", previous)
        try:
            found = await self._copy(name, folder, self._folders.classifiers)
            same = before is not None and found.revision == before.revision and found.probes == before.probes
            if same and name not in registry.withheld:
                await self._drop(found)
                return None
            await self._prove(found)
        except RevisionRefusedError as error:
            return self._refused(name, *error.problems)
        await self._switch(self._catalogue.current.with_classifier(found))
        return Reloaded(name, ReloadOutcome.LOADED, found.revision, previous)

    async def _load(self, name: str, folder: str) -> Classifier:
        registry = self._catalogue.current
        registry.get(name)
        candidates = self._folders.candidates
        if not 0 < len(folder) <= MAX_FOLDER or "\0" in folder or not is_inside(candidates / folder, candidates):
            message = f"The folder must be named relative to {candidates.name}/, in at most {MAX_FOLDER} characters."
            raise FolderOutsideError(message, "folder")
        found = await self._copy(name, candidates / folder, candidates)
        if any(each.revision == found.revision for each in registry.revisions(name)):
            await self._drop(found)
            return registry.revision(name, found.revision)
        await self._prove(found)
        registry = self._catalogue.current
        deployment = registry.deployments.get(name, Deployment())
        more = replace(deployment, candidates=(*deployment.candidates, found))
        await self._switch(registry.with_deployment(name, more))
        return found

    async def _unload(self, name: str, revision: str) -> None:
        await self._engine.check()  # as when a classifier goes
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

    async def _copy(self, name: str, folder: Path, root: Path) -> Classifier:
        """Copy and check what a folder holds. Raises RevisionRefusedError."""
        found, problems = await asyncio.to_thread(self._loader.load_confined, folder, root, self._snapshots, name)
        if found is None:
            raise RevisionRefusedError(name, problems)
        if found.flaw is not None:
            await self._drop(found)
            raise RevisionRefusedError(name, [found.flaw])
        return found

    async def _prove(self, found: Classifier) -> None:
        """Load its adapter and pass it through the gate, beside some of those that serve. Raises RevisionRefusedError,
        with its adapter and its copy gone again."""
        try:
            if (adapter := engine_adapter(found)) is not None:
                await self._engine.load(adapter)
            failures = await self._gate.check([found], beside=self._catalogue.current.neighbours_of(found))
            if failures:
                raise EngineError("; ".join(f"{name}: {why}" for name, why in failures.items()))
        except FantailError as error:
            await self._forget(found)
            raise RevisionRefusedError(found.name, [error.message]) from error

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
        if adapter is not None:
            served = {each.name: each for each in adapters_of(self._catalogue.current)}.get(adapter.name)
            try:
                if served is None:
                    await self._engine.unload(adapter.name)
                else:  # the engine may read it again, and must not look where it is about to be removed
                    await self._engine.load(served)
            except FantailError as error:  # a dead engine holds nothing; a live one that fails must be seen
                logger.error("%s stays in the engine: %s", adapter.name, error.message)
        await self._drop(classifier)

    async def _drop(self, classifier: Classifier) -> None:
        if classifier.folder is not None:
            await asyncio.to_thread(self._snapshots.drop, classifier.folder)


def _answering(registry: Registry, name: str) -> str:
    """The folder's revision of a classifier that answers; empty when none does."""
    found = registry.classifiers.get(name)
    return found.revision if found is not None and name not in registry.withheld else ""
