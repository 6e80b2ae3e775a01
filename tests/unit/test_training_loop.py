"""The training loop over a fan small enough to know: order, clipping, learning rate, best epochs, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from service.training.fan import PrefixKV
from service.training.loop import UNKNOWN, EpochScores, Example, Trainer, TrainingConfig, batches, clip_each

FEATURES, VOCABULARY = 4, 6
LABEL_IDS = [[1, 3], [2, 4]]


class TinyFan(nn.Module):
    """Two linear classifiers of a prefix's first key; as much of `Fan` as the loop knows.

    `broken_from`: number of the evaluation from which on the first classifier's logits are not numbers;
    `trained_on`: lengths of the prefixes it was trained on, in order.
    """

    at_once = 8

    def __init__(self, broken_from: float = math.inf) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(LABEL_IDS), VOCABULARY, FEATURES))
        self.broken_from, self.evaluations = broken_from, 0
        self.trained_on: list[int] = []

    def adapter_parameters(self) -> list[nn.Parameter]:
        return [self.weight]

    def forward(self, prefixes: Sequence[PrefixKV]) -> Tensor:
        logits = torch.einsum("bf,cvf->bcv", torch.stack([each.keys[0, 0, 0] for each in prefixes]), self.weight)
        self.evaluations += not self.training
        self.trained_on += [each.tokens for each in prefixes] if self.training else []
        if not self.training and self.evaluations >= self.broken_from:
            logits[:, 0] = math.nan
        return logits


def example(tokens: int, targets: Sequence[int] = (1, 2)) -> Example:
    """A read conversation of so many tokens; its first key tells whether the number is odd."""
    keys = torch.zeros(1, 1, tokens, FEATURES)
    keys[0, 0, 0] = torch.tensor([1.0, (-1.0) ** tokens, math.sin(tokens), math.cos(tokens)])
    return Example(PrefixKV(keys, keys), torch.tensor(targets))


def lengths(made: Sequence[Sequence[Example]]) -> list[list[int]]:
    return [[each.prefix.tokens for each in batch] for batch in made]


def trainer(folder: Path, fan: TinyFan | None = None, **config: float) -> Trainer:
    settings = TrainingConfig(**{"epochs": 4, "batch": 4, "weight_decay": 0.0, "learning_rate": 0.1} | config)  # type: ignore[arg-type]
    return Trainer(fan or TinyFan(), LABEL_IDS, settings, folder / "run/checkpoint.pt")  # type: ignore[arg-type]


def ignore(_: object) -> None:
    """A callback that does nothing."""


TRAIN = [example(tokens, (1 + 2 * (tokens % 2), 2)) for tokens in range(1, 13)]
CONTRARY = [example(each.prefix.tokens, (int(each.targets[0]), 4)) for each in TRAIN[:5]]
"""Agrees with `TRAIN` about the first classifier and contradicts it about the second."""


@pytest.mark.parametrize("seed", [None, 0, 7])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 64, 65, 130])
def test_batches_hold_every_example_once(count: int, seed: int | None) -> None:
    made = lengths(batches([example(tokens) for tokens in range(1, count + 1)], 8, seed))
    assert sorted(tokens for batch in made for tokens in batch) == list(range(1, count + 1))
    assert all(1 <= len(batch) <= 8 for batch in made)
    assert len(made) == -(-count // 8)


def test_a_batch_holds_conversations_of_similar_length() -> None:
    made = lengths(batches([example(tokens) for tokens in range(1, 65)], 8, seed=3))
    assert all(max(batch) - min(batch) == 7 for batch in made)
    assert made != sorted(made)


def test_the_order_depends_on_the_seed_alone() -> None:
    examples = [example(tokens) for tokens in range(1, 130)]
    assert lengths(batches(examples, 8, 1)) == lengths(batches(examples, 8, 1))
    assert lengths(batches(examples, 8, 1)) != lengths(batches(examples, 8, 2))


def test_without_a_seed_the_order_is_by_length() -> None:
    assert lengths(batches([example(tokens) for tokens in (3, 1, 2)], 2, None)) == [[1, 2], [3]]


def parameters_with(*gradients: Tensor) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(made, gradients, strict=True):
        parameter.grad = gradient.clone()
    return made


def test_each_classifier_is_clipped_as_if_it_were_alone() -> None:
    torch.manual_seed(0)
    scale = torch.tensor([0.01, 1.0, 100.0])[:, None, None]
    gradients = [torch.randn(3, 2, 5) * scale, torch.randn(3, 7, 2) * scale]
    together = parameters_with(*gradients)
    clip_each(together, 1.0)
    for index in range(3):
        alone = parameters_with(*(gradient[index] for gradient in gradients))
        nn.utils.clip_grad_norm_(alone, 1.0)
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(many.grad[index], one.grad)


@pytest.mark.parametrize(("size", "clipped"), [(0.99, 0.99), (1.0, 1.0), (1.01, 1.0)])
def test_only_a_gradient_over_the_norm_is_scaled(size: float, clipped: float) -> None:
    (parameter,) = parameters_with(torch.full((1, 1, 1), size))
    clip_each([parameter], 1.0)
    assert parameter.grad is not None
    assert parameter.grad.item() == pytest.approx(clipped, abs=1e-5)


def test_one_classifiers_broken_gradient_does_not_reach_another() -> None:
    gradient = torch.ones(2, 1, 1)
    gradient[0] = math.nan
    (parameter,) = parameters_with(gradient)
    clip_each([parameter], 1.0)
    assert parameter.grad is not None
    assert parameter.grad[1].item() == pytest.approx(1.0, abs=1e-5)


def test_a_parameter_without_gradient_is_left_out() -> None:
    (parameter,) = parameters_with(torch.full((1, 1, 1), 5.0))
    idle = nn.Parameter(torch.zeros(1, 1, 1))
    clip_each([idle, parameter], 1.0)
    assert idle.grad is None


def rates(folder: Path, count: int, epochs: int) -> list[float]:
    """The learning rate of every step, as a share of the highest; one example a step."""
    subject = trainer(folder, epochs=epochs, batch=1)
    seen: list[float] = []
    examples = [example(tokens) for tokens in range(1, count + 1)]
    subject.run(examples, examples[:1], lambda done: seen.append(subject.optimizer.param_groups[0]["lr"]), ignore)
    return [rate / 0.1 for rate in seen[1:]]  # the first call tells what was done before


def test_the_rate_rises_linearly_and_falls_to_a_tenth(tmp_path: Path) -> None:
    seen = rates(tmp_path, count=20, epochs=5)
    assert len(seen) == 100
    assert seen[:6] == pytest.approx([(step + 1) / 6 for step in range(6)])
    assert seen[6] == pytest.approx(1.0)
    assert seen[6:] == sorted(seen[6:], reverse=True)
    assert seen[53] == pytest.approx(0.55)  # half way down the cosine
    assert 0.1 <= seen[-1] < 0.101


def test_a_run_of_one_step_learns_at_the_full_rate(tmp_path: Path) -> None:
    assert rates(tmp_path, count=1, epochs=1) == pytest.approx([1.0])


def test_every_record_and_epoch_is_told(tmp_path: Path) -> None:
    done: list[int] = []
    epochs: list[EpochScores] = []
    trainer(tmp_path, epochs=3, batch=5).run(TRAIN, CONTRARY, done.append, epochs.append)
    assert sum(done) == 3 * len(TRAIN)
    assert len(epochs) == 3


def test_every_epoch_has_its_own_order(tmp_path: Path) -> None:
    fan = TinyFan()
    trainer(tmp_path, fan, epochs=2).run(TRAIN, CONTRARY, ignore, ignore)
    first, second = fan.trained_on[: len(TRAIN)], fan.trained_on[len(TRAIN) :]
    assert sorted(first) == sorted(second) == [each.prefix.tokens for each in TRAIN]
    assert first != second


def test_training_learns(tmp_path: Path) -> None:
    subject = trainer(tmp_path, epochs=8)
    subject.run(TRAIN, TRAIN, ignore, ignore)
    first, last = subject.curve[0], subject.curve[-1]
    assert all(after < before for before, after in zip(first.train_loss, last.train_loss, strict=True))
    assert all(loss < math.log(2) for loss in last.dev_loss)


@pytest.mark.parametrize("at_once", [1, 3])
def test_how_many_conversations_are_held_at_once_does_not_change_what_is_learned(tmp_path: Path, at_once: int) -> None:
    apart = TinyFan()
    apart.at_once = at_once
    examples = [*TRAIN, example(13, (UNKNOWN, 4)), example(14, (UNKNOWN, UNKNOWN))]
    curves = []
    for number, fan in enumerate((TinyFan(), apart)):
        subject = trainer(tmp_path / str(number), fan)
        subject.run(examples, TRAIN, ignore, ignore)
        curves.append([loss for scores in subject.curve for loss in scores.train_loss + scores.dev_loss])
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_each_classifier_is_left_at_its_own_best_epoch(tmp_path: Path) -> None:
    subject = trainer(tmp_path)
    subject.run(TRAIN, CONTRARY, ignore, ignore)
    curves = [[scores.dev_loss[index] for scores in subject.curve] for index in range(2)]
    assert [curve.index(min(curve)) for curve in curves] == [3, 0]
    assert subject.evaluate(CONTRARY).dev_loss == pytest.approx([min(curve) for curve in curves])


def test_an_epoch_that_diverged_is_never_the_best(tmp_path: Path) -> None:
    fan, kept = TinyFan(broken_from=2), []
    trainer(tmp_path, fan, batch=16).run(TRAIN, TRAIN, ignore, lambda _: kept.append(fan.weight.detach().clone()))
    assert not torch.equal(kept[0][0], kept[-1][0])
    assert torch.equal(fan.weight[0], kept[0][0])


def test_dev_scores_look_at_the_label_tokens_alone(tmp_path: Path) -> None:
    fan = TinyFan()
    nn.init.normal_(fan.weight, generator=torch.Generator().manual_seed(1))
    examples = [example(5, (3, 2)), example(2, (1, 4)), example(9, (1, 2))]
    scores = trainer(tmp_path, fan, batch=2).evaluate(examples)
    logits = fan([each.prefix for each in examples])
    for index, ids in enumerate(LABEL_IDS):
        shares = logits[:, index, ids].softmax(-1)
        places = [ids.index(int(each.targets[index])) for each in examples]
        expected = [-math.log(shares[row, place].item()) for row, place in enumerate(places)]
        assert scores.dev_loss[index] == pytest.approx(sum(expected) / 3, rel=1e-5)
        hits = [shares[row].argmax().item() == place for row, place in enumerate(places)]
        assert scores.dev_accuracy[index] == pytest.approx(sum(hits) / 3)


def test_an_unknown_label_counts_for_nothing(tmp_path: Path) -> None:
    fan = TinyFan()
    nn.init.normal_(fan.weight, generator=torch.Generator().manual_seed(1))
    partly = [example(5, (3, UNKNOWN)), example(2, (UNKNOWN, 4)), example(9, (1, UNKNOWN))]
    subject = trainer(tmp_path, fan, batch=2)
    scores, first, second = (subject.evaluate(each) for each in (partly, [partly[0], partly[2]], [partly[1]]))
    assert scores.dev_loss == pytest.approx([first.dev_loss[0], second.dev_loss[1]])
    assert math.isnan(first.dev_loss[1])


def test_a_classifier_without_labels_is_not_trained(tmp_path: Path) -> None:
    subject = trainer(tmp_path)
    unknown = [example(each.prefix.tokens, (int(each.targets[0]), UNKNOWN)) for each in TRAIN]
    subject.run(unknown, TRAIN, ignore, ignore)
    assert math.isnan(subject.curve[-1].train_loss[1])
    assert subject.parameters[0][0].abs().max() > 0
    assert subject.parameters[0][1].abs().max() == 0


class InterruptedRunError(Exception):
    """Stands for a run that is stopped."""


def test_an_interrupted_run_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.run(TRAIN, CONTRARY, ignore, ignore)
    stopped = trainer(tmp_path)

    def stop_after_two(_: EpochScores) -> None:
        if len(stopped.curve) == 2:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        stopped.run(TRAIN, CONTRARY, ignore, stop_after_two)
    resumed, done = trainer(tmp_path), []
    resumed.run(TRAIN, CONTRARY, done.append, ignore)
    assert done[0] == 2 * len(TRAIN)
    assert sum(done) == 4 * len(TRAIN)
    assert resumed.curve == whole.curve
    assert torch.equal(resumed.parameters[0], whole.parameters[0])


def test_a_checkpoint_is_written_as_a_whole(tmp_path: Path) -> None:
    trainer(tmp_path, epochs=1).run(TRAIN, CONTRARY, ignore, ignore)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint.pt"]
