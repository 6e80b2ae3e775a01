"""All classifier folders of a directory to validated classifiers, or all their problems together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from service.base_model import BaseModel
from service.domain import Adapter, AdapterKind, Classifier, Probe
from service.errors import ClassifierWithheldError, RegistryError, UnknownClassifierError
from service.prompt.builder import PromptBuilder
from service.prompt.format import MAX_TAIL_TOKENS
from service.prompt.labels import prove_labels
from service.prompt.tokenizer import PromptTokenizer
from service.registry.adapter import load_adapter
from service.registry.calibration import CALIBRATION_FILE, load_calibration
from service.registry.manifest import MANIFEST_FILE, AdapterChoice, Manifest, load_manifest
from service.registry.probes import PROBES_FILE, load_probes

NAME_PATTERN_HELP = "a classifier's folder name is 1 to 64 of a-z, 0-9 and _, and starts with a letter"
NOT_CLASSIFIERS = frozenset({"data"})
"""Folders beside the classifiers that hold something else."""


@dataclass(frozen=True, slots=True)
class Registry:
    """The classifiers by name, sorted by name. `withheld`: why some of them are not asked, by name."""

    classifiers: Mapping[str, Classifier]
    withheld: Mapping[str, str] = field(default_factory=dict)

    def get(self, name: str) -> Classifier:
        """Raises UnknownClassifierError."""
        try:
            return self.classifiers[name]
        except KeyError:
            raise UnknownClassifierError(
                "There is no such classifier here; ListClassifiers names those there are.", {"classifier": name[:64]}
            ) from None

    def serving(self, name: str) -> Classifier:
        """A classifier that may be asked. Raises UnknownClassifierError, ClassifierWithheldError."""
        classifier = self.get(name)
        if name in self.withheld:
            raise ClassifierWithheldError(
                "This classifier is withheld and not asked; GetClassifier says why.",
                {"classifier": name},
            )
        return classifier

    @property
    def serving_names(self) -> tuple[str, ...]:
        """Names of the classifiers that may be asked."""
        return tuple(name for name in self.classifiers if name not in self.withheld)

    def without(self, withheld: Mapping[str, str]) -> Registry:
        """The same registry with more classifiers withheld; the first reason found stays."""
        return replace(self, withheld=MappingProxyType({**withheld, **self.withheld}))

    def select(self, names: Sequence[str]) -> tuple[Classifier, ...]:
        """The named classifiers in that order; all, by name, when `names` is empty. Raises UnknownClassifierError."""
        return tuple(map(self.get, names)) if names else tuple(self.classifiers.values())


@dataclass(frozen=True, slots=True)
class RegistryLoader:
    """What it takes to turn a folder into classifiers for one base model and prompt format.

    `ignore`: names of files that are about to be written anew, so that what is wrong with them does not matter.
    """

    base: BaseModel
    tokenizer: PromptTokenizer
    builder: PromptBuilder
    ignore: frozenset[str] = frozenset()

    def load(self, directory: Path) -> Registry:
        """Load every classifier folder in `directory`. Raises RegistryError with the problems of all of them."""
        if not directory.is_dir():
            raise RegistryError([f"{directory} is not a folder; set FANTAIL_CLASSIFIERS"])
        folders = [
            p for p in sorted(directory.iterdir()) if p.is_dir() and p.name not in NOT_CLASSIFIERS and p.name[0] != "."
        ]
        if not folders:
            raise RegistryError([f"{directory} has no classifier folders"])
        loaded: dict[str, Classifier] = {}
        withheld: dict[str, str] = {}
        problems: list[str] = []
        for folder in folders:
            classifier, stale, found = self.load_one(folder)
            problems += [f"{folder.name}: {problem}" for problem in found]
            if classifier is not None:
                loaded[folder.name] = classifier
            if stale is not None:
                withheld[folder.name] = stale
        if problems:
            raise RegistryError(problems)
        return Registry(MappingProxyType(loaded), MappingProxyType(withheld))

    def load_one(self, folder: Path) -> tuple[Classifier | None, str | None, list[str]]:
        """The classifier in a folder, why it must be withheld, and every problem; without problems it is not None."""
        manifest, problems = load_manifest(folder)
        if manifest is None:
            return None, None, problems
        if not re.fullmatch("[a-z][a-z0-9_]{0,63}", folder.name):
            problems.append(NAME_PATTERN_HELP)
        tail_ids = self.builder.tail(manifest.words)
        if len(tail_ids) > MAX_TAIL_TOKENS:
            problems.append(
                f"invocation and words are {len(tail_ids)} tokens, more than {MAX_TAIL_TOKENS}; shorten `words`"
            )
        labels, label_problems = prove_labels(self.tokenizer, manifest.words, manifest.labels)
        problems += label_problems
        adapter = None
        if manifest.adapter is not AdapterChoice.NONE:
            kind = AdapterKind(manifest.adapter.value)
            adapter, adapter_problems = load_adapter(folder / "adapter", kind, self.base, self.builder.invocation_ids)
            problems += adapter_problems
        elif (folder / "adapter").exists():
            problems.append("the manifest says adapter = 'none' but there is a folder adapter/")
        names = tuple(manifest.labels)
        probes: tuple[Probe, ...] = ()
        if PROBES_FILE not in self.ignore:
            probes, probe_problems = load_probes(folder, names)
            problems += probe_problems
        calibration, stale = None, None
        if CALIBRATION_FILE not in self.ignore:
            fitted_for = self.calibration_digest(manifest, adapter)
            calibration, stale, calibration_problems = load_calibration(folder, names, fitted_for)
            problems += calibration_problems
            if manifest.targets and calibration is None:
                stale = f"its targets need a {CALIBRATION_FILE}; run `fantail calibrate {folder.name}`"
        if problems:
            return None, None, problems
        classifier = Classifier(
            name=folder.name,
            description=manifest.description,
            labels=labels,
            tail_ids=tail_ids,
            adapter=adapter,
            revision=self._revision(folder, adapter),
            min_label_mass=manifest.min_label_mass,
            calibration=calibration,
            probes=probes,
        )
        return classifier, stale, []

    def calibration_digest(self, manifest: Manifest, adapter: Adapter | None) -> str:
        """Digest, hex, of what a calibration is fitted for: what decides raw probabilities, and the targets.

        The base is part of it only where it answers itself: an adapter's base is proven by its gate.
        """
        return _digest(
            manifest.words.encode(),
            "\n".join(f"{name}={token}" for name, token in manifest.labels.items()).encode(),
            "\n".join(f"{name}={target!r}" for name, target in sorted(manifest.targets.items())).encode(),
            adapter.digest.encode() if adapter else self.base.identity.encode(),
            self.builder.prompt_digest.encode(),
        )

    def _revision(self, folder: Path, adapter: Adapter | None) -> str:
        """First 16 hex digits of sha256 over everything that decides an answer."""
        calibration = folder / CALIBRATION_FILE
        return _digest(
            (folder / MANIFEST_FILE).read_bytes(),
            adapter.digest.encode() if adapter else b"",
            self.builder.prompt_digest.encode(),
            calibration.read_bytes() if calibration.exists() else b"",
            self.base.identity.encode(),
        )[:16]


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()
