"""The cheap choice without a language model: MiniLM embeddings and a logistic regression for each classifier.

Settings: the same code and records as `fantail evaluate --baseline MiniLM`, which reports its quality: fitted at start
on the train split of `classifiers/data`, the penalty chosen on dev; float32, all cores. The encoder reads at most the
last 256 of its tokens of the whole talk, and the customer's last message once more by itself.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path

from loadtest.baselines.prompts import Prompts
from loadtest.baselines.worker import Baseline, run_worker
from service.domain import Conversation, Role, Turn
from service.evaluation.baselines import learn, sentence_embeddings
from service.training.records import read_records


def start(model: Path, classifiers: Path) -> Baseline:
    labels = {task.name: task.labels for task in Prompts(model, classifiers).tasks}
    records = read_records(sorted((classifiers / "data").glob("*.jsonl")), labels)
    embed = sentence_embeddings()
    began = time.perf_counter()
    learnt = learn(embed, records, labels)
    seconds = time.perf_counter() - began
    ctypes.CDLL(None).malloc_trim(0)  # what only fitting needed is not memory of answering

    def classify(turns: Sequence[Sequence[str]]) -> list[list[float]]:
        conversation = Conversation("", tuple(Turn(Role(role), text) for role, text in turns))
        row = embed([conversation])
        return [learnt[name](row)[0].tolist() for name in labels]

    trained = sum(record.split == "train" for record in records)
    return Baseline(classify, f"fitted on {trained} records in {seconds:.0f} s")


if __name__ == "__main__":
    run_worker(start)
