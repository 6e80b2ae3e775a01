"""A baseline as a process: JSON lines of turns in, seconds and answers out. Keeps baselines out of each other's way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from service.engine.launch import intel_openmp

Classify = Callable[[Sequence[Sequence[str]]], list[list[float]]]
"""(role, text) turns to each classifier's label probabilities, classifiers by name."""

STOP_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Baseline:
    """A baseline that is ready. `remark`: what its start has found out and a reader of the figures should know."""

    classify: Classify
    remark: str = ""


def run_worker(start: Callable[[Path, Path], Baseline]) -> None:
    """Main of a baseline. Arguments: model folder, classifiers folder."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print to standard output; only replies may
    baseline = start(Path(sys.argv[1]), Path(sys.argv[2]))
    print(json.dumps({"remark": baseline.remark}), file=replies)
    for line in sys.stdin:
        began = time.perf_counter()
        answers = baseline.classify(json.loads(line))
        print(json.dumps({"seconds": time.perf_counter() - began, "answers": answers}), file=replies)


def openmp() -> dict[str, str]:
    """Environment: Intel's OpenMP, if it is installed, with a thread bound to each core, as Fantail's engine has it."""
    cores = sorted(os.sched_getaffinity(0))
    variables = {
        "OMP_NUM_THREADS": str(len(cores)),
        "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{','.join(map(str, cores))}]",
    }
    library = intel_openmp()
    return variables | ({"LD_PRELOAD": str(library)} if library else {})


class Worker:
    """The other end: starts a baseline on all cores and asks it. RuntimeError when the baseline ends by itself."""

    def __init__(self, module: str, model: Path, classifiers: Path, log: Path) -> None:
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(model), str(classifiers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | openmp(),
            text=True,
        )
        self.remark: str = self._reply()["remark"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()

    def ask(self, turns: Sequence[tuple[str, str]]) -> tuple[float, list[list[float]]]:
        """Seconds of one fan-out, and the label probabilities of each classifier by name."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(turns) + "\n")
        self._process.stdin.flush()
        reply = self._reply()
        return reply["seconds"], reply["answers"]

    def _reply(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the baseline ended by itself; its last words:\n{last_words(Path(self._log.name))}")
        return json.loads(line)


def last_words(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
