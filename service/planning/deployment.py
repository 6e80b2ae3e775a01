"""What is planned: a base model's shape, the classifiers on it, a machine, and how vLLM lays memory out for them."""

from __future__ import annotations

from dataclasses import dataclass

from service.engine.hardware import GIB, cpu_kv_gib
from service.engine.launch import slot_rank
from service.planning.classifiers import Served
from service.planning.model_shape import ModelShape
from service.prompt.format import max_prefix_tokens

NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

TENSOR_BYTES = 1600
"""What a tensor of an adapter takes in main memory beside its numbers: an adapter of 420 tensors was seen to hold 5.3
MiB, and its numbers are 4.66 (`python -m loadtest.growth memory`)."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What computes. `memory_bytes`: of the GPU, or free main memory; `operations_per_s`, `memory_bytes_per_s`: what it
    sustains; `call_s`, `classifier_s`: spent beside arithmetic on each call and on each classifier of it, a request to
    vLLM; `runtime_bytes`: of processes and libraries, an allowance.
    """

    gpu: bool
    memory_bytes: float
    operations_per_s: float
    memory_bytes_per_s: float
    call_s: float
    classifier_s: float
    runtime_bytes: float
    price_per_hour: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by part. `adapters`: their copies in main memory, which a GPU's memory does not hold; `step`: of what one
    step computes, before it is thrown away."""

    weights: int
    slots: int
    adapters: int
    step: int
    runtime: int
    kv: int


@dataclass(frozen=True, slots=True)
class Deployment:
    """`tail_tokens`: invocation and words; `calls_per_s`: fan-outs asked for; `context_tokens` and what follows: the
    settings of these names."""

    shape: ModelShape
    machine: Machine
    served: Served
    dtype: str
    tail_tokens: int
    calls_per_s: float
    context_tokens: int
    max_tokens_in_flight: int
    slots: int | None = None
    spare_adapters: int = 0
    max_rank: int | None = None
    step_tokens: int = 2048
    concurrent_sequences: int = 256
    kv_gib: float | None = None
    gpu_memory_share: float = 0.9

    @property
    def number_bytes(self) -> int:
        """Of a number of weights and KV."""
        return NUMBER_BYTES[self.dtype]

    @property
    def adapter_bytes(self) -> int:
        """Of an adapter's number: the CPU kernel multiplies by adapters in float32 whatever the base is computed in."""
        return self.number_bytes if self.machine.gpu else 4

    @property
    def kv_token_bytes(self) -> int:
        return self.shape.kv_numbers_per_token * self.number_bytes

    @property
    def max_served_rank(self) -> int:
        """Of adapters now and later; 0 without adapters, when vLLM has no slots."""
        return max(*self.served.ranks, self.max_rank or 1) if self.served.ranks else 0

    @property
    def slot_rank(self) -> int:
        """The rank that every slot has room for."""
        return slot_rank(self.max_served_rank)

    @property
    def slot_parameters(self) -> int:
        return self.shape.lora_parameters(self.slot_rank, self.shape.slot_modules(self.served.modules))

    @property
    def slot_count(self) -> int:
        """How many adapters can be computed with at once: all, and the spare ones, unless `slots` says fewer."""
        return min(self.slots or self.held_adapters, self.held_adapters)

    @property
    def held_adapters(self) -> int:
        """With the spare ones."""
        return len(self.served.ranks) + self.spare_adapters if self.served.ranks else 0

    @property
    def max_prefix_tokens(self) -> int:
        """Of a conversation; a longer one loses its oldest turns."""
        return max_prefix_tokens(self.context_tokens)

    @property
    def usable_bytes(self) -> float:
        """Of the machine's memory, what a server may take."""
        return self.machine.memory_bytes * (self.gpu_memory_share if self.machine.gpu else 1.0)

    @property
    def memory(self) -> Memory:
        """KV gets what is left of a GPU; on a CPU what the server would take, as far as that is left."""
        machine, shape = self.machine, self.shape
        ranks = sum(self.served.ranks) + self.spare_adapters * self.max_served_rank
        tensors = self.held_adapters * shape.layers * 2 * len(self.served.modules)
        per_token = (4 * shape.hidden + 3 * shape.intermediate) * self.number_bytes  # the widest layer's activations
        per_sequence = 2 * 4 * shape.vocabulary  # logits and their logprobs, float32
        weights = shape.parameters * self.number_bytes
        slots = self.slot_count * self.slot_parameters * self.adapter_bytes
        adapters = shape.lora_parameters(ranks, self.served.modules) * self.adapter_bytes + tensors * TENSOR_BYTES
        step = self.step_tokens * per_token + self.concurrent_sequences * per_sequence
        left = self.usable_bytes - weights - slots - step - machine.runtime_bytes
        kv = left if machine.gpu else min(self.wanted_kv_bytes, left - adapters)
        return Memory(weights, slots, adapters, step, int(machine.runtime_bytes), max(0, int(kv)))

    @property
    def wanted_kv_bytes(self) -> float:
        """What the server takes on a CPU when there is room."""
        return (self.kv_gib or cpu_kv_gib(self.machine.memory_bytes)) * GIB
