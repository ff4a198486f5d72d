"""Texts that a model of the transformers library reads piece by piece, alone or several together.

Texts of unequal length are put together by padding their keys and values on the left. Only plain caches can be: a
sliding window counts its padding, and a recurrent state has no place for it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from moe_core.errors import UsageError, shortened
from moe_core.inference.device import on_device
from moe_core.inference.protocol import Draw, ReadTokens
from moe_core.routing.instruments.host_copies import HostCopies

if TYPE_CHECKING:
    from moe_core.inference.protocol import LanguageModel, Reader
    from moe_core.routing import Recorder

_LONG, _SHORT = (5, 6, 7, 8, 9, 10, 11), (12, 13, 14, 15)
"""Token ids of the texts with which a model is tried out."""
_AHEAD = (16, 17)
"""And what they are read on with."""
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Largest difference of logits that rounding may make, relative to the largest logit; 0.05 in shorter types."""


class CachedReader:
    """See moe_core.inference.protocol.Reader."""

    joins_from = 2

    def __init__(self, model: nn.Module, name: str, device: torch.device, recorder: Recorder) -> None:
        """`recorder` belongs to an open capture of the model."""
        self._model, self._name, self._device, self._recorder = model, name, device, recorder
        parameters = inspect.signature(model.forward).parameters
        self._last_logits = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    def read(self, token_ids: Sequence[int], cache: Any, *, all_logits: bool = False) -> ReadTokens:
        """See Reader. Raises UsageError for a model that keeps no cache."""
        return self.read_rows([token_ids], cache, all_logits=all_logits)[0]

    def join(self, *, changed: bool = False) -> PaddedTexts:  # noqa: ARG002 - hooks change every pass
        """See Reader."""
        return PaddedTexts(self, self._device)

    def cut(self, cache: Any, length: int) -> Any:
        """See Reader."""
        for layer in cache.layers:
            layer.crop(-(layer.get_seq_length() - length) if layer.is_initialized else 0)
        return cache

    def nbytes(self, cache: Any) -> int:
        """See Reader."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if layer.is_initialized)

    def read_rows(
        self, token_ids: Sequence[Sequence[int]], cache: Any, *, all_logits: bool = False, **padding: torch.Tensor
    ) -> list[ReadTokens]:
        """Read equally many tokens of each row; `padding`: the mask and the positions where rows are padded."""
        ids_BS = on_device(np.array(token_ids, dtype=np.int64), self._device)
        B, S = ids_BS.shape
        kept = {} if all_logits else self._last_logits
        with self._recorder.restarted():
            output = self._model(input_ids=ids_BS, past_key_values=cache, use_cache=True, **padding, **kept)
        if getattr(output, "past_key_values", None) is None:
            raise UsageError(
                f"{self._name} ({type(self._model).__name__}) keeps no cache of what it has read, so it cannot write "
                "token by token; trace a text instead"
            )
        # Both are asked for before the device is waited for, once.
        recorded, last = self._recorder.recorded(), HostCopies([output.logits[:, -1]])
        indices_BSLK, scores_BSLK = (
            found.reshape(len(found), B, S, -1).transpose(1, 2, 0, 3) for found in recorded.choices(B * S)
        )
        (logits_BV,) = last.tensors()
        told = [output.logits[b] if all_logits else None for b in range(B)]
        return [
            ReadTokens(logits_BV[b], indices_BSLK[b], scores_BSLK[b], output.past_key_values, told[b]) for b in range(B)
        ]


class PaddedTexts:
    """See moe_core.inference.protocol.JoinedTexts."""

    def __init__(self, reader: CachedReader, device: torch.device) -> None:
        self._reader, self._device = reader, device
        self._cache: Any = None
        self._lengths: list[int] = []

    def add(self, cache: Any) -> None:
        """See JoinedTexts."""
        rows = [self._row(row) for row in range(len(self._lengths))]
        self._put_together([*rows, cache], [*self._lengths, cache.get_seq_length()])

    def take(self, row: int) -> Any:
        """See JoinedTexts."""
        rows = [self._row(each) for each in range(len(self._lengths))]
        lengths = list(self._lengths)
        taken = rows.pop(row)
        lengths.pop(row)
        self._put_together(rows, lengths)
        return taken

    def read(self, token_ids: Sequence[int], draws: Sequence[Draw] = ()) -> list[ReadTokens]:  # noqa: ARG002
        """See JoinedTexts."""
        lengths_B1 = on_device(np.array(self._lengths)[:, None], self._device)
        longest = max(self._lengths)
        seen = torch.arange(longest + 1, device=self._device) >= longest - lengths_B1
        found = self._reader.read_rows(
            [[token_id] for token_id in token_ids], self._cache, attention_mask=seen.long(), position_ids=lengths_B1
        )
        self._cache = found[0].cache
        self._lengths = [length + 1 for length in self._lengths]
        return [each._replace(cache=None) for each in found]

    def close(self) -> None:
        """See JoinedTexts."""

    def _row(self, row: int) -> Any:
        """One text's cache, without padding."""
        cache = _copied(self._cache)
        for layer in cache.layers:
            if layer.is_initialized:
                keys, values = layer.keys[row : row + 1], layer.values[row : row + 1]
                first = keys.shape[2] - self._lengths[row]
                layer.keys, layer.values = keys[:, :, first:].clone(), values[:, :, first:].clone()
        return cache

    def _put_together(self, rows: list[Any], lengths: list[int]) -> None:
        longest = max(lengths, default=0)

        def padded(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
            return torch.cat([nn.functional.pad(held, (0, 0, longest - held.shape[2], 0)) for held in tensors])

        self._lengths, self._cache = lengths, None
        if rows:
            self._cache = _copied(rows[0])
            for layer, *layers in zip(self._cache.layers, *(row.layers for row in rows), strict=True):
                if layer.is_initialized:
                    layer.keys = padded([each.keys for each in layers])
                    layer.values = padded([each.values for each in layers])


def reason_to_read_apart(language: LanguageModel) -> str:
    """See LanguageModel.reads_apart. A few short texts are read, alone and together."""
    try:
        with torch.inference_mode(), language.reading() as reader:
            why = _reason(language, reader)
    except Exception as error:  # whatever its code does not bear
        why = f"cannot read padded texts ({type(error).__name__}: {shortened(str(error))})"
    return f"{language.name} {why}; its requests take turns" if why else ""


def _reason(language: LanguageModel, reader: Reader) -> str:
    from transformers.cache_utils import DynamicCache, DynamicLayer

    long, short = ([token_id % language.vocab_size for token_id in text] for text in (_LONG, _SHORT))
    ahead = [token_id % language.vocab_size for token_id in _AHEAD]
    cache = reader.read(long, None).cache
    kinds = {type(layer).__name__ for layer in getattr(cache, "layers", []) if type(layer) is not DynamicLayer}
    if kinds or type(cache) is not DynamicCache:
        kept = ", ".join(sorted(kinds)) or type(cache).__name__
        return f"keeps more than keys and values of what it has read ({kept}), which cannot be put together"
    if not {"attention_mask", "position_ids"} <= set(inspect.signature(language.model.forward).parameters):
        return "takes no positions of padded texts"
    alone = []
    joined = reader.join()
    joined.add(cache)
    joined.add(reader.read(short, None).cache)
    for text in (long, short):
        first = reader.read(ahead[:1], reader.read(text, None).cache)
        alone.append((first, reader.read(ahead[1:], first.cache)))
    together = [joined.read([token_id, token_id]) for token_id in ahead]
    pairs = [(alone[b][s], together[s][b]) for b in (0, 1) for s in (0, 1)]
    # The longer text once more: in two pieces, of which the second is cut off and read again.
    begun = reader.read(long[3:], reader.read(long[:3], None).cache)
    pieces = reader.read(long[3:], reader.cut(begun.cache, 3))
    pairs.append((alone[0][0], reader.read(ahead[:1], pieces.cache)))
    return "" if all(_agree(*pair) for pair in pairs) else "reads texts that are padded or come in pieces otherwise"


def _copied(cache: Any) -> Any:
    """A cache with layers of its own, whose keys and values may be replaced. A layer that uses another's has none."""
    made = copy.copy(cache)
    made.layers = [copy.copy(layer) for layer in cache.layers]
    return made


def _agree(one: ReadTokens, other: ReadTokens) -> bool:
    tolerance = _TOLERANCE.get(one.logits.dtype, 0.05) * float(one.logits.abs().max())
    near = torch.allclose(one.logits.cpu().double(), other.logits.cpu().double(), rtol=0, atol=tolerance)
    return near and (one.logits.dtype not in _TOLERANCE or np.array_equal(one.experts[-1], other.experts[-1]))
