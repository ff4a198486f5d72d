"""How experts and token types belong together."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_core.routing.counts import entropy, grouped_counts, mutual_information, ratio
from moe_core.routing.trace import RoutingTrace


def token_nmi(trace: RoutingTrace, min_count: int = 10) -> pd.DataFrame:
    """How much of the choice of expert the token id alone explains; to be held beside domain_nmi.

    Only token types that occur at least `min_count` times count: one that occurs once is explained by construction.
    Columns: layer; nmi = I(expert; token id) / H(expert), 0..1, 1 = the router looks at the token only, not its
    context; chance = nmi to expect from independence, (types - 1)(E - K) / (2 N H(expert)) over N assignments, first
    order (Miller 1955; E - K rather than E - 1 because a token's K experts differ);
    domain_nmi = I(expert; domain) / H(expert) of the same tokens, in the same unit; tokens, token_types counted.
    """
    _, of_token, occurrences = np.unique(trace.token_ids, return_inverse=True, return_counts=True)
    chosen = occurrences[of_token] >= min_count
    renumber = np.cumsum(occurrences >= min_count) - 1
    groups_T, kinds = renumber[of_token[chosen]], int((occurrences >= min_count).sum())
    rows = []
    for layer, indices_TK in zip(trace.layers, trace.router_indices[:, chosen], strict=True):
        counts_VE = grouped_counts(indices_TK, groups_T, (kinds, trace.num_experts))
        counts_ME = grouped_counts(indices_TK, trace.domain_ids[chosen], (len(trace.domains), trace.num_experts))
        counts_E = counts_VE.sum(axis=0)
        H = entropy(counts_E)
        freedom = max(kinds - 1, 0) * max(int((counts_E > 0).sum()) - trace.top_k, 0)
        information = (
            mutual_information(counts_VE),
            ratio(freedom, 2.0 * counts_E.sum()),
            mutual_information(counts_ME),
        )
        nmi, chance, domain = (float(ratio(nats, H)) for nats in information)
        rows.append((layer, nmi, min(chance, 1.0), domain, int(chosen.sum()), kinds))
    return pd.DataFrame(rows, columns=["layer", "nmi", "chance", "domain_nmi", "tokens", "token_types"])
