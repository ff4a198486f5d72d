"""Contrastive losses: states of texts that belong together are drawn together, those of other texts pushed apart.

With embeddings z of length 1, similarities s_ij = z_i . z_j / temperature, P(i) the other texts with the label of i and
N(i) the texts of another source (a label belongs to one source; None = every label is a source of its own):

    InfoNCE  mean over i and p in P(i) of  -log( exp(s_ip) / (exp(s_ip) + sum over n in N(i) of exp(s_in)) )
             (arXiv:1807.03748, eq. 4; with one positive each it is SimCLR's NT-Xent, arXiv:2002.05709, eq. 1)
    SupCon   mean over i of  -1/|P(i)| sum over p in P(i) of  log( exp(s_ip) / sum over a in P(i) + N(i) of exp(s_ia) )
             (arXiv:2004.11362, eq. 2)

Texts without a positive are negatives of the others and no anchors themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mean_pooled(states_BSD: Tensor, lengths_B: Tensor) -> Tensor:
    """[B, D] of length 1: the mean of the first lengths[b] states of each sequence; lengths are at least 1."""
    inside_BS1 = torch.arange(states_BSD.shape[1], device=states_BSD.device)[None, :, None] < lengths_B[:, None, None]
    sums_BD = states_BSD.masked_fill(~inside_BS1, 0.0).sum(dim=1, dtype=torch.float32)
    return nn.functional.normalize(sums_BD / lengths_B[:, None], dim=1)


def info_nce(
    z_ND: Tensor,
    labels_N: Tensor,
    temperature: float,
    hard_negatives: int | None = None,
    sources_N: Tensor | None = None,
) -> Tensor:
    """InfoNCE, a scalar in nats. `hard_negatives`: of N(i) only so many, those that are most alike; None = all."""
    similar_NN, positive_NN, negative_NN = _pairs(z_ND, labels_N, temperature, hard_negatives, sources_N)
    negatives_N1 = similar_NN.masked_fill(~negative_NN, -torch.inf).logsumexp(dim=1, keepdim=True)
    losses_NN = torch.logaddexp(similar_NN, negatives_N1) - similar_NN
    return losses_NN[positive_NN].mean() if positive_NN.any() else 0.0 * z_ND.sum()


def sup_con(
    z_ND: Tensor,
    labels_N: Tensor,
    temperature: float,
    hard_negatives: int | None = None,
    sources_N: Tensor | None = None,
) -> Tensor:
    """SupCon, a scalar in nats. `hard_negatives`: see info_nce."""
    similar_NN, positive_NN, negative_NN = _pairs(z_ND, labels_N, temperature, hard_negatives, sources_N)
    anchors_N = positive_NN.any(dim=1)
    if not anchors_N.any():
        return 0.0 * z_ND.sum()
    others_N1 = similar_NN.masked_fill(~(positive_NN | negative_NN), -torch.inf).logsumexp(dim=1, keepdim=True)
    losses_NN = (others_N1 - similar_NN).masked_fill(~positive_NN, 0.0)
    return (losses_NN.sum(dim=1) / positive_NN.sum(dim=1).clamp(min=1))[anchors_N].mean()


def _pairs(
    z_ND: Tensor, labels_N: Tensor, temperature: float, hard_negatives: int | None, sources_N: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """[N, N] each: similarities over the temperature, which are positives, which are negatives that count."""
    similar_NN = z_ND @ z_ND.t() / temperature
    same_NN = labels_N[:, None] == labels_N[None, :]
    positive_NN = same_NN & ~torch.eye(len(labels_N), dtype=torch.bool, device=z_ND.device)
    sources_N = labels_N if sources_N is None else sources_N
    related_NN = sources_N[:, None] == sources_N[None, :]
    negative_NN = ~related_NN
    if hard_negatives is not None and hard_negatives < len(labels_N):
        order_NN = similar_NN.detach().masked_fill(related_NN, -torch.inf).topk(hard_negatives, dim=1).indices
        negative_NN &= torch.zeros_like(negative_NN).scatter_(1, order_NN, True)
    return similar_NN, positive_NN, negative_NN


def alignment(z_ND: Tensor, labels_N: Tensor) -> Tensor:
    """Mean squared distance of two texts of one label, 0 to 4, smaller is better (arXiv:2005.10242)."""
    same_NN = labels_N[:, None] == labels_N[None, :]
    pairs_NN = same_NN.triu(diagonal=1)
    return (2 - 2 * (z_ND @ z_ND.t()))[pairs_NN].mean()


def uniformity(z_ND: Tensor) -> Tensor:
    """log of the mean of exp(-2 d^2) over all pairs at distance d, -4 to 0, smaller is more even (arXiv:2005.10242)."""
    squared = nn.functional.pdist(z_ND).square()
    return squared.mul(-2).exp().mean().log()
