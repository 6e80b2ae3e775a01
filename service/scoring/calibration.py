"""Probabilities that mean what they say: temperature and bias per label, fitted and applied. Knows numpy only.

Bias-corrected temperature scaling (Alexandari, Kundaje, Shrikumar, ICML 2020): `softmax(scale * log p + bias)`. It has
one number more than there are labels, so that some hundred records fit it, and it never turns certainty into doubt
between two labels that the model did not put there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FLOOR = -30.0
"""Log probabilities below this count as this: e^-30 is as good as 0, and stays finite when scaled."""

PRIOR_RECORDS = 4.0
"""How many records' worth of weight "leave it as it is" has in a fit: small splits must not bend the curve much."""

MIN_PRECISION_RECORDS = 20
"""Answers from which on their precision says something: of ten right ones out of ten a quarter may come from 0.87."""

MIN_SCALE = 0.05
NEWTON_STEPS = 50


def calibrate(probabilities: Sequence[float], scale: float, bias: Sequence[float]) -> tuple[float, ...]:
    """One distribution over labels, summing to 1, recalibrated."""
    return tuple(map(float, _softmax(scale * _logs(np.asarray([probabilities])) + np.asarray(bias))[0]))


def fit(probabilities: NDArray[np.float64], targets: NDArray[np.int64]) -> tuple[float, tuple[float, ...]]:
    """Scale and bias with the least log loss on `probabilities` [records, labels] and `targets` [records].

    The loss is convex in both together; Newton's method with halved steps finds its minimum. Raises ValueError when
    there are no records.
    """
    records, labels = probabilities.shape
    if not records:
        raise ValueError("nothing to fit on")
    logs, wanted = _logs(probabilities), np.eye(labels)[targets]
    found = _minimum(_identity(labels), slice(None), logs, wanted)
    if found[0] < MIN_SCALE:  # the loss is convex, so the best scale that is allowed is the least one
        found = _minimum(np.concatenate([[MIN_SCALE], found[1:]]), slice(1, None), logs, wanted)
    bias = found[1:] - found[1:].mean()
    return float(found[0]), tuple(map(float, bias))


def _minimum(
    found: NDArray[np.float64], free: slice, logs: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Scale and biases of least loss from `found` on; only the `free` ones of them move."""
    records, labels = logs.shape
    for _ in range(NEWTON_STEPS):
        q = _softmax(found[0] * logs + found[1:])
        # Each record's logits depend on scale through its log probabilities and on bias directly.
        slopes = np.concatenate([logs[:, :, None], np.broadcast_to(np.eye(labels), (records, labels, labels))], axis=2)
        gradient = np.einsum("nk,nkp->p", q - wanted, slopes) + PRIOR_RECORDS * (found - _identity(labels))
        spread = np.einsum("nk,kl->nkl", q, np.eye(labels)) - q[:, :, None] * q[:, None, :]
        curvature = np.einsum("nkp,nkl,nlq->pq", slopes, spread, slopes) + PRIOR_RECORDS * np.eye(labels + 1)
        step = np.zeros_like(found)
        step[free] = np.linalg.solve(curvature[free, free], gradient[free])
        size = 1.0
        while size > 1e-6 and _loss(found - size * step, logs, wanted) > _loss(found, logs, wanted):
            size /= 2
        found = found - size * step
        if np.abs(size * step).max() < 1e-9:
            break
    return found


def precision_threshold(chosen: NDArray[np.float64], right: NDArray[np.bool_], target: float) -> float | None:
    """The least confidence from which answers of a label are right with at least the target precision.

    `chosen`: confidence of every record that got the label; `right`: whether it deserved it. None: out of reach, or
    fewer than `MIN_PRECISION_RECORDS` are acted on.
    """
    order = np.argsort(-chosen, kind="stable")
    acted_on = np.arange(1, len(order) + 1)
    precision = np.cumsum(right[order]) / acted_on
    last_of_equals = np.append(np.diff(chosen[order]) < 0, True)  # equals are acted on together
    reached = np.flatnonzero((precision >= target) & last_of_equals & (acted_on >= MIN_PRECISION_RECORDS))
    return float(chosen[order[reached[-1]]]) if len(reached) else None


def recall_threshold(deserving: NDArray[np.float64], target: float) -> float | None:
    """The greatest confidence bound that still answers the target share of records that deserve the label.

    `deserving`: confidence of every record of the label, 0 where another label was chosen. None: out of reach.
    """
    needed = int(np.ceil(target * len(deserving) - 1e-9))
    bound = float(np.sort(deserving)[::-1][needed - 1]) if 0 < needed <= len(deserving) else 0.0
    return bound if bound > 0 else None


def _loss(found: NDArray[np.float64], logs: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    z = found[0] * logs + found[1:]
    peak = z.max(axis=1, keepdims=True)
    log_norm = peak[:, 0] + np.log(np.exp(z - peak).sum(axis=1))
    prior = PRIOR_RECORDS / 2 * np.square(found - _identity(len(found) - 1)).sum()
    return float((log_norm - (z * wanted).sum(axis=1)).sum() + prior)


def _identity(labels: int) -> NDArray[np.float64]:
    """Scale and biases that leave probabilities as they are."""
    return np.concatenate([[1.0], np.zeros(labels)])


def _logs(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    logs: NDArray[np.float64] = np.log(np.maximum(probabilities, np.exp(FLOOR)))
    return logs


def _softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(z - z.max(axis=1, keepdims=True))
    softmax: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return softmax
