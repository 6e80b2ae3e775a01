"""Measures of predictions. Pure numbers; a measure that means nothing on the given records is NaN."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.evaluation.predictions import Predictions

BINS = 10
"""Of confidence, equally wide, as in Guo et al., On Calibration of Modern Neural Networks (ICML 2017)."""

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Measures:
    """Of one classifier on one set of records.

    `macro_f1`: mean over the labels that occur among the records; NaN when only one does, as is `auc` (one against
    the rest, mean over labels). `ece`: expected calibration error of the chosen label, `brier`: sum over labels of
    squared errors, mean over records; both in [0, 1] and [0, 2]. The `_raw` ones are before calibration.
    `…_interval`: 95 % by bootstrap over records. `answered`: share not abstained; `answered_accuracy`: among those.
    """

    records: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    macro_f1: float
    macro_f1_interval: tuple[float, float]
    auc: float
    ece: float
    ece_raw: float
    brier: float
    brier_raw: float
    answered: float
    answered_accuracy: float


def measure(predictions: Predictions, resamples: int = RESAMPLES) -> Measures:
    """Every measure; needs at least one record."""
    labels, gold, chosen = len(predictions.labels), predictions.gold, predictions.chosen
    answered = ~predictions.abstained
    numbers = np.random.default_rng(7)
    draws = numbers.integers(0, len(gold), size=(resamples, len(gold)))
    accuracies = predictions.right[draws].mean(axis=1)
    f1s = macro_f1s(gold[draws], chosen[draws], labels)
    return Measures(
        records=len(gold),
        accuracy=float(predictions.right.mean()),
        accuracy_interval=_interval(accuracies),
        macro_f1=float(macro_f1s(gold[None], chosen[None], labels)[0]),
        macro_f1_interval=_interval(f1s),
        auc=auc(gold, predictions.probabilities),
        ece=ece(predictions.probabilities, gold),
        ece_raw=ece(predictions.raw, gold),
        brier=brier(predictions.probabilities, gold),
        brier_raw=brier(predictions.raw, gold),
        answered=float(answered.mean()),
        answered_accuracy=float(predictions.right[answered].mean()) if answered.any() else math.nan,
    )


def macro_f1s(gold: NDArray[np.int64], chosen: NDArray[np.int64], labels: int) -> NDArray[np.float64]:
    """Macro-F1 of each row of `gold` and `chosen` [rows, records]; NaN where a row has one gold label only."""
    scores, present = [], []
    for label in range(labels):
        deserved, given = gold == label, chosen == label
        hits = (deserved & given).sum(axis=1)
        scores.append(2 * hits / np.maximum(deserved.sum(axis=1) + given.sum(axis=1), 1))
        present.append(deserved.any(axis=1))
    there = np.stack(present).astype(np.float64)
    means: NDArray[np.float64] = (np.stack(scores) * there).sum(axis=0) / there.sum(axis=0)
    return np.where(there.sum(axis=0) > 1, means, np.nan)


def auc(gold: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Area under the ROC curve by ranks, ties counted half; one against the rest, mean over labels that occur."""
    areas = []
    for label in range(probabilities.shape[1]):
        deserved = gold == label
        positives, negatives = int(deserved.sum()), int((~deserved).sum())
        if positives and negatives:
            areas.append(
                (_ranks(probabilities[:, label])[deserved].sum() - positives * (positives + 1) / 2)
                / positives
                / negatives
            )
    return float(np.mean(areas)) if areas else math.nan


def ece(probabilities: NDArray[np.float64], gold: NDArray[np.int64], bins: int = BINS) -> float:
    """Expected calibration error of the chosen label: mean distance of confidence from accuracy, by bins."""
    return float(sum(abs(b.accuracy - b.confidence) * b.share for b in reliability(probabilities, gold, bins)))


@dataclass(frozen=True, slots=True)
class Bin:
    """Records of similar confidence: their mean confidence, accuracy, and share of all records."""

    confidence: float
    accuracy: float
    share: float


def reliability(probabilities: NDArray[np.float64], gold: NDArray[np.int64], bins: int = BINS) -> list[Bin]:
    """The reliability diagram: non-empty bins of confidence, in order."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == gold
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        Bin(float(confidence[place == b].mean()), float(right[place == b].mean()), float((place == b).mean()))
        for b in range(bins)
        if (place == b).any()
    ]


def brier(probabilities: NDArray[np.float64], gold: NDArray[np.int64]) -> float:
    """Mean over records of the squared distance from the truth."""
    return float(np.square(probabilities - np.eye(probabilities.shape[1])[gold]).sum(axis=1).mean())


def confusion(predictions: Predictions) -> NDArray[np.int64]:
    """Counts [deserved label, given label]."""
    size = len(predictions.labels)
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, (predictions.gold, predictions.chosen), 1)
    return counts


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: NDArray[np.float64] = ends - (counts - 1) / 2
    return means[inverse]


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
