"""The command `fantail`: reads settings and arguments, wires the parts, prints results."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.markup import escape

from service.cli import adapters, plan, serving
from service.client import RpcError
from service.errors import FantailError

app = typer.Typer(
    help="One conversation, a fan of classifiers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(serving.commands)
app.add_typer(adapters.commands)
app.add_typer(plan.commands)


def main() -> None:
    """Run a command; our own errors become one message and exit code 1."""
    try:
        app()
    except FantailError as error:
        _complain("error", error.message)
    except RpcError as error:
        _complain(f"{error.code.name} {error.reason}".strip(), error.message)
        for field, problem in error.violations.items():
            _complain(f"  {field}", problem)
    else:
        return
    sys.exit(1)


def _complain(what: str, message: str) -> None:
    """One line on standard error, as it is: names and messages may look like markup."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"[red]{escape(what)}[/]: {escape(message)}", highlight=False)
