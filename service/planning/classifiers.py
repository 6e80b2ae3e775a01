"""Classifiers as far as they cost: what answers each, ranks and layers of adapters. Reads folders, but no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service.errors import RegistryError
from service.planning.model_shape import read_object
from service.prompt.format import FORMAT_FILE, OwnPromptFormat, load_prompt_format
from service.registry.adapter import CONFIG_FILE, MAX_RANK
from service.registry.folders import ADAPTER_FOLDER
from service.registry.loader import classifier_folders


@dataclass(frozen=True, slots=True)
class Fan:
    """Classifiers asked about one conversation, counted by what answers.

    `activated`: adapters on the tail alone; `plain`: adapters on every token, each with a reading of its own;
    `bare`: the model without an adapter, which shares its reading with the activated ones; `prompts`: in how many ones
    those read a conversation.
    """

    activated: int = 0
    plain: int = 0
    bare: int = 0
    prompts: int = 1

    @property
    def size(self) -> int:
        return self.activated + self.plain + self.bare

    @property
    def readings(self) -> int:
        """How often the conversation is computed."""
        return self.plain + (self.prompts if self.activated or self.bare else 0)

    @property
    def one(self) -> Fan:
        """One of them, activated where any is."""
        return Fan(activated=1) if self.activated else Fan(bare=1) if self.bare else Fan(plain=1)


@dataclass(frozen=True, slots=True)
class Served:
    """`ranks`: of each adapter; `modules`: names of the linear layers that any of them changes."""

    fan: Fan
    ranks: tuple[int, ...]
    modules: frozenset[str]


def read_classifiers(directory: Path, linears: frozenset[str]) -> Served:
    """What the adapters' configurations say; without an adapter the base answers.

    Raises StartError; RegistryError has the problems of all folders.
    """
    ranks, changed, problems, plain = [], set[str](), [], set[Path]()
    folders = classifier_folders(directory)
    for folder in (each for each in folders if (each / ADAPTER_FOLDER).is_dir()):
        config = read_object(folder / ADAPTER_FOLDER / CONFIG_FILE)
        rank, modules = config.get("r"), config.get("target_modules")
        if type(rank) is not int or not 1 <= rank <= MAX_RANK:
            problems.append(f"{folder.name}: r is {rank!r}, not a whole number from 1 to {MAX_RANK}")
        elif not isinstance(modules, list) or not modules or not linears.issuperset(map(str, modules)):
            problems.append(f"{folder.name}: target_modules is {modules!r}; what can be planned is {sorted(linears)}")
        else:
            ranks.append(rank)
            changed.update(modules)
            if not config.get("alora_invocation_tokens"):
                plain.add(folder)
    if problems:
        raise RegistryError(problems)
    prompts = {_prompt_of(folder) or _prompt_of(directory) for folder in folders if folder not in plain}
    fan = Fan(len(ranks) - len(plain), len(plain), len(folders) - len(ranks), max(1, len(prompts)))
    return Served(fan, tuple(ranks), frozenset(changed))


def _prompt_of(folder: Path) -> str:
    """Digest of the prompt format in a folder; empty where there is none."""
    return load_prompt_format(folder, OwnPromptFormat).digest if (folder / FORMAT_FILE).exists() else ""
