"""Fixtures shared by all tests. The bundled base is prepared and described once; no weights are loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from service.base_model import BUNDLED, BaseModel, describe_base, resolve_base
from service.prompt.builder import PromptBuilder
from service.prompt.format import PromptFormat, load_prompt_format
from service.prompt.tokenizer import PromptTokenizer
from service.registry.loader import RegistryLoader
from tests import support

CONTEXT_TOKENS = 8192
"""The bundled base's own."""

RECORD_OPTION = "--record-peft"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(RECORD_OPTION, action="store_true", help="compute all of PEFT's answers anew, and record them")


@pytest.fixture(scope="session")
def base_folder() -> Path:
    return resolve_base(BUNDLED)


@pytest.fixture(scope="session")
def base(base_folder: Path) -> BaseModel:
    return describe_base(base_folder, BUNDLED)


@pytest.fixture(scope="session")
def tokenizer(base_folder: Path) -> PromptTokenizer:
    return PromptTokenizer.from_model(base_folder)


@pytest.fixture(scope="session")
def prompt_format() -> PromptFormat:
    return load_prompt_format(support.CLASSIFIERS)


@pytest.fixture(scope="session")
def builder(tokenizer: PromptTokenizer, prompt_format: PromptFormat) -> PromptBuilder:
    return PromptBuilder(tokenizer, prompt_format, CONTEXT_TOKENS)


@pytest.fixture(scope="session")
def loader(base: BaseModel, tokenizer: PromptTokenizer, builder: PromptBuilder) -> RegistryLoader:
    return RegistryLoader(base, tokenizer, builder)


@pytest.fixture(scope="session")
def make_adapter(base: BaseModel, builder: PromptBuilder) -> Callable[..., Path]:
    """`support.make_adapter` for the bundled base: call with a folder."""
    return partial(support.make_adapter, base=base, invocation_ids=builder.invocation_ids)


@pytest.fixture(scope="session")
def make_classifier_folder(base: BaseModel, builder: PromptBuilder) -> Callable[..., Path]:
    """`support.make_classifier_folder` for the bundled base: call with a directory and a name."""
    return partial(support.make_classifier_folder, base=base, invocation_ids=builder.invocation_ids)
