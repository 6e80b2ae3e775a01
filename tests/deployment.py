"""A folder of classifiers that changes while it is served: what the tests of reloads, traffic and shadows share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from service.catalogue import Catalogue
from service.classify import Classify
from service.deploy import Deployer
from service.domain import Calibration, Classification, Classifier, Probe
from service.engine.base import AdapterPlace, EngineAdapter, LabelLogprobs, ScoringRequest, engine_adapter
from service.engine.fake_engine import FakeEngine
from service.errors import EngineError
from service.gate import Gate
from service.metrics import Metrics
from service.registry.adapter import CONFIG_FILE
from service.registry.calibration import write_calibration
from service.registry.loader import RegistryLoader
from service.registry.manifest import MANIFEST_FILE, load_manifest
from service.registry.probes import write_probes
from service.registry.registry import Registry
from service.registry.snapshots import snapshots
from service.revisions import Folders, adapters_of
from service.shadow import Shadows
from tests.support import ABSENT, adapter_tensors, classify_with, make_classifier_folder, manifest_toml, talk
from tests.unit.shifting_engine import ADAPTED

WAIT_S = 60.0
"""For what is certain to happen, on a machine however busy."""

TOLERANCE = 0.01
LABELS = {"yes": " yes", "no": " no"}
ACTIVATED, PLAIN, BARE = "refund", "fraud", "topic"
KINDS = {ACTIVATED: "activated", PLAIN: "plain", BARE: "none"}


@dataclass
class ReadingEngine(FakeEngine):
    """Answers as probes with `ADAPTED` say, and from loaded adapters only.

    `front`, `back`: while shut, no call, or nothing of the background, is answered; `waiting`: how many are under way.
    `folders`: where each loaded adapter would be read again; `unloaded`: names, in order; `stuck`: raised instead;
    `moved`: places of adapters other than a fake engine's.
    """

    front: asyncio.Event = field(default_factory=asyncio.Event)
    back: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: dict[str, int] = field(default_factory=lambda: {"front": 0, "back": 0})
    folders: dict[str, Path] = field(default_factory=dict)
    unloaded: list[str] = field(default_factory=list)
    stuck: Exception | None = None
    moved: dict[str, AdapterPlace] = field(default_factory=dict)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.favour = lambda request: int(request.adapter is None)
        self.front.set()
        self.back.set()

    async def score(self, request: ScoringRequest) -> LabelLogprobs:
        place = "back" if request.priority >= 10 else "front"
        self._count(place, 1)
        try:
            self._require_loaded(request)
            await (self.back if place == "back" else self.front).wait()
            answer = await super().score(request)
            self._require_loaded(request)
            return answer
        finally:
            self._count(place, -1)

    async def load(self, adapter: EngineAdapter) -> None:
        await super().load(adapter)
        self.folders[adapter.name] = adapter.adapter.path

    async def unload(self, name: str) -> None:
        if self.stuck is not None:
            raise self.stuck
        await super().unload(name)
        self.folders.pop(name, None)
        self.unloaded.append(name)

    async def places(self) -> Mapping[str, AdapterPlace]:
        return {**await super().places(), **self.moved}

    async def until(self, place: str, requests: int) -> None:
        """Return once exactly so many requests are under way in "front" or "back"."""
        async with asyncio.timeout(WAIT_S):
            while self.waiting[place] != requests:
                self._moved.clear()
                await self._moved.wait()

    def _count(self, place: str, more: int) -> None:
        self.waiting[place] += more
        self._moved.set()

    def _require_loaded(self, request: ScoringRequest) -> None:
        if request.adapter is not None and request.adapter.name not in self.loaded:
            raise EngineError("The classifier's adapter is not loaded.")


class WatchedCatalogue(Catalogue):
    """`replaced`: set by each replacement."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self.replaced = asyncio.Event()

    def replace(self, registry: Registry) -> None:
        super().replace(registry)
        self.replaced.set()

    async def until_replaced(self) -> None:
        """Return after the first replacement."""
        await asyncio.wait_for(self.replaced.wait(), WAIT_S)


class WatchedMetrics(Metrics):
    """`shadows`: for each answer that had a shadow, what the shadow said."""

    def __init__(self) -> None:
        super().__init__()
        self.shadows: asyncio.Queue[Classification | None] = asyncio.Queue()

    def shadowed(self, answer: Classification, shadow: Classification | None) -> None:
        super().shadowed(answer, shadow)
        self.shadows.put_nowait(shadow)

    async def shadow(self) -> Classification | None:
        """The next of them."""
        return await asyncio.wait_for(self.shadows.get(), WAIT_S)


@dataclass(frozen=True)
class Served:
    """What is served, from which folders, and by what."""

    root: Path
    loader: RegistryLoader
    engine: ReadingEngine
    catalogue: WatchedCatalogue
    classify: Classify
    deployer: Deployer
    metrics: WatchedMetrics

    @property
    def classifiers(self) -> Path:
        return self.root / "classifiers"

    @property
    def candidates(self) -> Path:
        return self.root / "candidates"

    def current(self, name: str = ACTIVATED) -> Classifier:
        return self.catalogue.current.get(name)

    def adapter(self, name: str = ACTIVATED) -> str:
        """The engine's name for the adapter that is served."""
        found = engine_adapter(self.current(name))
        assert found is not None
        return found.name

    def copies(self) -> set[Path]:
        """Every copy of a folder that is on disk."""
        return set(self.root.glob("cache/serving-*/*/*"))

    def require_tidy(self) -> None:
        """The engine holds exactly the served adapters, the disk exactly the served folders, and each is where the
        engine would read it again."""
        loaded = self.catalogue.current.loaded
        folders = {each.name: each.adapter.path for each in adapters_of(self.catalogue.current)}
        assert self.engine.loaded.keys() == folders.keys()
        assert self.copies() == {each.folder for each in loaded}
        assert {path.parent for path in self.engine.folders.values()} <= self.copies()

    def write(self, name: str = ACTIVATED, number: int = 0, **changes: Any) -> Path:
        """Write a classifier's folder anew; see `write_classifier`."""
        return write_classifier(self.loader, self.classifiers, name, number, **changes)

    def candidate(self, number: int, name: str = ACTIVATED, **changes: Any) -> str:
        """Write a candidate; returns the name of its folder."""
        written = write_classifier(self.loader, self.candidates / str(number), name, number, **changes)
        return str(written.relative_to(self.candidates))

    async def load(self, number: int, name: str = ACTIVATED, **changes: Any) -> str:
        """Write and load a candidate; returns its revision."""
        return (await self.deployer.load(name, self.candidate(number, name, **changes))).revision


@contextlib.asynccontextmanager
async def serving(root: Path, loader: RegistryLoader, *names: str) -> AsyncIterator[Served]:
    """Serve these classifiers, or one of each kind, from folders in `root`."""
    for name in names or KINDS:
        write_classifier(loader, root / "classifiers", name)
    (root / "candidates").mkdir()
    engine, metrics = ReadingEngine(), WatchedMetrics()
    with snapshots(root / "cache") as copies:
        registry = loader.load(root / "classifiers", copies)
        for adapter in adapters_of(registry):
            await engine.load(adapter)
        catalogue, classify = WatchedCatalogue(registry), classify_with(registry, loader.builder, engine)
        gate = Gate(loader.builder, engine, TOLERANCE)
        folders = Folders(root / "classifiers", root / "candidates")
        deployer = Deployer(catalogue, engine, gate, loader, copies, folders, metrics)
        async with contextlib.aclosing(Shadows(catalogue, engine, classify.admission, metrics)) as shadows:
            classify = replace(classify, catalogue=catalogue, shadows=shadows, observer=metrics)
            yield Served(root, loader, engine, catalogue, classify, deployer, metrics)


def write_classifier(
    loader: RegistryLoader,
    directory: Path,
    name: str = ACTIVATED,
    number: int = 0,
    probabilities: tuple[float, float] = ADAPTED,
    **manifest: Any,
) -> Path:
    """Write `directory/name` anew, with an adapter of one layer that is another for each number, and one probe.

    `probabilities`: what the probe says that PEFT answers; `manifest`: changes to the manifest.
    """
    folder = directory / name
    shutil.rmtree(folder, ignore_errors=True)
    manifest = {"adapter": KINDS.get(name, "activated"), "words": f"{name}?", "labels": LABELS} | manifest
    every = adapter_tensors(loader.base, modules=("q_proj",))
    some = dict.fromkeys(adapter_tensors(loader.base), ABSENT) | {key: every[key] for key in list(every)[:2]}
    config = {"target_modules": ["q_proj"], "lora_alpha": number + 1}
    ids = loader.builder.invocation_ids
    make_classifier_folder(directory, name, loader.base, ids, config=config, tensors=some, **manifest)
    if manifest["adapter"] != "none":
        write_probe(folder, probabilities, tuple(manifest["labels"]))
    return folder


def write_probe(
    folder: Path,
    probabilities: tuple[float, float] = ADAPTED,
    labels: tuple[str, ...] = tuple(LABELS),
    text: str = "hi",
) -> None:
    """Give a classifier this one probe."""
    write_probes(folder, labels, [Probe(talk("hi"), probabilities)])


def change_adapter(folder: Path, **changes: Any) -> None:
    """Change keys of the adapter's config; any change makes another adapter of it."""
    path = folder / "adapter" / CONFIG_FILE
    config = json.loads(path.read_text()) | changes
    path.unlink()  # writing over it would wait for the disk
    path.write_text(json.dumps(config))


def change_manifest(folder: Path, **changes: Any) -> None:
    """Write the manifest anew, as `write_classifier` does."""
    kind = KINDS.get(folder.name, "activated")
    text = manifest_toml(**{"adapter": kind, "words": f"{folder.name}?", "labels": LABELS} | changes)
    (folder / MANIFEST_FILE).write_text(text)


def calibrate(loader: RegistryLoader, folder: Path, scale: float = 2.0) -> None:
    """Write a calibration that fits what the folder holds."""
    (manifest, _), (classifier, _) = load_manifest(folder), loader.load_one(folder)
    assert manifest is not None
    assert classifier is not None
    fitted_for = loader.calibration_digest(manifest, classifier.adapter, loader.builder)
    write_calibration(folder, tuple(LABELS), Calibration(scale, (0.0, 0.0), (0.0, 0.0)), fitted_for, {})
