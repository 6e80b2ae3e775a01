"""The values that travel through a request. Knows nothing of gRPC, vLLM, files or settings."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MAX_NAME = 64
"""Characters of a classifier's name, which is its folder's."""


class Role(enum.StrEnum):
    """Who speaks in a turn; the values are the ones used in labelled data."""

    CUSTOMER = "customer"
    AGENT = "agent"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation. `text` is never empty or blank (see `Conversation`)."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Ordered turns, oldest first. `id` is the caller's own and may be empty."""

    id: str
    turns: tuple[Turn, ...]

    @property
    def key(self) -> str:
        """What stays the same while the conversation grows."""
        return self.id or self.turns[0].text


@dataclass(frozen=True, slots=True)
class Truncation:
    """What of a too long conversation was left out: its oldest turns."""

    dropped_turns: int = 0
    dropped_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Prefix:
    """A conversation as token ids, up to where a classifier's own begin.

    `truncation`: what was cut; `texts`: ids of every turn's text alone, which are the same in any prompt.
    """

    token_ids: tuple[int, ...]
    truncation: Truncation
    texts: tuple[tuple[int, ...], ...]


class Prompt(Protocol):
    """Makes conversations into token ids. `prompt_digest`: sha256 of its format, hex."""

    prompt_digest: str

    def prefix(self, conversation: Conversation, texts: Sequence[tuple[int, ...]] | None = None) -> Prefix:
        """`texts`: of a prefix that another prompt has made of it. Raises InvalidRequestError for one that has none."""


class Priority(enum.StrEnum):
    """How much a classifier's answer matters beside the others': the first is computed first and shed last."""

    CRITICAL = "critical"
    NORMAL = "normal"
    LOW = "low"

    @property
    def rank(self) -> int:
        """0 for what comes first."""
        return tuple(Priority).index(self)


class AdapterKind(enum.StrEnum):
    """How an adapter acts on a prompt.

    `ACTIVATED` changes only the tokens from the invocation on (aLoRA, arXiv 2504.12397), so that the
    conversation's KV is shared; `PLAIN` changes every token, so nothing is shared with others.
    """

    ACTIVATED = "activated"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA on disk, already checked against the base. `digest`: sha256 over weights and config, hex."""

    path: Path
    kind: AdapterKind
    rank: int
    target_modules: tuple[str, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Label:
    """A label and the one vocabulary token whose logprob scores it."""

    name: str
    token_id: int


@dataclass(frozen=True, slots=True)
class Reference:
    """What a classifier answered on its calibration split. `shares`: of each label; `confidence`: mean, calibrated."""

    shares: tuple[float, ...]
    confidence: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns label probabilities into calibrated ones and into a decision; one number per label in each tuple.

    `scale`: inverse temperature on the log probabilities; `bias`: added after scaling, natural-log units;
    `thresholds`: calibrated probability below which a chosen label is not acted on, 0 where there is no threshold;
    `reference`: what was answered on the calibration split, None in files that do not say it.
    """

    scale: float
    bias: tuple[float, ...]
    thresholds: tuple[float, ...]
    reference: Reference | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """A conversation and PEFT's float32 answer to it: unconstrained probabilities, one per label."""

    conversation: Conversation
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Classifier:
    """A named question with a closed set of labels, ready to be asked.

    `tail_ids`: invocation and task words, appended to the prefix of every conversation.
    `own_prompt`: what makes its prefix when it was trained on another prompt than the one that classifiers share.
    `adapter`: None means the base model answers zero-shot.
    `revision`: digest of everything that decides the answer (adapter, manifest, calibration, prompt format, base).
    `min_label_mass`: below this unconstrained probability of all labels together, the answer is marked abstained.
    `calibration`: None means that probabilities are given as the model has them.
    `probes`: what the served engine must reproduce before this classifier answers anybody.
    `flaw`: what is wrong with its folder, so that it must not be asked; None when nothing is.
    `folder`: what it was loaded from.
    """

    name: str
    description: str
    labels: tuple[Label, ...]
    tail_ids: tuple[int, ...]
    adapter: Adapter | None
    revision: str
    min_label_mass: float
    calibration: Calibration | None = None
    probes: tuple[Probe, ...] = ()
    priority: Priority = Priority.NORMAL
    flaw: str | None = None
    folder: Path | None = None
    own_prompt: Prompt | None = None

    @property
    def label_ids(self) -> tuple[int, ...]:
        return tuple(label.token_id for label in self.labels)

    @property
    def shares_reading(self) -> bool:
        """Whether the base model reads the conversation for it, once for all of one prompt: for all but plain ones."""
        return self.adapter is None or self.adapter.kind is AdapterKind.ACTIVATED


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Prompt tokens the engine computed anew, and those whose KV it found in its prefix cache."""

    computed: int = 0
    reused: int = 0

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(self.computed + other.computed, self.reused + other.reused)


@dataclass(frozen=True, slots=True)
class Classification:
    """One classifier's answer.

    `probabilities`: one per label in the classifier's order, calibrated, summing to 1.
    `raw_probabilities`: the same before calibration.
    `label_mass`: total unconstrained probability of the label tokens, in [0, 1].
    `abstain_reason`: None, or why the label should not be acted on.
    """

    classifier: str
    label: str
    confidence: float
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    raw_probabilities: tuple[float, ...]
    label_mass: float
    abstain_reason: str | None
    revision: str
    truncation: Truncation
    usage: TokenUsage


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Wall time of each stage of one request, in seconds; `total` includes the gaps between them."""

    prompt: float
    engine: float
    scoring: float
    total: float
