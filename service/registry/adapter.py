"""An adapter folder (PEFT format) checked against the base from its headers; weights are hashed, never unpickled."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from service.base_model import BaseModel
from service.domain import Adapter, AdapterKind

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
WEIGHT_PREFIX = "base_model.model."
DTYPES = frozenset({"F32", "F16", "BF16"})
MAX_RANK = 512
"""The largest rank vLLM has slots for."""

UNSUPPORTED = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "layer_replication",
    "rank_pattern", "alpha_pattern", "trainable_token_indices", "target_parameters",
)  # fmt: skip
"""PEFT features that change what an adapter computes and that are not served."""


def load_adapter(
    folder: Path, kind: AdapterKind, base: BaseModel, invocation_ids: tuple[int, ...]
) -> tuple[Adapter | None, list[str]]:
    """The adapter in `folder`, or None and a sentence for each thing that is wrong with it."""
    if not folder.is_dir():
        return None, [f"the manifest says adapter = {kind.value!r} but there is no folder {folder.name}/"]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"})
    if pickles:
        return None, [
            f"{', '.join(pickles)}: only safetensors are loaded; save the adapter with safe_serialization=True"
        ]
    config, problems = _read_config(folder / CONFIG_FILE)
    if config is None:
        return None, problems
    problems += list(_config_problems(config, kind, base, invocation_ids))
    if problems:
        return None, problems
    problems = list(_weight_problems(folder / WEIGHTS_FILE, config, base))
    if problems:
        return None, problems
    modules = tuple(sorted(config["target_modules"]))
    return Adapter(folder, kind, config["r"], modules, adapter_digest(folder)), []


def adapter_digest(folder: Path) -> str:
    """sha256, hex, over config and weights: the adapter's name for the engine, so that new bytes never meet old KV."""
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()


def _read_config(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, [f"{CONFIG_FILE} is missing"]
    except (ValueError, RecursionError) as error:
        return None, [f"{CONFIG_FILE} is not valid JSON: {error}"]
    if not isinstance(config, dict):
        return None, [f"{CONFIG_FILE} is not a JSON object"]
    return config, []


def _config_problems(
    config: Mapping[str, Any], kind: AdapterKind, base: BaseModel, invocation_ids: tuple[int, ...]
) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        yield f"{CONFIG_FILE}: peft_type is {config.get('peft_type')!r}, not 'LORA'"
    trained_on = str(config.get("base_model_name_or_path") or "").rstrip("/").rsplit("/", 1)[-1]
    if trained_on != base.name:
        yield f"{CONFIG_FILE}: trained on {trained_on!r}, served on {base.name!r}"
    rank = config.get("r")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        yield f"{CONFIG_FILE}: r is {rank!r}, not a whole number from 1 to {MAX_RANK}"
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= sys.float_info.max:
        yield f"{CONFIG_FILE}: lora_alpha is {alpha!r}, not a number"
    modules = config.get("target_modules")
    if not isinstance(modules, list) or not modules or not all(isinstance(module, str) for module in modules):
        yield f"{CONFIG_FILE}: target_modules is not a list of module names"
    if config.get("bias", "none") != "none":
        yield f"{CONFIG_FILE}: bias is {config['bias']!r}; adapters with biases are not served"
    for feature in UNSUPPORTED:
        if config.get(feature):
            yield f"{CONFIG_FILE}: {feature} is set and not served"
    yield from _invocation_problems(config.get("alora_invocation_tokens"), kind, invocation_ids)


def _invocation_problems(tokens: object, kind: AdapterKind, invocation_ids: tuple[int, ...]) -> Iterator[str]:
    if kind is AdapterKind.PLAIN and tokens:
        yield "the manifest says adapter = 'plain' but alora_invocation_tokens is set: it is activated"
    if kind is AdapterKind.ACTIVATED and not tokens:
        yield "the manifest says adapter = 'activated' but alora_invocation_tokens is not set: it is plain"
    elif kind is AdapterKind.ACTIVATED and tokens != list(invocation_ids):
        yield (
            f"alora_invocation_tokens is {tokens}, but prompt.toml's invocation encodes to {list(invocation_ids)}: "
            "it would be activated elsewhere than in training"
        )


def _weight_problems(path: Path, config: Mapping[str, Any], base: BaseModel) -> Iterator[str]:
    try:
        with safe_open(path, framework="np") as weights:
            tensors = {key: weights.get_slice(key) for key in weights.keys()}  # noqa: SIM118  (not a dict)
            shapes = {key: tuple(tensor.get_shape()) for key, tensor in tensors.items()}
            dtypes = {tensor.get_dtype() for tensor in tensors.values()}
    except FileNotFoundError:
        yield f"{WEIGHTS_FILE} is missing"
        return
    except SafetensorError as error:
        yield f"{WEIGHTS_FILE} cannot be read: {error}"
        return
    if not shapes:
        yield f"{WEIGHTS_FILE} is empty"
    if dtypes - DTYPES:
        yield f"{WEIGHTS_FILE}: dtype {sorted(dtypes - DTYPES)} is not served; use {sorted(DTYPES)}"
    yield from _shape_problems(shapes, config["r"], set(config["target_modules"]), base)


def _shape_problems(
    shapes: Mapping[str, tuple[int, ...]], rank: int, targets: set[str], base: BaseModel
) -> Iterator[str]:
    """Each weight belongs to a targeted linear layer of the base and has its shape; A and B come in pairs."""
    halves: dict[str, set[str]] = defaultdict(set)
    for key, shape in sorted(shapes.items()):
        module, dot, half = key.removeprefix(WEIGHT_PREFIX).rpartition(".lora_")
        if not key.startswith(WEIGHT_PREFIX) or not dot or half not in ("A.weight", "B.weight"):
            yield f"{WEIGHTS_FILE}: unexpected weight {key}"
            continue
        linear = base.linears.get(module)
        if linear is None:
            yield f"{WEIGHTS_FILE}: {base.name} has no linear layer {module}"
            continue
        if module.rsplit(".", 1)[-1] not in targets:
            yield f"{WEIGHTS_FILE}: {module} is not among the target_modules {sorted(targets)}"
        outputs, inputs = linear
        expected = (rank, inputs) if half == "A.weight" else (outputs, rank)
        if shape != expected:
            yield f"{WEIGHTS_FILE}: {key} has shape {list(shape)}, expected {list(expected)} for r = {rank}"
        halves[module].add(half)
    for module in sorted(m for m, present in halves.items() if len(present) == 1):
        yield f"{WEIGHTS_FILE}: {module} has only one of lora_A and lora_B"
    for target in sorted(targets - {module.rsplit(".", 1)[-1] for module in halves}):
        yield f"{WEIGHTS_FILE}: no weights for target module {target!r}"
