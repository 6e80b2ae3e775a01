"""Where an adapter begins: one number per request, carried in its sampling parameters."""

from __future__ import annotations

from typing import Any

POSITION_KEY = "alora_position"
"""Key in `SamplingParams.extra_args`: index of the first prompt token that the request's adapter changes."""


def activation_position(sampling_params: Any) -> int | None:
    """The request's activation position; None for plain LoRA and base requests.

    The position travels with the request, computed by whoever built the prompt: it is neither searched for in the
    text, where a customer could forge it, nor kept on the LoRARequest, which requests share.
    """
    extra = getattr(sampling_params, "extra_args", None)
    return None if extra is None else extra.get(POSITION_KEY)
