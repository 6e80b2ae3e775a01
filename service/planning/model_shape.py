"""What a config.json says of a decoder's size: parameters, KV, adapters. Knows arithmetic, and no framework."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Decoders of one shape: grouped-query attention and a gated MLP, which differ in biases and norms."""

SIZES = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip
OPTIONAL_SIZES = ("num_key_value_heads", "head_dim")
PACKED = (frozenset({"q_proj", "k_proj", "v_proj"}), frozenset({"gate_proj", "up_proj"}))
"""Linear layers that vLLM computes as one, so that a slot for one of them has room for its neighbours too."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a decoder; all layers are alike.

    `head_numbers`: of one attention head; `biased`: linear layers with a bias; `context_tokens`: longest prompt;
    `tied`: the output layer is the embedding table; `normed_heads`: queries and keys have a norm each (qwen3).
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_numbers: int
    vocabulary: int
    context_tokens: int
    tied: bool = False
    biased: frozenset[str] = frozenset()
    normed_heads: bool = False

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Name to (outputs, inputs) of one layer's linear layers."""
        queries, keys = self.heads * self.head_numbers, self.kv_heads * self.head_numbers
        return {
            "q_proj": (queries, self.hidden),
            "k_proj": (keys, self.hidden),
            "v_proj": (keys, self.hidden),
            "o_proj": (self.hidden, queries),
            "gate_proj": (self.intermediate, self.hidden),
            "up_proj": (self.intermediate, self.hidden),
            "down_proj": (self.hidden, self.intermediate),
        }

    @property
    def linear_parameters(self) -> int:
        """What every token is multiplied by: the matrices of all layers, without output layer and embeddings."""
        return self.layers * sum(outputs * inputs for outputs, inputs in self.linears.values())

    @property
    def head_parameters(self) -> int:
        """Of the output layer, which only tokens that are answered are multiplied by."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All of them."""
        biases = sum(self.linears[name][0] for name in self.biased)
        norms = 2 * self.hidden + (2 * self.head_numbers if self.normed_heads else 0)
        tables = self.head_parameters * (1 if self.tied else 2)
        return self.linear_parameters + self.layers * (biases + norms) + self.hidden + tables

    @property
    def kv_numbers_per_token(self) -> int:
        """A key and a value for each KV head of each layer."""
        return 2 * self.layers * self.kv_heads * self.head_numbers

    def lora_parameters(self, rank: int, modules: Iterable[str]) -> int:
        """Of an adapter on these linear layers: A [rank, inputs] and B [outputs, rank] in every layer."""
        return self.layers * rank * sum(sum(self.linears[name]) for name in modules)

    def slot_modules(self, modules: frozenset[str]) -> frozenset[str]:
        """The linear layers that a slot has room for when adapters change `modules`."""
        return modules.union(*(group for group in PACKED if group & modules))


def read_shape(path: Path) -> ModelShape:
    """The shape in a model's folder or config.json. Raises ConfigurationError."""
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigurationError(f"there is no {file}; name a model's folder or its config.json with --model")
    return shape_of(read_object(file), str(file))


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object. Raises ConfigurationError that names the file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read as JSON: {type(error).__name__}") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{file} is not a JSON object")
    return found


def shape_of(config: Mapping[str, Any], source: str) -> ModelShape:
    """The shape that a config.json describes. Raises ConfigurationError with everything that cannot be counted."""
    kind = config.get("model_type")
    sizes: dict[str, Any] = {name: config.get(name) for name in SIZES}
    sizes |= {name: config[name] for name in OPTIONAL_SIZES if config.get(name) is not None}
    problems = [
        f"{name} is {value!r}, not a positive whole number"
        for name, value in sizes.items()
        if type(value) is not int or value < 1
    ]
    if kind not in MODEL_TYPES:
        problems.insert(0, f"model_type is {kind!r}; what can be planned is {', '.join(MODEL_TYPES)}")
    if config.get("quantization_config"):
        problems.append("its weights are quantized, which is not planned; give the config.json of the original")
    if problems:
        raise ConfigurationError(f"{source}: " + "; ".join(problems))
    heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
    attention = ("q_proj", "k_proj", "v_proj", "o_proj") if config.get("attention_bias") else ()
    mlp = ("gate_proj", "up_proj", "down_proj") if config.get("mlp_bias") else ()
    return ModelShape(
        layers=sizes["num_hidden_layers"],
        hidden=hidden,
        intermediate=sizes["intermediate_size"],
        heads=heads,
        kv_heads=sizes.get("num_key_value_heads", heads),
        head_numbers=sizes.get("head_dim", hidden // heads),
        vocabulary=sizes["vocab_size"],
        context_tokens=sizes["max_position_embeddings"],
        tied=config.get("tie_word_embeddings") is True,
        biased=frozenset(("q_proj", "k_proj", "v_proj") if kind == "qwen2" else (*attention, *mlp)),
        normed_heads=kind == "qwen3",
    )
