"""Every way in which a classifier folder can be broken, and what the operator is told about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from service.errors import RegistryError
from service.registry.loader import RegistryLoader
from tests.support import ABSENT, MANIFEST, TARGET_MODULES, manifest_toml

HIDDEN, RANK = 576, 2
LAYER = "model.layers.3.self_attn"
PREFIX = "base_model.model."
Q_A, Q_B = f"{PREFIX}{LAYER}.q_proj.lora_A.weight", f"{PREFIX}{LAYER}.q_proj.lora_B.weight"

Break = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A folder made with `config`, `tensors` and `manifest` changes, then broken by `then`; `says`: each problem."""

    says: tuple[str, ...]
    name: str = "refund"
    then: Break = lambda folder: None
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)


def said(*says: str, **made: Any) -> Case:
    return Case(says, **made)


def config(says: str, **changes: Any) -> Case:
    return Case((says,), config=changes)


def manifest(*says: str, **changes: Any) -> Case:
    return Case(says, manifest=changes)


def weights(*says: str, **changes: Any) -> Case:
    return Case(says, tensors=changes)


def write(name: str, content: bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(content)


def delete(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


def to_plain(folder: Path) -> None:
    (folder / "classifier.toml").write_text(manifest_toml(adapter="plain"), encoding="utf-8")


def to_none(folder: Path) -> None:
    (folder / "classifier.toml").write_text(manifest_toml(adapter="none"), encoding="utf-8")


def lose_adapter(folder: Path) -> None:
    for path in (folder / "adapter").iterdir():
        path.unlink()
    (folder / "adapter").rmdir()


def all_weights(dtype: Any) -> Break:
    def convert(folder: Path) -> None:
        path = folder / "adapter/adapter_model.safetensors"
        save_file({name: each.astype(dtype) for name, each in load_file(path).items()}, path)

    return convert


def no_weights(folder: Path) -> None:
    save_file({}, folder / "adapter/adapter_model.safetensors")


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
YES_NO = MANIFEST["labels"]
MASS = "classifier.toml: min_label_mass: "
NAME = "a classifier's folder name is 1 to 64 of a-z, 0-9 and _, and starts with a letter"

MANIFESTS = {
    "manifest missing": said("classifier.toml is missing", then=delete("classifier.toml")),
    "bad TOML": said("classifier.toml is not valid TOML: ", then=write("classifier.toml", b"words = ")),
    "not UTF-8": said("classifier.toml is not valid TOML: ", then=write("classifier.toml", b'words = "\xff"')),
    "unknown key": manifest(
        "classifier.toml: word: unknown key "
        "(known keys: description, words, adapter, labels, min_label_mass, targets, priority)",
        word="x",
    ),
    "description missing": manifest("classifier.toml: description: Field required", description=ABSENT),
    "words missing": manifest("classifier.toml: words: Field required", words=ABSENT),
    "adapter kind missing": manifest("classifier.toml: adapter: Field required", adapter=ABSENT),
    "labels missing": manifest("classifier.toml: labels: Field required", labels=ABSENT),
    "words empty": manifest("classifier.toml: words: String should have at least 1", words=""),
    "adapter kind unknown": manifest(
        "classifier.toml: adapter: Input should be 'activated', 'plain' or 'none'", adapter="lora"
    ),
    "no label": manifest("classifier.toml: labels: Dictionary should have at least 2 items", labels={}),
    "one label": manifest("classifier.toml: labels: Dictionary should have at least 2 items", labels={"yes": " yes"}),
    "more labels than one answer holds": manifest(
        "classifier.toml: labels: Dictionary should have at most 128 items",
        labels={f"l{n}": f" {n}" for n in range(129)},
    ),
    "bad label name": manifest("classifier.toml: labels.Not Sure", labels={**YES_NO, '"Not Sure"': " maybe"}),
    "label without text": manifest("classifier.toml: labels.maybe: String should have", labels={**YES_NO, "maybe": ""}),
    "duplicate label token": manifest(
        "label 'sure': its token ' yes' already scores label 'yes'", labels={**YES_NO, "sure": " yes"}
    ),
    "label of several tokens": manifest(
        "label 'refund_asked': ' refund asked' is not a single token after 'refund?'; these would work: ' refund'",
        labels={**YES_NO, "refund_asked": " refund asked"},
    ),
    "min_label_mass below 0": manifest(f"{MASS}Input should be greater than or equal to 0", min_label_mass=-0.01),
    "min_label_mass above 1": manifest(f"{MASS}Input should be less than or equal to 1", min_label_mass=1.01),
    "min_label_mass not a number": said(
        MASS, then=write("classifier.toml", f"min_label_mass = nan\n{manifest_toml()}".encode())
    ),
    "min_label_mass a text": manifest(f"{MASS}Input should be a valid number", min_label_mass="half"),
    "tail too long": manifest("tokens, more than 64; shorten `words`", words="refund " * 70),
    "several in one manifest": manifest(
        "words: Field required", "labels: Dictionary should", words=ABSENT, labels={"yes": " yes"}
    ),
    "name with a capital": said(NAME, name="Refund"),
    "name with a dash": said(NAME, name="refund-request"),
    "name with a digit first": said(NAME, name="2nd"),
    "name with an underscore first": said(NAME, name="_refund"),
    "name with an umlaut": said(NAME, name="rückgabe"),
    "name with 65 letters": said(NAME, name="r" * 65),
}

FOLDERS = {
    "adapter missing": said(
        "the manifest says adapter = 'activated' but there is no folder adapter/", then=lose_adapter
    ),
    "adapter unexpected": said("the manifest says adapter = 'none' but there is a folder adapter/", then=to_none),
    **{
        f"pickled weights {suffix}": said(
            f"adapter_model{suffix}: only safetensors are loaded; save the adapter with safe_serialization=True",
            then=write(f"adapter/adapter_model{suffix}", b"pickle"),
        )
        for suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")
    },
    "config missing": said(f"{CONFIG} is missing", then=delete(f"adapter/{CONFIG}")),
    "config not JSON": said(f"{CONFIG} is not valid JSON: ", then=write(f"adapter/{CONFIG}", b"{")),
    "config not UTF-8": said(f"{CONFIG} is not valid JSON: ", then=write(f"adapter/{CONFIG}", b'"\xff"')),
    "config not an object": said(f"{CONFIG} is not a JSON object", then=write(f"adapter/{CONFIG}", b"[]")),
    "weights missing": said(f"{WEIGHTS} is missing", then=delete(f"adapter/{WEIGHTS}")),
    "weights corrupt": said(f"{WEIGHTS} cannot be read: ", then=write(f"adapter/{WEIGHTS}", b"\xff" * 64)),
    "weights of no bytes": said(f"{WEIGHTS} cannot be read: ", then=write(f"adapter/{WEIGHTS}", b"")),
    "weights cut short": said(
        f"{WEIGHTS} cannot be read: ",
        then=lambda folder: write(
            f"adapter/{WEIGHTS}", (folder / "adapter" / WEIGHTS).read_bytes()[:-1]
        )(folder),
    ),
    "weights without tensors": said(
        f"{WEIGHTS} is empty",
        "no weights for target module 'o_proj'",
        "no weights for target module 'q_proj'",
        then=no_weights,
    ),
    "manifest plain, adapter activated": said(
        "the manifest says adapter = 'plain' but alora_invocation_tokens is set: it is activated", then=to_plain
    ),
}  # fmt: skip

CONFIGS = {
    "another base": config(
        "trained on 'SmolLM2-360M', served on 'SmolLM2-135M-Instruct'", base_model_name_or_path="org/SmolLM2-360M"
    ),
    "no base": config("trained on '', served on 'SmolLM2-135M-Instruct'", base_model_name_or_path=None),
    "another PEFT method": config("peft_type is 'IA3', not 'LORA'", peft_type="IA3"),
    "no PEFT method": config("peft_type is None, not 'LORA'", peft_type=ABSENT),
    "rank 0": config("r is 0, not a whole number from 1 to 512", r=0),
    "rank 513": config("r is 513, not a whole number from 1 to 512", r=513),
    "rank a text": config("r is '2', not a whole number", r="2"),
    "rank a fraction": config("r is 2.0, not a whole number", r=2.0),
    "rank true": config("r is True, not a whole number", r=True),
    "rank missing": config("r is None, not a whole number", r=ABSENT),
    "alpha missing": config("lora_alpha is None, not a number", lora_alpha=ABSENT),
    "alpha a text": config("lora_alpha is '4', not a number", lora_alpha="4"),
    "alpha not a number": config("lora_alpha is nan, not a number", lora_alpha=float("nan")),
    "targets a text": config("target_modules is not a list of module names", target_modules="all-linear"),
    "targets empty": config("target_modules is not a list of module names", target_modules=[]),
    "targets not names": config("target_modules is not a list of module names", target_modules=[["q_proj"], 3]),
    "biases": config("bias is 'lora_only'; adapters with biases are not served", bias="lora_only"),
    "dora": config("use_dora is set and not served", use_dora=True),
    "rank pattern": config("rank_pattern is set and not served", rank_pattern={"q_proj": 4}),
    "alpha pattern": config("alpha_pattern is set and not served", alpha_pattern={"q_proj": 4}),
    "modules to save": config("modules_to_save is set and not served", modules_to_save=["lm_head"]),
    "manifest activated, adapter plain": config(
        "the manifest says adapter = 'activated' but alora_invocation_tokens is not set: it is plain",
        alora_invocation_tokens=None,
    ),
    "another invocation": config(
        "encodes to [1]: it would be activated elsewhere than in training",
        alora_invocation_tokens=[1, 520],
    ),
}

SHAPES = {
    "float64": said(f"{WEIGHTS}: dtype ['F64'] is not served; use ['BF16', 'F16', 'F32']", then=all_weights("f8")),
    "one weight of integers": weights("dtype ['I32'] is not served", **{Q_A: zeros(RANK, HIDDEN, dtype=np.int32)}),
    "A of another rank": weights(f"{Q_A} has shape [3, 576], expected [2, 576] for r = 2", **{Q_A: zeros(3, HIDDEN)}),
    "A of another input": weights(f"{Q_A} has shape [2, 577], expected [2, 576]", **{Q_A: zeros(RANK, HIDDEN + 1)}),
    "B of another rank": weights(f"{Q_B} has shape [576, 3], expected [576, 2] for r = 2", **{Q_B: zeros(HIDDEN, 3)}),
    "B of another output": weights(f"{Q_B} has shape [575, 2], expected [576, 2]", **{Q_B: zeros(HIDDEN - 1, RANK)}),
    "B turned round": weights(f"{Q_B} has shape [2, 576], expected [576, 2]", **{Q_B: zeros(RANK, HIDDEN)}),
    "layer beyond the last": weights(
        "has no linear layer model.layers.30.self_attn.q_proj",
        **{Q_A.replace("layers.3.", "layers.30."): zeros(RANK, HIDDEN)},
    ),
    "layer that is not linear": weights(
        "has no linear layer model.embed_tokens", **{f"{PREFIX}model.embed_tokens.lora_A.weight": zeros(RANK, 49152)}
    ),
    "untargeted layer": weights(
        f"{LAYER}.v_proj is not among the target_modules ['o_proj', 'q_proj']",
        f"{LAYER}.v_proj has only one of lora_A and lora_B",
        **{f"{PREFIX}{LAYER}.v_proj.lora_A.weight": zeros(RANK, HIDDEN)},
    ),
    "A without B": weights(f"{LAYER}.q_proj has only one of lora_A and lora_B", **{Q_B: ABSENT}),
    "B without A": weights(f"{LAYER}.q_proj has only one of lora_A and lora_B", **{Q_A: ABSENT}),
    "target without weights": config(
        "no weights for target module 'k_proj'", target_modules=[*TARGET_MODULES, "k_proj"]
    ),
    "weight without the prefix": weights("unexpected weight model.x", **{"model.x": zeros(1)}),
    "weight of another kind": weights(
        "unexpected weight", **{f"{PREFIX}{LAYER}.q_proj.lora_magnitude_vector": zeros(HIDDEN)}
    ),
}

CASES = MANIFESTS | FOLDERS | CONFIGS | SHAPES


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_broken_folder_is_refused_with_what_is_wrong(
    tmp_path: Path, loader: RegistryLoader, make_classifier_folder: Callable[..., Path], case: Case
) -> None:
    folder = make_classifier_folder(tmp_path, case.name, config=case.config, tensors=case.tensors, **case.manifest)
    case.then(folder)
    with pytest.raises(RegistryError) as caught:
        loader.load(tmp_path)
    problems = caught.value.problems
    assert len(problems) == len(case.says), problems
    for problem, said in zip(problems, case.says, strict=True):
        assert problem.startswith(f"{case.name}: ")
        assert said in problem


def test_no_two_cases_share_a_name() -> None:
    assert len(CASES) == len(MANIFESTS) + len(FOLDERS) + len(CONFIGS) + len(SHAPES)


def test_all_faults_of_a_config_are_reported_together(
    tmp_path: Path, loader: RegistryLoader, make_classifier_folder: Callable[..., Path]
) -> None:
    make_classifier_folder(tmp_path, "refund", config={"r": 0, "bias": "all", "use_dora": True, "peft_type": "IA3"})
    with pytest.raises(RegistryError) as caught:
        loader.load(tmp_path)
    assert len(caught.value.problems) == 4
