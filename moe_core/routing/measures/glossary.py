"""Every term the product uses, once: one line, formula, chance or target value, source. Pages show it on hover.

Terms of a measure stand beside it; here are those that belong to none.
"""

from __future__ import annotations

from moe_core.routing.measures import beyond_length
from moe_core.routing.measures.registry import MEASURES
from moe_core.routing.measures.term import Term

GENERAL = (
    # What the model is made of
    Term("token", "A piece of text, a word or part of one; the unit the model reads and predicts."),
    Term("document", "One text from one source; its tokens are alike, so certainty is counted in documents."),
    Term("domain", "What kind of text a token is from, such as legal or code; the model is never told."),
    Term("layer", "One step of the model; each MoE layer has its own router and its own experts."),
    Term(
        "MoE",
        "Mixture of Experts: a layer with many small networks of which each token passes only a few.",
        "y = sum over chosen e of g_e · expert_e(x)",
        "",
        "1701.06538, eq. 1; 2401.04088, section 2.1",
    ),
    Term("expert", "One of the small networks of an MoE layer; only the tokens sent to it pass through."),
    Term(
        "router",
        "The part of an MoE layer that chooses the experts for each token.",
        "p = softmax(W x)",
        "",
        "1701.06538",
    ),
    Term("router logits", "The router's raw scores of all experts for a token; higher is preferred.", "z = W x"),
    Term("router score", "The weight a chosen expert's output gets; also called combine weight or gate."),
    Term("top-k", "How many experts each token passes in a layer; each of these places is a slot."),
    Term("shared expert", "An expert that every token passes, beside those the router chooses.", "", "", "2401.06066"),
    Term("total parameters", "All the numbers the model has learned."),
    Term("active parameters", "The parameters one token really passes: the work of a token, not the memory."),
    Term("FLOPs per token", "Multiplications and additions to process one token, each counted as one operation."),
    # Load and losses of training
    Term(
        "capacity factor",
        "How many times the average load an expert may take in a batch before it drops tokens.",
        "C = ceil(factor · T K / E)",
        "",
        "2101.03961, eq. 3",
    ),
    Term(
        "load-balancing loss",
        "The training penalty for uneven load, per layer.",
        "E · sum_e f_e P_e, P_e = mean probability of e",
        "1 when balanced",
        "2101.03961, eq. 4",
    ),
    Term(
        "router z-loss",
        "The training penalty that keeps router logits small, for stable numbers.",
        "mean_t (ln sum_e exp z_te)²",
        "",
        "2202.08906, eq. 5",
    ),
    # Measures
    Term(
        "lift",
        "How many times its even share of a domain's tokens an expert takes.",
        "(N_eD / N_D) / (K / E)",
        "1",
        "2409.02060, eq. 7",
    ),
    # Certainty
    Term(
        "null",
        "The same data with one connection broken and all else kept: what the measure would be by chance alone.",
        "200 draws; see the null of each measure",
        "",
        "Fisher 1935",
    ),
    Term(
        "null of vocabulary and flow",
        "The choices of every document turned round by a random distance, so that neighbours stay neighbours.",
        "time-shifted surrogates within documents",
        "",
        "Lancaster et al. 2018",
    ),
    Term(
        "p-value",
        "How often chance alone does at least as well; small means unlikely to be luck, not that it is large.",
        "(1 + #{null >= value}) / (1 + n); over several layers after Benjamini-Hochberg",
        "under 0.05 counts as found",
        "Phipson and Smyth 2010; Benjamini and Hochberg 1995",
    ),
    Term(
        "Benjamini-Hochberg",
        "The correction for many tests at once: of what is called found, at most 5 % on average is luck.",
        "p_(i) · n / i, made ascending",
        "",
        "Benjamini and Hochberg 1995",
    ),
    Term("effect", "The size of a finding: the measure minus its average under chance.", "value - mean null", "0"),
    Term(
        "interval",
        "The range that holds the true value in 95 % of such samples, allowing for tokens of one document being alike.",
        "shares: Wilson, tokens divided by the design effect; measures with a null: delete-a-group jackknife",
        "",
        "Wilson 1927; Korn and Graubard 1998; Kott 2001",
    ),
    Term(
        "estimate",
        "The measure without what few tokens add to it; a count of few tokens looks more orderly than its source.",
        "entropies + 1/2 sum of variance / share, which is (cells in use - 1) / 2N for independent tokens",
        "",
        "Miller 1955; Panzeri and Treves 1996",
    ),
    # Loss
    Term(
        "loss",
        "How surprised the model is by the true next token, in nats; lower is better.",
        "-mean ln p(true token)",
        "ln V for a model that knows nothing",
    ),
    Term("nats", "The unit of surprise with natural logarithms; 1 nat = 1.443 bits.", "-ln p"),
    Term(
        "perplexity",
        "As many equally likely tokens would leave the model as unsure as it is.",
        "exp(nats per token)",
        "V for a model that knows nothing",
    ),
    Term(
        "bits per byte",
        "Surprise per byte of text, so that models with different tokenizers can be compared.",
        "total nats / ln 2 / UTF-8 bytes",
        "8 for random bytes",
    ),
    Term(
        "guessing by token frequency",
        "The loss of a guess by how often tokens occur, without any context (unigram); a model must be well below it.",
        "-mean ln((count + 1) / (total + V))",
    ),
    Term("uniform baseline", "The loss of a blind guess among all tokens.", "ln V"),
    Term("validation", "Documents made like the training ones but never trained on."),
    Term("unseen", "Documents of templates or sources that training never touched: the harder test."),
)

GLOSSARY: dict[str, Term] = {
    term.name: term
    for term in (*GENERAL, *beyond_length.TERMS, *(term for measure in MEASURES for term in measure.terms))
}
"""Terms by name."""
