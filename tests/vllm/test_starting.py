"""The engine refuses to serve what it could only answer wrongly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.engine.vllm_engine import VllmConfig, start_vllm
from service.errors import PluginInactiveError

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


async def test_an_engine_process_without_the_plugin_is_refused(
    engine_config: VllmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "something_else")
    with pytest.raises(PluginInactiveError, match="did not load Fantail's vLLM plugin"):
        async with start_vllm(replace(engine_config, adapters=engine_config.adapters[:1])):
            pytest.fail("it served")
