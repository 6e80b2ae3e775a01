"""Faults that adapters really arrive with, planted into copies of a shipped classifier."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.numpy import load_file, save_file

from service.registry.adapter import CONFIG_FILE, WEIGHTS_FILE
from service.registry.calibration import CALIBRATION_FILE
from service.registry.manifest import MANIFEST_FILE

VICTIM, OTHER = "refund_request", "escalation_risk"


def zero_the_weights(folder: Path) -> None:
    path = folder / "adapter" / WEIGHTS_FILE
    save_file({name: 0 * tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def take_the_adapter_of_another_classifier(folder: Path) -> None:
    shutil.copytree(folder.parent.parent / "shipped" / OTHER / "adapter", folder / "adapter", dirs_exist_ok=True)


def take_weights_trained_for_other_layers(folder: Path) -> None:
    """Right shapes and the right base's name on weights that belong to another model."""
    path = folder / "adapter" / WEIGHTS_FILE
    weights = load_file(path)
    layers = 1 + max(int(found[1]) for name in weights if (found := re.search(r"layers\.(\d+)\.", name)))
    moved = {
        re.sub(r"layers\.(\d+)\.", lambda found: f"layers.{(int(found[1]) + 7) % layers}.", name): tensor
        for name, tensor in weights.items()
    }
    save_file(moved, path, metadata={"format": "pt"})


def double_alpha(folder: Path) -> None:
    """What is left when a rank is exported as half of what it was trained with: twice the scale."""
    path = folder / "adapter" / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}), encoding="utf-8")


def swap_the_labels(folder: Path) -> None:
    path = folder / MANIFEST_FILE
    text = path.read_text(encoding="utf-8")
    tokens = {'yes = " yes"': 'yes = " no"', 'no = " no"': 'no = " yes"'}
    swapped = re.sub("|".join(map(re.escape, tokens)), lambda found: tokens[found[0]], text)
    assert swapped != text
    path.write_text(swapped, encoding="utf-8")


FAULTS: dict[str, Callable[[Path], None]] = {
    "zeroed_weights": zero_the_weights,
    "adapter_of_another_classifier": take_the_adapter_of_another_classifier,
    "adapter_of_another_base": take_weights_trained_for_other_layers,
    "rank_exported_wrongly": double_alpha,
    "labels_swapped": swap_the_labels,
}


def plant(shipped: Path, directory: Path) -> None:
    """Make `directory` with the victim as shipped, and a copy of it with each fault."""
    (directory.parent / "shipped").symlink_to(shipped)
    for name in (VICTIM, *FAULTS):
        shutil.copytree(shipped / VICTIM, directory / name)
        (directory / name / CALIBRATION_FILE).unlink(missing_ok=True)
    for name, harm in FAULTS.items():
        harm(directory / name)
