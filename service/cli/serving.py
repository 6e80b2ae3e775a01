"""Commands of those who run a server and ask it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToJson
from rich.markup import escape
from rich.table import Table

from service.cli.common import configured, console
from service.client import FantailClient, Tls, Turns
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.problems import sentences
from service.settings import Settings
from service.show import show_fan_out

commands = typer.Typer()

START_SECONDS = 600
CALL_SECONDS = 120
STOP_SECONDS = 60


@commands.command()
def serve() -> None:
    """Serve the classifiers over gRPC until SIGTERM; `fantail settings` lists what can be set."""
    from service.serve import serve

    asyncio.run(serve(configured()))


@commands.command()
def check() -> None:
    """Check settings, base model and every classifier folder without starting a server, hence without the gate."""
    from service.start import load_prompting, load_registry

    settings = configured()
    registry = load_registry(settings, load_prompting(settings))
    table = Table(title=f"{len(registry.serving_names)} of {len(registry.classifiers)} classifiers are servable")
    for column in ("classifier", "labels", "adapter", "rank", "tail", "probes", "revision", "withheld because"):
        table.add_column(column)
    for each in registry.select(()):
        kind, rank = (each.adapter.kind.value, str(each.adapter.rank)) if each.adapter else ("none", "")
        table.add_row(
            each.name,
            ", ".join(label.name for label in each.labels),
            kind,
            rank,
            str(len(each.tail_ids)),
            str(len(each.probes)),
            each.revision,
            registry.withheld.get(each.name, ""),
        )
    console.print(table)


@commands.command()
def settings() -> None:
    """List every setting with its default and trade-off."""
    table = Table(title="settings, from the environment")
    table.add_column("name", no_wrap=True)
    table.add_column("default", no_wrap=True)
    table.add_column("trade-off")
    for name, field in Settings.model_fields.items():
        table.add_row(f"FANTAIL_{name.upper()}", "" if field.default is None else str(field.default), field.description)
    console.print(table)


@commands.command()
def classify(
    conversation: Annotated[
        Path, typer.Argument(help='JSON file: {"turns": [{"role": "customer", "text": "…"}, …]}; - for standard input.')
    ],
    classifier: Annotated[list[str] | None, typer.Option(help="Ask this one; repeatable. Default: all.")] = None,
    address: Annotated[str, typer.Option(help="The server.")] = "127.0.0.1:50051",
    timeout: Annotated[float, typer.Option(help="Deadline in seconds.")] = CALL_SECONDS,
    key: Annotated[
        str | None, typer.Option(help="API key, where the server wants one, or @FILE that holds it.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="PEM of who signs the server's certificate; talk TLS.")] = None,
    cert: Annotated[Path | None, typer.Option(help="PEM of your own certificate, where the server wants one.")] = None,
    cert_key: Annotated[Path | None, typer.Option(help="PEM of its key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the response as JSON.")] = False,
) -> None:
    """Ask a running server about a conversation."""
    turns, tls = _read_turns(conversation), _read_tls(ca, cert, cert_key)
    response = asyncio.run(_ask(address, turns, classifier or [], timeout, _as_header(key), tls))
    if as_json:
        print(MessageToJson(response, always_print_fields_with_no_presence=True))
    else:
        show_fan_out(response, console)


@commands.command()
def key(
    name: Annotated[str, typer.Argument(help="Who will call with it.")],
    scope: Annotated[list[str] | None, typer.Option(help="classify or admin; repeatable. Default classify.")] = None,
) -> None:
    """Make an API key: print the entry for the file that FANTAIL_KEYS names, and once, on standard error, the key."""
    from pydantic import ValidationError

    from service.keys import CLASSIFY, Key, new_key

    made, digest = new_key()
    try:
        entry = Key.model_validate({"name": name, "sha256": digest, "scopes": scope or [CLASSIFY]})
    except ValidationError as error:
        raise typer.BadParameter("; ".join(sentences(error))) from error
    scopes = ", ".join(f'"{each}"' for each in sorted(entry.scopes))
    # Apart, so that `fantail key NAME >> FILE` leaves no key in the file.
    print(f"the key, shown once: {made}", file=sys.stderr)
    print(f'[[key]]\nname = "{entry.name}"\nsha256 = "{entry.sha256}"\nscopes = [{scopes}]')


@commands.command()
def base() -> None:
    """Prepare the base model (once) and print its folder."""
    from service.base_model import resolve_base

    print(resolve_base(configured().model))


@commands.command()
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
                started = asyncio.run(_serving(address, server))
            if started:
                show_fan_out(asyncio.run(_ask(address, turns, [], CALL_SECONDS)), console)
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(timeout=STOP_SECONDS)
        if code != 0 or not started:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            raise typer.Exit(code or 1)


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


def _read_tls(roots: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    """What the files hold, None for talk in the clear; of a broken one gRPC would not say what is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if roots:
            context.load_verify_locations(roots)
    except OSError as error:
        raise typer.BadParameter(f"{roots}: {type(error).__name__}; expected PEM certificates") from error
    if not certificate and not key:
        return Tls(roots.read_bytes()) if roots else None
    if not certificate or not key:
        raise typer.BadParameter("--cert and --cert-key: give both or neither")
    try:
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:
        message = f"{certificate}, {key}: {type(error).__name__}; expected PEM of a certificate and its unencrypted key"
        raise typer.BadParameter(message) from error
    return Tls(roots.read_bytes() if roots else None, certificate.read_bytes(), key.read_bytes())


def _as_header(key: str | None) -> str | None:
    """The key, if a header can hold it; gRPC would fail without saying why."""
    if key is not None and key.startswith("@"):
        try:
            key = Path(key[1:]).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"{key[1:]}: {type(error).__name__}; expected a file that holds a key") from error
    if key is not None and not re.fullmatch("[!-~]+", key):
        raise typer.BadParameter("--key: expected visible ASCII characters, at least one and no spaces")
    return key


async def _ask(
    address: str, turns: Turns, classifiers: list[str], timeout: float, key: str | None = None, tls: Tls | None = None
) -> pb.FanOutResponse:
    async with FantailClient(address, key=key, tls=tls) as client:
        return await client.fan_out(turns, classifiers, timeout=timeout)


async def _serving(address: str, server: subprocess.Popen[bytes]) -> bool:
    """Wait until the server serves, or until it ends, which is False."""
    async with FantailClient(address) as client:
        waiting = asyncio.create_task(client.wait_until_serving())
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
