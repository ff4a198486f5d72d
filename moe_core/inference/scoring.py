"""How well a model foresees text: windows of tokens -> nats and ranks, here and nowhere else.

The loss of a token is -ln of the probability that the model gave it, in nats, whatever the weights' precision. Its rank
is its place among the model's guesses, 1 = the likeliest; of equally likely tokens the lower id comes first, as greedy
decoding has it. A token is predicted from the tokens before it in its window (moe_core.data.windows).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moe_core.data.document import Document
from moe_core.data.tokens import TokenDataset
from moe_core.data.windows import WindowBatch, window_batches
from moe_core.errors import UsageError
from moe_core.inference.device import on_device
from moe_core.inference.open import language_model
from moe_core.inference.protocol import LanguageModel, Loaded, check_token_ids

# Numbers of one matrix of logits that is made anew, so that a large vocabulary does not take the memory twice.
_MAX_SCORED = 2**23


class Predictions(NamedTuple):
    """What a model said of a batch of windows."""

    windows: WindowBatch
    logits: torch.Tensor
    """[B, S, V]"""
    target_ids: NDArray[np.int32]
    """[N] the token that follows each place of windows.scored."""

    def nats(self) -> NDArray[np.float32]:
        """[N] loss of each target."""
        nats_N: NDArray[np.float32] = self.scored(token_nats, torch.float32).cpu().numpy()
        return nats_N

    def ranks(self) -> NDArray[np.int32]:
        """[N] rank of each target."""
        ranks_N: NDArray[np.int32] = self.scored(token_ranks, torch.int32).cpu().numpy()
        return ranks_N

    @torch.inference_mode()
    def scored(self, of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """[N] token_nats or token_ranks of each target, on the model's device, which is not waited for."""
        logits_TV = self.logits.flatten(0, 1)
        places_N = on_device(np.flatnonzero(self.windows.scored), logits_TV.device)
        targets_N = on_device(self.target_ids.astype(np.int64), logits_TV.device)
        rows = max(1, _MAX_SCORED // logits_TV.shape[1])
        parts = [
            of(logits_TV[places_N[start : start + rows]], targets_N[start : start + rows])
            for start in range(0, len(places_N), rows)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)


def predictions(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
    dataset: TokenDataset,
    batches: Iterable[WindowBatch],
) -> Iterator[Predictions]:
    """Read `batches` of windows one after the other; `logits_of`: token ids int64 [B, S] on `device` -> [B, S, V]."""
    for windows in batches:
        token_ids_BS = on_device(dataset.token_ids[windows.index].astype(np.int64), device)
        with torch.inference_mode():
            logits_BSV = logits_of(token_ids_BS)
        yield Predictions(windows, logits_BSV, dataset.token_ids[windows.targets])


@torch.inference_mode()
def likeliest(logits_BSV: torch.Tensor) -> torch.Tensor:
    """int32 [B, S] the token that each place predicts: the argmax of its logits, of equals the lowest id."""
    if (values_TV := _numpy_logits(logits_BSV.flatten(0, 1))) is not None:
        return torch.from_numpy(values_TV.argmax(axis=1).astype(np.int32)).view(logits_BSV.shape[:2])
    return logits_BSV.argmax(dim=-1).to(torch.int32)


def losses_of(
    model: LanguageModel, dataset: TokenDataset, window: int, report: Callable[[int], None]
) -> NDArray[np.float32]:
    """[T] nats of each token, read in windows of that size; 0 where nothing is scored. `report`: tokens read so far."""
    losses_T = np.zeros(len(dataset), np.float32)
    for found in predictions(model.logits, model.device, dataset, window_batches(dataset, window)):
        losses_T[found.windows.targets] = found.nats()
        report(int(found.windows.targets.max(initial=0)) + 1)
    return losses_T


def token_nats(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """float32 [N] the loss of each target under its row of logits."""
    return torch.nn.functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")


def token_ranks(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """int32 [N] the rank of each target: 1 + the tokens with a larger logit + those with the same and a lower id."""
    own_N1, target_N1 = logits_NV.gather(1, targets_N[:, None]), targets_N[:, None]
    if (values_NV := _numpy_logits(logits_NV)) is not None:
        own, targets = own_N1.numpy(), targets_N.numpy()
        ranks_N = 1 + np.count_nonzero(values_NV > own, axis=1)
        for row in np.flatnonzero(np.count_nonzero(values_NV == own, axis=1) > 1):  # there are few
            ranks_N[row] += np.count_nonzero(values_NV[row, : targets[row]] == own[row])
        return torch.from_numpy(ranks_N.astype(np.int32))
    ids_V = torch.arange(logits_NV.shape[1], device=logits_NV.device)
    before_NV = (logits_NV > own_N1) | ((logits_NV == own_N1) & (ids_V < target_N1))
    return (1 + before_NV.sum(dim=1)).to(torch.int32)


def _numpy_logits(logits_NV: torch.Tensor) -> NDArray[Any] | None:
    """The same numbers for numpy, which finds and counts several times as fast as torch; None where it cannot."""
    if logits_NV.device.type != "cpu" or logits_NV.dtype not in (torch.float32, torch.float64):
        return None
    values_NV: NDArray[Any] = logits_NV.detach().numpy()
    return values_NV


def compare(
    original_NV: torch.Tensor, changed_NV: torch.Tensor, targets_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses of the targets [N] under both logits [N, V], and KL(original || changed), each [N] in nats.

    The losses are those of token_nats; the divergence needs the whole distributions, so they are not computed twice.
    """
    rows = max(1, _MAX_SCORED // original_NV.shape[1])
    parts = []
    for start in range(0, len(targets_N), rows):
        part = slice(start, start + rows)
        log_p, log_q = (logits[part].float().log_softmax(dim=-1) for logits in (original_NV, changed_NV))
        target = targets_N[part, None]
        # What has no probability in the original adds nothing, whatever is left of it.
        kl = (log_p.exp() * (log_p - log_q)).masked_fill(log_p == -math.inf, 0.0).sum(dim=-1).clamp(min=0.0)
        parts.append((-log_p.gather(1, target)[:, 0], -log_q.gather(1, target)[:, 0], kl))
    empty = original_NV.new_zeros(0)
    before, after, divergence = zip(*parts, strict=True) if parts else ((empty,), (empty,), (empty,))
    return torch.cat(before), torch.cat(after), torch.cat(divergence)


def as_dataset(loaded: Loaded | LanguageModel, documents: Sequence[Document] | TokenDataset) -> TokenDataset:
    """Documents tokenised, their domains numbered as they first occur.

    Raises UsageError with no token to score, or one that the model cannot read.
    """
    dataset = documents if isinstance(documents, TokenDataset) else tokenised(loaded, documents)
    check_token_ids(language_model(loaded), dataset.token_ids)
    if not (dataset.positions > 0).any():
        raise UsageError("the text has no token to score; expected at least one document that is not empty")
    return dataset


def tokenised(loaded: Loaded | LanguageModel, documents: Sequence[Document]) -> TokenDataset:
    """The same without the checks."""
    domains = list(dict.fromkeys(document.domain for document in documents))
    return TokenDataset.build(documents, language_model(loaded).tokenizer, domains)
