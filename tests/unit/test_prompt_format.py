"""`prompt.toml`: what is refused, and what the digest covers."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.domain import Role
from service.errors import RegistryError
from service.prompt.format import FORMAT_FILE, OwnPromptFormat, PromptFormat, load_prompt_format

VALID = """preamble = "<|im_start|>system\\nHelp.<|im_end|>\\n"
turn_end = "<|im_end|>\\n"
filler = "\\n"
invocation = "<|im_start|>assistant\\n"
[turn_start]
customer = "<|im_start|>user\\n"
agent = "<|im_start|>assistant\\n"
system = "<|im_start|>system\\n"
"""


def load(folder: Path, text: str) -> PromptFormat:
    (folder / "prompt.toml").write_text(text, encoding="utf-8")
    return load_prompt_format(folder)


def test_every_role_has_its_own_start(tmp_path: Path) -> None:
    starts = load(tmp_path, VALID).turn_start
    assert [starts.of(role) for role in Role] == [
        "<|im_start|>user\n",
        "<|im_start|>assistant\n",
        "<|im_start|>system\n",
    ]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        pytest.param("turn_end =", "turn_close =", "turn_close: unknown key", id="unknown key"),
        pytest.param("turn_end =", "turn_close =", "turn_end: Field required", id="missing key"),
        pytest.param('agent = "', 'bot = "', "turn_start.bot: unknown key", id="unknown role"),
        pytest.param('agent = "', 'bot = "', "turn_start.agent: Field required", id="missing role"),
        pytest.param('filler = "\\n"', 'filler = ""', "filler: String should have at least 1", id="empty filler"),
        pytest.param('filler = "\\n"', "filler = 3", "filler: Input should be a valid string", id="not a string"),
        pytest.param("[turn_start]", "[turn_start", "not valid TOML", id="bad TOML"),
    ],
)
def test_a_faulty_format_is_refused_with_its_key(tmp_path: Path, old: str, new: str, named: str) -> None:
    with pytest.raises(RegistryError) as caught:
        load(tmp_path, VALID.replace(old, new))
    assert named in str(caught.value)
    assert "prompt.toml" in str(caught.value)


def test_an_unknown_key_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(RegistryError) as caught:
        load(tmp_path, 'prelude = "x"\n' + VALID)
    assert [key for key in PromptFormat.model_fields if key not in str(caught.value)] == []


def test_a_classifiers_own_format_may_have_no_filler(tmp_path: Path) -> None:
    (tmp_path / FORMAT_FILE).write_text(VALID.replace('filler = "\\n"\n', ""), encoding="utf-8")
    assert load_prompt_format(tmp_path, OwnPromptFormat).filler == ""


def test_a_classifiers_own_format_with_the_same_pieces_has_the_same_digest(tmp_path: Path) -> None:
    shared = load(tmp_path, VALID)
    assert load_prompt_format(tmp_path, OwnPromptFormat).digest == shared.digest


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(RegistryError) as caught:
        load(tmp_path, VALID.replace("turn_end =", "turn_close =").replace('filler = "\\n"', 'filler = ""'))
    assert len(caught.value.problems) == 3


def test_a_missing_format_says_what_it_is_for(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"prompt\.toml is missing: it holds the prompt format"):
        load_prompt_format(tmp_path)


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "prompt.toml").write_bytes(b'preamble = "\xff"')
    with pytest.raises(RegistryError, match="not valid TOML"):
        load_prompt_format(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("Help.", "Help!", id="preamble"),
        pytest.param('turn_end = "<|im_end|>\\n"', 'turn_end = "<|im_end|>"', id="turn_end"),
        pytest.param('filler = "\\n"', 'filler = " "', id="filler"),
        pytest.param('invocation = "<|im_start|>assistant\\n"', 'invocation = "<|im_start|>judge\\n"', id="invocation"),
        pytest.param('customer = "<|im_start|>user\\n"', 'customer = "<|im_start|>caller\\n"', id="customer"),
        pytest.param('agent = "<|im_start|>assistant\\n"', 'agent = "<|im_start|>agent\\n"', id="agent"),
        pytest.param('system = "<|im_start|>system\\n"', 'system = "<|im_start|>note\\n"', id="system"),
    ],
)
def test_the_digest_changes_with_every_piece(tmp_path: Path, old: str, new: str) -> None:
    assert old in VALID
    assert load(tmp_path, VALID).digest != load(tmp_path, VALID.replace(old, new)).digest


def test_the_digest_does_not_depend_on_comments_and_order(tmp_path: Path) -> None:
    turned = VALID.replace('filler = "\\n"\n', "")
    assert load(tmp_path, VALID).digest == load(tmp_path, '# why\nfiller = "\\n"\n' + turned).digest
