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

Z = 1.959964
"""Of the normal distribution, for intervals of 95 %."""

Weights = NDArray[np.float64]
"""How often each record counts [rows, records]: once in the records as they are; as drawn in each resample of them."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Of one classifier on one set of records.

    `macro_f1`: mean over the labels that occur among the records; NaN when only one does, as is `auc` (one against
    the rest, mean over labels). `ece`: expected calibration error of the chosen label, `brier`: sum over labels of
    squared errors, mean over records; both in [0, 1] and [0, 2]. The `_raw` ones are before calibration.
    `…_interval`: 95 % by bootstrap over records; that of `ece` lies high, since chance adds to a distance.
    `answered`: share not abstained; `answered_accuracy`: among those.
    """

    records: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    macro_f1: float
    macro_f1_interval: tuple[float, float]
    auc: float
    auc_interval: tuple[float, float]
    ece: float
    ece_interval: tuple[float, float]
    ece_raw: float
    brier: float
    brier_interval: tuple[float, float]
    brier_raw: float
    answered: float
    answered_accuracy: float


def measure(predictions: Predictions, resamples: int = RESAMPLES) -> Measures:
    """Every measure; needs at least one record."""
    gold, chosen, records = predictions.gold, predictions.chosen, len(predictions.gold)
    answered = ~predictions.abstained
    draws = np.random.default_rng(7).integers(0, records, size=(resamples, records))
    weights = np.stack([np.ones(records), *(np.bincount(draw, minlength=records) for draw in draws)])
    accuracy, accuracy_interval = _with_interval(weights @ predictions.right / records)
    macro_f1, macro_f1_interval = _with_interval(macro_f1s(gold, chosen, len(predictions.labels), weights))
    auc, auc_interval = _with_interval(aucs(gold, predictions.probabilities, weights))
    ece, ece_interval = _with_interval(eces(predictions.probabilities, gold, weights))
    brier, brier_interval = _with_interval(briers(predictions.probabilities, gold, weights))
    return Measures(
        records=records,
        accuracy=accuracy,
        accuracy_interval=accuracy_interval,
        macro_f1=macro_f1,
        macro_f1_interval=macro_f1_interval,
        auc=auc,
        auc_interval=auc_interval,
        ece=ece,
        ece_interval=ece_interval,
        ece_raw=float(eces(predictions.raw, gold)[0]),
        brier=brier,
        brier_interval=brier_interval,
        brier_raw=float(briers(predictions.raw, gold)[0]),
        answered=float(answered.mean()),
        answered_accuracy=float(predictions.right[answered].mean()) if answered.any() else math.nan,
    )


def macro_f1s(
    gold: NDArray[np.int64], chosen: NDArray[np.int64], labels: int, weights: Weights | None = None
) -> NDArray[np.float64]:
    """Macro-F1 for each row of `weights`, or of the records once; NaN where a row has one gold label only."""
    weights = np.ones((1, len(gold))) if weights is None else weights
    total, present = np.zeros(len(weights)), np.zeros(len(weights))
    for label in range(labels):
        deserved, given = gold == label, chosen == label
        hits, deserving = weights @ (deserved & given), weights @ deserved
        total += np.where(deserving > 0, 2 * hits / np.maximum(deserving + weights @ given, 1), 0)
        present += deserving > 0
    return np.where(present > 1, total / np.maximum(present, 1), np.nan)


def aucs(
    gold: NDArray[np.int64], probabilities: NDArray[np.float64], weights: Weights | None = None
) -> NDArray[np.float64]:
    """Area under the ROC curve for each row of `weights`, or of the records once; ties counted half.

    One label against the rest, mean over the labels that occur; NaN where only one does.
    """
    weights = np.ones((1, len(gold))) if weights is None else weights
    total, known = np.zeros(len(weights)), np.zeros(len(weights))
    for label in range(probabilities.shape[1]):
        order = np.argsort(probabilities[:, label], kind="stable")
        deserved, counted = gold[order] == label, weights[:, order]
        equals = np.flatnonzero(np.diff(probabilities[order, label], prepend=-1) > 0)  # where each run of them begins
        positives = np.add.reduceat(counted * deserved, equals, axis=1)
        negatives = np.add.reduceat(counted * ~deserved, equals, axis=1)
        below = np.cumsum(negatives, axis=1) - negatives / 2
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        total += (positives * below).sum(axis=1) / np.maximum(pairs, 1)
        known += pairs > 0
    return np.where(known > 0, total / np.maximum(known, 1), np.nan)


def eces(
    probabilities: NDArray[np.float64], gold: NDArray[np.int64], weights: Weights | None = None, bins: int = BINS
) -> NDArray[np.float64]:
    """Expected calibration error of the chosen label for each row of `weights`, or of the records once.

    Mean distance of confidence from accuracy, by bins of confidence.
    """
    weights = np.ones((1, len(gold))) if weights is None else weights
    confidence = probabilities.max(axis=1)
    excess = confidence - (probabilities.argmax(axis=1) == gold)
    by_bin = excess[:, None] * (_bin(confidence, bins)[:, None] == np.arange(bins))
    distances: NDArray[np.float64] = np.abs(weights @ by_bin).sum(axis=1) / weights.sum(axis=1)
    return distances


def briers(
    probabilities: NDArray[np.float64], gold: NDArray[np.int64], weights: Weights | None = None
) -> NDArray[np.float64]:
    """Squared distance from the truth, mean over records, for each row of `weights`, or of the records once."""
    weights = np.ones((1, len(gold))) if weights is None else weights
    errors = np.square(probabilities - np.eye(probabilities.shape[1])[gold]).sum(axis=1)
    means: NDArray[np.float64] = weights @ errors / weights.sum(axis=1)
    return means


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
    place = _bin(confidence, bins)
    return [
        Bin(float(confidence[place == b].mean()), float(right[place == b].mean()), float((place == b).mean()))
        for b in range(bins)
        if (place == b).any()
    ]


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Interval of 95 % of a share, by Wilson's score (1927), which stays within 0 and 1; NaN of nothing."""
    if not of:
        return math.nan, math.nan
    middle = (hits + Z**2 / 2) / (of + Z**2)
    half = Z * math.sqrt(hits * (of - hits) / of + Z**2 / 4) / (of + Z**2)
    return max(0.0, middle - half), min(1.0, middle + half)


def confusion(predictions: Predictions) -> NDArray[np.int64]:
    """Counts [deserved label, given label]."""
    size = len(predictions.labels)
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, (predictions.gold, predictions.chosen), 1)
    return counts


def _bin(confidence: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    place: NDArray[np.int64] = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    return place


def _with_interval(values: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    """What the records themselves have (the first value), and between what the resamples lie."""
    known = values[1:][~np.isnan(values[1:])]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (math.nan, math.nan)
    return float(values[0]), (float(low), float(high))
