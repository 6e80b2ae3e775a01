"""Makes what is planned in tests: shapes of known models, and deployments of them on a machine of round numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from service.planning.classifiers import Fan, Served
from service.planning.deployment import Deployment, Machine
from service.planning.model_shape import shape_of

SMOLLM2_135M: Mapping[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}  # fmt: skip
MISTRAL_7B: Mapping[str, Any] = {
    "model_type": "mistral", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
}  # fmt: skip
LLAMA_8B: Mapping[str, Any] = {**MISTRAL_7B, "model_type": "llama", "vocab_size": 128256}
QWEN2_7B: Mapping[str, Any] = {
    "model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size": 18944,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_06B: Mapping[str, Any] = {
    "model_type": "qwen3", "num_hidden_layers": 28, "hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128,
    "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 151936, "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}  # fmt: skip

CPU = Machine(
    gpu=False,
    memory_bytes=16 << 30,
    operations_per_s=1e11,
    memory_bytes_per_s=2e10,
    call_s=0.0,
    classifier_s=0.0,
    runtime_bytes=1 << 30,
    price_per_hour=1.0,
)
GPU = replace(CPU, gpu=True, memory_bytes=24e9, operations_per_s=35e12, memory_bytes_per_s=600e9, runtime_bytes=0.7e9)


def deployment(
    config: Mapping[str, Any] = SMOLLM2_135M,
    machine: Machine = CPU,
    ranks: tuple[int, ...] = (4,) * 16,
    modules: tuple[str, ...] | None = None,
    **changes: Any,
) -> Deployment:
    """Activated adapters of these ranks, by default on all linear layers, or sixteen questions to the base alone.

    `changes`: to the rest.
    """
    shape = shape_of(config, "config.json")
    fan = Fan(activated=len(ranks)) if ranks else Fan(bare=16)
    served = Served(fan, ranks, frozenset(modules or shape.linears))
    rest = {
        "dtype": "bfloat16" if machine.gpu else "float32",
        "tail_tokens": 7,
        "calls_per_s": 0.1,
        "max_tokens_in_flight": 1 << 20,
    }
    return Deployment(shape, machine, served, **{**rest, "context_tokens": shape.context_tokens, **changes})
