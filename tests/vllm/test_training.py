"""Training on one reading of each conversation computes what PEFT does, resumes exactly, exports what it trained."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from service.cli import app
from service.domain import AdapterKind, Classifier
from service.registry.adapter import load_adapter
from service.registry.loader import RegistryLoader
from service.start import Prompting
from service.training import export
from service.training import train as module
from service.training.export import export_adapter
from service.training.fan import Fan
from service.training.loop import Example, Trainer, TrainingConfig
from service.training.plain import PlainFan
from service.training.probes import PROBES
from tests.support import SAME_INVOCATION
from tests.vllm.comparing import conversation_of
from tests.vllm.conftest import ROOT, Strangers

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

CONFIG = TrainingConfig(rank=2, alpha=4, target_modules=("q_proj", "down_proj"), epochs=2, batch=2, dropout=0.0)
WORDS = ("human?", "resolved?", "x")


@pytest.fixture
def fan(prompting: Prompting) -> Fan:
    """Three tails of unlike length with random adapters."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(prompting.base.path, dtype=torch.float32)
    tails = [prompting.builder.tail(words) for words in WORDS]
    fan = Fan(model, tails, CONFIG.target_modules, CONFIG.rank, CONFIG.alpha)
    with torch.no_grad():
        for layer in fan.layers.values():
            layer.b.normal_(std=0.05)
    return fan


def prefixes(prompting: Prompting, *lengths: int) -> list[tuple[int, ...]]:
    return [prompting.builder.prefix(conversation_of(prompting.builder, length)).token_ids for length in lengths]


def test_tails_side_by_side_answer_as_each_adapter_alone_in_peft(
    fan: Fan, prompting: Prompting, tmp_path: Path
) -> None:
    both = prefixes(prompting, 30, 100)
    with torch.no_grad():
        together = fan([fan.read(prefix) for prefix in both])
    model = AutoModelForCausalLM.from_pretrained(prompting.base.path, dtype=torch.float32)
    for index, words in enumerate(WORDS):
        export_adapter(
            fan, index, tmp_path, CONFIG, prompting.base.name, prompting.builder.invocation_ids, record={"curve": []}
        )
        adapter, problems = load_adapter(
            tmp_path / "adapter", AdapterKind.ACTIVATED, prompting.base, prompting.builder.invocation_ids
        )
        assert adapter is not None, problems
        alone = PeftModel.from_pretrained(model, adapter.path)
        for row, prefix in enumerate(both):
            with torch.no_grad():
                wanted = alone(input_ids=torch.tensor([prefix + prompting.builder.tail(words)])).logits[0, -1]
            # half-precision KV and adapters: logits of size 20 agree to a few thousandths
            assert torch.allclose(together[row, index].softmax(-1), wanted.softmax(-1), atol=2e-3)
        model = alone.unload()


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(prompting: Prompting, tmp_path: Path) -> None:
    def run(checkpoint: Path, stop_after: int | None) -> list[torch.Tensor]:
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_pretrained(prompting.base.path, dtype=torch.float32)
        tails = [prompting.builder.tail("human?")]
        fan = Fan(model, tails, CONFIG.target_modules, CONFIG.rank, CONFIG.alpha, dropout=0.05)
        examples = [
            Example(fan.read(prefix), torch.tensor([target]))
            for prefix, target in zip(prefixes(prompting, 20, 40, 60, 80), (9805, 787, 9805, 787), strict=True)
        ]
        trainer = Trainer(fan, [(9805, 787)], CONFIG, checkpoint)
        seen = 0

        def interrupt(scores: object) -> None:
            nonlocal seen
            seen += 1
            if seen == stop_after:
                raise KeyboardInterrupt

        trainer.run(examples[:3], examples[3:], lambda done: None, interrupt)
        return [parameter.detach().clone() for parameter in trainer.parameters]

    whole = run(tmp_path / "whole.pt", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut.pt", 1)
    resumed = run(tmp_path / "cut.pt", None)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, resumed, strict=True))


def test_a_plain_adapter_answers_as_in_peft(prompting: Prompting, tmp_path: Path) -> None:
    torch.manual_seed(3)
    base = prompting.base
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    tail = prompting.builder.tail("human?")
    fan = PlainFan(model, tail, CONFIG.target_modules, CONFIG.rank, CONFIG.alpha)
    both = prefixes(prompting, 30, 100)
    with torch.no_grad():
        for layer in fan.layers.values():
            layer.b.normal_(std=0.05)
        answers = fan([fan.read(prefix) for prefix in both])[:, 0]
    export_adapter(fan, 0, tmp_path, CONFIG, base.name, None, record={"curve": []})
    adapter, problems = load_adapter(tmp_path / "adapter", AdapterKind.PLAIN, base, prompting.builder.invocation_ids)
    assert adapter is not None, problems
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    alone = PeftModel.from_pretrained(model, adapter.path)
    for answer, prefix in zip(answers, both, strict=True):
        with torch.no_grad():
            wanted = alone(input_ids=torch.tensor([prefix + tail])).logits[0, -1]
        assert torch.allclose(answer.softmax(-1), wanted.softmax(-1), atol=2e-3)


@pytest.mark.parametrize(
    ("kind", "has_prompt"),
    [("plain", False), ("activated", False), ("plain", True), ("activated", True)],
    ids=["plain", "activated", "plain with its prompt", "activated with its prompt"],
)
def test_an_imported_adapter_becomes_a_servable_folder_with_probes(
    prompting: Prompting,
    strangers: Strangers,
    tmp_path: Path,
    kind: str,
    has_prompt: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copy(ROOT / "classifiers" / "prompt.toml", tmp_path)
    monkeypatch.setenv("FANTAIL_CLASSIFIERS", str(tmp_path))
    folder = getattr(strangers, kind).adapter.path
    options = ["--description", "Whether it helped.", "--words", "helped?", "--label", "yes", "--label", "no"]
    if has_prompt:
        (tmp_path / "theirs.toml").write_text(SAME_INVOCATION)
        options += ["--prompt", str(tmp_path / "theirs.toml")]
    data = ROOT / "classifiers" / "data" / "bank.jsonl"
    done = CliRunner().invoke(app, ["import", str(folder), "helped", *options, "--data", str(data)])
    assert done.exit_code == 0, done.output
    loader = RegistryLoader(prompting.base, prompting.tokenizer, prompting.builder)
    classifier = loader.load(tmp_path).get("helped")
    assert classifier.adapter is not None
    assert classifier.adapter.kind == kind
    assert len(classifier.probes) == PROBES
    assert (classifier.own_prompt is not None) == has_prompt


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A classifier of one's own, `refund_request`, that is not trained yet, beside its data in `own.jsonl`."""
    classifiers = tmp_path / "classifiers"
    classifiers.mkdir()
    shutil.copy(ROOT / "classifiers" / "prompt.toml", classifiers)
    monkeypatch.setenv("FANTAIL_CLASSIFIERS", str(classifiers))
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")
    lines = (ROOT / "classifiers" / "data" / "bank.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "own.jsonl").write_text("\n".join(lines[:24]) + "\n", encoding="utf-8")
    made = CliRunner().invoke(app, ["new", "refund_request", "--words", "refund?", "--label", "yes", "--label", "no"])
    assert made.exit_code == 0, made.output
    return classifiers


def train(own: Path, *options: str) -> Result:
    command = ["train", "refund_request", "--data", str(own.parent / "own.jsonl"), "--rank", "2", *options]
    return CliRunner().invoke(app, command)


def test_a_classifier_of_ones_own_is_made_trained_on_ones_own_data_and_servable(
    prompting: Prompting, own: Path
) -> None:
    trained = train(own, "--epochs", "1")
    assert trained.exit_code == 0, trained.output
    assert all(bar in trained.output for bar in ("reading with the base model", "training"))
    found = RegistryLoader(prompting.base, prompting.tokenizer, prompting.builder).load(own)
    classifier = found.get("refund_request")
    assert (found.serving_names, classifier.flaw) == (("refund_request",), None)
    assert classifier.adapter is not None
    assert (classifier.adapter.kind, classifier.adapter.rank) == (AdapterKind.ACTIVATED, 2)
    assert classifier.probes
    record = json.loads((own / "refund_request" / "training.json").read_text())
    assert record["data"] == {"own.jsonl": hashlib.sha256((own.parent / "own.jsonl").read_bytes()).hexdigest()}
    assert record["records"]["train"] + record["records"]["dev"] < 24
    assert record["versions"].keys() == {"torch", "transformers", "peft", "python"}
    assert len(record["curve"]) == 1
    assert record["took"]["seconds"] > 0


def test_an_interrupted_training_goes_on_where_it_was(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, epochs = Trainer._save, []

    def interrupted(trainer: Trainer) -> None:
        save(trainer)
        epochs.append(len(trainer.curve))
        if epochs == [1]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save", interrupted)
    assert train(own, "--epochs", "2").exit_code != 0
    assert train(own, "--epochs", "2").exit_code == 0
    assert epochs == [1, 2]
    assert not list((own.parent / "cache").rglob("checkpoint.pt"))


def test_an_adapter_that_is_exported_otherwise_than_it_was_trained_is_refused(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LoraConfig", lambda lora_alpha, **rest: LoraConfig(lora_alpha=2 * lora_alpha, **rest))
    refused = train(own, "--epochs", "2", "--learning-rate", "0.05")
    assert refused.exit_code != 0
    assert "refund_request: PEFT answers otherwise from the exported adapter" in str(refused.exception)
    assert not (own / "refund_request" / "probes.jsonl").exists()


def test_all_shipped_adapters_together_stay_under_60_megabytes(classifiers: tuple[Classifier, ...]) -> None:
    sizes = [
        (classifier.adapter.path / "adapter_model.safetensors").stat().st_size
        for classifier in classifiers
        if classifier.adapter
    ]
    assert len(sizes) == 16
    assert sum(sizes) < 60e6
