"""The prompt format that adapters were trained with, read from `prompt.toml`. Knows no tokenizer."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from service.domain import Role
from service.errors import RegistryError
from service.problems import sentences

PREFIX_MULTIPLE = 32
"""Prefixes end on a multiple of this many tokens: a whole number of KV blocks of 16 (GPU) and of 32 (CPU)."""

MAX_TAIL_TOKENS = 64
"""Room that every prefix leaves for a tail, so that adding a classifier never changes where conversations are cut."""

FORMAT_FILE = "prompt.toml"


def max_prefix_tokens(context_tokens: int) -> int:
    """The longest prefix of a prompt in such a context: beside it there is room for a tail and the answer's token."""
    return (context_tokens - 1 - MAX_TAIL_TOKENS) // PREFIX_MULTIPLE * PREFIX_MULTIPLE


Piece = Annotated[str, StringConstraints(min_length=1, max_length=500)]


class TurnStarts(BaseModel):
    """What opens a turn of each role."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    customer: Piece
    agent: Piece
    system: Piece

    def of(self, role: Role) -> str:
        return str(getattr(self, role.value))


class PromptFormat(BaseModel):
    """The fixed pieces around customer text; control tokens are spelled out and parsed as such.

    `preamble` opens every prompt; `turn_end` closes a turn; `filler` is one token, repeated after the last turn
    up to a multiple of `PREFIX_MULTIPLE`; `invocation` opens the tail and switches an activated adapter on. Each piece
    is encoded apart from the text beside it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preamble: str
    turn_start: TurnStarts
    turn_end: Piece
    filler: Piece
    invocation: Piece

    @property
    def digest(self) -> str:
        """sha256 over the pieces, hex: part of every classifier's revision."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class OwnPromptFormat(PromptFormat):
    """The format of a classifier that was trained on another than the shared one. Without `filler` its prompts have
    none: the part of a block that the conversation ends in is computed by every call then."""

    filler: Piece | Literal[""] = ""


def load_prompt_format(folder: Path, kind: type[PromptFormat] = PromptFormat) -> PromptFormat:
    """Read `prompt.toml` of a classifiers folder, or of a classifier's own. Raises RegistryError with every problem."""
    path = folder / FORMAT_FILE
    try:
        return kind.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RegistryError([f"{path} is missing: it holds the prompt format the adapters were trained with"]) from None
    except ValidationError as error:
        known = f" (known keys: {', '.join(PromptFormat.model_fields)})"
        raise RegistryError(
            [f"{path}: {problem}{known if problem.endswith('unknown key') else ''}" for problem in sentences(error)]
        ) from error
    except OSError as error:
        raise RegistryError([f"{path} cannot be read: {type(error).__name__}"]) from error
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: whole numbers have a longest length too
        raise RegistryError([f"{path} is not valid TOML: {error}"]) from error
