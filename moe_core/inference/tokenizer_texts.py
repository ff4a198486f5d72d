"""Printable texts of the token ids of a recording, by the tokenizer of the model that it is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from moe_core.errors import TraceError


class TokenizerTexts:
    """Printable text of token ids, by a tokenizer.json or the folder that has one."""

    def __init__(self, path: Path) -> None:
        import tokenizers

        from moe_core.inference.foreign_tokenizer import ForeignTokenizer

        self._path = path / "tokenizer.json" if path.is_dir() else path
        if not self._path.is_file():
            raise TraceError(
                f"no tokenizer at {str(self._path)!r}; expected a tokenizer.json or the folder that has one"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(self._path))
        except Exception as error:  # tokenizers raises the bare Exception for every fault of the file
            reason = str(error).split("\n")[0]
            raise TraceError(f"the tokenizer {str(self._path)!r} is damaged ({reason}); fetch it again") from None
        self.tokenizer = ForeignTokenizer(backend)
        """Any tokenizer.json as one of ours is used."""

    def __call__(self, ids: Sequence[int]) -> Mapping[int, str]:
        """The text of each id. Raises TraceError for ids of another tokenizer."""
        size = self.tokenizer.vocab_size
        if ids and max(ids) >= size:
            raise TraceError(
                f"token id {max(ids)} is not among the {size:,} of the tokenizer {str(self._path)!r}; "
                "expected that of the model whose routing was recorded"
            )
        return {token_id: self.tokenizer.token_text(token_id) for token_id in ids}
