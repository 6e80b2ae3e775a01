"""The import law of the design: which part may know which library, and which other part."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.source import Source, is_third_party, is_within, sources
from tests.support import REPOSITORY

SERVICE = sources("service")

ONLY_IN = {
    "grpc": (("grpc", "grpc_health", "grpc_reflection", "grpc_status"), ("service/api/", "service/client/")),
    "vllm": (("vllm",), ("service/engine/vllm_engine.py", "service/vllm_plugin/")),
    "peft": (("peft",), ("service/training/",)),
    "prometheus": (("prometheus_client",), ("service/metrics.py",)),
    "opentelemetry": (("opentelemetry",), ("service/tracing.py",)),
    "what reports need": (("jinja2", "matplotlib", "sklearn"), ("service/evaluation/",)),
}

KEEPS_TO = {
    "scoring": ("service/scoring/", ("service.scoring",), ("numpy",)),
    "client": ("service/client/", ("service.client", "service.pb"), ("grpc", "google")),
    "vllm_plugin": ("service/vllm_plugin/", ("service.vllm_plugin",), ("vllm", "torch", "numpy", "numba", "msgspec")),
    "domain": ("service/domain.py", (), ()),
    "errors": ("service/errors.py", (), ()),
}

NOT_LOADED_BY = {
    "service.client": ("numpy", "torch", "pydantic", "tokenizers", "vllm"),
    "service.classify": ("grpc", "vllm", "torch", "service.pb", "service.api"),
    "service.gate": ("grpc", "vllm", "torch", "service.pb", "service.api"),
    "service.settings": ("grpc", "torch", "transformers", "vllm"),
    "service.cli": ("torch", "transformers", "vllm"),
}


def test_the_law_is_read_from_real_files() -> None:
    paths = {source.path for source in SERVICE}
    assert {"service/classify.py", "service/api/server.py", "service/vllm_plugin/ledger.py"} <= paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("import vllm.lora", {"vllm.lora"}, id="import"),
        pytest.param("from vllm import LLM, x as y", {"vllm.LLM", "vllm.x"}, id="from"),
        pytest.param("def f():\n    import vllm", {"vllm"}, id="inside a function"),
        pytest.param("if TYPE_CHECKING:\n    import vllm", {"vllm"}, id="for types only"),
        pytest.param("from . import status", {"service.api.status"}, id="relative"),
        pytest.param("from .status import TABLE", {"service.api.status.TABLE"}, id="relative module"),
        pytest.param("from ..errors import X", {"service.errors.X"}, id="relative from above"),
        pytest.param("importlib.import_module('vllm')", {"vllm"}, id="by name"),
        pytest.param("__import__('vllm')", {"vllm"}, id="by the builtin"),
        pytest.param("print('import vllm')", set(), id="a text is no import"),
    ],
)
def test_an_import_is_found_wherever_it_stands(text: str, expected: set[str]) -> None:
    assert Source("service/api/example.py", text).imports == expected


@pytest.mark.parametrize(("libraries", "places"), ONLY_IN.values(), ids=ONLY_IN)
def test_a_library_is_imported_only_where_the_law_allows(libraries: tuple[str, ...], places: tuple[str, ...]) -> None:
    importers = {s.path for s in SERVICE for name in s.imports if any(is_within(name, each) for each in libraries)}
    assert importers, "the law is about a library that nobody imports"
    assert {path for path in importers if not path.startswith(places)} == set()


@pytest.mark.parametrize(("place", "ours", "libraries"), KEEPS_TO.values(), ids=KEEPS_TO)
def test_a_part_imports_nothing_but_what_the_law_allows(
    place: str, ours: tuple[str, ...], libraries: tuple[str, ...]
) -> None:
    files = [source for source in SERVICE if source.path.startswith(place)]
    assert files, f"{place} has no files"
    imported = {(source.path, name) for source in files for name in source.imports}
    relevant = {(p, name) for p, name in imported if is_third_party(name) or is_within(name, "service")}
    allowed = (*ours, *libraries)
    assert {(p, name) for p, name in relevant if not any(is_within(name, each) for each in allowed)} == set()


def test_the_package_itself_imports_nothing() -> None:
    (package,) = [source for source in SERVICE if source.path == "service/__init__.py"]
    assert package.imports == set()


def test_the_load_test_uses_the_client_alone() -> None:
    files = [each for each in sources("loadtest") if not each.path.startswith("loadtest/baselines/")]
    ours = {(each.path, name) for each in files for name in each.imports if is_within(name, "service")}
    assert {(path, name) for path, name in ours if not is_within(name, "service.client")} == set()


@pytest.mark.parametrize("place", ["service/training/", "service/start.py"])
def test_training_and_serving_share_the_prompt(place: str) -> None:
    imported = {name for source in SERVICE if source.path.startswith(place) for name in source.imports}
    assert any(is_within(name, "service.prompt.builder") for name in imported)


@pytest.mark.parametrize(("module", "unwanted"), NOT_LOADED_BY.items(), ids=NOT_LOADED_BY)
def test_importing_a_part_does_not_load_what_it_must_not_know(module: str, unwanted: tuple[str, ...]) -> None:
    loaded = modules_loaded_by(module)
    assert module in loaded
    assert {name for name in loaded if any(is_within(name, root) for root in unwanted)} == set()


def test_importing_the_package_loads_nothing_else() -> None:
    assert {name for name in modules_loaded_by("service") if is_within(name, "service")} == {"service"}


def modules_loaded_by(module: str) -> set[str]:
    """What a fresh interpreter has loaded after importing `module`."""
    program = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return set(done.stdout.split())
