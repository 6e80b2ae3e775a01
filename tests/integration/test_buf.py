"""What `buf generate` makes of the protos by docs/clients.md compiles in each language, and its TypeScript asks.

Go and Java are compiled where Debian has them: `apt-get install golang-go protoc-gen-go protoc-gen-go-grpc
golang-google-grpc-dev golang-github-golang-protobuf-1-5-dev`, and `default-jdk-headless protobuf-compiler
protobuf-compiler-grpc-java-plugin libgrpc-java libprotobuf-java libgoogle-common-protos-java
libgeronimo-annotation-1.3-spec-java`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from service.client import FantailClient
from tests.integration.certificates import Authority, install
from tests.integration.conftest import Serve
from tests.integration.harness import DEADLINE_S, HELLO, Ended, run_command
from tests.integration.keyring import ring_of
from tests.integration.test_docs import BIN, blocks, commands
from tests.support import REPOSITORY
from tools.proto import google_protos

COMPILE_S = 300
"""Of an installation by npm or a compilation, on a busy machine."""

KEY = "key-of-the-example"
OURS = Authority()

EXAMPLE = REPOSITORY / "clients" / "typescript" / "generated"
GO_PACKAGES, JARS = Path("/usr/share/gocode"), Path("/usr/share/java")
"""Where Debian has the libraries that generated code is compiled with."""

COMPILED_WITH = (
    "grpc-stub",
    "grpc-protobuf",
    "protobuf",
    "proto-google-common-protos",
    "guava",
    "geronimo-annotation-1.3-spec",
)

MODULE, TEMPLATE = blocks("yaml")
(DETAILS,) = [each for each in commands() if each.startswith("buf generate ")]
REMOTE_MODULE = "buf.build/googleapis/googleapis"
LOCAL = {
    "buf.build/protocolbuffers/go": {"local": "protoc-gen-go"},
    "buf.build/grpc/go": {"local": "protoc-gen-go-grpc"},
    "buf.build/protocolbuffers/java": {"protoc_builtin": "java"},
    "buf.build/grpc/java": {"local": "grpc_java_plugin"},
    "buf.build/bufbuild/es": {"local": "protoc-gen-es"},
}
"""What takes the place of each of the page's remote plugins, which need the network."""


def needs(*commands_or_paths: str | Path) -> pytest.MarkDecorator:
    missing = [str(each) for each in commands_or_paths if not (shutil.which(each) or Path(each).exists())]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


NODE = needs("node", "npm")


def run(*command: str, cwd: Path, **environment: str) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=COMPILE_S
    )
    assert done.returncode == 0, done.stdout + done.stderr


def buf(command: str, cwd: Path) -> None:
    """Run as a shell does, with the commands of npm's packages in reach, and nothing kept beyond the folder."""
    path = f"{BIN}:{cwd / 'node_modules' / '.bin'}:{os.environ['PATH']}"
    run("bash", "-c", command, cwd=cwd, PATH=path, XDG_CACHE_HOME=str(cwd))


def generate(folder: Path, place: str) -> None:
    """Do in `folder` as the page says, for the language whose code goes to `place`."""
    shutil.copytree(REPOSITORY / "proto" / "fantail", folder / "proto" / "fantail")
    shutil.copytree(google_protos() / "google" / "rpc", folder / "deps" / "google" / "rpc")
    (folder / "buf.yaml").write_text(MODULE.replace(f"deps:\n  - {REMOTE_MODULE}", "  - path: deps"))
    template = yaml.safe_load(TEMPLATE)
    plugins = [each for each in template["plugins"] if each["out"] == place]
    template["plugins"] = [LOCAL[each.pop("remote")] | each for each in plugins]
    (folder / "buf.gen.yaml").write_text(yaml.safe_dump(template))
    buf("buf generate proto", folder)


@needs("go", "protoc-gen-go", "protoc-gen-go-grpc", GO_PACKAGES / "src" / "google.golang.org" / "grpc")
def test_the_go_code_compiles(tmp_path: Path) -> None:
    module = tmp_path / "src" / "example.com" / "support"  # as the page's prefix says
    generate(module, "gen/go")
    without_modules = {"GO111MODULE": "off", "GOPATH": f"{tmp_path}:{GO_PACKAGES}", "GOCACHE": str(tmp_path / "cache")}
    run("go", "build", "example.com/support/gen/go/fantail/v1", cwd=module, **without_modules)


@needs("javac", "protoc", "grpc_java_plugin", *(JARS / f"{each}.jar" for each in COMPILED_WITH))
def test_the_java_code_compiles(tmp_path: Path) -> None:
    generate(tmp_path, "gen/java")
    sources = [str(path) for path in (tmp_path / "gen" / "java").rglob("*.java")]
    run("javac", "-cp", str(JARS / "*"), "-d", "classes", *sources, cwd=tmp_path)
    assert (tmp_path / "classes" / "com" / "example" / "fantail" / "v1" / "ClassificationServiceGrpc.class").is_file()


@pytest.fixture(scope="module")
def typescript(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the page's TypeScript is generated and compiled; removed at the end for its size."""
    folder = tmp_path_factory.mktemp("generated")
    for name in ("package.json", "package-lock.json", "tsconfig.json", "fan_out.ts"):
        shutil.copy(EXAMPLE / name, folder)
    run("npm", "ci", "--no-audit", "--no-fund", "--no-update-notifier", cwd=folder)
    generate(folder, "gen/ts")
    local = DETAILS.replace(f"{REMOTE_MODULE} --path ", "deps --path deps/")
    buf(local.replace('"remote": "buf.build/bufbuild/es"', '"local": "protoc-gen-es"'), folder)
    run("npm", "run", "build", cwd=folder)
    yield folder
    shutil.rmtree(folder)


async def ask(typescript: Path, *arguments: str, key: str = "") -> Ended:
    return await run_command("node", "out/fan_out.js", *arguments, cwd=typescript, **({"API_KEY": key} if key else {}))


@NODE
async def test_the_typescript_prints_what_the_python_client_is_answered(
    typescript: Path, address: str, client: FantailClient
) -> None:
    ended = await ask(typescript, f"http://{address}")
    assert (ended.code, ended.err) == (0, "")
    expected = await client.fan_out(HELLO, timeout=DEADLINE_S)
    assert ended.out.splitlines() == [f"{each.classifier} {each.classification.label}" for each in expected.results]


@NODE
@pytest.mark.parametrize(
    ("key", "code", "said"),
    [
        pytest.param(KEY, 0, "", id="its key"),
        pytest.param("another", 1, "Unauthenticated ERROR_REASON_KEY_INVALID\n", id="another key"),
    ],
)
async def test_the_typescript_talks_tls_and_presents_its_key(
    serve: Serve, typescript: Path, tmp_path: Path, key: str, code: int, said: str
) -> None:
    address = await serve(tls=install(tmp_path, OURS.server()), keys=ring_of(tmp_path, {KEY: 'name = "example"'}))
    (tmp_path / "ca.pem").write_bytes(OURS.pem)
    ended = await ask(typescript, f"https://{address}", str(tmp_path / "ca.pem"), key=key)
    assert (ended.code, ended.err) == (code, said)
    assert bool(ended.out) == (code == 0)
