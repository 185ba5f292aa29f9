"""Text to token ids and back, without torch or transformers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import tokenizers

from adapters.errors import HotswapError


class Tokenizer(Hashable, Protocol):
    """What a :class:`~adapters.tasks.base.Task` needs of a tokenizer."""

    def encode(self, text: str, *, start: bool = False) -> list[int]:
        """Return the ids of ``text``; with ``start``, preceded by what opens a sequence (BOS), if anything."""

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each of ``texts``, as :meth:`encode` does, in one call."""

    def encode_within(self, before: str, text: str, after: str) -> tuple[list[int], list[int], list[int]]:
        """Return the ids of three pieces that are encoded in one; the outer ones' special tokens count as such, those
        that ``text`` spells out do not."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of ``ids``, special tokens left out."""


class FileTokenizer:
    """The tokenizer of a checkpoint folder, read from its ``tokenizer.json``.

    Text from users never becomes a control token: ``<|im_end|>`` in an input is spelled out, so that
    nobody ends the prompt early from inside a document.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise HotswapError(f"{folder} has no tokenizer.json; save it with transformers' save_pretrained first.")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more specific
            raise HotswapError(f"{path} is no tokenizer: {error}; fetch or save the model again.") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True

    def encode(self, text: str, *, start: bool = False) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=start).ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        # Without the places in the text that each token stands for, a third faster.
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_within(self, before: str, text: str, after: str) -> tuple[list[int], list[int], list[int]]:
        tokenizer, controls = self._trusting, self.controls
        encoded = tokenizer.encode(before + text + after, add_special_tokens=False)
        begin, end = len(before), len(before) + len(text)
        head, body, tail = [], [], []
        for token, (first, last) in zip(encoded.ids, encoded.offsets, strict=True):
            if last <= begin and first < begin:
                head.append(token)
            elif first >= end and last > end:
                tail.append(token)
            elif token in controls:  # the text's own, which must not count
                outer = (tokenizer.encode(part, add_special_tokens=False).ids for part in (before, after))
                return next(outer), self.encode(text), next(outer)
            else:
                body.append(token)
        return head, body, tail

    @cached_property
    def controls(self) -> frozenset[int]:
        """The ids of special tokens, which text from users never becomes."""
        return frozenset(i for i, added in self._tokenizer.get_added_tokens_decoder().items() if added.special)

    @cached_property
    def _trusting(self) -> tokenizers.Tokenizer:
        """The tokenizer for what we and the base's chat template have written."""
        trusting = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        trusting.encode_special_tokens = False
        return trusting

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def vocabulary(self) -> dict[str, int]:
        """Return every token, the special ones too, with its id."""
        return self._tokenizer.get_vocab(with_added_tokens=True)
