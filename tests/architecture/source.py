"""Reads the repository's Python files as text and syntax trees; imports none of them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tests.support import REPOSITORY

LOADERS = frozenset({"import_module", "__import__"})
"""Calls that import what their first argument names."""


@dataclass(frozen=True)
class Source:
    """A Python file. `path`: relative to the repository, with `/`."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def imports(self) -> frozenset[str]:
        """Dotted names of everything imported anywhere in the file, the imported name included."""
        return frozenset(name for node in ast.walk(self.tree) for name in _imported(node, self._package))

    @property
    def _package(self) -> tuple[str, ...]:
        return PurePosixPath(self.path).parent.parts


def sources(*folders: str) -> list[Source]:
    """Every hand-written Python file under the folders; the code that protoc generates is left out."""
    files = sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))
    return [_source(path) for path in files if "_pb2" not in path.name]


def is_within(name: str, root: str) -> bool:
    """Whether a dotted name is `root` or lies below it."""
    return name == root or name.startswith(f"{root}.")


def is_third_party(name: str) -> bool:
    """Whether a dotted name belongs neither to Python nor to this repository."""
    top = name.split(".")[0]
    return top not in sys.stdlib_module_names and top not in {"service", "loadtest", "tools", "tests"}


def _source(path: Path) -> Source:
    return Source(path.relative_to(REPOSITORY).as_posix(), path.read_text(encoding="utf-8"))


def _imported(node: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (each.name for each in names)
        case ast.ImportFrom(module=module, names=names, level=level):
            above = package[: len(package) - level + 1] if level else ()
            yield from (".".join([*above, *([module] if module else []), each.name]) for each in names)
        case ast.Call(
            func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(value=str(name)), *_]
        ) if called in LOADERS:
            yield name
