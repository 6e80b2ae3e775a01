"""`classifier.toml` to a value. Knows nothing of tokens, adapters' bytes or the base model."""

from __future__ import annotations

import enum
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from service.problems import sentences

MANIFEST_FILE = "classifier.toml"

LabelName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class AdapterChoice(enum.StrEnum):
    """What answers: an adapter of a kind, or the base. Stated, so that a lost folder is no silent base answer."""

    ACTIVATED = "activated"
    PLAIN = "plain"
    NONE = "none"


class Manifest(BaseModel):
    """What a person writes about a classifier.

    `words`: the task's own words, last thing before the answer; each token is paid once per classifier and call.
    `labels`: label name to the text of its token, in the order in which scores are listed.
    `min_label_mass`: below this total probability of the labels the answer is marked abstained.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: Annotated[str, StringConstraints(min_length=1)]
    words: Annotated[str, StringConstraints(min_length=1)]
    adapter: AdapterChoice
    labels: dict[LabelName, Annotated[str, StringConstraints(min_length=1)]] = Field(min_length=2)
    min_label_mass: float = Field(default=0.5, ge=0.0, le=1.0)


def load_manifest(folder: Path) -> tuple[Manifest | None, list[str]]:
    """The manifest of a classifier folder, or None and every problem in it."""
    path = folder / MANIFEST_FILE
    try:
        return Manifest.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))), []
    except FileNotFoundError:
        return None, [f"{MANIFEST_FILE} is missing"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return None, [f"{MANIFEST_FILE} is not valid TOML: {error}"]
    except ValidationError as error:
        known = f" (known keys: {', '.join(Manifest.model_fields)})"
        return None, [f"{MANIFEST_FILE}: {p}{known if p.endswith('unknown key') else ''}" for p in sentences(error)]
