"""The training loop: batches of conversations in, one adapter per classifier out. Knows no file but its checkpoint."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from service.training.fan import Fan, PrefixKV
from service.training.plain import PlainPrefix

UNKNOWN = -100
"""Target of a label that a record does not carry; cross entropy leaves it out."""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """What decides an adapter besides the data. `alpha` / `rank` scales the update, as in PEFT.

    `base_dtype`: of products with the frozen weights; everything else is float32. bfloat16 is faster where the CPU
    has AMX and slower where it has not.
    """

    rank: int = 4
    alpha: float = 8.0
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    dropout: float = 0.05
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.01
    epochs: int = 4
    batch: int = 8
    warmup_share: float = 0.06
    clip_norm: float = 1.0
    seed: int = 7
    base_dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Example:
    """A read conversation and its targets: the label token of each classifier, or `UNKNOWN`; int64 [classifiers]."""

    prefix: PrefixKV | PlainPrefix
    targets: Tensor


@dataclass(slots=True)
class EpochScores:
    """Per classifier, after an epoch: mean training loss, and loss and accuracy on the dev split."""

    train_loss: list[float] = field(default_factory=list)
    dev_loss: list[float] = field(default_factory=list)
    dev_accuracy: list[float] = field(default_factory=list)


class Trainer:
    """Trains all adapters of a fan at once; each has its own loss, gradient norm and best epoch.

    `label_ids`: the label tokens of each classifier. `checkpoint`: written after every epoch, atomically; a trainer
    given the same path goes on from there.
    """

    def __init__(self, fan: Fan, label_ids: Sequence[Sequence[int]], config: TrainingConfig, checkpoint: Path) -> None:
        self.fan, self.label_ids, self.config, self.checkpoint = fan, label_ids, config, checkpoint
        self.parameters = fan.adapter_parameters()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.curve: list[EpochScores] = []
        self.best_loss = torch.full((len(label_ids),), math.inf)
        self.best = [parameter.detach().clone() for parameter in self.parameters]

    def run(
        self,
        train: Sequence[Example],
        dev: Sequence[Example],
        on_batch: Callable[[int], None],
        on_epoch: Callable[[EpochScores], None],
    ) -> None:
        """Train to the end and leave each adapter at its best epoch by dev loss.

        `on_batch` is told the records done, also those of an earlier run that is resumed; `on_epoch` the scores.
        """
        self._resume()
        on_batch(len(self.curve) * len(train))
        steps_per_epoch = -(-len(train) // self.config.batch)
        for epoch in range(len(self.curve), self.config.epochs):
            torch.manual_seed(self.config.seed + epoch)
            losses = []
            for step, batch in enumerate(batches(train, self.config.batch, self.config.seed + epoch)):
                self._set_rate(epoch * steps_per_epoch + step, self.config.epochs * steps_per_epoch)
                losses.append(self._step(batch))
                on_batch(len(batch))
            scores = self.evaluate(dev)
            scores.train_loss = torch.stack(losses).nanmean(0).tolist()
            self.curve.append(scores)
            self._keep_best(torch.tensor(scores.dev_loss))
            self._save()
            on_epoch(scores)
        with torch.no_grad():
            for parameter, best in zip(self.parameters, self.best, strict=True):
                parameter.copy_(best)

    @torch.no_grad()
    def answers(self, examples: Sequence[Example]) -> list[tuple[Tensor, Tensor]]:
        """For each classifier its log probabilities [known, labels], over label tokens only as they are scored in
        serving, and the place of each record's own label [known]; records without its label are left out."""
        self.fan.eval()
        found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.label_ids]
        for batch in batches(examples, self.config.batch, seed=None):
            logits = self.fan([example.prefix for example in batch])
            targets = torch.stack([example.targets for example in batch])
            for index, ids in enumerate(self.label_ids):
                known = targets[:, index] != UNKNOWN
                place = (targets[known, index, None] == torch.tensor(ids)).long().argmax(-1)
                found[index].append((logits[known, index][:, list(ids)].log_softmax(-1), place))
        return [(torch.cat([each for each, _ in parts]), torch.cat([each for _, each in parts])) for parts in found]

    def evaluate(self, examples: Sequence[Example]) -> EpochScores:
        """Mean loss and accuracy of each classifier; NaN for one whose label no record carries."""
        answers = self.answers(examples)
        return EpochScores(
            dev_loss=[-scores.gather(1, place[:, None]).mean().item() for scores, place in answers],
            dev_accuracy=[(scores.argmax(-1) == place).float().mean().item() for scores, place in answers],
        )

    def _step(self, batch: Sequence[Example]) -> Tensor:
        """One update; returns each classifier's mean loss, NaN where no record of the batch carries its label."""
        self.fan.train()
        targets = torch.stack([example.targets for example in batch])
        known = (targets != UNKNOWN).sum(0)
        total = torch.zeros(len(known))
        for start in range(0, len(batch), self.fan.at_once):
            part = slice(start, start + self.fan.at_once)
            logits = self.fan([example.prefix for example in batch[part]])
            losses = nn.functional.cross_entropy(
                logits.flatten(0, 1), targets[part].flatten(), reduction="none", ignore_index=UNKNOWN
            )
            per_classifier = losses.view_as(targets[part]).sum(0) / known.clamp_min(1)
            torch.autograd.backward(per_classifier.sum())
            total += per_classifier.detach()
        clip_each(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.where(known > 0, total, math.nan)

    def _set_rate(self, step: int, steps: int) -> None:
        """Linear warm-up, then cosine to a tenth."""
        warmup = max(1, round(steps * self.config.warmup_share))
        progress = min(1.0, max(0.0, (step - warmup) / max(1, steps - warmup)))
        factor = (step + 1) / warmup if step < warmup else 0.55 + 0.45 * math.cos(math.pi * progress)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor

    def _keep_best(self, dev_loss: Tensor) -> None:
        better = torch.nan_to_num(dev_loss, nan=math.inf) < self.best_loss
        self.best_loss = torch.where(better, dev_loss, self.best_loss)
        for best, parameter in zip(self.best, self.parameters, strict=True):
            best[better] = parameter.detach()[better]

    def _save(self) -> None:
        state = {
            "optimizer": self.optimizer.state_dict(),
            "parameters": [parameter.detach() for parameter in self.parameters],
            "best": self.best,
            "best_loss": self.best_loss,
            "curve": [asdict(scores) for scores in self.curve],
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.checkpoint.with_suffix(".new")
        torch.save(state, scratch)
        os.replace(scratch, self.checkpoint)

    def _resume(self) -> None:
        if not self.checkpoint.is_file():
            return
        state: Mapping[str, Any] = torch.load(self.checkpoint, weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.best_loss = state["best"], state["best_loss"]
        self.curve = [EpochScores(**scores) for scores in state["curve"]]
        with torch.no_grad():
            for parameter, saved in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(saved)


def batches(examples: Sequence[Example], size: int, seed: int | None) -> list[list[Example]]:
    """Batches of similar length, in random order; in order of length when `seed` is None."""
    order = list(range(len(examples)))
    shuffle = random.Random(seed)
    if seed is not None:
        shuffle.shuffle(order)
        pool = size * 8
        order = [
            i
            for start in range(0, len(order), pool)
            for i in sorted(order[start : start + pool], key=lambda i: examples[i].prefix.tokens)
        ]
    else:
        order.sort(key=lambda i: examples[i].prefix.tokens)
    made = [[examples[i] for i in order[start : start + size]] for start in range(0, len(order), size)]
    if seed is not None:
        shuffle.shuffle(made)
    return made


def clip_each(parameters: Sequence[nn.Parameter], norm: float) -> None:
    """Scale the gradient of each classifier (dimension 0) to at most `norm`, as if it were trained alone."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    squares = torch.stack([gradient.square().sum(dim=(1, 2)) for gradient in gradients]).sum(0)
    factor = (norm / (squares.sqrt() + 1e-6)).clamp_max(1.0)
    for gradient in gradients:
        gradient.mul_(factor[:, None, None])
