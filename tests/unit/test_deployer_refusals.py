"""What cannot be served changes nothing: whatever answered before still does, and the refusal says why."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service.engine.base import EngineAdapter
from service.errors import EngineError, RevisionRefusedError
from service.registry.loader import RegistryLoader
from service.revisions import ReloadOutcome
from tests.deployment import ACTIVATED, BARE, PLAIN, Served, calibrate, change_adapter, change_manifest, serving
from tests.deployment import write_probe as probe
from tests.support import talk
from tests.unit.shifting_engine import asked_as

Spoil = Callable[[Path], object]


def write(name: str, text: str) -> Spoil:
    return lambda folder: (folder / name).write_text(text)


def remove(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def cut_short(folder: Path) -> None:
    weights = folder / "adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def manifest_becomes_a_folder(folder: Path) -> None:
    (folder / "classifier.toml").unlink()
    (folder / "classifier.toml").mkdir()


BROKEN: dict[str, tuple[Spoil, str]] = {
    "no manifest": (remove("classifier.toml"), "classifier.toml is missing"),
    "malformed manifest": (write("classifier.toml", "words ="), "classifier.toml is not valid TOML"),
    "a folder for a manifest": (manifest_becomes_a_folder, "the folder cannot be read: Is a directory"),
    "unknown key": (lambda folder: change_manifest(folder, wrods="x"), "classifier.toml: wrods: unknown key"),
    "a label of two tokens": (
        lambda folder: change_manifest(folder, labels={"yes": " yes no", "no": " no"}), "is not a single token after"
    ),
    "another kind": (lambda folder: change_manifest(folder, adapter="plain"), "the manifest says adapter = 'plain'"),
    "no adapter": (lambda folder: shutil.rmtree(folder / "adapter"), "there is no folder adapter/"),
    "another base": (
        lambda folder: change_adapter(folder, base_model_name_or_path="other"), "trained on 'other', served on"
    ),
    "another rank": (lambda folder: change_adapter(folder, r=3), "expected [3, "),
    "weights cut short": (cut_short, "adapter_model.safetensors cannot be read"),
    "an alpha that no float holds": (
        lambda folder: change_adapter(folder, lora_alpha=10**400), "lora_alpha is 1000"
    ),
    "a config nested too deep": (
        write("adapter/adapter_config.json", "[" * 100_000), "adapter_config.json is not valid JSON"
    ),
    "a manifest nested too deep": (
        write("classifier.toml", "x = " + "[" * 100_000), "classifier.toml is not valid TOML"
    ),
    "a number of too many digits": (write("classifier.toml", "x = " + "9" * 5000), "classifier.toml is not valid TOML"),
    "malformed probes": (write("probes.jsonl", "{"), "probes.jsonl:1: "),
    "malformed calibration": (write("calibration.json", "{"), "calibration.json is not valid JSON"),
    "a calibration of another": (
        write("calibration.json", '{"fitted_for": "0", "scale": 1, "bias": {"yes": 0, "no": 0}}'),
        "calibration.json was fitted for another adapter",
    ),
    "targets without calibration": (
        lambda folder: change_manifest(folder, **{"targets.yes": {"precision": 0.9}}),
        "its targets need a calibration.json",
    ),
    "a link that leads outside": (lambda folder: (folder / "x").symlink_to("/etc/passwd"), " leads out of "),
    "a link to nowhere": (lambda folder: (folder / "x").symlink_to("nowhere"), "a file or link in it cannot be copied"),
    "no probes": (remove("probes.jsonl"), "it has no probes"),
    "another answer than PEFT's": (lambda folder: probe(folder, (0.62, 0.18)), "probe 1: the engine's log prob"),
}  # fmt: skip
SPOILT = pytest.mark.parametrize(("spoil", "says"), BROKEN.values(), ids=BROKEN)


@pytest.fixture
async def served(tmp_path: Path, loader: RegistryLoader) -> AsyncIterator[Served]:
    async with serving(tmp_path, loader) as found:
        yield found


async def require_refused(served: Served, says: str, name: str = ACTIVATED) -> None:
    """Reload; `name` and nothing else must be refused, and everything must be as it was."""
    before = served.catalogue.current
    revision = before.classifiers[name].revision if name in before.classifiers else ""
    (result,) = await served.deployer.reload()
    assert (result.classifier, result.outcome) == (name, ReloadOutcome.REFUSED)
    assert (result.revision, result.previous_revision) == (revision, revision)
    assert says in "; ".join(result.problems)
    assert served.catalogue.current is before
    served.require_tidy()


async def require_answers(served: Served) -> None:
    """Every classifier must answer at the revision that is served."""
    answers = await served.classify.fan_out(talk("hi"), ())
    assert {name: outcome.revision for name, outcome in answers.results} == {  # type: ignore[union-attr]
        name: each.revision for name, each in served.catalogue.current.classifiers.items()
    }


@SPOILT
async def test_a_changed_folder_that_cannot_be_served_is_refused(served: Served, spoil: Spoil, says: str) -> None:
    served.write(number=2)
    spoil(served.classifiers / ACTIVATED)
    await require_refused(served, says)
    await require_answers(served)


@SPOILT
async def test_a_change_of_the_same_adapter_that_cannot_be_served_is_refused(
    served: Served, spoil: Spoil, says: str
) -> None:
    spoil(served.classifiers / ACTIVATED)
    await require_refused(served, says)
    await require_answers(served)


@SPOILT
async def test_a_new_folder_that_cannot_be_served_is_refused(served: Served, spoil: Spoil, says: str) -> None:
    spoil(served.write("spam"))
    await require_refused(served, says, "spam")


@SPOILT
async def test_a_candidate_that_cannot_be_served_is_refused(served: Served, spoil: Spoil, says: str) -> None:
    before = served.catalogue.current
    candidate = served.candidate(2)
    spoil(served.candidates / candidate)
    with pytest.raises(RevisionRefusedError) as caught:
        await served.deployer.load(ACTIVATED, candidate)
    assert says in caught.value.message
    assert caught.value.metadata == {"classifier": ACTIVATED}
    assert served.catalogue.current is before
    served.require_tidy()
    await require_answers(served)


async def test_a_calibration_that_went_stale_is_refused(served: Served) -> None:
    calibrate(served.loader, served.classifiers / ACTIVATED)
    await served.deployer.reload()
    change_adapter(served.classifiers / ACTIVATED, lora_alpha=9)
    await require_refused(served, "calibration.json was fitted for another adapter")


async def test_one_without_adapter_that_gives_no_answer_is_refused(served: Served) -> None:
    change_manifest(served.classifiers / BARE, words="another question?")
    tail = served.loader.builder.tail("another question?")
    served.engine.fault = lambda request: EngineError("No.") if request.token_ids[-len(tail) :] == tail else None
    await require_refused(served, "No.", BARE)
    await require_answers(served)


async def test_all_problems_of_a_folder_are_said(served: Served) -> None:
    change_manifest(served.classifiers / ACTIVATED, labels={"yes": " yes no", "no": " no"})
    write("probes.jsonl", "{\n{")(served.classifiers / ACTIVATED)
    (result,) = await served.deployer.reload()
    assert len(result.problems) == 3


async def test_one_that_is_refused_does_not_keep_the_others(served: Served) -> None:
    remove("classifier.toml")(served.classifiers / PLAIN)
    change_manifest(served.classifiers / ACTIVATED, description="Another.")
    shutil.rmtree(served.classifiers / BARE)
    outcomes = [(each.classifier, each.outcome.value) for each in await served.deployer.reload()]
    assert outcomes == [(PLAIN, "refused"), (ACTIVATED, "loaded"), (BARE, "removed")]
    served.require_tidy()


async def test_one_that_is_withheld_and_refused_has_no_revision_that_answers(served: Served) -> None:
    served.catalogue.replace(served.catalogue.current.without({ACTIVATED: "The engine was not well."}))
    remove("classifier.toml")(served.classifiers / ACTIVATED)
    (result,) = await served.deployer.reload()
    assert (result.revision, result.previous_revision) == ("", "")


@pytest.mark.parametrize("name", ["Spam", "1spam", "s-pam", "s" * 65])
async def test_a_folder_whose_name_is_no_classifiers_is_refused(served: Served, name: str) -> None:
    served.write(name)
    await require_refused(served, "a classifier's folder name is 1 to 64 of a-z", name)


async def test_a_change_that_the_engine_has_no_room_for_is_refused(served: Served) -> None:
    def unfit(adapter: EngineAdapter) -> Exception | None:
        return EngineError("The engine has room for 2 adapters.") if len(served.engine.loaded) == 2 else None

    served.engine.unfit = unfit
    change_adapter(served.classifiers / ACTIVATED, lora_alpha=9)
    await require_refused(served, "The engine has room for 2 adapters.")
    await require_answers(served)


async def test_a_change_that_does_nothing_is_refused(served: Served) -> None:
    served.engine.favour = lambda request: 0
    change_adapter(served.classifiers / ACTIVATED, lora_alpha=9)
    await require_refused(served, "the adapter does nothing")


async def test_a_change_beside_which_another_goes_wrong_is_refused(served: Served) -> None:
    served.engine.fault = lambda request: EngineError("It is lost.") if asked_as(request) == PLAIN else None
    change_adapter(served.classifiers / ACTIVATED, lora_alpha=9)
    await require_refused(served, "beside it fraud goes wrong: It is lost.")


async def test_a_change_beside_which_its_predecessor_goes_wrong_is_refused(served: Served) -> None:
    old = served.adapter()
    served.engine.fault = lambda request: (
        EngineError("It is lost.") if request.adapter and request.adapter.name == old else None
    )
    change_adapter(served.classifiers / ACTIVATED, lora_alpha=9)
    await require_refused(served, "beside it refund goes wrong: It is lost.")


@pytest.mark.parametrize("name", [ACTIVATED, PLAIN])
async def test_a_change_while_the_engine_is_dead_is_refused(served: Served, name: str) -> None:
    served.engine.dead = True
    change_adapter(served.classifiers / name, lora_alpha=9)
    await require_refused(served, "The engine is not running.", name)


async def test_a_change_that_was_refused_takes_over_once_nothing_speaks_against_it(served: Served) -> None:
    served.engine.dead = True
    change_adapter(served.classifiers / ACTIVATED, lora_alpha=9)
    await served.deployer.reload()
    served.engine.dead = False
    assert [each.outcome for each in await served.deployer.reload()] == [ReloadOutcome.LOADED]
    await require_answers(served)
    served.require_tidy()


async def test_the_last_classifier_stays_when_its_folder_is_gone(tmp_path: Path, loader: RegistryLoader) -> None:
    async with serving(tmp_path, loader, ACTIVATED) as served:
        shutil.rmtree(served.classifiers / ACTIVATED)
        await require_refused(served, "there are no classifier folders at all; is a mount lost?")
        await require_answers(served)


async def test_a_server_keeps_every_classifier_when_all_folders_are_gone(served: Served) -> None:
    shutil.rmtree(served.classifiers)
    outcomes = [each.outcome.value for each in await served.deployer.reload()]
    assert outcomes == ["refused", "refused", "refused"]
    served.require_tidy()


async def test_the_last_one_stays_when_what_should_replace_it_is_refused(
    tmp_path: Path, loader: RegistryLoader
) -> None:
    async with serving(tmp_path, loader, ACTIVATED) as served:
        (served.classifiers / ACTIVATED).rename(served.classifiers / "broken")
        remove("probes.jsonl")(served.classifiers / "broken")
        refused = {each.classifier: each.problems for each in await served.deployer.reload()}
        assert refused.keys() == {ACTIVATED, "broken"}
        assert "nothing else would be left" in refused[ACTIVATED][0]
        await require_answers(served)


async def test_the_last_one_goes_once_another_has_come(tmp_path: Path, loader: RegistryLoader) -> None:
    async with serving(tmp_path, loader, ACTIVATED) as served:
        (served.classifiers / ACTIVATED).rename(served.classifiers / "zealous")
        outcomes = {each.classifier: each.outcome for each in await served.deployer.reload()}
        assert outcomes == {"zealous": ReloadOutcome.LOADED, ACTIVATED: ReloadOutcome.REMOVED}


async def test_a_folder_that_is_gone_while_the_engine_is_dead_takes_nothing_away(served: Served) -> None:
    shutil.rmtree(served.classifiers / PLAIN)
    served.engine.dead = True
    (result,) = await served.deployer.reload([PLAIN])
    assert (result.classifier, result.outcome) == (PLAIN, ReloadOutcome.REFUSED)
    assert PLAIN in served.catalogue.current.classifiers
