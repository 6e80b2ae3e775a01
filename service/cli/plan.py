"""The command of those who choose a machine: plan."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.base_model import BUNDLED, resolve_base
from service.cli.common import configured, console
from service.errors import ConfigurationError

if TYPE_CHECKING:
    from service.planning.deployment import Machine

commands = typer.Typer()

DEFAULTS = {
    "cpu": {
        "memory": 16.0, "tflops": 0.35, "bandwidth": 20.0, "call-ms": 30.0, "classifier-ms": 0.55, "price": 0.1,
        "runtime": 1.5,
    },
    "gpu": {
        "memory": 22.5, "tflops": 35.0, "bandwidth": 480.0, "call-ms": 10.0, "classifier-ms": 0.55, "price": 1.0,
        "runtime": 0.7,
    },
}  # fmt: skip
"""CPU: arithmetic and time per call are fitted to `python -m loadtest.limit` on two cores, a classifier's is a share of
what vLLM's front takes of sixteen (docs/performance.md), the rest is assumed. GPU: assumed for a card of 24 GB, of
which 22.5 GiB are seen: half of 70 TFLOP/s and four fifths of 600 GB/s."""

VLLM_STEP_TOKENS = 2048
"""What vLLM chooses itself for an engine that is started as ours is, on any machine."""

SAME_SETTINGS = {"spare_adapters", "max_rank", "concurrent_sequences", "kv_gib", "gpu_memory_share"}


@commands.command()
def plan(
    model: Annotated[Path | None, typer.Option(help="Base: a folder or config.json. Default FANTAIL_MODEL.")] = None,
    classifiers: Annotated[Path | None, typer.Option(help="Folder. Default FANTAIL_CLASSIFIERS.")] = None,
    adapters: Annotated[int | None, typer.Option(min=1, help="So many activated ones, instead of a folder.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, max=512, help="Of these, on all linear layers; default 8.")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Default FANTAIL_SLOTS.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu/--cpu", help="What computes.")] = False,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None, typer.Option(help="Default FANTAIL_DTYPE.")
    ] = None,
    memory: Annotated[float | None, typer.Option(help="GiB, of the GPU or free; default 22.5 or 16.")] = None,
    tflops: Annotated[float | None, typer.Option(help="Sustained, not a data sheet's; default 35 or 0.35.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Of memory, GB/s; default 480 or 20.")] = None,
    call_ms: Annotated[float | None, typer.Option(help="Of a call beside arithmetic; default 10 or 30.")] = None,
    price: Annotated[float | None, typer.Option(help="Of a machine's hour; default 1 or 0.1.")] = None,
    tokens: Annotated[list[int], typer.Option(min=1, help="Length of conversations; repeatable.")] = [320, 2000],  # noqa: B006
    tail: Annotated[int, typer.Option(min=1, max=64, help="Tokens of invocation and words.")] = 3,
    calls_per_second: Annotated[float, typer.Option(help="Fan-outs asked for.")] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """State memory, slots, concurrency and cost of a deployment before there is one; start nothing."""
    from service.planning.classifiers import Fan, Served, read_classifiers
    from service.planning.deployment import Deployment
    from service.planning.model_shape import read_shape
    from service.planning.plan import make_plan
    from service.planning.show import show_plan
    from service.serve import CPU_TOKENS_IN_FLIGHT, GPU_TOKENS_IN_FLIGHT

    given = {"memory": memory, "tflops": tflops, "bandwidth": bandwidth, "call-ms": call_ms, "price": price}
    machine = _machine(gpu, given, calls_per_second)
    if (adapters is None and rank is not None) or (adapters is not None and classifiers is not None):
        raise ConfigurationError("give either --classifiers FOLDER, or --adapters N with or without --rank R")
    settings = configured()
    shape = read_shape(model or _configured_base(settings.model))
    if settings.context_tokens and settings.context_tokens > shape.context_tokens:
        raise ConfigurationError(f"FANTAIL_CONTEXT_TOKENS is more than the base's {shape.context_tokens} tokens")
    linears = frozenset(shape.linears)
    if adapters is None:
        served = read_classifiers(classifiers or settings.classifiers, linears)
    else:
        served = Served(Fan(activated=adapters), (rank or 8,) * adapters, linears)
    wanted = dtype or settings.dtype
    deployment = Deployment(
        shape=shape,
        machine=machine,
        served=served,
        dtype=wanted if wanted != "auto" else "bfloat16" if gpu else "float32",
        tail_tokens=tail,
        calls_per_s=calls_per_second,
        context_tokens=settings.context_tokens or shape.context_tokens,
        max_tokens_in_flight=settings.max_tokens_in_flight or (GPU_TOKENS_IN_FLIGHT if gpu else CPU_TOKENS_IN_FLIGHT),
        slots=slots or settings.slots,
        step_tokens=settings.step_tokens or VLLM_STEP_TOKENS,
        **settings.model_dump(include=SAME_SETTINGS),
    )
    made = make_plan(deployment, tokens)
    if as_json:
        print(json.dumps(asdict(made), default=sorted, indent=1))
    else:
        show_plan(made, console)


def _machine(gpu: bool, given: dict[str, float | None], calls_per_second: float) -> Machine:
    """The machine of these options, each usual where it is not given. Raises ConfigurationError."""
    from service.engine.hardware import GIB
    from service.planning.deployment import Machine

    chosen = DEFAULTS["gpu" if gpu else "cpu"] | {name: value for name, value in given.items() if value is not None}
    _require_positive(chosen | {"calls-per-second": calls_per_second})
    return Machine(
        gpu=gpu,
        memory_bytes=chosen["memory"] * GIB,
        operations_per_s=chosen["tflops"] * 1e12,
        memory_bytes_per_s=chosen["bandwidth"] * 1e9,
        call_s=chosen["call-ms"] / 1e3,
        classifier_s=chosen["classifier-ms"] / 1e3,
        runtime_bytes=chosen["runtime"] * GIB,
        price_per_hour=chosen["price"],
    )


def _require_positive(values: dict[str, float]) -> None:
    """Raise ConfigurationError with every option that no machine can have."""
    if wrong := [
        f"--{name}: {value:g} is not a positive number" for name, value in values.items() if not 0 < value < math.inf
    ]:
        raise ConfigurationError("; ".join(wrong))


def _configured_base(model: str) -> Path:
    """The configured base's folder, as far as it is had without a download."""
    if model == BUNDLED or Path(model).is_dir():
        return resolve_base(model)
    raise ConfigurationError(f"{model} is not a folder; download its config.json and name it with --model")
