"""A config.json becomes the sizes that are known of the model; what cannot be counted is refused with all reasons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from service.errors import ConfigurationError
from service.planning.model_shape import read_shape, shape_of
from tests.support import ABSENT, CLASSIFIERS, changed
from tests.unit.planned import LLAMA_8B, MISTRAL_7B, QWEN2_7B, QWEN3_06B, SMOLLM2_135M

SMOLLM2 = shape_of(SMOLLM2_135M, "config.json")


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        pytest.param(SMOLLM2_135M, 134_515_008, id="SmolLM2-135M, tied"),
        pytest.param(MISTRAL_7B, 7_241_732_096, id="Mistral-7B"),
        pytest.param(LLAMA_8B, 8_030_261_248, id="Llama-3.1-8B"),
        pytest.param(QWEN2_7B, 7_615_616_512, id="Qwen2.5-7B, with biases"),
        pytest.param(QWEN3_06B, 596_049_920, id="Qwen3-0.6B, with norms of heads and a head_dim of its own"),
    ],
)
def test_a_known_model_has_its_known_number_of_parameters(config: Mapping[str, Any], parameters: int) -> None:
    assert shape_of(config, "config.json").parameters == parameters


@pytest.mark.parametrize(
    ("config", "expected"),
    [(SMOLLM2_135M, 46_080 // 4), (MISTRAL_7B, 131_072 // 2), (QWEN2_7B, 57_344 // 2)],
    ids=["SmolLM2-135M", "Mistral-7B", "Qwen2.5-7B"],
)
def test_kv_is_of_the_grouped_heads_alone(config: Mapping[str, Any], expected: int) -> None:
    assert shape_of(config, "config.json").kv_numbers_per_token == expected


def test_without_grouping_every_head_has_its_kv() -> None:
    config = changed(MISTRAL_7B, {"num_key_value_heads": ABSENT})
    assert shape_of(config, "config.json").kv_numbers_per_token == 2 * 32 * 4096


def test_a_rank_8_adapter_on_all_linear_layers_has_two_and_a_half_million_parameters() -> None:
    assert SMOLLM2.lora_parameters(8, SMOLLM2.linears) == 2_442_240


def test_the_shipped_adapters_have_the_planned_bytes() -> None:
    folders = sorted(CLASSIFIERS.glob("*/adapter"))
    assert len(folders) == 16
    for folder in folders:
        config = json.loads((folder / "adapter_config.json").read_text())
        file = folder / "adapter_model.safetensors"
        header_bytes = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        planned = SMOLLM2.lora_parameters(config["r"], config["target_modules"])
        assert (file.stat().st_size - header_bytes) / planned in (2, 4)


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ({"o_proj"}, {"o_proj"}),
        ({"q_proj"}, {"q_proj", "k_proj", "v_proj"}),
        ({"up_proj", "down_proj"}, {"gate_proj", "up_proj", "down_proj"}),
    ],
    ids=["alone", "attention", "mlp"],
)
def test_a_slot_has_room_for_all_that_is_computed_as_one(modules: set[str], expected: set[str]) -> None:
    assert SMOLLM2.slot_modules(frozenset(modules)) == expected


@pytest.mark.parametrize("biases", [("attention_bias", 576 + 2 * 192 + 576), ("mlp_bias", 2 * 1536 + 576)])
def test_biases_count_where_the_configuration_has_them(biases: tuple[str, int]) -> None:
    name, per_layer = biases
    shape = shape_of({**SMOLLM2_135M, name: True}, "config.json")
    assert shape.parameters == SMOLLM2.parameters + 30 * per_layer


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param({"model_type": "mixtral"}, ("mixtral", "llama, mistral"), id="a mixture of experts"),
        pytest.param({"model_type": ABSENT}, ("model_type is None",), id="no type"),
        pytest.param({"hidden_size": ABSENT, "vocab_size": 0}, ("hidden_size", "vocab_size is 0"), id="two sizes"),
        pytest.param({"num_hidden_layers": True}, ("num_hidden_layers",), id="a size that is a boolean"),
        pytest.param({"head_dim": "64"}, ("head_dim is '64'",), id="a size that is text"),
        pytest.param({"num_key_value_heads": 0}, ("num_key_value_heads is 0",), id="no KV heads"),
        pytest.param({"quantization_config": {"bits": 4}}, ("quantized", "original"), id="quantized"),
    ],
)
def test_what_cannot_be_counted_is_refused_with_every_reason(changes: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError) as error:
        shape_of(changed(SMOLLM2_135M, changes), "base/config.json")
    assert [part for part in ("base/config.json", *named) if part not in error.value.message] == []


def test_a_model_is_read_from_its_folder_or_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2_135M))
    assert read_shape(tmp_path) == read_shape(tmp_path / "config.json") == SMOLLM2


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b"[]"], ids=["missing", "empty", "{", "binary", "list"])
def test_a_file_that_holds_no_configuration_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        read_shape(tmp_path)
