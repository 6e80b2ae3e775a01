"""The command `fantail`: reads settings and arguments, wires the parts, prints results."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToJson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.client import FantailClient, RpcError, Turns
from service.errors import FantailError
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.settings import Settings, load_settings
from service.show import show_fan_out

app = typer.Typer(
    help="One conversation, a fan of classifiers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

START_SECONDS = 600
CALL_SECONDS = 120
STOP_SECONDS = 60


@app.command()
def serve() -> None:
    """Serve the classifiers over gRPC until SIGTERM; `fantail settings` lists what can be set."""
    from service.start import serve

    asyncio.run(serve(_configured()))


@app.command()
def check() -> None:
    """Check settings, base model and every classifier folder without starting a server."""
    from service.start import load_prompting, load_registry

    settings = _configured()
    registry = load_registry(settings, load_prompting(settings))
    table = Table(title=f"{len(registry.classifiers)} classifiers are servable")
    for column in ("classifier", "labels", "adapter", "rank", "tail tokens", "revision"):
        table.add_column(column)
    for each in registry.select(()):
        kind, rank = (each.adapter.kind.value, str(each.adapter.rank)) if each.adapter else ("none", "")
        table.add_row(
            each.name,
            ", ".join(label.name for label in each.labels),
            kind,
            rank,
            str(len(each.tail_ids)),
            each.revision,
        )
    console.print(table)


@app.command()
def settings() -> None:
    """List every setting with its default and trade-off."""
    table = Table(title="settings, from the environment")
    table.add_column("name", no_wrap=True)
    table.add_column("default", no_wrap=True)
    table.add_column("trade-off")
    for name, field in Settings.model_fields.items():
        table.add_row(f"FANTAIL_{name.upper()}", "" if field.default is None else str(field.default), field.description)
    console.print(table)


@app.command()
def classify(
    conversation: Annotated[
        Path, typer.Argument(help='JSON file: {"turns": [{"role": "customer", "text": "…"}, …]}; - for standard input.')
    ],
    classifier: Annotated[list[str] | None, typer.Option(help="Ask this one; repeatable. Default: all.")] = None,
    address: Annotated[str, typer.Option(help="The server.")] = "127.0.0.1:50051",
    timeout: Annotated[float, typer.Option(help="Deadline in seconds.")] = CALL_SECONDS,
    as_json: Annotated[bool, typer.Option("--json", help="Print the response as JSON.")] = False,
) -> None:
    """Ask a running server about a conversation."""
    response = asyncio.run(_ask(address, _read_turns(conversation), classifier or [], timeout))
    if as_json:
        print(MessageToJson(response, always_print_fields_with_no_presence=True))
    else:
        show_fan_out(response, console)


@app.command()
def train(
    classifiers: Annotated[
        list[str] | None, typer.Argument(help="Which; default all that want an activated adapter.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="JSON lines of labelled conversations; default CLASSIFIERS/data/*.jsonl.")
    ] = None,
    rank: Annotated[int, typer.Option(help="Rank of the adapters.", min=1)] = 4,
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    learning_rate: Annotated[float, typer.Option()] = 1e-3,
    seed: Annotated[int, typer.Option()] = 7,
) -> None:
    """Train activated adapters, all at once on one reading of each conversation; resumes an interrupted run."""
    from service.start import load_prompting
    from service.training.loop import TrainingConfig
    from service.training.train import Training, load_tasks

    configured = _configured()
    prompting = load_prompting(configured)
    tasks = load_tasks(configured.classifiers, classifiers or [], prompting.tokenizer)
    files = tuple(data or sorted((configured.classifiers / "data").glob("*.jsonl")))
    config = TrainingConfig(rank=rank, alpha=2.0 * rank, epochs=epochs, learning_rate=learning_rate, seed=seed)
    Training(prompting.base, prompting.tokenizer, prompting.builder, tasks, files, config, console).run()


@app.command()
def base() -> None:
    """Prepare the base model (once) and print its folder."""
    from service.base_model import resolve_base

    print(resolve_base(_configured().model))


@app.command()
def demo(
    conversation: Annotated[Path, typer.Argument(help="JSON file with the conversation.")] = Path(
        "examples/conversation.json"
    ),
) -> None:
    """Start a server, send it one conversation over gRPC, print the answers, stop it."""
    turns = _read_turns(conversation)
    for role, text in turns:
        console.print(f"[bold]{escape(role)}[/]: {escape(text)}", highlight=False)
    address = f"127.0.0.1:{_free_port()}"
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "service", "serve"]
        server = subprocess.Popen(command, env=os.environ | {"FANTAIL_ADDRESS": address}, stdout=log, stderr=log)
        try:
            with console.status("starting the server (most of it is importing and loading) …"):
                started = asyncio.run(_reachable(address, server))
            if started:
                show_fan_out(asyncio.run(_ask(address, turns, [], CALL_SECONDS)), console)
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(timeout=STOP_SECONDS)
        if code != 0 or not started:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            raise typer.Exit(code or 1)


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


def _configured() -> Settings:
    """Settings with logging set up by them."""
    loaded = load_settings()
    logging.basicConfig(level=loaded.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "urllib3", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return loaded


def _read_turns(path: Path) -> Turns:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        turns = [(turn["role"], turn["text"]) for turn in json.loads(text)["turns"]]
        for part in (part for turn in turns for part in turn):
            part.encode()
        return turns
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise typer.BadParameter(
            f'{path}: {type(error).__name__}; expected {{"turns": [{{"role": …, "text": …}}]}}'
        ) from error


async def _ask(address: str, turns: Turns, classifiers: list[str], timeout: float) -> pb.FanOutResponse:
    async with FantailClient(address) as client:
        return await client.fan_out(turns, classifiers, timeout=timeout)


async def _reachable(address: str, server: subprocess.Popen[bytes]) -> bool:
    """Wait until the server answers, or until it ends, which is False."""
    async with FantailClient(address) as client:
        waiting = asyncio.create_task(client.wait_until_reachable())
        async with asyncio.timeout(START_SECONDS):
            while not waiting.done():
                if server.poll() is not None:
                    waiting.cancel()
                    return False
                await asyncio.wait({waiting}, timeout=0.2)
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
