"""No peer but a reference: what PEFT answers, float32, when the adapters are plain copies of the activated ones.

Stock vLLM and merged weights compute with such copies. Their answers are compared with these once; this is not timed.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from loadtest.baselines.peft_sequential import one_by_one, with_adapters
from loadtest.baselines.prompts import Prompts, plain_copy
from loadtest.baselines.worker import Baseline, run_worker


def start(model: Path, classifiers: Path) -> Baseline:
    prompts = Prompts(model, classifiers)
    with tempfile.TemporaryDirectory(prefix="plain-adapters-") as scratch:
        plain = [replace(each, adapter=plain_copy(each.adapter, Path(scratch) / each.name)) for each in prompts.tasks]
        return Baseline(one_by_one(prompts, with_adapters(model, plain)))


if __name__ == "__main__":
    run_worker(start)
