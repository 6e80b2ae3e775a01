"""Writes the parts of README.md that follow from the code, between markers: `python tools/readme.py [--check]`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from service.metrics import LIST
from service.registry.manifest import load_manifest
from service.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


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


def written(text: str) -> str:
    """The README with its tables as they should be."""
    tables = {"classifiers": classifiers_table(), "settings": settings_table(), "metrics": metrics_table()}
    for name, table in tables.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.S)
        if not marked.search(text):
            sys.exit(f"README.md has lost its markers for {name}")
        text = marked.sub(lambda match, table=table: match[1] + table + match[2], text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    before = README.read_text(encoding="utf-8")
    after = written(before)
    if sys.argv[1:] == ["--check"]:
        sys.exit("README.md's tables are stale; run `python tools/readme.py`" if before != after else 0)
    README.write_text(after, encoding="utf-8")
