"""`classifier.toml` to a value. Knows nothing of tokens, adapters' bytes or the base model."""

from __future__ import annotations

import enum
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from service.domain import Priority
from service.problems import sentences

MANIFEST_FILE = "classifier.toml"

LabelName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
LabelText = Annotated[str, StringConstraints(min_length=1)]

MAX_LABELS = 128
"""Labels of which vLLM tells log probabilities in one answer (its MAX_LOGPROB_TOKEN_IDS)."""


class AdapterChoice(enum.StrEnum):
    """What answers: an adapter of a kind, or the base. Stated, so that a lost folder is no silent base answer."""

    ACTIVATED = "activated"
    PLAIN = "plain"
    NONE = "none"


class Target(BaseModel):
    """What a label's threshold is chosen for on the calibration split: one of the two, as a share of 1.

    `precision`: of the answers with this label that are acted on, so many are right, at the cost of abstaining.
    `recall`: of the records that deserve this label, so many are acted on with it, at the cost of precision.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    precision: float | None = Field(default=None, gt=0.0, lt=1.0)
    recall: float | None = Field(default=None, gt=0.0, lt=1.0)

    @model_validator(mode="after")
    def _one_of_two(self) -> Target:
        if (self.precision is None) == (self.recall is None):
            raise ValueError("give either precision or recall")
        return self


class Manifest(BaseModel):
    """What a person writes about a classifier.

    `words`: the task's own words, last thing before the answer; each token is paid once per classifier and call.
    `labels`: label name to the text of its token, in the order in which scores are listed.
    `targets`: label name to what its threshold has to reach, for labels that are acted on only with care.
    `min_label_mass`: below this total probability of the labels the answer is marked abstained.
    `priority`: "critical", "normal" or "low": what is computed first when time is short and shed last under load.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: Annotated[str, StringConstraints(min_length=1)]
    words: Annotated[str, StringConstraints(min_length=1)]
    adapter: AdapterChoice
    labels: dict[LabelName, LabelText] = Field(min_length=2, max_length=MAX_LABELS)
    min_label_mass: float = Field(default=0.5, ge=0.0, le=1.0)
    targets: dict[str, Target] = {}
    priority: Priority = Priority.NORMAL

    @model_validator(mode="after")
    def _targets_are_of_labels(self) -> Manifest:
        if unknown := sorted(set(self.targets) - set(self.labels)):
            raise ValueError(f"targets for {unknown}, which are no labels")
        return self


def load_manifest(folder: Path) -> tuple[Manifest | None, list[str]]:
    """The manifest of a classifier folder, or None and every problem in it."""
    path = folder / MANIFEST_FILE
    try:
        return Manifest.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))), []
    except FileNotFoundError:
        return None, [f"{MANIFEST_FILE} is missing"]
    except ValidationError as error:
        return None, [f"{MANIFEST_FILE}: {problem}{_known_keys(problem)}" for problem in sentences(error)]
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: whole numbers have a longest length too
        return None, [f"{MANIFEST_FILE} is not valid TOML: {error}"]


def _known_keys(problem: str) -> str:
    """What may stand where there is an unknown key; nothing for any other problem."""
    if not problem.endswith("unknown key"):
        return ""
    known = Target.model_fields if problem.startswith("targets.") else Manifest.model_fields
    return f" (known keys: {', '.join(known)})"
