"""`calibration.json` to a value, and back. Knows nothing of how it was fitted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.domain import Calibration, Reference
from service.files import write_whole
from service.problems import sentences

CALIBRATION_FILE = "calibration.json"

ROUNDING = 0.01
"""By how much shares that were rounded may miss their sum."""

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]


class ReferenceAnswers(BaseModel):
    """What was answered on the calibration split: the share of each label, and the mean confidence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shares: dict[str, Probability]
    confidence: Probability


class CalibrationFile(BaseModel):
    """What `fantail calibrate` writes.

    `fitted_for`: digest of adapter, words, labels, prompt format, targets and the label mass that they need.
    `bias`, `thresholds`: by label; `reference`: what drift is measured from; `fitted_on`: for people: records, data
    digests, errors before and after.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fitted_for: str
    scale: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    bias: dict[str, FiniteNumber]
    thresholds: dict[str, Probability] = {}
    reference: ReferenceAnswers | None = None
    fitted_on: dict[str, Any] = {}


def load_calibration(
    folder: Path, labels: tuple[str, ...], fitted_for: str
) -> tuple[Calibration | None, str | None, list[str]]:
    """The calibration in `folder`, why it must not be used, and every problem of the file; all empty without a file."""
    path = folder / CALIBRATION_FILE
    if not path.exists():
        return None, None, []
    try:
        file = CalibrationFile.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        return None, None, [f"{CALIBRATION_FILE}: {problem}" for problem in sentences(error)]
    except (OSError, ValueError, RecursionError) as error:
        return None, None, [f"{CALIBRATION_FILE} is not valid JSON: {error}"]
    problems = []
    if set(file.bias) != set(labels):
        problems.append(f"{CALIBRATION_FILE}: bias is for {sorted(file.bias)}, the labels are {sorted(labels)}")
    if unknown := sorted(set(file.thresholds) - set(labels)):
        problems.append(f"{CALIBRATION_FILE}: thresholds for unknown labels {unknown}")
    if file.reference is not None and set(file.reference.shares) != set(labels):
        problems.append(f"{CALIBRATION_FILE}: shares are of {sorted(file.reference.shares)}, not of the labels")
    elif file.reference is not None and abs((total := sum(file.reference.shares.values())) - 1.0) > ROUNDING:
        problems.append(f"{CALIBRATION_FILE}: shares sum to {total:.4g}, not to 1")
    if problems:
        return None, None, problems
    bias = tuple(file.bias[label] for label in labels)
    thresholds = tuple(file.thresholds.get(label, 0.0) for label in labels)
    stale = None
    if file.fitted_for != fitted_for:
        stale = (
            f"{CALIBRATION_FILE} was fitted for another adapter, words, labels or targets; "
            f"run `fantail calibrate {folder.name}`"
        )
    reference = None
    if file.reference is not None:
        reference = Reference(tuple(file.reference.shares[label] for label in labels), file.reference.confidence)
    return Calibration(file.scale, bias, thresholds, reference), stale, []


def write_calibration(
    folder: Path,
    labels: tuple[str, ...],
    calibration: Calibration,
    fitted_for: str,
    fitted_on: Mapping[str, Any],
) -> None:
    """Write `calibration.json` as a whole or not at all."""
    seen = calibration.reference
    reference = None
    if seen is not None:
        reference = ReferenceAnswers(shares=dict(zip(labels, seen.shares, strict=True)), confidence=seen.confidence)
    file = CalibrationFile(
        fitted_for=fitted_for,
        scale=calibration.scale,
        bias=dict(zip(labels, calibration.bias, strict=True)),
        thresholds={label: t for label, t in zip(labels, calibration.thresholds, strict=True) if t > 0},
        reference=reference,
        fitted_on=dict(fitted_on),
    )
    write_whole(folder / CALIBRATION_FILE, file.model_dump_json(indent=1) + "\n")
