"""`probes.jsonl`: what of it is read, refused and written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.domain import Conversation, Probe, Role, Turn
from service.errors import RegistryError
from service.registry.loader import RegistryLoader
from service.registry.probes import PROBES_FILE, load_probes, probe_conversations, write_probes
from tests.support import talk

LABELS = ("yes", "no")


def turn(text: str, role: str = "customer") -> dict[str, str]:
    return {"role": role, "text": text}


def line(**changes: Any) -> bytes:
    probe = {"turns": [turn("money back")], "probabilities": {"yes": 0.75, "no": 0.125}}
    return json.dumps(probe | changes, ensure_ascii=False).encode()


def write(folder: Path, *lines: bytes) -> None:
    (folder / PROBES_FILE).write_bytes(b"\n".join(lines) + b"\n")


@pytest.fixture
def folder(tmp_path: Path, make_classifier_folder: Callable[..., Path]) -> Path:
    return make_classifier_folder(tmp_path, "refund")


def problems_of(loader: RegistryLoader, folder: Path) -> tuple[str, ...]:
    with pytest.raises(RegistryError) as caught:
        loader.load(folder.parent)
    return caught.value.problems


def test_a_classifier_without_the_file_has_no_probes(loader: RegistryLoader, folder: Path) -> None:
    assert loader.load(folder.parent).get("refund").probes == ()


def test_a_classifier_carries_its_probes_in_the_order_of_lines(loader: RegistryLoader, folder: Path) -> None:
    write(folder, line(), line(turns=[turn("hi"), turn("hello", "agent"), turn("note", "system")]))
    said = (Turn(Role.CUSTOMER, "hi"), Turn(Role.AGENT, "hello"), Turn(Role.SYSTEM, "note"))
    assert loader.load(folder.parent).get("refund").probes == (
        Probe(Conversation("", (Turn(Role.CUSTOMER, "money back"),)), (0.75, 0.125)),
        Probe(Conversation("", said), (0.75, 0.125)),
    )


def test_probabilities_come_in_the_order_of_the_labels(tmp_path: Path) -> None:
    write(tmp_path, line(probabilities={"no": 0.125, "yes": 0.75}))
    assert load_probes(tmp_path, LABELS)[0][0].probabilities == (0.75, 0.125)


@pytest.mark.parametrize("probability", [0, 1e-30, 0.999, 1])
def test_probabilities_from_0_to_1_are_read(tmp_path: Path, probability: float) -> None:
    write(tmp_path, line(probabilities={"yes": probability, "no": 0}))
    assert load_probes(tmp_path, LABELS)[0][0].probabilities == (probability, 0)


@pytest.mark.parametrize("ending", [b"", b"\n"], ids=["without", "with"])
def test_the_last_line_may_end_with_or_without_a_newline(tmp_path: Path, ending: bytes) -> None:
    (tmp_path / PROBES_FILE).write_bytes(line() + b"\n" + line() + ending)
    probes, problems = load_probes(tmp_path, LABELS)
    assert (len(probes), problems) == (2, [])


@pytest.mark.parametrize(
    ("faulty", "says"),
    [
        pytest.param(b"{", "Invalid JSON: ", id="not JSON"),
        pytest.param(b"", "Invalid JSON: ", id="empty line"),
        pytest.param(line(turns=[turn("ü")]).replace("ü".encode(), b"\xff"), "Invalid JSON: ", id="not UTF-8"),
        pytest.param(b"[]", "Input should be an object", id="a list"),
        pytest.param(line(id="x"), "id: unknown key", id="unknown key"),
        pytest.param(line(turns=[turn("x") | {"at": "1"}]), "turns.0.at: unknown key", id="unknown key in a turn"),
        pytest.param(line(turns=[]), "turns: List should have at least 1 item", id="no turns"),
        pytest.param(line(turns=[turn("x"), turn(" \n")]), "turns.1.text: String should match", id="blank text"),
        pytest.param(line(turns=[turn("x", "bot")]), "turns.0.role: Input should be", id="unknown role"),
        pytest.param(b'{"turns": [{"role": "agent", "text": "x"}]}', "probabilities: Field required", id="no answer"),
        pytest.param(
            line(probabilities={"yes": 0.5}),
            "probabilities are of ['yes'], the labels are ['no', 'yes']",
            id="a label without probability",
        ),
        pytest.param(
            line(probabilities={"yes": 0.5, "no": 0.1, "maybe": 0.1}),
            "probabilities are of ['maybe', 'no', 'yes'], the labels are ['no', 'yes']",
            id="another label",
        ),
        pytest.param(
            line(probabilities={"yes": -1e-9, "no": 0}),
            "probabilities.yes: Input should be greater than or equal to 0",
            id="probability below 0",
        ),
        pytest.param(
            line(probabilities={"yes": 0, "no": 1.001}),
            "probabilities.no: Input should be less than or equal to 1",
            id="probability above 1",
        ),
        pytest.param(line(probabilities={"yes": float("nan"), "no": 0}), "probabilities.yes: ", id="not a number"),
    ],
)
def test_a_faulty_line_is_refused_by_its_number(loader: RegistryLoader, folder: Path, faulty: bytes, says: str) -> None:
    write(folder, line(), faulty, line())
    (problem,) = problems_of(loader, folder)
    assert problem.startswith(f"refund: probes.jsonl:2: {says}")


def test_all_faulty_lines_are_reported_together(loader: RegistryLoader, folder: Path) -> None:
    write(folder, b"{", line(), line(turns=[], probabilities={"yes": 2, "no": 0}), line(probabilities={}))
    places = [problem.split(": ")[1] for problem in problems_of(loader, folder)]
    assert places == ["probes.jsonl:1", "probes.jsonl:3", "probes.jsonl:3", "probes.jsonl:4"]


@pytest.mark.parametrize(
    "faulty",
    [line(turns=[turn("secret", "bot")]), line(turns=[turn("secret")])[:-1]],
    ids=["unknown role", "cut short"],
)
def test_a_refusal_does_not_repeat_the_conversation(loader: RegistryLoader, folder: Path, faulty: bytes) -> None:
    write(folder, faulty)
    assert "secret" not in "\n".join(problems_of(loader, folder))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("where is my refund??", id="plain"),
        pytest.param('"quoted" \\ and\nbroken', id="quotes and newlines"),
        pytest.param("one\u2028two\u0085three", id="separators that end no line"),
        pytest.param("grüße 🙂 <|im_start|>", id="beyond ASCII"),
    ],
)
def test_what_is_written_is_read_back(tmp_path: Path, text: str) -> None:
    probes = (Probe(talk(text, "hello"), (0.1 + 0.2, 1e-30)), Probe(talk("thanks"), (1.0, 0.0)))
    write_probes(tmp_path, LABELS, probes)
    assert load_probes(tmp_path, LABELS) == (
        tuple(replace(each, conversation=replace(each.conversation, id="")) for each in probes),
        [],
    )


def test_writing_again_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_probes(tmp_path, LABELS, [Probe(talk(text), (0.5, 0.25))])
    ((probe,), _) = load_probes(tmp_path, LABELS)
    assert probe.conversation.turns[0].text == "two"
    assert [path.name for path in tmp_path.iterdir()] == [PROBES_FILE]


def test_an_ignored_file_may_hold_anything(loader: RegistryLoader, folder: Path) -> None:
    write(folder, b"{")
    ignoring = replace(loader, ignore=frozenset({PROBES_FILE}))
    assert ignoring.load(folder.parent).get("refund").probes == ()


SAID = Conversation("", (Turn(Role.CUSTOMER, "money back"),))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="as written"),
        pytest.param({"probabilities": {"maybe": 0.5}}, id="of other labels"),
        pytest.param({"probabilities": {"yes": 7}}, id="out of range"),
        pytest.param({"probabilities": None}, id="none"),
    ],
)
def test_conversations_are_read_whatever_their_probabilities(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path, line(**changes), line(**changes))
    assert probe_conversations(tmp_path) == [SAID, SAID]


def test_conversations_are_read_back_though_they_hold_separators(tmp_path: Path) -> None:
    write_probes(tmp_path, LABELS, [Probe(talk("one\u2028two\u0085three", id=""), (0.5, 0.25))])
    assert probe_conversations(tmp_path) == [talk("one\u2028two\u0085three", id="")]


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(None, id="no file"),
        pytest.param(b"", id="empty"),
        pytest.param(line() + b"\n{", id="one line cut short"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"{}", id="no turns"),
        pytest.param(b'{"turns": 1}', id="a number of turns"),
        pytest.param(line(turns=[]), id="an empty list of turns"),
        pytest.param(line(turns=[turn("x", "bot")]), id="unknown role"),
        pytest.param(b"\xff", id="not UTF-8"),
    ],
)
def test_unreadable_conversations_are_none(tmp_path: Path, written: bytes | None) -> None:
    if written is not None:
        (tmp_path / PROBES_FILE).write_bytes(written)
    assert probe_conversations(tmp_path) == []
