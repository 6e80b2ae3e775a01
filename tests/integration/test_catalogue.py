"""ListClassifiers and GetClassifier."""

from __future__ import annotations

import pytest

from service.client import FantailClient
from service.pb.fantail.v1 import classifier_pb2 as pb
from service.registry.registry import Registry
from tests.integration.harness import (
    ACTIVATED,
    DEADLINE_S,
    LABELS,
    NAMES,
    PLAIN,
    SECOND_ACTIVATED,
    WITHOUT_ADAPTER,
    WatchedEngine,
)

KINDS = {
    ACTIVATED: pb.ADAPTER_KIND_ACTIVATED,
    SECOND_ACTIVATED: pb.ADAPTER_KIND_ACTIVATED,
    PLAIN: pb.ADAPTER_KIND_PLAIN,
    WITHOUT_ADAPTER: pb.ADAPTER_KIND_NONE,
}


def _expected(name: str, registry: Registry) -> pb.Classifier:
    return pb.Classifier(
        name=name,
        description=f"Decides {name}.",
        labels=LABELS[name],
        adapter_kind=KINDS[name],
        revision=registry.classifiers[name].revision,
        tail_tokens=len(registry.classifiers[name].tail_ids),
        state=pb.SERVING_STATE_SERVING,
        priority=pb.PRIORITY_NORMAL,
        traffic=[pb.RevisionShare(revision=registry.classifiers[name].revision, percent=100)],
    )


async def test_the_list_describes_every_classifier_by_name(client: FantailClient, registry: Registry) -> None:
    listed = await client.list_classifiers(timeout=DEADLINE_S)
    assert list(listed) == [_expected(name, registry) for name in sorted(NAMES)]


@pytest.mark.parametrize("name", NAMES)
async def test_one_classifier_is_described_as_in_the_list(client: FantailClient, registry: Registry, name: str) -> None:
    assert await client.get_classifier(name, timeout=DEADLINE_S) == _expected(name, registry)


async def test_the_catalogue_is_there_while_the_engine_is_dead(client: FantailClient, engine: WatchedEngine) -> None:
    engine.dead = True
    assert len(await client.list_classifiers(timeout=DEADLINE_S)) == len(NAMES)
