"""What an expression of PromQL speaks of: metrics, labels and their values. No parser: it knows what ours look like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

FUNCTIONS = {
    *(
        "abs",
        "avg",
        "changes",
        "count",
        "histogram_quantile",
        "increase",
        "label_values",
        "max",
        "min",
        "rate",
        "sum",
        "vector",
    ),
    *("and", "bool", "by", "group_left", "on", "or"),
}
TEXT = re.compile(r'"[^"]*"')
SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}")
MATCHER = re.compile(r'([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|on|without|group_left)\s*\(([^)]*)\)")
RANGE = re.compile(r"\[[^\]]*\]")
NAME = re.compile(r"[a-zA-Z_:][\w:]*")
VARIABLE = re.compile(r"\$\w+")


@dataclass(frozen=True)
class Selected:
    """A metric that is selected by labels; values are regular expressions where the matcher is one."""

    metric: str
    labels: dict[str, str]


def selected(expression: str) -> Iterator[Selected]:
    for metric, matchers in SELECTOR.findall(expression):
        yield Selected(metric, dict(MATCHER.findall(matchers)))


def grouped_by(expression: str) -> set[str]:
    """Every label that results are grouped by or joined on."""
    return {label for group in GROUPING.findall(TEXT.sub('""', expression)) for label in NAME.findall(group)}


def metrics_of(expression: str) -> set[str]:
    """Every name that is no function, keyword or label: the metrics."""
    bare = re.sub(r"\{[^}]*\}", "", TEXT.sub('""', expression))
    bare = VARIABLE.sub("", RANGE.sub("", GROUPING.sub("", bare)))
    return set(NAME.findall(bare)) - FUNCTIONS
