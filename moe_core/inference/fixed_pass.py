"""Writing on an accelerator: passes of fixed shapes, captured once as a graph and replayed for every token.

A pass of a few texts is hundreds of small kernels, each of which costs the processor more time to ask for than the
accelerator to compute. A graph of them is asked for at once. So every tensor of a pass has its shape whatever the texts
are: where they stand and how their next tokens are drawn are values, the host is told everything in one copy, and
nothing in between waits for it. On a processor the same pass runs as it is written, and gives what JoinedCache gives;
only tests use it there, for it reads vacant slots and the whole room.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from moe_core.inference.protocol import Draw, ReadTokens
from moe_core.inference.sampling import draw_each
from moe_core.model.fixed_cache import FixedCache
from moe_core.model.kv_cache import KVCache
from moe_core.model.transformer import MoETransformer

IDLE_BYTES = 2**30
"""Memory of passes that are kept for the next text, at most."""
_VACANT = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
"""What a slot without a text is asked: token id, place, random number, temperature, top-k, top-p."""


def suits(model: MoETransformer) -> bool:
    """Whether texts are to be written in such passes: on CUDA, where experts are visited in one grouped product, and
    where nobody watches the model, for a graph runs no hooks. The one place that decides."""
    weight, config = model.embedding.weight, model.config
    grouped = all(width * weight.element_size() % 16 == 0 for width in (config.dim, config.expert_hidden_dim))
    if not (weight.is_cuda and grouped and weight.element_size() < 8):
        return False
    return not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


class FixedPass:
    """Reads a token in each of `slots` slots and draws the next ones. One thread at a time may use it."""

    def __init__(self, model: MoETransformer, slots: int, max_len: int) -> None:
        """Room for `max_len` tokens a slot. On CUDA the pass is captured here."""
        weight = model.embedding.weight
        self._model = model
        self.cache = FixedCache(model.config, slots, max_len, weight.dtype, weight.device)
        # Through float64 go all token ids, places and numbers as they are; the copy of page-locked memory waits for
        # nothing.
        self._given_B6 = torch.tensor([_VACANT] * slots, dtype=torch.float64, pin_memory=weight.is_cuda)
        self._asked_B6 = self._given_B6.to(weight.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        if weight.is_cuda:
            self._capture_if_possible(weight.device)

    def read(self, token_ids: Sequence[int], draws: Sequence[Draw]) -> list[ReadTokens]:
        """See JoinedTexts.read, for the rows of `cache`."""
        self.cache.check_room(self.cache.slots, 1)
        for row, (token_id, place, draw) in enumerate(zip(token_ids, self.cache.lengths, draws, strict=True)):
            sampling = draw.sampling
            self._given_B6[row] = torch.tensor(
                (token_id, place, draw.uniform(), sampling.temperature, sampling.top_k, sampling.top_p),
                dtype=torch.float64,
            )
        self._asked_B6.copy_(self._given_B6, non_blocking=True)
        if self._graph is None:
            self._logits_BV, self._told_BN = self.compute()
        else:
            self._graph.replay()
        told_BN = self._told_BN.cpu().numpy()  # here the host waits, once for all texts
        self.cache.count()
        layers, top_k = len(self._model.config.moe_layers), self._model.config.top_k
        experts, scores = np.split(told_BN[:, 2:].reshape(len(told_BN), 2, layers, top_k), 2, axis=1)
        return [
            ReadTokens(
                self._logits_BV[row],
                experts[row].astype(np.int16),
                scores[row].astype(np.float32),
                None,
                drawn=(int(told_BN[row, 0]), float(told_BN[row, 1])),
            )
            for row in range(len(token_ids))
        ]

    def compute(self) -> tuple[Tensor, Tensor]:
        """The pass: logits [B, V], and all that is told of it, float64 [B, 2 + 2 L K] (drawn token, its loss, experts,
        weights). No value decides about a shape or is read by the host."""
        token_ids, places, uniform, temperature, top_k, top_p = self._asked_B6.unbind(1)
        self.cache.stand_at(places.long())
        output = self._model(token_ids.long()[:, None], cache=self.cache)
        logits_BV = output.logits[:, -1]
        drawn_B, losses_B = draw_each(logits_BV, uniform, temperature, top_k.long(), top_p)
        routed = output.router_outputs
        told = [drawn_B[:, None], losses_B[:, None]]
        told += [layer.router_indices for layer in routed] + [layer.router_scores for layer in routed]
        return logits_BV, torch.cat([part.double() for part in told], dim=1)

    def _capture_if_possible(self, device: torch.device) -> None:
        """What cannot be captured is computed as it is written: slower, and the same."""
        try:
            with torch.cuda.device(device):
                self._capture()
        except RuntimeError as error:
            warnings.warn(f"a pass could not be captured on {device} and is slower than it could be: {error}",
                          RuntimeWarning, stacklevel=2)  # fmt: skip

    def _capture(self) -> None:
        """On a stream of its own, as CUDA asks for; what is allocated at the first call must be there before."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(3):
                self.compute()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may be computing meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._logits_BV, self._told_BN = self.compute()
        self._graph = graph


class FixedPasses:
    """The passes of one model: made when one of that many slots is first needed, and kept for the next text."""

    def __init__(self, model: MoETransformer, max_len: int) -> None:
        self._model, self._max_len = model, max_len
        self._lock = threading.Lock()
        self._idle: dict[int, FixedPass] = {}

    def take(self, slots: int) -> FixedPass:
        """One without texts, for the caller alone."""
        with self._lock:
            found = self._idle.pop(slots, None)
        return found or FixedPass(self._model, slots, self._max_len)

    def put(self, used: FixedPass) -> None:
        """Keep it, as far as there is room."""
        used.cache.clear()
        with self._lock:
            kept = sum(idle.cache.nbytes for idle in self._idle.values())
            if kept + used.cache.nbytes <= IDLE_BYTES:
                self._idle[used.cache.slots] = used


class FixedTexts:
    """See JoinedTexts. There are as many slots as texts, up to the next power of two: a vacant one costs as much."""

    def __init__(self, passes: FixedPasses) -> None:
        self._passes = passes
        self._pass = passes.take(1)

    def add(self, cache: KVCache) -> None:
        """See JoinedTexts."""
        if len(self._pass.cache.lengths) == self._pass.cache.slots:
            self._move(2 * self._pass.cache.slots)
        self._pass.cache.add(cache)

    def take(self, row: int) -> KVCache:
        """See JoinedTexts."""
        cache = self._pass.cache.take(row)
        if 0 < len(self._pass.cache.lengths) <= self._pass.cache.slots // 4:
            self._move(self._pass.cache.slots // 2)
        return cache

    def read(self, token_ids: Sequence[int], draws: Sequence[Draw] = ()) -> list[ReadTokens]:
        """See JoinedTexts."""
        return self._pass.read(token_ids, draws)

    def close(self) -> None:
        """See JoinedTexts."""
        self._passes.put(self._pass)

    def _move(self, slots: int) -> None:
        left, self._pass = self._pass, self._passes.take(slots)
        for _ in left.cache.lengths:
            self._pass.cache.add(left.cache.take(0))
        self._passes.put(left)
