"""Commands of those who make classifiers: new, import, train, probes, calibrate, evaluate, gate."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from service.cli.common import configured, console
from service.errors import ConfigurationError

commands = typer.Typer()

MAX_REGRESSION = 0.005
"""Share of records by which a new revision's accuracy may fall."""

Names = Annotated[list[str] | None, typer.Argument(help="Which classifiers; default all.")]
Data = Annotated[
    list[Path] | None, typer.Option(help="JSON lines of labelled conversations; default CLASSIFIERS/data/*.jsonl.")
]


@commands.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the classifier and its folder.")],
    description: Annotated[str, typer.Option(help="What it decides, for people.")] = "Whether …",
    words: Annotated[str | None, typer.Option(help="The task's own words; default the name.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="A label, as NAME or NAME=TOKEN; repeatable.")] = None,
) -> None:
    """Make a classifier folder from a template; the base model answers it until it is trained."""
    from service.registry.folders import manifest_text, new_folder
    from service.registry.manifest import MANIFEST_FILE
    from service.start import load_prompting
    from service.workbench import require_valid

    settings = configured()
    prompting = load_prompting(settings)
    labels = _labels(label or ["yes", "no"])
    with new_folder(settings.classifiers, name) as folder:
        text = manifest_text(name, description, words or f" {name.replace('_', ' ')}?", labels)
        (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")
        require_valid(prompting, folder)
    console.print(
        f"{settings.classifiers / name} is made: edit {MANIFEST_FILE}, then `fantail train {name} --data FILE`"
    )


@commands.command(name="import")
def import_adapter(
    peft_folder: Annotated[Path, typer.Argument(help="Folder with adapter_config.json and adapter_model.safetensors.")],
    name: Annotated[str, typer.Argument(help="Name of the classifier and its folder.")],
    description: Annotated[str, typer.Option(help="What it decides, for people.")],
    words: Annotated[str, typer.Option(help="The words it was trained to answer after, last in its prompt.")],
    label: Annotated[list[str], typer.Option(help="A label, as NAME or NAME=TOKEN; repeatable.")],
    prompt: Annotated[
        Path | None,
        typer.Option(help="Its prompt format, if not CLASSIFIERS/prompt.toml, which tells the keys.", dir_okay=False),
    ] = None,
    data: Data = None,
) -> None:
    """Make a classifier folder around a plain or activated LoRA that PEFT has saved, with probes for the gate."""
    from service.registry.folders import copy_adapter, copy_prompt, manifest_text, new_folder
    from service.registry.manifest import MANIFEST_FILE
    from service.start import load_prompting
    from service.workbench import refresh_probes, require_valid

    settings = configured()
    prompting = load_prompting(settings)
    with new_folder(settings.classifiers, name) as folder:
        kind = copy_adapter(peft_folder, folder)
        if prompt is not None:
            copy_prompt(prompt, folder)
        text = manifest_text(name, description, words, _labels(label), kind)
        (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")
        require_valid(prompting, folder)
        refresh_probes(prompting, [folder], _files(settings.classifiers, data))
    console.print(
        f"{settings.classifiers / name} is made around its {kind.value} adapter; `fantail evaluate` measures it"
    )


@commands.command()
def train(
    classifiers: Names = None,
    data: Data = None,
    rank: Annotated[int, typer.Option(help="Rank of the adapters.", min=1)] = 4,
    epochs: Annotated[int, typer.Option(min=1)] = 4,
    learning_rate: Annotated[float, typer.Option()] = 1.5e-3,
    seed: Annotated[int, typer.Option()] = 7,
    base_dtype: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="Of products with the frozen weights; bfloat16 is faster on CPUs that have AMX."),
    ] = "float32",
) -> None:
    """Train adapters: activated ones all at once on one reading of each conversation. Resumes an interrupted run."""
    from service.start import load_prompting
    from service.training.loop import TrainingConfig
    from service.training.train import Training, digests_of, load_tasks, together
    from service.workbench import refresh_probes

    settings = configured()
    prompting = load_prompting(settings)
    tasks = load_tasks(settings.classifiers, classifiers or [], prompting.tokenizer, prompting.builder)
    files = _files(settings.classifiers, data)
    config = TrainingConfig(
        rank=rank, alpha=2.0 * rank, epochs=epochs, learning_rate=learning_rate, seed=seed, base_dtype=base_dtype
    )
    digests = digests_of(files)
    groups = [Training(prompting.base, group, files, digests, config, console) for group in together(tasks)]
    read = [group.records() for group in groups]  # what will not do is refused before the first hour is spent
    for group, records in zip(groups, read, strict=True):
        group.run(records)
        refresh_probes(prompting, [task.folder for task in group.tasks], files)
    for group in groups:
        group.forget()
    console.print("next: `fantail calibrate`, then `fantail evaluate`")


@commands.command()
def probes(classifiers: Names = None, data: Data = None) -> None:
    """Ask PEFT for the probes' reference answers; choose conversations for classifiers that have none."""
    from service.start import load_prompting
    from service.workbench import classifier_folders, refresh_probes

    settings = configured()
    prompting = load_prompting(settings)
    folders = classifier_folders(settings.classifiers, classifiers or [])
    made = refresh_probes(prompting, folders, _files(settings.classifiers, data))
    console.print(f"these have PEFT's answers of their present adapters: {', '.join(made)}")


@commands.command()
def calibrate(classifiers: Names = None, data: Data = None) -> None:
    """Fit calibration and thresholds on the calibration split, asked through the serving path."""
    from service.workbench import calibrate

    settings = configured()
    table = Table(title="calibration split: error of confidence, by folds that the fit had not seen")
    for column in ("classifier", "records", "ECE raw", "ECE", "Brier raw", "Brier", "thresholds", "targets missed"):
        table.add_column(
            column, justify="left" if column in ("classifier", "thresholds", "targets missed") else "right"
        )
    for name, fitted in asyncio.run(
        calibrate(settings, classifiers or [], _files(settings.classifiers, data), console)
    ).items():
        facts = fitted.facts
        table.add_row(
            name,
            str(facts["records"]),
            *(f"{facts[measure][when]:.3f}" for measure in ("ece", "brier") for when in ("raw", "calibrated")),
            ", ".join(f"{threshold:.2f}" for threshold in fitted.calibration.thresholds if threshold > 0),
            ", ".join(fitted.missed),
        )
    console.print(table)


@commands.command()
def evaluate(
    data: Annotated[
        list[Path] | None, typer.Argument(help="JSON lines; default CLASSIFIERS/data/*.jsonl, its test split.")
    ] = None,
    classifier: Annotated[list[str] | None, typer.Option(help="Only this one; repeatable.")] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, dev, calibration, test or all; default all of DATA, of which nothing was trained on."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for predictions.json, evaluation.json and report.html.")] = Path(
        "evaluation"
    ),
    baseline: Annotated[list[str] | None, typer.Option(help="zero-shot, TF-IDF or MiniLM; repeatable.")] = None,
    beside: Annotated[
        list[str] | None, typer.Option(help="NAME=predictions.json of another run to show beside; repeatable.")
    ] = None,
    cards: Annotated[bool, typer.Option(help="Write CARD.md into the classifiers' folders.")] = False,
) -> None:
    """Ask the classifiers about labelled conversations through the serving path; write measures and a report."""
    from service.registry.folders import trained_on
    from service.workbench import EvaluationPlan, classifier_folders, evaluate

    settings = configured()
    files = _files(settings.classifiers, data)
    asked = classifier_folders(settings.classifiers, classifier or [])
    if data and split is None and (learnt := trained_on(asked, files)):
        why = f"as adapters were trained on {', '.join(learnt)}"
        console.print(f"only the test split is asked, {why}; for everything say --split all")
        split = "test"
    plan = EvaluationPlan(
        files=files,
        split=split or ("all" if data else "test"),
        names=tuple(classifier or ()),
        output=output,
        baselines=_baselines(baseline or []),
        beside=dict(_pair(each) for each in beside or []),
        cards=cards,
    )
    found = asyncio.run(evaluate(settings, plan, console))
    table = Table(title=f"{plan.split} records: means over classifiers")
    for column in ("system", "accuracy", "macro-F1", "AUC", "ECE", "Brier", "classifiers"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for system, means in found["means"].items():
        cells = [means[key] for key in ("accuracy", "macro_f1", "auc", "ece", "brier")]
        table.add_row(system, *("–" if cell is None else f"{cell:.3f}" for cell in cells), str(means["classifiers"]))
    console.print(table)
    console.print(f"the report: {output / 'report.html'}")


@commands.command()
def gate(
    old: Annotated[Path, typer.Argument(help="Folder of classifiers, or predictions.json of one.")],
    new: Annotated[Path, typer.Argument(help="The same of what is to take its place.")],
    data: Data = None,
    classifier: Annotated[list[str] | None, typer.Option(help="Only this one; repeatable. Default all.")] = None,
    split: Annotated[str, typer.Option(help="Which split of the data is asked.")] = "test",
    tolerance: Annotated[float, typer.Option(help="Share of records by which accuracy may fall.")] = MAX_REGRESSION,
    changes: Annotated[Path | None, typer.Option(help="Write the changed records as JSON.")] = None,
) -> None:
    """Compare two revisions on the same records; exit 1 when any classifier answers fewer rightly."""
    from service.files import write_whole
    from service.workbench import compare_revisions

    settings = configured()
    files = _files(settings.classifiers, data)
    compared = asyncio.run(compare_revisions(settings, old, new, files, split, console, classifier or ()))
    table = Table(title="old and new on the same records")
    for column in ("classifier", "records", "old", "new", "mended", "broken", "changed", "p", ""):
        table.add_column(column, justify="left" if column == "classifier" else "right")
    for each in compared:
        worse = each.regression > tolerance
        table.add_row(
            each.classifier,
            str(each.records),
            f"{each.old_accuracy:.3f}",
            f"{each.new_accuracy:.3f}",
            str(len(each.mended)),
            str(len(each.broken)),
            str(len(each.changed)),
            f"{each.p_value:.3f}",
            "[red]worse[/]" if worse else "",
        )
    console.print(table)
    if changes is not None:
        listed = {
            each.classifier: {"mended": each.mended, "broken": each.broken, "changed": each.changed}
            for each in compared
        }
        write_whole(changes, json.dumps(listed, indent=1) + "\n")
    worse_ones = [each for each in compared if each.regression > tolerance]
    for each in worse_ones:
        console.print(f"{each.classifier}: now wrong or abstained on {', '.join(each.broken)}")
    if worse_ones:
        raise typer.Exit(1)


def _labels(options: list[str]) -> dict[str, str]:
    """NAME or NAME=TOKEN; a name alone is scored by the token that spells it after a blank."""
    return dict(
        (name, token) if given else (name, f" {name}") for name, given, token in (o.partition("=") for o in options)
    )


def _baselines(names: list[str]) -> tuple[str, ...]:
    from service.evaluation.baselines import TEXT_BASELINES, ZERO_SHOT

    if unknown := sorted(set(names) - {ZERO_SHOT, *TEXT_BASELINES}):
        raise typer.BadParameter(f"{unknown} are no baselines; there are {ZERO_SHOT}, {', '.join(TEXT_BASELINES)}")
    return tuple(names)


def _pair(option: str) -> tuple[str, Path]:
    name, given, path = option.partition("=")
    if not given:
        raise typer.BadParameter(f"{option!r} is not NAME=PATH")
    return name, Path(path)


def _files(classifiers: Path, data: list[Path] | None) -> tuple[Path, ...]:
    """The given files, or the ones shipped beside the classifiers. Raises ConfigurationError when there is none."""
    files = tuple(data or sorted((classifiers / "data").glob("*.jsonl")))
    if missing := [str(path) for path in files if not path.is_file()]:
        raise ConfigurationError(f"no such file: {', '.join(missing)}")
    if not files:
        raise ConfigurationError(f"{classifiers / 'data'} has no *.jsonl; name the data")
    return files
