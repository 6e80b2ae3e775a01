"""Every setting of the server, from the environment (`FANTAIL_…`), with the trade-off behind each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.base_model import BUNDLED
from service.engine.hardware import Dtype
from service.errors import ConfigurationError
from service.problems import sentences

PREFIX = "FANTAIL_"


class Settings(BaseSettings):
    """Read once at start. Load with `load_settings`, which also refuses unknown names."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True)

    model: str = Field(
        default=BUNDLED,
        description=(
            "Base model: the bundled one, a folder, or a Hugging Face name. Adapters fit exactly one base; a "
            "larger one answers better and slower."
        ),
    )
    classifiers: Path = Field(
        default=Path("classifiers"),
        description="Folder of the classifiers. What is malformed stops the start; what fails its gate is withheld.",
    )
    address: str = Field(
        default="127.0.0.1:50051",
        pattern=r"^.+:\d+$",
        description=(
            "Where to listen. Loopback by default: there is no authentication yet, so open it only inside a "
            "trusted network."
        ),
    )
    dtype: Dtype = Field(
        default="auto",
        description=(
            "Arithmetic of the model. auto: float32 on a CPU, equal to PEFT's reference to 1e-3; bfloat16 on a "
            "GPU. Less is faster and less exact."
        ),
    )
    cores: int | None = Field(
        default=None,
        ge=1,
        description=(
            "CPU cores that compute. Default all; fewer leave room for neighbours and make every answer slower."
        ),
    )
    kv_gib: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description=(
            "CPU memory for KV, GiB. Default a quarter of what is free, at most 4. More keeps more conversations "
            "readable for follow-ups."
        ),
    )
    gpu_memory_share: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description=(
            "Share of a GPU's memory that vLLM takes. More holds more conversations; less leaves room for neighbours."
        ),
    )
    context_tokens: int | None = Field(
        default=None,
        ge=256,
        description=(
            "Longest prompt. Default the base model's own; less saves memory, and long conversations lose their "
            "oldest turns sooner."
        ),
    )
    step_tokens: int | None = Field(
        default=None,
        ge=64,
        description=(
            "Most tokens computed in one engine step. Default vLLM's. More finishes a long conversation in one "
            "step; less lets short ones in between."
        ),
    )
    slots: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Adapters resident in the engine. Default all; fewer save memory, but more hot adapters than slots "
            "wait for each other."
        ),
    )
    concurrent_sequences: int = Field(
        default=256,
        ge=1,
        description=(
            "Most prompts in one engine step; a fan-out is one per classifier. More raises throughput and "
            "everyone's latency."
        ),
    )
    max_turns: int = Field(
        default=1000,
        ge=1,
        description=(
            "Turns in one conversation beyond which it is refused. Bounds the work of one call before the model "
            "sees it."
        ),
    )
    max_message_bytes: int = Field(
        default=4 << 20, ge=1 << 10, description="Largest request accepted. Bounds memory per call."
    )
    gate_tolerance: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description=(
            "Largest difference of a log probability from PEFT's with which a classifier is served. Default 0.02 in "
            "float32, 0.5 in bfloat16. More lets small faults through; less withholds classifiers for mere rounding."
        ),
    )
    grace_seconds: float = Field(
        default=30.0,
        ge=0,
        description="How long a stopping server finishes accepted calls. Longer loses fewer; shorter restarts sooner.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="What is logged. No level logs conversation text."
    )


def load_settings() -> Settings:
    """Settings from the environment. Raises ConfigurationError with every unknown or malformed one."""
    known = sorted(f"{PREFIX}{name.upper()}" for name in Settings.model_fields)
    problems = [
        f"{name}: unknown setting"
        for name in sorted(os.environ)
        if name.upper().startswith(PREFIX) and name.upper() not in known
    ]
    try:
        settings = Settings()
    except ValidationError as error:
        problems += [
            f"{PREFIX}{path.upper()}: {what}" for path, _, what in (s.partition(": ") for s in sentences(error))
        ]
    if problems:
        raise ConfigurationError("\n".join([*problems, f"known settings: {', '.join(known)}"]))
    return settings
