"""All classifier folders of a directory to validated classifiers, or all their problems together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from service.base_model import BaseModel
from service.domain import AdapterKind, Classifier
from service.errors import RegistryError, UnknownClassifierError
from service.prompt.builder import PromptBuilder
from service.prompt.format import MAX_TAIL_TOKENS
from service.prompt.labels import prove_labels
from service.prompt.tokenizer import PromptTokenizer
from service.registry.adapter import load_adapter
from service.registry.manifest import MANIFEST_FILE, AdapterChoice, load_manifest

NAME_PATTERN_HELP = "a classifier's folder name is 1 to 64 of a-z, 0-9 and _, and starts with a letter"
NOT_CLASSIFIERS = frozenset({"data"})
"""Folders beside the classifiers that hold something else."""


@dataclass(frozen=True, slots=True)
class Registry:
    """The served classifiers by name, sorted by name."""

    classifiers: Mapping[str, Classifier]

    def get(self, name: str) -> Classifier:
        """Raises UnknownClassifierError."""
        try:
            return self.classifiers[name]
        except KeyError:
            raise UnknownClassifierError(
                "There is no such classifier here; ListClassifiers names those there are.", {"classifier": name[:64]}
            ) from None

    def select(self, names: Sequence[str]) -> tuple[Classifier, ...]:
        """The named classifiers in that order; all, by name, when `names` is empty. Raises UnknownClassifierError."""
        return tuple(map(self.get, names)) if names else tuple(self.classifiers.values())


@dataclass(frozen=True, slots=True)
class RegistryLoader:
    """What it takes to turn a folder into classifiers for one base model and prompt format."""

    base: BaseModel
    tokenizer: PromptTokenizer
    builder: PromptBuilder

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
        problems: list[str] = []
        for folder in folders:
            classifier, found = self._load_one(folder)
            problems += [f"{folder.name}: {problem}" for problem in found]
            if classifier is not None:
                loaded[folder.name] = classifier
        if problems:
            raise RegistryError(problems)
        return Registry(MappingProxyType(loaded))

    def _load_one(self, folder: Path) -> tuple[Classifier | None, list[str]]:
        manifest, problems = load_manifest(folder)
        if manifest is None:
            return None, problems
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
        if problems:
            return None, problems
        revision = self._revision((folder / MANIFEST_FILE).read_bytes(), adapter.digest if adapter else "")
        return (
            Classifier(folder.name, manifest.description, labels, tail_ids, adapter, revision, manifest.min_label_mass),
            [],
        )

    def _revision(self, manifest: bytes, adapter_digest: str) -> str:
        """First 16 hex digits of sha256 over everything that decides an answer."""
        digest = hashlib.sha256()
        for part in (
            manifest,
            adapter_digest.encode(),
            self.builder.prompt_digest.encode(),
            self.base.identity.encode(),
        ):
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()[:16]
