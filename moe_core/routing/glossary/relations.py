"""What goes together, what changes and what matters."""

from __future__ import annotations

from moe_core.routing.glossary.term import Term

RELATIONS = (
    # Tokens, neighbours, layers
    Term(
        "vocabulary specialization",
        "How much of a token type goes to its favourite expert; a layer's score is the mean over types.",
        "max_e N_xe / N_x, types with a minimum count",
        "its null: well above K/E, more so for rare types",
        "2409.02060, eq. 8",
    ),
    Term(
        "persistence",
        "How often a token's first expert is that of the token before it.",
        "P(first choice of t = first choice of t + 1)",
        "the sum of f_e² when neighbours are independent, 1/E if load is even besides",
        "2401.04088, table 5",
    ),
    Term(
        "co-activation",
        "The part of an expert's tokens that also chose a certain other expert.",
        "N_ij / N_i",
        "(K-1)/(E-1) when even; uneven load alone changes it",
        "2409.02060, eq. 6",
    ),
    Term(
        "co-activation strength",
        "The part of a layer's expert pairs that would have to be others to look like chance, 0 to 1.",
        "1/2 · sum over i < j of |N_ij - M_ij| / N, M_ij the mean of the null",
        "its null, which is above 0",
        "total variation distance",
    ),
    Term(
        "lift over chance",
        "How many times as often as in random choices of the same load two experts serve the same token.",
        "N_ij / M_ij",
        "1",
    ),
    Term(
        "cross-layer flow",
        "Where the tokens of an expert go in the next MoE layer.",
        "P(expert of layer l + 1 | expert of layer l)",
        "the next expert's own share",
        "2409.02060, section 5",
    ),
    # Change
    Term(
        "formation",
        "How much of what an expert takes in the end it took at an earlier step, beyond what its load alone brings.",
        "(kept - chance) / (1 - chance), chance = its tokens / T; formed from 1/2 on, for good",
        "0 as by chance, 1 at the last step",
        "after 2409.02060, eq. 5, and Cohen 1960",
    ),
    Term(
        "saturation",
        "How many of its final experts a token already had at an earlier step of training.",
        "mean_t |S_t(step) ∩ S_t(last)| / K",
        "1 at the last step; two independent choices of the same loads share some by chance",
        "2409.02060, eq. 5",
    ),
    Term(
        "flip rate",
        "The part of the tokens that choose another set of experts in the second trace.",
        "P(S_t ≠ S'_t)",
        "0 when the routing is the same",
        "2510.11370",
    ),
    Term(
        "Jaccard",
        "How much two sets of experts have in common.",
        "|S ∩ S'| / |S ∪ S'|",
        "1 = the same, 0 = none in common",
        "Jaccard 1901",
    ),
    Term("mover", "An expert whose share of a domain's tokens differs between two traces.", "share B - share A", "0"),
    Term(
        "matched experts",
        "Experts of two models paired so that they share as many tokens as possible; their numbers mean nothing.",
        "largest total Jaccard of token sets (Hungarian method)",
        "",
        "Kuhn 1955",
    ),
    # Cause
    Term("ablation", "Switching an expert off to see what the model loses; everything else stays as it is."),
    Term("zero", "Switched off: the expert's output is left out, the token's other experts keep their weights."),
    Term("renormalise", "Switched off: the token's other experts share the weight of the expert that is gone."),
    Term("reroute", "Switched off: the router chooses again, without the expert, by its own rule."),
    Term(
        "force",
        "The expert is put first for every token: its logit is set to the token's largest.",
        "z_e = max z",
        "",
        "2509.09660",
    ),
    Term(
        "causal effect",
        "By how much the loss rises when an expert is switched off; above 0 the expert was of use.",
        "nats per token without it - with it",
        "0",
        "2606.10703",
    ),
    Term(
        "KL",
        "How differently the model predicts the next token after a change, in nats; not whether it is worse.",
        "mean_t sum_v p_v ln(p_v / p'_v)",
        "0 = the same predictions",
        "Kullback and Leibler 1951",
    ),
    Term(
        "REAP",
        "How much an expert adds where it is used: its weight times the size of its output, over its tokens.",
        "mean over routed tokens of g_e(x) · ||E_e(x)||",
        "",
        "2510.13999",
    ),
    Term(
        "EAN",
        "Expert activation norm: the size of an expert's output, summed over its tokens.",
        "sum over routed tokens of ||E_e(x)||",
    ),
    Term(
        "CKA",
        "How alike two experts' outputs are on the same tokens, whatever their rotation and size.",
        "||A'B||² / (||A'A|| ||B'B||), columns centred",
        "0 = unrelated, 1 = alike; above 0 by chance for few tokens",
        "1905.00414",
    ),
    Term(
        "gate cosine", "How alike two experts' rows of the router are: what they are chosen for.", "cos(w_i, w_j)", "0"
    ),
    Term("weight cosine", "How alike the weights of two experts are, as they stand.", "cos(W_i, W_j)", "0"),
    Term(
        "rank correlation",
        "Whether experts that are high in one measure are high in another: -1 to 1.",
        "Pearson's correlation of ranks",
        "0",
        "Spearman 1904",
    ),
)
