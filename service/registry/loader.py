"""All classifier folders of a directory to validated classifiers, or all their problems together."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from service.base_model import BaseModel
from service.domain import MAX_NAME, Adapter, AdapterKind, Classifier, Probe, Prompt
from service.errors import RegistryError
from service.prompt.builder import PromptBuilder
from service.prompt.format import FORMAT_FILE, MAX_TAIL_TOKENS, OwnPromptFormat, load_prompt_format
from service.prompt.labels import prove_labels
from service.prompt.tokenizer import PromptTokenizer
from service.registry.adapter import load_adapter
from service.registry.calibration import CALIBRATION_FILE, load_calibration
from service.registry.manifest import MANIFEST_FILE, AdapterChoice, Manifest, load_manifest
from service.registry.probes import PROBES_FILE, load_probes
from service.registry.registry import Registry
from service.registry.snapshots import Snapshots, leading_outside

NAME = re.compile(f"[a-z][a-z0-9_]{{0,{MAX_NAME - 1}}}")
NAME_HELP = f"a classifier's folder name is 1 to {MAX_NAME} of a-z, 0-9 and _, and starts with a letter"
NOT_CLASSIFIERS = frozenset({"data"})
"""Folders beside the classifiers that hold something else."""


def classifier_folders(directory: Path) -> list[Path]:
    """Every classifier's folder, by name. Raises RegistryError when there is none."""
    if not directory.is_dir():
        raise RegistryError([f"{directory} is not a folder; set FANTAIL_CLASSIFIERS"])
    children = sorted(path for path in directory.iterdir() if path.is_dir())
    folders = [path for path in children if path.name not in NOT_CLASSIFIERS and path.name[0] != "."]
    if not folders:
        raise RegistryError([f"{directory} has no classifier folders"])
    return folders


def folders_by_name(directory: Path) -> dict[str, Path]:
    """The same by name; empty where there is none or the directory cannot be read, as when a mount is lost."""
    try:
        return {folder.name: folder for folder in classifier_folders(directory)}
    except (RegistryError, OSError):
        return {}


@dataclass(frozen=True, slots=True)
class RegistryLoader:
    """What it takes to turn a folder into classifiers for one base model and prompt format.

    `ignore`: names of files that are about to be written anew, so that what is wrong with them does not matter.
    """

    base: BaseModel
    tokenizer: PromptTokenizer
    builder: PromptBuilder
    ignore: frozenset[str] = frozenset()

    def load(self, directory: Path, snapshots: Snapshots | None = None) -> Registry:
        """Load every classifier folder in `directory`. Raises RegistryError with the problems of all of them.

        `snapshots`: load copies made there, so that what is served cannot change under it.
        """
        loaded: dict[str, Classifier] = {}
        problems: list[str] = []
        for folder in classifier_folders(directory):
            classifier, found = self.load_confined(folder, directory, snapshots)
            problems += [f"{folder.name}: {problem}" for problem in found]
            if classifier is not None:
                loaded[folder.name] = classifier
        if problems:
            raise RegistryError(problems)
        return Registry(MappingProxyType(loaded))

    def load_confined(
        self, folder: Path, root: Path, snapshots: Snapshots | None, name: str | None = None
    ) -> tuple[Classifier | None, list[str]]:
        """The classifier in a folder, or None and every problem, among them a file that leads out of `root`."""
        if outside := leading_outside(folder, root):
            return None, [f"{each} leads out of {root} or in a circle" for each in outside]
        copy = folder
        try:
            if snapshots is not None:
                copy = snapshots.take(folder)
            classifier, problems = self.load_one(copy, name or folder.name)
        except OSError as error:  # among others, whoever edits it may remove it at this very moment
            why = error.strerror or "a file or link in it cannot be copied"
            classifier, problems = None, [f"the folder cannot be read: {why}"]
        if classifier is None and snapshots is not None:
            snapshots.drop(copy)
        return classifier, problems

    def load_one(self, folder: Path, name: str | None = None) -> tuple[Classifier | None, list[str]]:
        """The classifier in a folder, or None and every problem. `name`: when it is not the folder's own."""
        manifest, problems = load_manifest(folder)
        if manifest is None:
            return None, problems
        name = name or folder.name
        if not NAME.fullmatch(name):
            problems.append(NAME_HELP)
        try:
            builder = builder_of(folder, self.builder)
        except RegistryError as error:
            return None, [*problems, *error.problems]
        tail_ids = builder.tail(manifest.words)
        if len(tail_ids) > MAX_TAIL_TOKENS:
            problems.append(
                f"invocation and words are {len(tail_ids)} tokens, more than {MAX_TAIL_TOKENS}; shorten `words`"
            )
        labels, label_problems = prove_labels(self.tokenizer, manifest.words, manifest.labels)
        problems += label_problems
        adapter = None
        if manifest.adapter is not AdapterChoice.NONE:
            kind = AdapterKind(manifest.adapter.value)
            adapter, adapter_problems = load_adapter(folder / "adapter", kind, self.base, builder.invocation_ids)
            problems += adapter_problems
        elif (folder / "adapter").exists():
            problems.append("the manifest says adapter = 'none' but there is a folder adapter/")
        names = tuple(manifest.labels)
        probes: tuple[Probe, ...] = ()
        if PROBES_FILE not in self.ignore:
            probes, probe_problems = load_probes(folder, names)
            problems += probe_problems
        calibration, flaw = None, None
        if CALIBRATION_FILE not in self.ignore:
            fitted_for = self.calibration_digest(manifest, adapter, builder)
            calibration, flaw, calibration_problems = load_calibration(folder, names, fitted_for)
            problems += calibration_problems
            if manifest.targets and calibration is None:
                flaw = f"its targets need a {CALIBRATION_FILE}; run `fantail calibrate {name}`"
        if problems:
            return None, problems
        classifier = Classifier(
            name=name,
            folder=folder,
            description=manifest.description,
            labels=labels,
            tail_ids=tail_ids,
            adapter=adapter,
            revision=self._revision(folder, adapter, builder),
            min_label_mass=manifest.min_label_mass,
            calibration=calibration,
            probes=probes,
            priority=manifest.priority,
            flaw=flaw,
            own_prompt=None if builder is self.builder else builder,
        )
        return classifier, []

    def calibration_digest(self, manifest: Manifest, adapter: Adapter | None, prompt: Prompt) -> str:
        """Digest, hex, of what a calibration is fitted for: what decides raw probabilities, targets and their answers.

        The base is part of it only where it answers itself: an adapter's base is proven by its gate.
        """
        targets = [f"{name}={target!r}" for name, target in sorted(manifest.targets.items())]
        if targets:  # their thresholds are chosen on the answers that have label mass enough
            targets.append(f"min_label_mass={manifest.min_label_mass}")
        return _digest(
            manifest.words.encode(),
            "\n".join(f"{name}={token}" for name, token in manifest.labels.items()).encode(),
            "\n".join(targets).encode(),
            adapter.digest.encode() if adapter else self.base.identity.encode(),
            prompt.prompt_digest.encode(),
        )

    def _revision(self, folder: Path, adapter: Adapter | None, prompt: Prompt) -> str:
        """First 16 hex digits of sha256 over everything that decides an answer."""
        calibration = folder / CALIBRATION_FILE
        return _digest(
            (folder / MANIFEST_FILE).read_bytes(),
            adapter.digest.encode() if adapter else b"",
            prompt.prompt_digest.encode(),
            calibration.read_bytes() if calibration.exists() else b"",
            self.base.identity.encode(),
        )[:16]


def builder_of(folder: Path, shared: PromptBuilder) -> PromptBuilder:
    """What makes the prompts of the classifier in a folder: `shared`, or one for the other format that the folder has.

    Raises RegistryError with every problem of that format.
    """
    if not os.path.lexists(folder / FORMAT_FILE):  # a link that leads nowhere is a loss, not another prompt
        return shared
    try:
        own = shared.in_format(load_prompt_format(folder, OwnPromptFormat))
    except RegistryError as error:
        raise RegistryError([problem.removeprefix(f"{folder}/") for problem in error.problems]) from error
    return shared if own.prompt_digest == shared.prompt_digest else own


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()
