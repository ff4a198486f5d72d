"""Byte-level BPE: every string has exactly one encoding, and decoding gives every string back.

The control token <|endoftext|> stands before every document; its id is 0 where we trained the tokenizer. It never
arises from text: a user who types "<|endoftext|>" gets the ordinary tokens of those thirteen characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from moe_core.data.parts import cuts_before, parts_alike, parts_anyhow
from moe_core.errors import DataError, RunError, UsageError

END_OF_TEXT = "<|endoftext|>"
LONGEST_LEARNED_PIECE = 256
"""Bytes of the pieces that merges are learned from. A merge takes time by the length of every piece that it changes, so
one word of a million letters (DNA, base64, text without spaces) would take hours; the words of ordinary text are far
shorter. Only learning is bounded: the tokenizer that results encodes pieces of any length, as its file says."""
_READABLE_BYTE = re.compile(r"\\x([89A-F][0-9A-F])")
BYTE_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_of_symbol() -> dict[str, int]:
    """The byte that each of the 256 symbols of a byte-level vocabulary stands for (GPT-2's table).

    Printable Latin-1 bytes are their own symbol; the others follow in order from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_SYMBOL = byte_of_symbol()


class TextTokenizer(Protocol):
    """What reading and writing text needs of a tokenizer: ours, or another model's. Ids run from 0."""

    @property
    def end_of_text(self) -> int | None:
        """The token that stands before every document; None if documents begin with their own first token."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text` and of nothing else: what looks like a control token is text. Raises DataError."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""

    def parts(self, text: str) -> Iterator[str]:
        """Parts of a long text, to be encoded one by one: their ids, one after the other, are those of `text`."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without control tokens."""

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes a token stands for, perhaps part of a character; none for control tokens."""

    def token_text(self, token_id: int) -> str:
        """A token as shown to people; control tokens by name."""


class Tokenizer:
    """A trained byte-level BPE vocabulary. Immutable; safe to share between threads."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        end_of_text = backend.token_to_id(END_OF_TEXT)
        if end_of_text is None:
            raise RunError(f"the tokenizer has no {END_OF_TEXT!r} token; expected one trained by Moescope")
        # Control tokens found in user text are encoded as ordinary characters; the setting is not part of the file.
        backend.encode_special_tokens = True
        self._backend = backend
        self.end_of_text: int = end_of_text
        """Id of the control token that stands before every document."""
        self.vocab_size: int = backend.get_vocab_size()
        """Ids run from 0 to vocab_size - 1."""
        added = backend.get_added_tokens_decoder()
        self._control = {token_id: token.content for token_id, token in added.items() if token.special}
        """End-of-text; an encoding of tiktoken has others, which stand in no text of ours."""
        self._bytes_V = _bytes_of_tokens(backend, self._control)
        self._cuts_before = _cuts_before(backend)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn merges from `texts`; deterministic. Fewer than `vocab_size` ids result when the texts are small."""
        if vocab_size < 257:
            raise UsageError(f"vocab_size = {vocab_size} is too small; expected at least 257 (256 bytes + end-of-text)")
        backend = tokenizers.Tokenizer(models.BPE())
        pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.FixedLength(LONGEST_LEARNED_PIECE)])
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=BYTE_ALPHABET,
            show_progress=False,
        )
        backend.train_from_iterator((part for text in texts for part in parts_anyhow(text)), trainer)
        backend.pre_tokenizer = pieces
        return cls(backend)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without end-of-text. Raises DataError for lone surrogates, which no UTF-8 text can hold."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; several cores work at it."""
        for text in texts:
            check_encodable(text)
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts))]

    def parts(self, text: str) -> Iterator[str]:
        """See TextTokenizer. Raises DataError for millions of characters without a space."""
        return parts_alike(text, self._cuts_before) if self._cuts_before else iter((text,))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control tokens decode to nothing, bytes that are not UTF-8 to U+FFFD."""
        return b"".join(self.token_bytes(token_id) for token_id in ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that a token stands for, perhaps only part of a character; none for control tokens."""
        self._check_id(token_id)
        return self._bytes_V[token_id]

    def token_text(self, token_id: int) -> str:
        """A token as shown to people: valid UTF-8 as is, lone bytes as \\xE2, control tokens by name."""
        if token_id in self._control:
            return self._control[token_id]
        return readable(self.token_bytes(token_id))

    def vocabulary(self) -> list[str]:
        """`token_text` of every id, in order."""
        return [self.token_text(token_id) for token_id in range(self.vocab_size)]

    def to_json(self) -> str:
        """What `save` writes: JSON in the format of the `tokenizers` library."""
        return self._backend.to_str()

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json in the format of the `tokenizers` library."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read what `save` wrote. Raises RunError when it is missing or damaged."""
        try:
            return cls(tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise RunError(f"no tokenizer at {str(path)!r}; expected the tokenizer.json of a run") from None
        except RunError:
            raise
        except Exception as error:  # tokenizers raises the bare Exception for every fault of the file
            reason = str(error).split("\n")[0]
            raise RunError(f"the tokenizer at {str(path)!r} is damaged ({reason}); train the run again") from None

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is outside the vocabulary of {self.vocab_size}")


def _bytes_of_tokens(backend: tokenizers.Tokenizer, control: Container[int]) -> list[bytes]:
    bytes_V = [b""] * backend.get_vocab_size()
    try:
        for token, token_id in backend.get_vocab().items():
            if token_id not in control:
                bytes_V[token_id] = bytes(_BYTE_OF_SYMBOL[symbol] for symbol in token)
    except LookupError as error:
        raise RunError(f"the tokenizer is not byte-level ({error}); expected one trained by Moescope") from None
    return bytes_V


def _cuts_before(backend: tokenizers.Tokenizer) -> str:
    """The characters that text may be cut before; an imported tokenizer may split it in a way that we do not know."""
    if backend.normalizer is not None or backend.pre_tokenizer is None:
        return ""
    return cuts_before(json.loads(backend.pre_tokenizer.__getstate__()))


def check_encodable(text: str) -> None:
    """Raise DataError for a lone surrogate, which no UTF-8 text can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}; "
            "expected text that UTF-8 can hold: remove it"
        ) from None


def readable(data: bytes) -> str:
    """Valid UTF-8 as is, other bytes as \\xE2."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        escaped = "".join(f"\\x{byte:02X}" for byte in data[error.start : error.end])
        return data[: error.start].decode() + escaped + readable(data[error.end :])


def bytes_of_readable(text: str) -> bytes:
    """What `readable` was given: \\x80 to \\xFF in the text are taken for the bytes that it wrote so."""
    parts = _READABLE_BYTE.split(text)
    return b"".join(
        bytes([int(part, 16)]) if place % 2 else part.encode("utf-8", "replace") for place, part in enumerate(parts)
    )


def joined(texts: Iterable[str]) -> str:
    """The text of tokens that are each written by `readable`: the bytes of one character are that character again."""
    return readable(b"".join(bytes_of_readable(text) for text in texts))
