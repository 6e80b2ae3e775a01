"""Applies an activated adapter to the tokens from its position on, whatever part of the prompt a step computes.

vLLM maps every token of a request to the request's adapter. Rows before the activation position are mapped to no
adapter instead, from the number of tokens already computed and the position, so that chunked prefill, prefix cache
hits and preemption need no special case. Nothing is stored: both numbers are read from vLLM's own request state.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.lora.layers import LoRAMappingType
from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

from service.vllm_plugin.position import activation_position

_NO_ADAPTER = 0
V2_RUNNERS = "vllm.v1.worker.gpu."
_stock = LoRAModelRunnerMixin.set_active_loras


def mask_before_positions(
    adapter_ids: NDArray[np.int64],
    scheduled: NDArray[np.int32],
    computed: NDArray[np.int32],
    positions: list[int | None],
) -> NDArray[np.int64]:
    """Adapter id per row with rows before their request's position set to none.

    `adapter_ids`: [rows], request after request; `scheduled`: rows of each request in this step; `computed`: prompt
    tokens of each request computed before it; `positions`: activation position of each request, None where the adapter
    acts on every token.
    """
    masked = adapter_ids.copy()
    first = 0
    for rows, done, position in zip(scheduled.tolist(), computed.tolist(), positions, strict=True):
        if position is not None:
            masked[first : first + min(rows, max(0, position - done))] = _NO_ADAPTER
        first += rows
    return masked


def _set_active_loras(
    self: Any,
    input_batch: Any,
    num_scheduled_tokens: NDArray[np.int32],
    num_sampled_tokens: NDArray[np.int32] | None = None,
    mapping_type: LoRAMappingType = LoRAMappingType.LANGUAGE,
) -> None:
    if num_sampled_tokens is None:
        num_sampled_tokens = np.ones_like(num_scheduled_tokens, dtype=np.int32)
    prompt_mapping, token_mapping, requests = input_batch.make_lora_inputs(num_scheduled_tokens, num_sampled_tokens)
    count = input_batch.num_reqs
    masked = mask_before_positions(
        np.asarray(token_mapping, dtype=np.int64),
        num_scheduled_tokens[:count],
        input_batch.num_computed_tokens_cpu[:count],
        [activation_position(self.requests[request_id].sampling_params) for request_id in input_batch.req_ids[:count]],
    )
    self._set_active_loras(prompt_mapping, tuple(masked.tolist()), requests, mapping_type)


def apply() -> None:
    LoRAModelRunnerMixin.set_active_loras = _set_active_loras


def inactive_because() -> str | None:
    """The runner's own lookup must end at our function: no loaded subclass may hide it."""
    for runner in [LoRAModelRunnerMixin, *_subclasses(LoRAModelRunnerMixin)]:
        if runner.set_active_loras is not _set_active_loras:
            return f"{runner.__name__} maps tokens to adapters in another way"
    return None


def bypassed_by(runner: Any) -> str | None:
    """Why a worker's model runner never asks our function: the V2 runner keeps its adapters' rows elsewhere."""
    if type(runner).__module__.startswith(V2_RUNNERS):
        return "the V2 model runner maps tokens to adapters itself; set VLLM_USE_V2_MODEL_RUNNER=0"
    return None


def _subclasses(parent: Any) -> list[Any]:
    return [found for child in parent.__subclasses__() for found in (child, *_subclasses(child))]
