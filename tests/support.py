"""Makes the material of tests: conversations, adapters and classifier folders, valid until a test breaks them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from service.admission import Admission
from service.base_model import BaseModel
from service.catalogue import Catalogue
from service.classify import Classify
from service.domain import AdapterKind, Conversation, Role, Turn
from service.engine.base import ScoringEngine
from service.observer import Observer
from service.prefix_memory import PrefixMemory
from service.prompt.builder import PromptBuilder
from service.registry.adapter import CONFIG_FILE, WEIGHT_PREFIX, WEIGHTS_FILE
from service.registry.manifest import MANIFEST_FILE
from service.registry.registry import Registry
from service.shadow import Shadows

REPOSITORY = Path(__file__).parents[1]
CLASSIFIERS = REPOSITORY / "classifiers"

RANK = 2
TARGET_MODULES = ("q_proj", "o_proj")
MANIFEST: Mapping[str, Any] = {
    "description": "Whether the customer asks for money back.",
    "words": "refund?",
    "adapter": "activated",
    "labels": {"yes": " yes", "no": " no"},
}
OWN_PROMPT = """\
preamble = "<|im_start|>system\\nAnswer about this talk.<|im_end|>\\n<|im_start|>user\\n"
turn_end = "\\n"
invocation = "<|im_end|>\\n<|im_start|>assistant\\n"
turn_start = { customer = "Customer:\\n", agent = "Agent:\\n", system = "Note:\\n" }
"""
"""`prompt.toml` of a classifier that was trained on another prompt than the shipped ones."""

SAME_INVOCATION = OWN_PROMPT.replace("<|im_end|>\\n<|im_start|>assistant\\n", "<|im_start|>")
"""The same for adapters that are activated by what the shipped ones are."""

ABSENT = object()
"""Given as a value: leave this key out."""


def talk(*texts: str, id: str = "talk") -> Conversation:
    """A conversation of these texts; customer and agent take turns, the customer begins."""
    roles = (Role.CUSTOMER, Role.AGENT)
    return Conversation(id, tuple(Turn(roles[index % 2], text) for index, text in enumerate(texts)))


def classify_with(
    registry: Registry,
    builder: PromptBuilder,
    engine: ScoringEngine,
    admission: Admission | None = None,
    observer: Observer | None = None,
) -> Classify:
    """The way of a request around an engine; nothing is turned away unless the test says so."""
    catalogue = Catalogue(registry)
    admission, observer = admission or Admission(1 << 20, 1 << 40), observer or Observer()
    shadows = Shadows(catalogue, engine, admission, observer)
    return Classify(catalogue, builder, engine, admission, PrefixMemory(100_000), shadows, observer)


def changed(original: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`original` with `changes` laid over it; `ABSENT` removes."""
    return {key: value for key, value in {**original, **changes}.items() if value is not ABSENT}


def adapter_tensors(
    base: BaseModel, rank: int = RANK, modules: Sequence[str] = TARGET_MODULES, dtype: Any = np.float32
) -> dict[str, np.ndarray[Any, Any]]:
    """Weights of the right shapes for every layer's `modules`; the numbers are small, fixed and mean nothing."""
    numbers = np.random.default_rng(7)
    tensors = {}
    for name, (outputs, inputs) in base.linears.items():
        if name.rsplit(".", 1)[-1] in modules:
            for half, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                values = numbers.normal(0, 0.01, shape).astype(dtype)
                tensors[f"{WEIGHT_PREFIX}{name}.lora_{half}.weight"] = values
    return tensors


def adapter_config(
    base: BaseModel,
    invocation_ids: Sequence[int],
    kind: AdapterKind = AdapterKind.ACTIVATED,
    rank: int = RANK,
    modules: Sequence[str] = TARGET_MODULES,
) -> dict[str, Any]:
    """What PEFT writes beside such weights."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(modules),
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "alora_invocation_tokens": list(invocation_ids) if kind is AdapterKind.ACTIVATED else None,
    }


def make_adapter(
    folder: Path,
    base: BaseModel,
    invocation_ids: Sequence[int],
    kind: AdapterKind = AdapterKind.ACTIVATED,
    *,
    config: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
) -> Path:
    """Write a tiny adapter folder: rank 2 on q_proj and o_proj of every layer.

    `config`, `tensors`: changes to what is written, to break it; a value `ABSENT` leaves the key out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = changed(adapter_config(base, invocation_ids, kind), config or {})
    (folder / CONFIG_FILE).write_text(json.dumps(written), encoding="utf-8")
    save_file(changed(adapter_tensors(base), tensors or {}), folder / WEIGHTS_FILE)
    return folder


def manifest_toml(**changes: Any) -> str:
    """A valid manifest with `changes`; `ABSENT` leaves a key out."""
    lines, tables = [], []
    for key, value in changed(MANIFEST, changes).items():
        if isinstance(value, Mapping):
            tables += [f"[{key}]", *(f"{name} = {json.dumps(text)}" for name, text in value.items())]
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def make_classifier_folder(
    directory: Path,
    name: str,
    base: BaseModel,
    invocation_ids: Sequence[int],
    *,
    config: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
    **manifest: Any,
) -> Path:
    """Write `directory/name` with a manifest and the adapter that the manifest names.

    `config`, `tensors`: changes to the adapter as in `make_adapter`; `manifest`: changes to the manifest.
    """
    folder = directory / name
    folder.mkdir(parents=True)
    (folder / MANIFEST_FILE).write_text(manifest_toml(**manifest), encoding="utf-8")
    wanted = manifest.get("adapter", MANIFEST["adapter"])
    if wanted in set(AdapterKind):
        make_adapter(folder / "adapter", base, invocation_ids, AdapterKind(wanted), config=config, tensors=tensors)
    return folder


async def settle() -> None:
    """Let every task go on as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)
