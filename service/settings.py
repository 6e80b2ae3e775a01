"""Every setting of the server, from the environment (`FANTAIL_…`), with the trade-off behind each."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.base_model import BUNDLED
from service.engine.hardware import Dtype
from service.errors import ConfigurationError
from service.problems import sentences

PREFIX = "FANTAIL_"


def host_and_port(address: str) -> str:
    """An address as it came. Raises ValueError for one without a port."""
    if not re.fullmatch(r".+:\d+", address):
        raise ValueError("must be HOST:PORT, for instance 127.0.0.1:50051")
    return address


def http_url(url: str) -> str:
    """A URL as it came. Raises ValueError for one of another scheme."""
    if not re.match(r"https?://", url):
        raise ValueError("must begin with http:// or https://")
    return url


Address = Annotated[str, AfterValidator(host_and_port)]
HttpUrl = Annotated[str, AfterValidator(http_url)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def setting(default: Any, trade_off: str, **bounds: Any) -> Any:
    """A field whose description says what speaks for more and for less of it."""
    return Field(default=default, description=trade_off, **bounds)


class Settings(BaseSettings):
    """Read once at start. Load with `load_settings`, which also refuses unknown names and contradictions."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True)

    # What answers.
    model: str = setting(
        BUNDLED,
        "Base model: the bundled one, a folder, or a Hugging Face name. Adapters fit exactly one base; a larger one "
        "answers better and slower.",
    )
    classifiers: Path = setting(
        Path("classifiers"),
        "Folder of the classifiers. What is malformed stops the start; what fails its gate is withheld.",
    )
    candidates: Path = setting(
        Path("candidates"),
        "Folder that AdminService.LoadRevision loads further revisions from, and nothing outside it.",
    )
    watch: bool = setting(
        False,
        "Reload a classifier when its folder changes. Convenient while training; in production an admin call does it.",
    )
    gate_tolerance: float | None = setting(
        None,
        "Largest difference of a log probability from PEFT's with which a classifier is served. Default 0.02 in "
        "float32, 0.1 in float16, 0.5 in bfloat16. More lets small faults through; less withholds classifiers for mere "
        "rounding.",
        gt=0,
        allow_inf_nan=False,
    )

    # The engine.
    dtype: Dtype = setting(
        "auto",
        "Arithmetic of the model. auto: float32 on a CPU, equal to PEFT's reference to 1e-3; bfloat16 on a GPU, "
        "float16 where it has none. Less is faster and less exact.",
    )
    cores: Count | None = setting(
        None,
        "CPU cores that compute. Default all that the process may use, or a container's quota grants; fewer leave room "
        "for neighbours and make every answer slower.",
    )
    kv_gib: Positive | None = setting(
        None,
        "CPU memory for KV, GiB. Default a quarter of what is free, at most 4. More keeps more conversations readable "
        "for follow-ups.",
    )
    gpu_memory_share: float = setting(
        0.9,
        "Share of a GPU's memory that vLLM takes. More holds more conversations; less leaves room for neighbours.",
        gt=0,
        le=1,
    )
    context_tokens: int | None = setting(
        None,
        "Longest prompt. Default the base model's own; less saves memory, and long conversations lose their oldest "
        "turns sooner.",
        ge=256,
    )
    step_tokens: int | None = setting(
        None,
        "Most tokens computed in one engine step. Default vLLM's. More finishes a long conversation in one step; less "
        "lets short ones in between.",
        ge=64,
    )
    slots: Count | None = setting(
        None,
        "Adapters that can be computed with at once. Default all that are loaded; fewer save memory, but more hot "
        "adapters than slots wait for each other.",
    )
    spare_adapters: int = setting(
        4,
        "Adapters that can be loaded beside those of the start, for reloads and further revisions. Each costs an "
        "adapter's memory.",
        ge=0,
    )
    max_rank: Count | None = setting(
        None,
        "Largest rank of adapters loaded later. Default the largest at the start; more makes every slot larger.",
        le=512,
    )
    concurrent_sequences: Count = setting(
        256,
        "Most prompts in one engine step; a fan-out is one per classifier. More raises throughput and everyone's "
        "latency.",
    )

    # Load and time.
    max_calls: Count = setting(
        256,
        "Calls under way beyond which more are turned away, and batches beyond half of it. Bounds memory; tokens bound "
        "latency.",
    )
    max_tokens_in_flight: Count | None = setting(
        None,
        "Tokens that admitted calls may still have to compute; beyond it calls are turned away at once. Default 1,536 "
        "on a CPU, 65,536 on a GPU. More keeps the engine fuller and everyone waiting longer. A call is let in while "
        "half of it is free, whatever its own length.",
    )
    max_follows: Count = setting(
        10_000, "Live conversations followed at once. Each costs its text's memory between turns."
    )
    max_follow_mib: Count = setting(
        256,
        "Memory of all live conversations together, MiB: what was said in each, and its last message. One that is told "
        "more than there is room for is ended, to be followed again later. More holds more of them; less bounds it.",
    )
    longest_seconds: Positive = setting(
        60.0, "After which a call ends that has no deadline or a later one. More lets slow work finish; less frees it."
    )
    stall_seconds: Positive = setting(
        120.0,
        "An engine that has work and computes none of it for so long is killed and started again. Less recovers "
        "sooner; it must be longer than a step may take.",
    )
    longest_batch_seconds: Positive = setting(
        3600.0,
        "After which a batch or an operator's call ends that has no deadline or a later one. A batch waits for room "
        "that other calls leave: more lets large ones finish beside these; less frees what forgotten ones hold.",
    )
    grace_seconds: float = setting(
        30.0, "How long a stopping server finishes accepted calls. Longer loses fewer; shorter restarts sooner.", ge=0
    )
    max_turns: Count = setting(
        1000,
        "Turns in one conversation beyond which it is refused. Bounds the work of one call before the model sees it.",
    )
    max_batch: Count = setting(
        256, "Conversations in one ClassifyBatch. More saves calls; less bounds memory per call."
    )
    max_message_bytes: int = setting(
        4 << 20, "Largest request accepted, and text of a live conversation. Bounds memory per call.", ge=1 << 10
    )

    # Who may call.
    address: Address = setting(
        "127.0.0.1:50051", "Where to listen. Any other than loopback needs TLS and keys, or FANTAIL_ALLOW_INSECURE."
    )
    allow_insecure: bool = setting(
        False, "Listen beyond loopback without TLS or without keys. Only behind a proxy that adds both."
    )
    tls_certificate: Path | None = setting(None, "PEM certificate chain. Read again when it changes.")
    tls_key: Path | None = setting(None, "PEM key of the certificate.")
    tls_client_ca: Path | None = setting(
        None, "PEM of those who sign callers' certificates. With it callers without one are refused (mutual TLS)."
    )
    keys: Path | None = setting(
        None, "TOML file of API keys, hashed, with scopes and rates (`fantail key`). Without it everybody may classify."
    )
    isolate_callers: bool = setting(
        False,
        "No caller profits from another's prefix cache, so that timing tells nobody what others asked. Costs reading "
        "shared texts again.",
    )
    admin: bool = setting(False, "Serve AdminService, to callers whose key has the scope admin.")
    reflection: bool = setting(
        True, "Describe the services to grpcurl and buf curl. Off shows strangers less; the contract is public anyway."
    )

    # Sight.
    metrics_address: Address | None = setting(None, "Where Prometheus finds /metrics over HTTP. Default nowhere.")
    otlp_endpoint: HttpUrl | None = setting(
        None, "Where traces go over OTLP/gRPC, as http://host:port. Default nowhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "What is logged. debug tells more and costs more; error tells only what needs somebody."
    )
    log_format: Literal["text", "json"] = setting("text", "Lines for people, or JSON objects for machines.")
    log_texts: bool = setting(
        False, "Log what customers write, with the request id. For debugging with consent; no level does it otherwise."
    )


def load_settings() -> Settings:
    """Settings from the environment. Raises ConfigurationError with every unknown, malformed or contradictory one."""
    known = sorted(f"{PREFIX}{name.upper()}" for name in Settings.model_fields)
    problems = [
        f"{name}: unknown setting"
        for name in sorted(os.environ)
        if name.upper().startswith(PREFIX) and name.upper() not in known
    ]
    try:
        settings = Settings()
        problems += contradictions(settings)
    except ValidationError as error:
        problems += [
            f"{PREFIX}{path.upper()}: {what}" for path, _, what in (s.partition(": ") for s in sentences(error))
        ]
    if problems:
        raise ConfigurationError("\n".join([*problems, f"known settings: {', '.join(known)}"]))
    return settings


def contradictions(settings: Settings) -> Iterator[str]:
    """What cannot be together, or must not be."""
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        yield "FANTAIL_TLS_CERTIFICATE and FANTAIL_TLS_KEY: set both or neither"
    if settings.tls_client_ca is not None and settings.tls_certificate is None:
        yield "FANTAIL_TLS_CLIENT_CA: needs FANTAIL_TLS_CERTIFICATE and FANTAIL_TLS_KEY"
    if settings.admin and settings.keys is None:
        yield "FANTAIL_ADMIN: needs FANTAIL_KEYS with a key of scope admin; nobody may operate a server without one"
    if settings.isolate_callers and settings.keys is None:
        yield "FANTAIL_ISOLATE_CALLERS: needs FANTAIL_KEYS, which tell callers apart"
    if settings.step_tokens is not None and settings.step_tokens < settings.concurrent_sequences:
        yield (
            f"FANTAIL_STEP_TOKENS: {settings.step_tokens} is less than FANTAIL_CONCURRENT_SEQUENCES, which is "
            f"{settings.concurrent_sequences}; a step has to hold a token of each, so lower that too"
        )
    exposed = not is_loopback(settings.address) and not settings.allow_insecure
    if exposed and (settings.tls_certificate is None or settings.keys is None):
        yield (
            "FANTAIL_ADDRESS: beyond loopback FANTAIL_TLS_CERTIFICATE, FANTAIL_TLS_KEY and FANTAIL_KEYS are needed; "
            "behind a proxy that adds both, set FANTAIL_ALLOW_INSECURE=true"
        )


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address."""
    host = address.rpartition(":")[0]
    if host == "localhost":
        return True
    # Of IPv6 without brackets gRPC takes the port for a part of the address.
    kind = ipaddress.IPv6Address if host.startswith("[") else ipaddress.IPv4Address
    try:
        return kind(host.strip("[]")).is_loopback
    except ValueError:
        return False
