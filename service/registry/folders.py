"""Makes classifier folders: from a template, or around an adapter that PEFT has saved. Each wholly or not at all."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from service.errors import RegistryError
from service.files import sha256, write_whole
from service.prompt.format import FORMAT_FILE
from service.registry.adapter import CONFIG_FILE, WEIGHTS_FILE
from service.registry.manifest import MANIFEST_FILE, AdapterChoice

ADAPTER_FOLDER = "adapter"
RECORD_FILE = "training.json"

TEMPLATE = """\
# Written by a person, checked by `fantail check`. Every byte here is part of the classifier's revision.
description = {description}

# The task's own words, the last thing before the answer. Each token costs one token per call, so a word or two do.
words = {words}

# What answers: "activated" (trained by `fantail train {name}`, shares the conversation's reading), "plain" (any other
# LoRA, reads the conversation for itself) or "none" (the base model, zero-shot).
adapter = "{adapter}"

# Label name to the text of its one token, in the order in which scores are listed.
[labels]
{labels}

# A label that is acted on only with care gets a target; `fantail calibrate {name}` finds the threshold that reaches it.
# [targets.yes]
# precision = 0.9
"""


def manifest_text(
    name: str, description: str, words: str, labels: Mapping[str, str], adapter: AdapterChoice = AdapterChoice.NONE
) -> str:
    """A commented manifest."""
    return TEMPLATE.format(
        name=name,
        description=json.dumps(description, ensure_ascii=False),
        words=json.dumps(words, ensure_ascii=False),
        adapter=adapter.value,
        labels="\n".join(f"{label} = {json.dumps(token, ensure_ascii=False)}" for label, token in labels.items()),
    )


@contextmanager
def new_folder(directory: Path, name: str) -> Iterator[Path]:
    """A folder to fill, which becomes `directory/name` at the end and is gone after an error.

    Raises RegistryError when that is there already, or would be elsewhere.
    """
    target = directory / name
    if target.parent != directory:
        raise RegistryError([f"{name!r} is a path; name a folder in {directory}"])
    if target.exists():
        raise RegistryError([f"{target} is there already; remove it or choose another name"])
    with tempfile.TemporaryDirectory(dir=directory, prefix=".new-") as scratch:
        folder = Path(scratch) / name
        folder.mkdir()
        yield folder
        folder.rename(target)


def copy_adapter(peft_folder: Path, folder: Path) -> AdapterChoice:
    """Copy config and weights of a PEFT adapter to `folder/adapter`; says whether it is activated or plain."""
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (peft_folder / name).is_file()]
    if missing:
        raise RegistryError([f"{peft_folder} has no {name}; save it with PEFT's save_pretrained" for name in missing])
    made = folder / ADAPTER_FOLDER
    made.mkdir()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(peft_folder / name, made / name)
    try:
        config = json.loads((made / CONFIG_FILE).read_text(encoding="utf-8"))
        return AdapterChoice.ACTIVATED if config.get("alora_invocation_tokens") else AdapterChoice.PLAIN
    except (ValueError, AttributeError, RecursionError) as error:
        raise RegistryError([f"{peft_folder / CONFIG_FILE} is not a JSON object"]) from error


def copy_prompt(path: Path, folder: Path) -> None:
    """Copy a prompt format into a classifier's folder. Raises RegistryError when there is no such file."""
    try:
        shutil.copyfile(path, folder / FORMAT_FILE)
    except OSError as error:
        raise RegistryError([f"{path} cannot be read: {error.strerror}"]) from error


def say_activated(folder: Path) -> None:
    """Change a manifest that says adapter = "none" to "activated", leaving everything else as it is."""
    path = folder / MANIFEST_FILE
    text = path.read_bytes().decode()
    keys = re.split(r"(?m)^[ \t]*\[", text, maxsplit=1)[0]  # before the first table: a label may be named adapter too
    changed = re.sub(r'(?m)^([ \t]*adapter[ \t]*=[ \t]*)["\']none["\']', r'\1"activated"', keys)
    write_whole(path, changed + text[len(keys) :])


def learnt_from(folder: Path) -> dict[str, str]:
    """sha256 of each file that the adapter in a folder was trained on, by name; empty where nobody recorded it."""
    with suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
        return dict(json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))["data"])
    return {}


def trained_on(folders: Sequence[Path], files: Sequence[Path]) -> list[str]:
    """Names of the files that adapters in these folders were trained on: of the same bytes, or of the same name, since
    such a file may only have been added to."""
    known = {each for folder in folders for of in learnt_from(folder).items() for each in of}
    return [file.name for file in files if file.name in known or sha256(file) in known]
