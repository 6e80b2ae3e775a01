"""Generates, lints and verifies the protocol code: `python tools/proto.py generate|check`."""

from __future__ import annotations

import filecmp
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
GENERATED = ROOT / "service" / "pb"
BIN = Path(sys.executable).parent


def google_protos() -> Path:
    """The folder in which googleapis-common-protos keeps google/rpc/*.proto."""
    spec = find_spec("google.rpc")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("googleapis-common-protos is not installed")
    return Path(next(iter(spec.submodule_search_locations))).parent.parent


def protoc(*arguments: str) -> None:
    import grpc_tools

    includes = [PROTO, google_protos(), Path(grpc_tools.__file__).parent / "_proto"]
    files = sorted(str(path.relative_to(PROTO)) for path in (PROTO / "fantail").rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", *(f"-I{include}" for include in includes), *arguments, *files]
    subprocess.run(command, check=True, cwd=PROTO)


def generate(target: Path) -> None:
    """Write messages, stubs and their types to `target`, with imports that start at this package."""
    plugins = [f"--plugin=protoc-gen-{name}={BIN / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    outputs = ["python", "grpc_python", "mypy", "mypy_grpc"]
    target.mkdir(parents=True, exist_ok=True)
    protoc(*plugins, *(f"--{output}_out={target}" for output in outputs))
    for path in [*target.rglob("*.py"), *target.rglob("*.pyi")]:
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"^from fantail\.v1 import", "from service.pb.fantail.v1 import", text, flags=re.M)
        text = re.sub(r"^import fantail\.v1\.", "import service.pb.fantail.v1.", text, flags=re.M)
        text = re.sub(r"(?<![\w.\"'/])fantail\.v1\.(\w+_pb2)", r"service.pb.fantail.v1.\1", text)
        path.write_text(text, encoding="utf-8")
    for folder in (target, target / "fantail", target / "fantail" / "v1"):
        (folder / "__init__.py").write_text(
            '"""Generated from proto/; `make proto` writes it anew."""\n', encoding="utf-8"
        )


def lint() -> None:
    """buf lint, formatting and comments included, over an image in which google's own files are imports."""
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Path(scratch)
        shutil.copytree(PROTO, workspace / "proto")
        shutil.copytree(
            google_protos() / "google" / "rpc",
            workspace / "deps" / "google" / "rpc",
            ignore=shutil.ignore_patterns("*.py*"),
        )
        (workspace / "buf.yaml").write_text(
            (PROTO / "buf.yaml")
            .read_text()
            .replace("path: .", "path: proto\n  - path: deps\n    lint:\n      ignore: [deps]"),
            encoding="utf-8",
        )
        (workspace / "proto" / "buf.yaml").unlink()
        subprocess.run([BIN / "buf", "lint", "proto"], check=True, cwd=workspace)
        subprocess.run([BIN / "buf", "format", "--exit-code", "--diff", "proto"], check=True, cwd=workspace)


def check() -> None:
    """Fail when a proto breaks a rule or the committed code is not what the protos generate."""
    lint()
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = sorted(path.relative_to(scratch) for path in Path(scratch).rglob("*.py*"))
        stale = [
            str(path)
            for path in fresh
            if not (GENERATED / path).is_file()
            or not filecmp.cmp(Path(scratch) / path, GENERATED / path, shallow=False)
        ]
        extra = [
            str(p.relative_to(GENERATED))
            for p in GENERATED.rglob("*.py*")
            if p.suffix in {".py", ".pyi"} and p.relative_to(GENERATED) not in fresh
        ]
    if stale or extra:
        sys.exit(f"service/pb is not what proto/ generates: {', '.join(stale + extra)}; run `make proto`")


if __name__ == "__main__":
    if sys.argv[1:] == ["generate"]:
        shutil.rmtree(GENERATED, ignore_errors=True)
        generate(GENERATED)
    elif sys.argv[1:] == ["check"]:
        check()
    else:
        sys.exit(__doc__)
