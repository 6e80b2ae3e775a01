"""Predictions on the calibration split to a calibration with thresholds. Fits, measures honestly, writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.domain import Calibration, Reference
from service.evaluation.measures import briers, eces
from service.evaluation.predictions import Predictions
from service.registry.manifest import Target
from service.scoring.calibration import calibrate, fit, precision_threshold, recall_threshold

FOLDS = 5

MOST = 1.0 - 1e-9
"""The highest threshold that is reached: 1 means never, and a probability may be as good as 1."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """`facts`: for people, errors before and after on records that the fit had not seen; `missed`: labels whose
    target is out of reach."""

    calibration: Calibration
    facts: Mapping[str, Any]
    missed: tuple[str, ...]


def fit_calibration(predictions: Predictions, targets: Mapping[str, Target]) -> Fitted:
    """Fit on all given records; thresholds are chosen on probabilities of folds that the fit had not seen."""
    unseen = cross_fitted(predictions.raw, predictions.gold)
    scale, bias = fit(predictions.raw, predictions.gold)
    thresholds, missed = [], []
    for index, label in enumerate(predictions.labels):
        acted_on = (unseen.argmax(axis=1) == index) & ~predictions.abstained  # for too little label mass
        confidence = np.where(acted_on, unseen[:, index], 0.0)
        threshold, reached = _threshold(confidence, predictions.gold == index, targets.get(label))
        thresholds.append(threshold)
        missed += [] if reached else [label]
    facts = {
        "records": len(predictions.ids),
        "ece": {
            "raw": round(float(eces(predictions.raw, predictions.gold)[0]), 4),
            "calibrated": round(float(eces(unseen, predictions.gold)[0]), 4),
        },
        "brier": {
            "raw": round(float(briers(predictions.raw, predictions.gold)[0]), 4),
            "calibrated": round(float(briers(unseen, predictions.gold)[0]), 4),
        },
    }
    shares = np.bincount(unseen.argmax(axis=1), minlength=len(predictions.labels)) / len(unseen)
    reference = Reference(tuple(shares.round(4).tolist()), round(float(unseen.max(axis=1).mean()), 4))
    return Fitted(Calibration(scale, bias, tuple(thresholds), reference), facts, tuple(missed))


def cross_fitted(raw: NDArray[np.float64], gold: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each record calibrated by a fit on the other folds; folds are dealt in order of the records."""
    fold = np.arange(len(gold)) % FOLDS
    calibrated = np.empty_like(raw)
    for held_out in range(FOLDS):
        rest, here = fold != held_out, fold == held_out
        if here.any():
            scale, bias = fit(raw[rest], gold[rest]) if rest.any() else (1.0, (0.0,) * raw.shape[1])
            calibrated[here] = [calibrate(row, scale, bias) for row in raw[here].tolist()]
    return calibrated


def _threshold(
    confidence: NDArray[np.float64], deserved: NDArray[np.bool_], target: Target | None
) -> tuple[float, bool]:
    """From where on the label is acted on, and whether that reaches the target.

    `confidence` of each record, 0 where the label is not given; `deserved`: whether it would be right.
    Out of reach, a precision target means never and a recall target means always: the careful side of each.
    """
    if target is None:
        return 0.0, True
    if target.precision is not None:
        given = confidence > 0
        threshold = precision_threshold(confidence[given], deserved[given], target.precision)
        return (1.0, False) if threshold is None else (min(threshold, MOST), True)
    assert target.recall is not None
    threshold = recall_threshold(confidence[deserved], target.recall)
    return (0.0, False) if threshold is None else (min(threshold, MOST), True)
