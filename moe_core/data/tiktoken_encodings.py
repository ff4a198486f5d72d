"""tiktoken's encodings as tokenizers of ours that give exactly the same ids. Nothing is fetched from a network.

An encoding is a file of ranks (a token in base64 and its number in each line) and the pattern that cuts text into
pieces. Two facts make the same ids certain:

- tiktoken joins the two neighbours whose joint token has the lowest rank, the leftmost first, until no pair is a
  token. What happens within the bytes of one token is what would happen to the token alone, for no join reaches across
  its ends until it is whole. So every token has one pair that it is ever made of: the last two parts of the token
  encoded alone. These pairs, in the order of the ranks, are the merges of ordinary BPE. A token that alone would never
  come together arises only where a piece is that token (`ignore_merges`).
- The patterns are written here without possessive quantifiers and `$`, which the `tokenizers` library reads otherwise.

The tests hold both against tiktoken itself.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from moe_core.data.parts import CL100K_PATTERN, O200K_PATTERN
from moe_core.data.tokenizer import END_OF_TEXT, Tokenizer, byte_of_symbol
from moe_core.errors import DataError, UsageError

END_OF_PROMPT = "<|endofprompt|>"
_FILL_IN_MIDDLE = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
MOST_IDS = 2**20
"""More than any published encoding has; every id below the largest takes memory."""
_ADDRESS = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
_NO_TOKEN = sys.maxsize
_SYMBOL_OF_BYTE = {byte: symbol for symbol, byte in byte_of_symbol().items()}


@dataclass(frozen=True)
class Encoding:
    """What tiktoken knows of an encoding beside its ranks."""

    ranks: str
    """Name of its file of ranks."""
    sha256: str
    """Of that file."""
    control: dict[str, int]
    """Control tokens and their ids."""
    pattern: str | None = None
    """How text is cut into pieces; None: as GPT-2 does."""


_P50K = "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069"
_R50K = Encoding("r50k_base", "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930", {END_OF_TEXT: 50256})
ENCODINGS = {
    "gpt2": _R50K,
    "r50k_base": _R50K,
    "p50k_base": Encoding("p50k_base", _P50K, {END_OF_TEXT: 50256}),
    "p50k_edit": Encoding(
        "p50k_base", _P50K, {END_OF_TEXT: 50256, **dict(zip(_FILL_IN_MIDDLE, range(50281, 50284), strict=True))}
    ),
    "cl100k_base": Encoding(
        "cl100k_base",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        {
            END_OF_TEXT: 100257,
            **dict(zip(_FILL_IN_MIDDLE, range(100258, 100261), strict=True)),
            END_OF_PROMPT: 100276,
        },
        CL100K_PATTERN,
    ),
    "o200k_base": Encoding(
        "o200k_base",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        {END_OF_TEXT: 199999, END_OF_PROMPT: 200018},
        O200K_PATTERN,
    ),
}
"""By tiktoken's names; `gpt2` and `r50k_base` are the same ids."""


def tiktoken_tokenizer(which: str) -> Tokenizer:
    """The encoding NAME whose ranks tiktoken has cached; of a file of ranks, FILE.tiktoken; or FILE.tiktoken@NAME.

    A file that tiktoken publishes is known by its SHA-256. Any other needs @NAME: its text is cut into pieces as the
    encoding NAME does, and <|endoftext|> comes after its last rank.
    Raises UsageError where the ranks are not on this machine or the name is unknown, DataError for a damaged file.
    """
    if which in ENCODINGS:
        encoding = ENCODINGS[which]
        return _converted(_known_ranks(which, encoding), encoding)
    file, at, like = which.rpartition("@")
    if not at or like not in ENCODINGS:
        file, like = which, ""
    path = Path(file)
    if path.suffix != ".tiktoken":
        raise UsageError(
            f"tiktoken has no encoding {which[:60]!r}; expected {', '.join(ENCODINGS)}, or a file with the ending "
            ".tiktoken"
        )
    data = _bytes_of(path)
    rank_of = _parsed(data, path)
    if like:
        end = max(rank_of.values()) + 1
        return _converted(rank_of, Encoding(str(path), "", {END_OF_TEXT: end}, ENCODINGS[like].pattern))
    digest = hashlib.sha256(data).hexdigest()
    known = [encoding for encoding in ENCODINGS.values() if encoding.sha256 == digest]
    if not known:
        raise UsageError(
            f"{str(path)!r} is none of the files of ranks that tiktoken publishes, so nothing says how it cuts text; "
            f"say whose way: tiktoken:{path}@cl100k_base, or another of {', '.join(ENCODINGS)}"
        )
    return _converted(rank_of, known[0])


def _known_ranks(name: str, encoding: Encoding) -> dict[bytes, int]:
    address = _ADDRESS.format(encoding.ranks)
    path = _cache_folder() / hashlib.sha1(address.encode(), usedforsecurity=False).hexdigest()
    if not path.exists():
        raise UsageError(
            f"the ranks of tiktoken's {name} are not on this machine (no {str(path)!r}), and Moescope fetches nothing; "
            f"fetch {address} and give it as tiktoken:{encoding.ranks}.tiktoken, or let TIKTOKEN_CACHE_DIR name "
            "tiktoken's cache"
        )
    data = _bytes_of(path)
    if hashlib.sha256(data).hexdigest() != encoding.sha256:
        raise DataError(f"{str(path)!r} should hold the ranks of {name}, but its SHA-256 is another; fetch it anew")
    return _parsed(data, path)


def _cache_folder() -> Path:
    """Where tiktoken itself keeps what it fetched."""
    named = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    return Path(named) if named else Path(tempfile.gettempdir()) / "data-gym-cache"


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the ranks in {str(path)!r}: {error.strerror}") from None


def _parsed(data: bytes, path: Path) -> dict[bytes, int]:
    rank_of: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            rank_of[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise DataError(
                f"{str(path)!r} line {number} is {line[:40]!r}; expected a token in base64 and its rank, as tiktoken "
                "writes them"
            ) from None
    missing = [byte for byte in range(256) if bytes([byte]) not in rank_of]
    fault = None
    if missing:
        fault = f"has no token for the byte 0x{missing[0]:02X}"
    elif len(set(rank_of.values())) < len(rank_of) or b"" in rank_of or min(rank_of.values()) < 0:
        fault = "gives two tokens one rank, or has an empty token or a rank below 0"
    elif max(rank_of.values()) > MOST_IDS:
        fault = f"has a rank above {MOST_IDS:,}"
    if fault:
        raise DataError(f"{str(path)!r} {fault}; expected a whole file of ranks as tiktoken publishes it")
    return rank_of


def _converted(rank_of: dict[bytes, int], encoding: Encoding) -> Tokenizer:
    pairs = {token: _last_pair(token, rank_of) for token in sorted(rank_of, key=lambda token: rank_of[token])}
    vocabulary = {_symbols(token): rank for token, rank in rank_of.items()}
    names = {rank: name for name, rank in encoding.control.items()}
    used = set(rank_of.values())
    # Ids that nothing has; the space keeps their names from ever being a piece of text.
    holes = [i for i in range(max(*used, *names) + 1) if i not in used]
    control = {names.get(i, f"<|unused {i}|>"): i for i in holes}
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary | control,
            merges=[(_symbols(pair[0]), _symbols(pair[1])) for pair in pairs.values() if pair],
            ignore_merges=any(pair is None and len(token) > 1 for token, pair in pairs.items()),
        )
    )
    if encoding.pattern is None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(encoding.pattern), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in control])
    return Tokenizer(backend)


def _last_pair(token: bytes, rank_of: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two parts that the token is made of at last; None for a single byte, or where it never comes together."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        ranks = [rank_of.get(left + right, _NO_TOKEN) for left, right in pairwise(parts)]
        lowest = min(ranks)
        if lowest == _NO_TOKEN:
            return None
        at = ranks.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def _symbols(token: bytes) -> str:
    return "".join(_SYMBOL_OF_BYTE[byte] for byte in token)
