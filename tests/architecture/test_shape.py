"""The shape of the files: each fits in one reading and says in its first line what it is."""

from __future__ import annotations

import ast
from pathlib import PurePosixPath

from tests.architecture.source import sources

MAX_LINES = 300
EVERY = sources("service", "loadtest", "tools", "tests")


def test_every_file_fits_in_one_reading() -> None:
    lines = {source.path: len(source.text.splitlines()) for source in EVERY}
    assert len(lines) > 50
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}


def test_every_module_says_what_it_is() -> None:
    assert [source.path for source in EVERY if not (ast.get_docstring(source.tree) or "").strip()] == []


def test_no_module_is_named_like_a_library_that_it_imports() -> None:
    imported = {source.path: {name.split(".")[0] for name in source.imports} for source in EVERY}
    assert [path for path, libraries in imported.items() if PurePosixPath(path).stem in libraries] == []
