"""What a start says of the classifiers that it withholds, around a fake engine."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from service import start
from service.engine.base import ScoringRequest, engine_adapter
from service.errors import EngineError, RegistryError
from service.gate import Gate
from service.registry.calibration import CALIBRATION_FILE
from service.registry.loader import RegistryLoader
from service.settings import Settings
from tests.deployment import ACTIVATED, TOLERANCE, serving
from tests.integration.harness import start_fake
from tests.support import CLASSIFIERS


@pytest.fixture
def settings(tmp_path: Path, make_classifier_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """`refund` has no probes, `topic` no adapter; every start of a real engine is one of a fake."""
    monkeypatch.setattr(start, "start_vllm", start_fake)
    shutil.copy(CLASSIFIERS / "prompt.toml", tmp_path)
    make_classifier_folder(tmp_path, "refund")
    make_classifier_folder(tmp_path, "topic", adapter="none", words="topic?")
    return Settings(classifiers=tmp_path)


async def test_the_log_says_who_is_withheld_and_why(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    async with start.start_classify(settings) as classify:
        assert classify.catalogue.current.serving_names == ("topic",)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "refund is withheld: it has no probes; run `fantail probes NAME`"
    ]


async def test_a_file_that_is_about_to_be_written_anew_may_be_broken(settings: Settings) -> None:
    (settings.classifiers / "topic" / CALIBRATION_FILE).write_text("{", encoding="utf-8")
    async with start.start_classify(settings, CALIBRATION_FILE) as classify:
        assert classify.catalogue.current.serving_names == ("topic",)
    with pytest.raises(RegistryError, match="topic: calibration"):
        async with start.start_classify(settings):
            pass


@pytest.mark.parametrize("disturbs", [False, True], ids=["leaves its neighbours alone", "disturbs a neighbour"])
async def test_a_further_revision_is_proven_beside_others_again_at_a_restart(
    tmp_path: Path, loader: RegistryLoader, disturbs: bool
) -> None:
    async with serving(tmp_path, loader, "ask", "bill", ACTIVATED) as served:
        own, further = served.current().revision, await served.load(2)
        await served.deployer.route(ACTIVATED, [(own, 60), (further, 40)], ())
        loaded = engine_adapter(served.catalogue.current.revision(ACTIVATED, further))
        served.engine.requests.clear()

        def fault(request: ScoringRequest) -> Exception | None:
            """The gate's own probes of another classifier go wrong once the further revision was asked."""
            met = any(each.adapter == loaded for each in served.engine.requests)
            is_neighbour = request.adapter is not None and request.adapter.name.startswith("bill@")
            return EngineError("No.") if disturbs and met and is_neighbour and request.priority >= 10 else None

        served.engine.fault = fault
        await start.prove(served.classify, Gate(loader.builder, served.engine, TOLERANCE))
        assert served.catalogue.current.shares(ACTIVATED) == ({own: 100} if disturbs else {own: 60, further: 40})
        assert served.catalogue.current.serving_names == ("ask", "bill", ACTIVATED)
