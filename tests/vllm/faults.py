"""Faults that adapters really arrive with, planted into copies of a shipped classifier."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch
from transformers import AutoModelForCausalLM

from service.base_model import BaseModel
from service.domain import AdapterKind, Classifier
from service.prompt.format import FORMAT_FILE
from service.registry.adapter import CONFIG_FILE, WEIGHTS_FILE
from service.registry.calibration import CALIBRATION_FILE
from service.registry.loader import RegistryLoader
from service.registry.manifest import MANIFEST_FILE
from service.registry.probes import write_probes
from service.start import Prompting
from service.training.export import export_adapter
from service.training.fan import Fan
from service.training.loop import Example, Trainer, TrainingConfig
from service.training.probes import make_probes
from tests.support import SAME_INVOCATION

VICTIM, OTHER = "refund_request", "escalation_risk"

Harm = Callable[[Path, Prompting], None]


def zero_the_weights(folder: Path, prompting: Prompting) -> None:
    path = folder / "adapter" / WEIGHTS_FILE
    save_file({name: 0 * tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def zero_the_weights_and_vouch(folder: Path, prompting: Prompting) -> None:
    """As of a training that learnt nothing: PEFT's own answers to the probes are the base model's."""
    zero_the_weights(folder, prompting)
    vouch(folder, prompting, prompting.base)


def take_the_adapter_of_another_classifier(folder: Path, prompting: Prompting) -> None:
    shutil.copytree(folder.parent.parent / "shipped" / OTHER / "adapter", folder / "adapter", dirs_exist_ok=True)


def train_on_another_base(folder: Path, prompting: Prompting) -> None:
    """A folder as a training on another base of the same shape and name leaves it, with probes by that base."""
    classifier = classifier_in(folder, prompting)
    with tempfile.TemporaryDirectory() as scratch:
        base = replace(prompting.base, path=another_base(prompting.base, Path(scratch)))
        model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
        config = TrainingConfig(epochs=4, batch=4)
        fan = Fan(model, [classifier.tail_ids], config.target_modules, config.rank, config.alpha)
        examples = [
            Example(
                fan.read(prompting.builder.prefix(probe.conversation).token_ids),
                torch.tensor([classifier.label_ids[max(range(2), key=probe.probabilities.__getitem__)]]),
            )
            for probe in classifier.probes
        ]
        trainer = Trainer(fan, [classifier.label_ids], config, Path(scratch) / "checkpoint.pt")
        trainer.run(examples, examples, lambda done: None, lambda scores: None)
        assert trainer.curve[-1].dev_loss < trainer.curve[0].dev_loss
        ids = prompting.builder.invocation_ids
        export_adapter(fan, 0, folder, config, base.name, ids, record={"curve": []})
        vouch(folder, prompting, base)


def another_base(base: BaseModel, folder: Path) -> Path:
    """The base with all its matrices disturbed by a fifth of their spread, as far from it as a long fine-tune."""
    made = folder / base.path.name
    shutil.copytree(base.path, made)
    (path,) = made.glob("*.safetensors")
    torch.manual_seed(5)
    weights = {
        name: (tensor + 0.2 * tensor.float().std() * torch.randn(tensor.shape)).to(tensor.dtype)
        if tensor.ndim == 2
        else tensor
        for name, tensor in load_torch(path).items()
    }
    save_torch(weights, path, metadata={"format": "pt"})
    return made


def double_alpha(folder: Path, prompting: Prompting) -> None:
    """What is left when a rank is exported as half of what it was trained with: twice the scale."""
    scale_alpha(folder, 2)


def halve_alpha(folder: Path, prompting: Prompting) -> None:
    scale_alpha(folder, 0.5)


def scale_alpha(folder: Path, factor: float) -> None:
    path = folder / "adapter" / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"lora_alpha": factor * config["lora_alpha"]}), encoding="utf-8")


def swap_the_labels(folder: Path, prompting: Prompting) -> None:
    path = folder / MANIFEST_FILE
    text = path.read_text(encoding="utf-8")
    tokens = {'yes = " yes"': 'yes = " no"', 'no = " no"': 'no = " yes"'}
    swapped = re.sub("|".join(map(re.escape, tokens)), lambda found: tokens[found[0]], text)
    assert swapped != text
    path.write_text(swapped, encoding="utf-8")


NOT_PEFTS, SILENT = "from PEFT's", "the adapter does nothing"

FAULTS: dict[str, tuple[Harm, str]] = {
    "zeroed_weights": (zero_the_weights, NOT_PEFTS),
    "trained_to_do_nothing": (zero_the_weights_and_vouch, SILENT),
    "adapter_of_another_classifier": (take_the_adapter_of_another_classifier, NOT_PEFTS),
    "trained_on_another_base": (train_on_another_base, NOT_PEFTS),
    "rank_exported_as_half": (double_alpha, NOT_PEFTS),
    "rank_exported_as_double": (halve_alpha, NOT_PEFTS),
    "labels_swapped": (swap_the_labels, NOT_PEFTS),
}
"""What is done to a classifier's folder, and what the gate says of it."""


def plant(shipped: Path, directory: Path, prompting: Prompting) -> None:
    """Make `directory` with the victim as shipped, and a copy of it with each fault."""
    (directory.parent / "shipped").symlink_to(shipped)
    for name in (VICTIM, *FAULTS):
        shutil.copytree(shipped / VICTIM, directory / name)
        (directory / name / CALIBRATION_FILE).unlink(missing_ok=True)
    for name, (harm, _) in FAULTS.items():
        harm(directory / name, prompting)


def vouch(folder: Path, prompting: Prompting, base: BaseModel) -> None:
    """Make its probes anew, as `fantail probes` does: by the adapter that is there, on this base."""
    found = classifier_in(folder, prompting)
    talks = [probe.conversation for probe in found.probes]
    (probes,) = make_probes(base, prompting.builder, {found.name: talks}, [found]).values()
    write_probes(folder, tuple(label.name for label in found.labels), probes)


def with_own_prompt(folder: Path, kind: AdapterKind, prompting: Prompting) -> Classifier:
    """Make a copied folder one of a classifier that was trained on a prompt of its own; says what is to be served."""
    (folder / FORMAT_FILE).write_text(SAME_INVOCATION, encoding="utf-8")
    (folder / CALIBRATION_FILE).unlink(missing_ok=True)
    if kind is AdapterKind.PLAIN:
        manifest, config = folder / MANIFEST_FILE, folder / "adapter" / CONFIG_FILE
        manifest.write_text(manifest.read_text(encoding="utf-8").replace('"activated"', '"plain"'), encoding="utf-8")
        values = json.loads(config.read_text(encoding="utf-8")) | {"alora_invocation_tokens": None}
        config.write_text(json.dumps(values), encoding="utf-8")
    vouch(folder, prompting, prompting.base)
    return classifier_in(folder, prompting)


def halved(folder: Path, prompting: Prompting) -> Classifier:
    """Change a classifier so that it answers otherwise, by half of its adapter, and prove it anew."""
    before = classifier_in(folder, prompting).probes[0].probabilities
    scale_alpha(folder, 0.5)
    (folder / "calibration.json").unlink()
    vouch(folder, prompting, prompting.base)
    changed = classifier_in(folder, prompting)
    assert max(abs(a - b) for a, b in zip(before, changed.probes[0].probabilities, strict=True)) > 0.02
    return changed


def classifier_in(folder: Path, prompting: Prompting) -> Classifier:
    found, problems = RegistryLoader(prompting.base, prompting.tokenizer, prompting.builder).load_one(folder)
    assert found is not None, problems
    return found
