"""Writes the tables of the documentation that follow from the code: `python tools/readme.py [--check]`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from service.metrics import LIST
from service.registry.manifest import load_manifest
from service.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent


def classifiers_table() -> str:
    """Name, labels and description of each shipped classifier."""
    rows = ["| classifier | labels | what it decides |", "|---|---|---|"]
    for folder in sorted(path.parent for path in (ROOT / "classifiers").glob("*/classifier.toml")):
        manifest, problems = load_manifest(folder)
        if manifest is None:
            sys.exit(f"{folder.name}: {problems}")
        rows.append(f"| `{folder.name}` | {', '.join(manifest.labels)} | {manifest.description} |")
    return "\n".join(rows)


def settings_table() -> str:
    """Name, default and trade-off of each setting."""
    rows = ["| setting | default | trade-off |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def metrics_table() -> str:
    """Name, kind, labels and help of each metric."""
    rows = ["| metric | kind | labels | what it is |", "|---|---|---|---|"]
    for each in LIST:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        rows.append(f"| `{each.served_name}` | {each.kind} | {labels} | {each.help} |")
    return "\n".join(rows)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "README.md": ("classifiers", classifiers_table),
    "docs/settings.md": ("settings", settings_table),
    "deploy/README.md": ("metrics", metrics_table),
}
"""File to the name of its markers and what stands between them."""


def written(file: str) -> tuple[str, str]:
    """A file as it is, and as it should be."""
    name, table = TABLES[file]
    text = (ROOT / file).read_text(encoding="utf-8")
    marked = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.S)
    if not marked.search(text):
        sys.exit(f"{file} has lost its markers for {name}")
    return text, marked.sub(lambda match: match[1] + table() + match[2], text)


def main() -> None:
    for file in TABLES:
        before, after = written(file)
        if before != after and sys.argv[1:] == ["--check"]:
            sys.exit(f"{file} is stale; run `python tools/readme.py`")
        (ROOT / file).write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
