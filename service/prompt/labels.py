"""Proof that each label of a classifier is one distinct token at the answer position of the served tokenizer."""

from __future__ import annotations

from collections.abc import Mapping

from service.domain import Label
from service.prompt.tokenizer import PromptTokenizer


def prove_labels(
    tokenizer: PromptTokenizer, words: str, tokens: Mapping[str, str]
) -> tuple[tuple[Label, ...], list[str]]:
    """Labels with their token ids, and a sentence for each label that has no such token.

    `words`: the task words right before the answer; `tokens`: label name to the text whose token scores it.
    A label's text must be one token both by itself and right after the words, or the model was never going to say it.
    """
    labels: list[Label] = []
    problems: list[str] = []
    owner: dict[int, str] = {}
    before = tokenizer.encode_text(words)
    for name, text in tokens.items():
        ids = tokenizer.encode_text(text)
        if len(ids) != 1 or tokenizer.encode_text(words + text) != before + ids:
            problems.append(
                f"label {name!r}: {text!r} is not a single token after {words!r}{_offer(tokenizer, words, name, text)}"
            )
        elif ids[0] in owner:
            problems.append(f"label {name!r}: its token {text!r} already scores label {owner[ids[0]]!r}")
        else:
            owner[ids[0]] = name
            labels.append(Label(name, ids[0]))
    return tuple(labels), problems


def _offer(tokenizer: PromptTokenizer, words: str, name: str, text: str) -> str:
    """'; these would work: …' from simple respellings of the label."""
    before = tokenizer.encode_text(words)
    stems = dict.fromkeys(
        part for source in (text, name) for part in [source.strip(), *source.replace("_", " ").split()]
    )
    spellings = dict.fromkeys(
        f"{lead}{form}" for stem in stems for form in (stem, stem.lower(), stem.title()) for lead in (" ", "")
    )
    working = [
        s
        for s in spellings
        if s.strip()
        and len(tokenizer.encode_text(s)) == 1
        and tokenizer.encode_text(words + s) == before + tokenizer.encode_text(s)
    ]
    return f"; these would work: {', '.join(map(repr, working[:5]))}" if working else "; try a shorter common word"
