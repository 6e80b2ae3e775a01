"""The served tokenizer with two doors: our own pieces, where control tokens are parsed, and text, where none is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer

from service.errors import BaseModelError


class PromptTokenizer:
    """Encodes pieces of a prompt. Never decodes, never joins pieces before encoding."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        definition = tokenizer.to_str()
        self._control = Tokenizer.from_str(definition)
        self._text = Tokenizer.from_str(definition)
        self._text.encode_special_tokens = True
        for each in (self._control, self._text):
            each.no_truncation()
            each.no_padding()

    @classmethod
    def from_model(cls, model: Path) -> PromptTokenizer:
        """Load `tokenizer.json` of a model folder. Raises BaseModelError when there is none that can be read."""
        path = model / "tokenizer.json"
        if not path.is_file():
            raise BaseModelError(
                f"{model} has no tokenizer.json; a fast tokenizer is needed to encode customer text safely"
            )
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises nothing narrower
            raise BaseModelError(f"{path} cannot be read ({error}); get the model again") from error

    def encode_control(self, piece: str) -> tuple[int, ...]:
        """Ids of one of our own pieces; control tokens spelled in it become control tokens."""
        return tuple(self._control.encode(piece, add_special_tokens=False).ids)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Ids of anybody's text; a control token spelled in it stays ordinary text."""
        return tuple(self._text.encode(text, add_special_tokens=False).ids)

    def encode_texts(self, texts: Iterable[str]) -> list[tuple[int, ...]]:
        """`encode_text` of many."""
        return [tuple(e.ids) for e in self._text.encode_batch_fast(list(texts), add_special_tokens=False)]

    def spellable_control_tokens(self, pieces: Iterable[str]) -> list[str]:
        """Control tokens of our pieces that anybody's text could forge: empty for a safe tokenizer."""
        added = self._control.get_added_tokens_decoder()
        used = {i for piece in pieces for i in self.encode_control(piece) if i in added}
        return sorted(added[i].content for i in used if i in self.encode_text(added[i].content))
