"""Classifiers whose folder has a prompt format of its own, beside those that share one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from grpc import StatusCode

from service.engine.base import ScoringRequest
from service.pb.fantail.v1 import admin_service_pb2 as pb
from service.prompt.builder import PromptBuilder
from service.prompt.format import FORMAT_FILE, OwnPromptFormat, load_prompt_format
from service.registry.adapter import CONFIG_FILE
from service.registry.loader import RegistryLoader
from tests.deployment import ACTIVATED, BARE, KINDS, PLAIN, change_adapter
from tests.integration.harness import DEADLINE_S
from tests.integration.operated import Operated, operating, traffic
from tests.support import OWN_PROMPT, talk

TEXT = "where is my refund?"
TURNS = [("customer", TEXT)]


@pytest.fixture
async def operated(tmp_path: Path, loader: RegistryLoader, builder: PromptBuilder) -> AsyncIterator[Operated]:
    async with operating(tmp_path, replace(loader, builder=builder)) as found:
        yield found


@pytest.fixture
def own(tmp_path: Path, builder: PromptBuilder) -> PromptBuilder:
    """What makes the prompts that `OWN_PROMPT` describes."""
    (tmp_path / FORMAT_FILE).write_text(OWN_PROMPT)
    return builder.in_format(load_prompt_format(tmp_path, OwnPromptFormat))


def give_own_prompt(folder: Path, own: PromptBuilder, text: str = OWN_PROMPT) -> None:
    """As `fantail import --prompt` does; an activated adapter begins with that prompt's invocation then."""
    (folder / FORMAT_FILE).write_text(text)
    if KINDS[folder.name] == "activated":
        change_adapter(folder, alora_invocation_tokens=list(own.invocation_ids))


async def reload_with_own(operated: Operated, own: PromptBuilder, *names: str, text: str = OWN_PROMPT) -> None:
    for name in names:
        give_own_prompt(operated.served.classifiers / name, own, text)
    results = await operated.reload(*names)
    assert [(each.outcome, list(each.problems)) for each in results] == [(pb.RELOAD_OUTCOME_LOADED, [])] * len(names)
    operated.served.engine.requests.clear()


def asked(operated: Operated) -> dict[str, ScoringRequest]:
    """What the engine was asked last of each classifier."""
    names = {tuple(operated.served.current(name).tail_ids): name for name in KINDS}
    return {
        name: each
        for each in operated.served.engine.requests
        for tail, name in names.items()
        if each.token_ids[-len(tail) :] == tail
    }


def roomless(builder: PromptBuilder, share: float = 0.4) -> str:
    """A prompt that takes this share of the room itself."""
    return OWN_PROMPT.replace("Answer", "word " * int(builder.max_prefix_tokens * share))


def too_much(builder: PromptBuilder) -> list[tuple[str, str]]:
    """A conversation that the shared prompt has room for, and a roomless one has not."""
    return [("customer", "word " * int(builder.max_prefix_tokens * 0.75))]


@pytest.mark.parametrize("name", KINDS, ids=KINDS.values())
async def test_it_is_asked_in_its_own_prompt_and_the_others_in_theirs(
    operated: Operated, builder: PromptBuilder, own: PromptBuilder, name: str
) -> None:
    await reload_with_own(operated, own, name)
    response = await operated.client.fan_out(TURNS, timeout=DEADLINE_S)
    assert [each.WhichOneof("outcome") for each in response.results] == ["classification"] * len(KINDS)
    for each, request in asked(operated).items():
        prefix = (own if each == name else builder).prefix(talk(TEXT)).token_ids
        activated = KINDS[each] == "activated"
        assert request.token_ids == prefix + operated.served.current(each).tail_ids
        assert request.activation_index == (len(prefix) if activated else None)


async def test_a_prompt_without_filler_ends_with_the_conversation(operated: Operated, own: PromptBuilder) -> None:
    await reload_with_own(operated, own, PLAIN)
    await operated.client.classify(TURNS, PLAIN, timeout=DEADLINE_S)
    (request,) = operated.served.engine.requests
    spelled = operated.served.loader.tokenizer.encode_control(
        "<|im_start|>system\nAnswer about this talk.<|im_end|>\n<|im_start|>user\nCustomer:\n"
    )
    tokens = operated.served.loader.tokenizer
    after = tokens.encode_control("<|im_end|>\n<|im_start|>assistant\n") + tokens.encode_text(f"{PLAIN}?")
    assert request.token_ids == spelled + tokens.encode_text(TEXT) + tokens.encode_control("\n") + after


async def test_it_reports_what_was_left_out_of_its_own_prompt(
    operated: Operated, builder: PromptBuilder, own: PromptBuilder
) -> None:
    await reload_with_own(operated, own, PLAIN)
    texts = [f"message {i} " + "word " * 40 for i in range(20)]
    turns = [("customer" if i % 2 == 0 else "agent", text) for i, text in enumerate(texts)]
    response = await operated.client.fan_out(turns, [PLAIN, BARE], timeout=DEADLINE_S)
    cut = [each.classification.truncation.dropped_tokens for each in response.results]
    assert cut == [each.prefix(talk(*texts)).truncation.dropped_tokens for each in (own, builder)]
    assert cut[0] != cut[1]


async def test_a_conversation_that_it_alone_has_no_room_for_is_answered_by_the_others(
    operated: Operated, builder: PromptBuilder, own: PromptBuilder
) -> None:
    await reload_with_own(operated, own, PLAIN, text=roomless(builder))
    response = await operated.client.fan_out(too_much(builder), timeout=DEADLINE_S)
    statuses = {each.classifier: each.status for each in response.results if each.HasField("status")}
    assert statuses.keys() == {PLAIN}
    assert statuses[PLAIN].code == StatusCode.INVALID_ARGUMENT.value[0]
    assert "Turn 0 has" in statuses[PLAIN].message


async def test_in_a_batch_its_refusal_names_the_batchs_field(
    operated: Operated, builder: PromptBuilder, own: PromptBuilder
) -> None:
    await reload_with_own(operated, own, PLAIN, text=roomless(builder))
    response = await operated.client.classify_batch([TURNS, too_much(builder)], [PLAIN, BARE], timeout=DEADLINE_S)
    fine, refused = (item.fan_out.results for item in response.items)
    assert [each.HasField("status") for each in (*fine, *refused)] == [False, False, True, False]
    assert b"conversations[1].turns[0].text" in refused[0].status.SerializeToString()


async def test_a_prompt_that_leaves_less_than_half_of_the_room_is_refused(
    operated: Operated, builder: PromptBuilder, own: PromptBuilder
) -> None:
    give_own_prompt(operated.served.classifiers / PLAIN, own, roomless(builder, 0.55))
    (result,) = await operated.reload(PLAIN)
    assert result.outcome == pb.RELOAD_OUTCOME_REFUSED
    assert result.problems[0].startswith("prompt.toml: preamble and what stands around a turn take ")


async def test_a_prompt_that_is_a_link_to_nowhere_is_no_shared_one(operated: Operated, loader: RegistryLoader) -> None:
    folder = operated.served.classifiers / PLAIN
    (folder / FORMAT_FILE).symlink_to(folder / "gone")
    assert loader.load_one(folder)[1] == [
        "prompt.toml is missing: it holds the prompt format the adapters were trained with"
    ]
    (result,) = await operated.reload(PLAIN)
    assert result.outcome == pb.RELOAD_OUTCOME_REFUSED


async def test_a_long_conversation_is_tokenised_once_for_all_prompts(
    operated: Operated, own: PromptBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reload_with_own(operated, own, *KINDS)
    tokenizer, encoded = operated.served.loader.tokenizer, list[str]()
    encode = type(tokenizer).encode_texts

    def watched(self: object, texts: Iterable[str]) -> list[tuple[int, ...]]:
        encoded.extend(texts := list(texts))
        return encode(tokenizer, texts)

    monkeypatch.setattr(type(tokenizer), "encode_texts", watched)
    await operated.client.fan_out(TURNS, timeout=DEADLINE_S)
    assert encoded == [TEXT]


async def test_traffic_between_two_prompts_is_asked_in_that_of_the_revision(
    operated: Operated, builder: PromptBuilder, own: PromptBuilder
) -> None:
    folder = operated.served.candidate(2)
    give_own_prompt(operated.served.candidates / folder, own)
    revisions = [operated.served.current().revision, await operated.load(folder)]
    prefixes = [each.prefix(talk(TEXT)).token_ids for each in (builder, own)]
    for revision, prefix in zip(revisions, prefixes, strict=True):
        shares = {each: 100 * (each == revision) for each in revisions}
        await operated.admin.SetTraffic(traffic(shares), timeout=DEADLINE_S)
        answer = await operated.client.classify(TURNS, ACTIVATED, timeout=DEADLINE_S)
        assert answer.classification.revision == revision
        assert operated.served.engine.requests[-1].token_ids[: len(prefix)] == prefix


async def test_a_shadow_is_asked_in_its_own_prompt(operated: Operated, own: PromptBuilder) -> None:
    folder = operated.served.candidate(2)
    give_own_prompt(operated.served.candidates / folder, own)
    revision = await operated.load(folder)
    await operated.admin.SetTraffic(traffic({}, revision), timeout=DEADLINE_S)
    operated.served.engine.requests.clear()
    await operated.client.classify(TURNS, ACTIVATED, timeout=DEADLINE_S)
    found = await operated.served.metrics.shadow()
    assert found is not None
    assert found.revision == revision
    prefix = own.prefix(talk(TEXT)).token_ids
    assert operated.served.engine.requests[-1].token_ids[: len(prefix)] == prefix


async def test_a_batch_asks_it_in_its_own_prompt(operated: Operated, own: PromptBuilder) -> None:
    await reload_with_own(operated, own, PLAIN)
    response = await operated.client.classify_batch([TURNS, TURNS], [PLAIN], timeout=DEADLINE_S)
    assert [each.fan_out.results[0].HasField("classification") for each in response.items] == [True, True]
    prefix = own.prefix(talk(TEXT)).token_ids
    assert all(each.token_ids[: len(prefix)] == prefix for each in operated.served.engine.requests)


@pytest.mark.parametrize(
    ("asked_together", "readings"),
    [
        pytest.param([ACTIVATED], (1, 2), id="activated"),
        pytest.param([ACTIVATED, BARE], (1, 1), id="activated and bare share theirs"),
        pytest.param([PLAIN, ACTIVATED], (2, 1), id="a plain one shares nothing"),
    ],
)
async def test_each_prompt_is_read_once_until_it_is_cached(
    operated: Operated, own: PromptBuilder, builder: PromptBuilder, asked_together: list[str], readings: tuple[int, int]
) -> None:
    """`readings`: in its own prompt, and in the shared one; the plain one's is one of them."""
    await reload_with_own(operated, own, *asked_together)
    served, taken, names = operated.served, [], (ACTIVATED, PLAIN, BARE)
    served.engine.front.clear()
    for _ in range(2):
        call = asyncio.ensure_future(operated.client.fan_out(TURNS, names, timeout=DEADLINE_S))
        await served.engine.until("front", len(names))
        taken.append(served.classify.admission.tokens)
        served.engine.front.set()
        await call
        served.engine.front.clear()
    tails = sum(len(served.current(name).tail_ids) for name in names)
    prefixes = [len(each.prefix(talk(TEXT)).token_ids) for each in (own, builder)]
    assert taken == [
        sum(times * tokens for times, tokens in zip(readings, prefixes, strict=True)) + tails,
        readings[0] * (prefixes[0] % 32) + tails,
    ]


async def test_a_prompt_that_is_the_shared_one_is_shared(operated: Operated, own: PromptBuilder) -> None:
    folder, before = operated.served.classifiers / PLAIN, operated.served.current(PLAIN)
    assert before.own_prompt is None
    await reload_with_own(operated, own, PLAIN)
    assert operated.served.current(PLAIN).own_prompt is not None
    assert operated.served.current(PLAIN).revision != before.revision
    (folder / FORMAT_FILE).write_bytes((Path("classifiers") / FORMAT_FILE).read_bytes())
    (result,) = await operated.reload(PLAIN)
    assert (result.outcome, result.revision) == (pb.RELOAD_OUTCOME_LOADED, before.revision)
    assert operated.served.current(PLAIN).own_prompt is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(f"fill = 1\n{OWN_PROMPT}", "prompt.toml: fill: unknown key", id="unknown key"),
        pytest.param(OWN_PROMPT.replace("preamble =", "preamble"), "prompt.toml is not valid TOML", id="no TOML"),
        pytest.param(f'filler = "two words"\n{OWN_PROMPT}', "the filler", id="two fillers"),
    ],
)
async def test_a_faulty_prompt_is_refused_with_its_fault(
    operated: Operated, own: PromptBuilder, text: str, problem: str
) -> None:
    before = operated.served.current(PLAIN).revision
    give_own_prompt(operated.served.classifiers / PLAIN, own, text)
    (result,) = await operated.reload(PLAIN)
    assert result.outcome == pb.RELOAD_OUTCOME_REFUSED
    assert any(each.startswith(problem) for each in result.problems)
    assert (await operated.client.classify(TURNS, PLAIN, timeout=DEADLINE_S)).classification.revision == before


async def test_an_adapter_with_another_invocation_than_its_prompts_is_refused(
    operated: Operated, own: PromptBuilder
) -> None:
    (operated.served.classifiers / ACTIVATED / FORMAT_FILE).write_text(OWN_PROMPT)
    (result,) = await operated.reload(ACTIVATED)
    assert result.outcome == pb.RELOAD_OUTCOME_REFUSED
    assert "invocation" in result.problems[0]
    assert (operated.served.classifiers / ACTIVATED / "adapter" / CONFIG_FILE).exists()
