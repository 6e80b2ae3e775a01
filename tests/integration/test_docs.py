"""What docs/clients.md shows is run: every Python snippet and every `buf curl` command, against real servers."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.certificates import Authority, install
from tests.integration.conftest import Serve
from tests.integration.harness import COMMAND_S, Ended, run_command
from tests.integration.keyring import ring_of
from tests.support import REPOSITORY
from tools.proto import google_protos

PAGE = (REPOSITORY / "docs" / "clients.md").read_text(encoding="utf-8")
CLEAR, GUARDED = "127.0.0.1:50051", "fantail.example:443"
"""The addresses that the page uses: without TLS and keys, and with both."""

KEY = "key-of-the-docs"
BIN = Path(sys.executable).parent
OURS = Authority()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


def commands() -> Iterator[str]:
    """Every command of the page with the lines that belong to it, without the prompt."""
    for block in blocks("console"):
        yield from (each.removeprefix("$ ") for each in re.split(r"\n(?=\$ )", block.rstrip("\n")))


PLUGIN = """
import sys
from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
files = CodeGeneratorRequest.FromString(sys.stdin.buffer.read()).proto_file
lines = [f"{each.name} {each.options.go_package} {each.options.java_package}\\n" for each in files]
made = CodeGeneratorResponse.File(name=f"{sys.argv[1]}/{files[-1].name}.txt", content="".join(lines))
sys.stdout.buffer.write(CodeGeneratorResponse(supported_features=1, file=[made]).SerializeToString())
"""
"""Writes down the packages that code would be generated in."""

SNIPPETS = blocks("python")
BUF_CURL = [each for each in commands() if re.search(r"\bbuf curl|> headers", each)]


def short(text: str) -> str:
    """An id for a command: its method."""
    return (re.findall(r"/(\w+)(?:\s|$)", text) or [text[:20]])[0]


@dataclass(frozen=True)
class Servers:
    """Where the page's two servers are, and the folder in which its commands run."""

    clear: str
    guarded: str
    folder: Path

    def here(self, text: str) -> str:
        return text.replace(CLEAR, self.clear).replace(GUARDED, self.guarded)


@pytest.fixture
async def servers(serve: Serve, tmp_path: Path) -> Servers:
    tls, keys = install(tmp_path, OURS.server()), ring_of(tmp_path, {KEY: 'name = "reader"'})
    (tmp_path / "ca.pem").write_bytes(OURS.pem)
    (tmp_path / "headers").write_text(f"authorization: Bearer {KEY}\n")
    return Servers(await serve(), await serve(tls=tls, keys=keys), tmp_path)


async def shell(command: str, servers: Servers) -> Ended:
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", "API_KEY": KEY, "XDG_CACHE_HOME": str(servers.folder)}
    return await run_command("bash", "-c", servers.here(command), cwd=servers.folder, **environment)


def test_the_page_has_what_is_run() -> None:
    assert len(SNIPPETS) >= 7
    assert len(BUF_CURL) >= 9


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(1, len(SNIPPETS) + 1))
async def test_a_python_snippet_runs_and_prints(
    servers: Servers, snippet: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(servers.folder)
    monkeypatch.setenv("API_KEY", KEY)
    code = compile(servers.here(snippet), "docs/clients.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    async with asyncio.timeout(COMMAND_S):
        if code.co_flags & inspect.CO_COROUTINE:
            await eval(code, {})
        else:  # it blocks, so it must not stand in the servers' way
            await asyncio.to_thread(exec, code, {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("command", BUF_CURL, ids=short)
async def test_a_buf_command_succeeds(servers: Servers, command: str) -> None:
    ended = await shell(command, servers)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out or command.endswith("> headers)")


async def test_the_lines_of_a_live_conversation_are_answered_after_each_customers_turn(servers: Servers) -> None:
    (follow,) = [each for each in BUF_CURL if "/Follow" in each]
    ended = await shell(follow, servers)
    assert re.findall(r'^  "message": (\d)', ended.out, re.M) == ["1", "3"]
    assert re.findall(r'^    "results"', ended.out, re.M) == ['    "results"'] * 2


async def test_without_its_key_reflection_says_what_the_page_says(servers: Servers) -> None:
    (guarded,) = [each for each in BUF_CURL if "--reflect-header '*'" in each]
    ended = await shell(guarded.replace("--reflect-header '*'", ""), servers)
    assert ended.code != 0
    assert "in schema" in ended.err


async def test_a_failed_command_exits_with_eight_times_its_code(servers: Servers) -> None:
    (one,) = [each for each in BUF_CURL if "/Classify " in each]
    assert (await shell(one.replace("where is my refund??", ""), servers)).code == 8 * 3


@pytest.mark.parametrize(
    ("place", "language", "package"),
    [
        pytest.param("gen/go", "go", "example.com/support/gen/go/fantail/v1;fantailv1", id="Go"),
        pytest.param("gen/java", "java", "com.example.fantail.v1", id="Java"),
    ],
)
async def test_generated_code_lies_in_the_callers_packages_and_googles_in_its_own(
    tmp_path: Path, place: str, language: str, package: str
) -> None:
    generated = await packages(tmp_path, place)
    column = {"go": 1, "java": 2}[language]
    assert {each[column] for each in generated if each[0].startswith("fantail/")} == {package}
    google = {each[column] for each in generated if each[0].startswith("google/rpc/")}
    assert google
    assert not any(each.startswith(("example.com", "com.example")) for each in google)


async def packages(folder: Path, place: str) -> list[list[str]]:
    """Generate as the page says; returns the name, Go package and Java package of every proto file behind `place`.

    What needs the network is replaced: the module of Google's protos by a copy, the remote plugins by `PLUGIN`.
    """
    module, template = blocks("yaml")
    shutil.copytree(REPOSITORY / "proto" / "fantail", folder / "proto" / "fantail")
    shutil.copytree(google_protos() / "google" / "rpc", folder / "deps" / "google" / "rpc")
    (folder / "buf.yaml").write_text(module.replace("deps:\n  - buf.build/googleapis/googleapis", "  - path: deps"))
    (folder / "plugin.py").write_text(PLUGIN)
    plugin = rf"- local: [{sys.executable}, plugin.py, \1]"
    (folder / "buf.gen.yaml").write_text(re.sub(r"- remote: (\S+)", plugin, template))
    ended = await run_command(str(BIN / "buf"), "generate", "proto", cwd=folder, XDG_CACHE_HOME=str(folder))
    assert ended.code == 0, ended.err
    return [line.split() for path in (folder / place).rglob("*.txt") for line in path.read_text().splitlines()]
