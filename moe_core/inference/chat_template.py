"""A tokenizer's own chat template, filled in so that nothing in a message becomes a control token.

The transformers library renders a conversation into one text and encodes that: whoever writes "<|im_end|>" in a message
ends it. Here control tokens that stand in a message are hidden while the template is filled in, and are ordinary
characters of the text that is encoded. Of harmless messages the token ids are those of apply_chat_template.
"""

from __future__ import annotations

import json
import re
import secrets
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple, get_args

import tokenizers

from moe_core.data.tokenizer import check_encodable
from moe_core.errors import UsageError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One message of a conversation. Raises UsageError for another role, DataError for text that UTF-8 cannot hold."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):  # whatever the annotation says, a caller may hand over
            raise UsageError(f"role = {str(self.role)[:40]!r}; expected {', '.join(get_args(Role))}")
        check_encodable(self.content)


class ChatTemplate:
    """The template of a tokenizer of the transformers library. Immutable; safe to share between threads.

    Control tokens are those that the tokenizer calls special and, in what users and systems say, all added tokens that
    the template itself writes. An assistant's own words may hold the latter, such as <think>.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        """`tokenizer`: a fast one that has a chat template; `name`: the model's, for people."""
        self._tokenizer = tokenizer
        self._name = name
        backend: tokenizers.Tokenizer = tokenizer.backend_tokenizer
        self._state: str = backend.to_str()
        self._added = {token.content: (i, token) for i, token in backend.get_added_tokens_decoder().items()}
        self._special = frozenset(content for content, (_, token) in self._added.items() if token.special)
        longest_first = sorted((content for content in self._added if content), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._renaming: dict[frozenset[str], _Renaming] = {}
        # Private characters and a number nobody can guess: no message holds it, no template looks for it.
        self._nonce = f"\ue000{secrets.token_hex(8)}\ue001"

    def token_ids(self, messages: Sequence[Message]) -> list[int]:
        """The conversation up to where the assistant's next words begin.

        Raises UsageError where the template refuses the messages, or looks into one in a way that cannot be told apart
        from a control token in it.
        """
        neutral = [Message(m.role, self._nonce if m.content.strip() else m.content) for m in messages]
        written = Counter(place.content for place in self._found(self._rendered(neutral)))
        marks = self._special | {content for content in written if content.strip()}
        hidden = [self._hidden(m, self._special if m.role == "assistant" else marks) for m in messages]
        contents = [Message(m.role, text) for m, (text, _) in zip(messages, hidden, strict=True)]
        text, plain = self._rendered(contents), self._rendered(messages)
        strings = dict(pair for _, pairs in hidden for pair in pairs)
        if self._shown(text, strings) != plain:
            raise UsageError(
                f"the chat template of {self._name} looks into messages, and one holds "
                f"{next(iter(strings.values()))!r}, of which a control token of this model is made; write it otherwise"
            )
        # A template that takes something out of a message may join what stood around it.
        characters = _alike("".join(message.content for message in messages))
        for mark in Counter(place.content for place in self._found(text)) - written:
            if mark in marks and _alike(mark) <= characters:
                raise UsageError(
                    f"the chat template of {self._name} writes the control token {mark!r} depending on what a message "
                    "says, which could be made so by the message; write it otherwise"
                )
        if not strings:
            return self._encoder.encode(plain, add_special_tokens=False).ids
        return self._encoded(text, strings, frozenset(marks))

    @cached_property
    def turn_end(self) -> int | None:
        """The control token that the template puts behind an answer; None where it puts none."""
        turn = [Message("user", "x"), Message("assistant", self._nonce)]
        try:
            behind = self._rendered(turn, prompts=False).rpartition(self._nonce)[2]
        except UsageError:
            return None
        ends = (self._added[place.content][0] for place in self._found(behind) if place.content in self._special)
        return next(ends, None)

    def _rendered(self, messages: Sequence[Message], *, prompts: bool = True) -> str:
        plain = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=prompts)
        except Exception as error:  # a template is a program of its own; it may raise anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            roles = ", ".join(message.role for message in messages[:8])
            raise UsageError(f"the chat template of {self._name} refuses these messages ({roles}): {reason}") from None
        return text

    def _found(self, text: str) -> list[_Place]:
        """The added tokens in a text, in order, as the tokenizer itself finds them."""
        names = {i: (content, token.normalized) for content, (i, token) in self._added.items()}
        encoding = self._encoder.encode(text, add_special_tokens=False)
        places = []
        for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            content, normalized = names.get(i, ("", False))
            # The token of unknown characters stands for itself only where its name is written.
            if content and (normalized or text[start:end].strip() == content.strip()):
                places.append(_Place(content, start, end))
        return places

    def _hidden(self, message: Message, marks: Collection[str]) -> tuple[str, list[tuple[str, str]]]:
        """The content with a placeholder for each control token in it, and what each stands for.

        So are hidden, at its two ends, parts of one that the template could make whole.
        """
        pairs: list[tuple[str, str]] = []

        def hide(string: str) -> str:
            pairs.append((f"{self._nonce}{len(pairs)}{secrets.token_hex(4)};", string))
            return pairs[-1][0]

        text = self._pattern.sub(lambda at: hide(at[0]) if at[0] in marks else at[0], message.content)
        body = text.strip()
        if not body:
            return text, pairs
        before, _, after = text.partition(body)
        ends = _Ends.of(frozenset(marks))
        first, last = ends.begun_before(body), ends.begun_at_the_end_of(body)
        if last:
            body = body[: -len(last)] + hide(last)
        if first and body.startswith(first):
            body = hide(first) + body[len(first) :]
        return before + body + after, pairs

    def _shown(self, text: str, strings: dict[str, str]) -> str:
        """A text with what was hidden in it."""
        if not strings:
            return text
        return re.sub("|".join(map(re.escape, strings)), lambda at: strings[at[0]], text)

    def _encoded(self, text: str, strings: dict[str, str], marks: frozenset[str]) -> list[int]:
        """Token ids of a text that holds placeholders: the template's control tokens alone are control tokens."""
        found = self._renaming.get(marks)
        if found is None:
            found = self._renaming[marks] = _Renaming.of(self._state, {mark: self._added[mark][0] for mark in marks})
        pieces, done = [], 0
        for place in self._found(text):
            if place.content in found.names:
                pieces += [text[done : place.start], found.names[place.content]]
                done = place.end
        return found.encode(self._shown("".join([*pieces, text[done:]]), strings))

    @cached_property
    def _encoder(self) -> tokenizers.Tokenizer:
        return _own_encoder(self._state)


@dataclass(frozen=True)
class _Renaming:
    """An encoder to which control tokens are ordinary characters, unless they go by names that nobody knows."""

    encoder: tokenizers.Tokenizer
    names: dict[str, str]
    ids: dict[int, int]
    """The id that a token of that name has here -> its own."""

    @classmethod
    def of(cls, state: str, marks: dict[str, int]) -> _Renaming:
        """For a tokenizer.json and the ids of these of its added tokens."""
        fields = json.loads(state)
        for token in fields["added_tokens"]:
            token["special"] = token["special"] or token["content"] in marks
        encoder = _own_encoder(json.dumps(fields))
        encoder.encode_special_tokens = True
        secret = secrets.token_hex(8)
        names = {mark: f"\ue002{secret}:{number}\ue003" for number, mark in enumerate(sorted(marks))}
        # All at once: each call builds anew what finds them.
        encoder.add_tokens([tokenizers.AddedToken(name, normalized=False, special=False) for name in names.values()])
        ids = {encoder.token_to_id(name): marks[mark] for mark, name in names.items()}
        return cls(encoder, names, {i: own for i, own in ids.items() if i is not None})

    def encode(self, text: str) -> list[int]:
        """Token ids of a text with names."""
        return [self.ids.get(i, i) for i in self.encoder.encode(text, add_special_tokens=False).ids]


class _Place(NamedTuple):
    """Where an added token stands in a text, with the spaces that it takes with it."""

    content: str
    start: int
    end: int


def _own_encoder(state: str) -> tokenizers.Tokenizer:
    """That of a tokenizer.json, without the settings that its other users made."""
    encoder = tokenizers.Tokenizer.from_str(state)
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


@dataclass(frozen=True)
class _Ends:
    """Parts of control tokens, shorter than these."""

    beginnings: frozenset[str]
    endings: frozenset[str]
    longest: int

    @classmethod
    @lru_cache(maxsize=8)  # some tokenizers have thousands
    def of(cls, marks: frozenset[str]) -> _Ends:
        """Of these."""
        beginnings = frozenset(mark[:length] for mark in marks for length in range(1, len(mark)))
        endings = frozenset(mark[length:] for mark in marks for length in range(1, len(mark)))
        return cls(beginnings, endings, max(map(len, marks), default=1) - 1)

    def begun_at_the_end_of(self, text: str) -> str:
        """The most that a text ends with and a control token begins with."""
        parts = (text[-length:] for length in range(min(self.longest, len(text)), 0, -1))
        return next((part for part in parts if part in self.beginnings), "")

    def begun_before(self, text: str) -> str:
        """The most that a text begins with and a control token ends with."""
        parts = (text[:length] for length in range(min(self.longest, len(text)), 0, -1))
        return next((part for part in parts if part in self.endings), "")


def _alike(text: str) -> set[str]:
    """Its characters, those that a tokenizer might take for the same made one."""
    return set(unicodedata.normalize("NFKC", text).casefold())
