"""What `make audit` says of pip-audit's findings, and with which exit code it ends."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tools import audit

FINE = {"name": "grpcio", "version": "1", "vulns": []}
UNSEEN = {"name": "vllm", "skip_reason": "no advisories here"}
BAD = {"name": "torch", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}


@pytest.mark.parametrize(
    ("packages", "strict", "expected"),
    [
        pytest.param([FINE], True, 0, id="all is well"),
        pytest.param([FINE, BAD, UNSEEN], True, 1, id="a vulnerability"),
        pytest.param([FINE, UNSEEN], False, 0, id="one not audited"),
        pytest.param([FINE, UNSEEN], True, 2, id="one not audited and all wanted"),
    ],
)
def test_the_exit_code_says_what_was_found(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    packages: list[object],
    strict: bool,
    expected: int,
) -> None:
    found = subprocess.CompletedProcess([], 0, json.dumps({"dependencies": packages}), "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: found)
    monkeypatch.setattr(sys, "argv", ["audit", *(["--strict"] if strict else [])])
    with pytest.raises(SystemExit) as ended:
        audit.main()
    assert ended.value.code == expected
    said = capsys.readouterr().out
    assert ("torch 2: PYSEC-1, fixed in 3" in said) == (BAD in packages)
    assert ("not audited" in said) == (UNSEEN in packages)


def test_an_audit_that_did_not_happen_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "no network"))
    with pytest.raises(SystemExit, match="no network"):
        audit.main()
