"""Tokenizers of other models, and none at all: what a token stands for, in bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import tokenizers

from moe_core.data.tokenizer import byte_of_symbol, check_encodable, readable
from moe_core.errors import UsageError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BYTE_OF_SYMBOL = byte_of_symbol()
_SENTENCEPIECE = {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}


class ForeignTokenizer:
    """A tokenizer.json of any model. Immutable; safe to share between threads.

    Bytes are exact for byte-level vocabularies (GPT-2's symbols) and for sentencepiece-like ones (a mark for the space,
    <0xE2> for a byte), whose first token carries the space that the tokenizer puts before a text. Of other kinds they
    are what the tokenizer itself writes for the token alone.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, bos: int | None = None, eos: int | None = None) -> None:
        # A copy: the settings below are not part of the file and would change the original for its other users.
        own = tokenizers.Tokenizer.from_str(backend.to_str())
        own.encode_special_tokens = True
        own.no_truncation()
        own.no_padding()
        self._backend = own
        added = own.get_added_tokens_decoder()
        self._control = {token_id: token.content for token_id, token in added.items() if token.special}
        self._added = {token_id: token.content.encode() for token_id, token in added.items() if not token.special}
        self.vocab_size: int = 1 + max([*own.get_vocab(with_added_tokens=True).values(), *added], default=0)
        """One more than the largest id."""
        self.end_of_text = _document_start(own, bos, eos)
        """The token that stands before every document: the one that the tokenizer itself puts before a text, else the
        one named begin, else end of sequence. None where there is none."""
        self._bytes_of = _bytes_of(own)

    def encode(self, text: str) -> list[int]:
        """See TextTokenizer: control tokens written out in the text are ordinary characters."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; several cores work at it."""
        for text in texts:
            check_encodable(text)
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def parts(self, text: str) -> Iterator[str]:
        """The text itself: where another tokenizer may be cut is not known."""
        yield text

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` as the tokenizer itself gives it, without control tokens."""
        text: str = self._backend.decode([i for i in ids if i not in self._control and i < self.vocab_size])
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """See TextTokenizer; none for ids that a model predicts beyond the vocabulary."""
        if token_id in self._control:
            return b""
        if token_id in self._added:
            return self._added[token_id]
        symbols = self._backend.id_to_token(token_id)
        return b"" if symbols is None else self._bytes_of(symbols)

    def token_text(self, token_id: int) -> str:
        """See TextTokenizer; #id beyond the vocabulary."""
        if token_id in self._control:
            return self._control[token_id]
        if self._backend.id_to_token(token_id) is None:
            return f"#{token_id}"
        return readable(self.token_bytes(token_id))


class IdTokenizer:
    """For a model that came without tokenizer: its text is token ids in figures, such as "17 4 256"."""

    end_of_text = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        """The ids written in `text`. Raises UsageError for anything else."""
        for word in text.split():
            if not re.fullmatch(r"[0-9]{1,9}", word) or int(word) >= self.vocab_size:
                raise UsageError(
                    f"{word[:40]!r} is no token id; the model came without a tokenizer, so expected numbers from 0 to "
                    f"{self.vocab_size - 1} such as '17 4 256', or put its tokenizer.json beside the weights"
                )
        return [int(word) for word in text.split()]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return [self.encode(text) for text in texts]

    def parts(self, text: str) -> Iterator[str]:
        """The text itself."""
        yield text

    def decode(self, ids: Sequence[int]) -> str:
        """The ids in figures."""
        return b"".join(self.token_bytes(token_id) for token_id in ids).decode().rstrip()

    def token_bytes(self, token_id: int) -> bytes:
        """The id in figures, and a space."""
        return b"%d " % token_id

    def token_text(self, token_id: int) -> str:
        """#id"""
        return f"#{token_id}"


def _document_start(backend: tokenizers.Tokenizer, bos: int | None, eos: int | None) -> int | None:
    encoding = backend.encode("a", add_special_tokens=True)
    before: list[int] = []
    for token_id, is_special in zip(encoding.ids, encoding.special_tokens_mask, strict=True):
        if not is_special:
            break
        before.append(token_id)
    return before[-1] if before else bos if bos is not None else eos


def _bytes_of(backend: tokenizers.Tokenizer) -> Callable[[str], bytes]:
    """The function from a token as the vocabulary spells it to its bytes, which goes with the tokenizer's decoder."""
    parts = list(_decoder_parts(json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}))
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        return _bytes_of_symbols
    if kinds and kinds <= _SENTENCEPIECE:
        marks = {part["replacement"]: " " for part in parts if part["type"] == "Metaspace"}
        for part in parts:
            if part["type"] == "Replace" and "String" in part["pattern"]:
                marks[part["pattern"]["String"]] = part["content"]
        return partial(_bytes_of_piece, marks=marks, has_bytes="ByteFallback" in kinds)
    return partial(_bytes_alone, backend)


def _bytes_of_symbols(symbols: str) -> bytes:
    if all(symbol in _BYTE_OF_SYMBOL for symbol in symbols):
        return bytes(_BYTE_OF_SYMBOL[symbol] for symbol in symbols)
    return symbols.encode()  # as the decoder does


def _bytes_of_piece(piece: str, *, marks: dict[str, str], has_bytes: bool) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(piece) if has_bytes else None
    if byte:
        return bytes([int(byte[1], 16)])
    for mark, content in marks.items():
        piece = piece.replace(mark, content)
    return piece.encode()


def _bytes_alone(backend: tokenizers.Tokenizer, token: str) -> bytes:
    token_id = backend.token_to_id(token)
    return b"" if token_id is None else backend.decode([token_id], skip_special_tokens=False).encode()


def _decoder_parts(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The decoder's parts, sequences within sequences opened."""
    if decoder.get("type") == "Sequence":
        for part in decoder["decoders"]:
            yield from _decoder_parts(part)
    elif decoder:
        yield decoder
