"""How sure a finding is, and what loss means."""

from __future__ import annotations

from moe_core.routing.glossary.term import Term

CERTAINTY = (
    # Certainty
    Term(
        "null",
        "The same data with one connection broken and all else kept: what the measure would be by chance alone.",
        "200 draws; see the null of each measure",
        "",
        "Fisher 1935",
    ),
    Term(
        "null of domains",
        "Domain labels shuffled over whole sources: every source keeps its choices.",
        "labels permuted by source",
    ),
    Term(
        "null of persistence",
        "The tokens of every document in random order: the document keeps its load.",
        "choices permuted within documents",
    ),
    Term(
        "null of co-activation",
        "Random sets of experts, with every document's load and every token's number of experts as they are.",
        "swaps of experts between tokens of a document",
        "",
        "Besag and Clifford 1989",
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
        "shares: Wilson, tokens divided by the design effect; other measures: sources drawn again",
        "",
        "Wilson 1927; Korn and Graubard 1998; Efron 1979",
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
