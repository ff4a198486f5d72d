"""Every term the product uses, once: one line, formula, chance or target value, source. Pages show it on hover."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """One term. `formula`, `chance` and `source` are "" where there is none."""

    name: str
    one_line: str
    """One sentence in plain words."""
    formula: str = ""
    """With T tokens, E experts, K slots per token, c_e assignments of expert e, f_e = c_e / sum c."""
    chance: str = ""
    """The value that chance, evenness or a perfect score gives: what to hold a figure against."""
    source: str = ""
    """arXiv id and equation, or the standard work."""

    @property
    def help(self) -> str:
        """One line for a tooltip: the sentence, and the value to compare with."""
        return f"{self.one_line} Compare with: {self.chance}." if self.chance else self.one_line


_TERMS = (
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
    # Load
    Term(
        "expert load",
        "The part of a layer's assignments that went to an expert.",
        "f_e = c_e / sum c",
        "1/E when even",
        "2101.03961, eq. 5",
    ),
    Term(
        "load imbalance",
        "How many times the average load the busiest expert of a layer has.",
        "max c / mean c",
        "1 when even, E when all tokens go to one expert",
        "2408.15664",
    ),
    Term(
        "MaxVio",
        "By what part the busiest expert exceeds the average load: load imbalance minus 1.",
        "(max c - mean c) / mean c",
        "0 when even",
        "2408.15664",
    ),
    Term("CV", "Coefficient of variation of the load over experts.", "std c / mean c", "0 when even", "1701.06538"),
    Term(
        "Gini",
        "Inequality of the load over experts, as used for incomes.",
        "sum_i (2i - E - 1) c_(i) / (E sum c)",
        "0 when even, (E-1)/E when one expert has all",
        "Gini 1912",
    ),
    Term(
        "effective experts",
        "As many equally busy experts would have a load as uneven as this one.",
        "exp(H(f))",
        "E when even, 1 when one expert has all",
    ),
    Term("dead expert", "An expert that got no token at all of those traced.", "c_e = 0", "0 wanted"),
    Term(
        "dropped tokens",
        "Slots left empty because the chosen expert was full; the token skips that expert.",
        "unused slots / (T K)",
        "0 without a capacity limit",
        "2101.03961, section 2.2",
    ),
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
    # Decisions
    Term(
        "router entropy",
        "How undecided the router is about a token: 0 = sure of one expert, 1 = no preference at all.",
        "mean_t H(p_t) / ln E",
        "1 for a router that does not choose",
    ),
    Term("confidence", "The router's probability of its first choice, averaged over tokens.", "mean_t max p", "1/E"),
    Term("margin", "How far the first choice is ahead of the second.", "mean_t (p_(1) - p_(2))", "0 for a tie"),
    Term(
        "domain specialization",
        "The part of a domain's tokens that chose an expert.",
        "N_eD / N_D",
        "K/E",
        "2409.02060, eq. 7",
    ),
    Term(
        "lift",
        "How many times its even share of a domain's tokens an expert takes.",
        "(N_eD / N_D) / (K / E)",
        "1",
        "2409.02060, eq. 7",
    ),
    Term(
        "NMI",
        "Normalised mutual information: how much of a token's domain one expert choice gives away, 0 to 1.",
        "I(expert; domain) / H(domain)",
        "its null, a little above 0",
        "Shannon 1948",
    ),
    Term(
        "token NMI",
        "How much of the choice of expert the token alone explains, whatever its context.",
        "I(expert; token id) / H(expert)",
        "its chance value, which grows with rare tokens",
    ),
    Term(
        "JSD",
        "Jensen-Shannon divergence: how differently two domains use the experts, in nats.",
        "H((q_i + q_j)/2) - (H(q_i) + H(q_j))/2",
        "0 = alike, 0.693 = no expert in common",
        "Lin 1991",
    ),
    # Certainty
    Term(
        "null",
        "What the measure would be without any connection: the same data with domain labels shuffled over documents.",
        "labels permuted by document, 200 times",
        "",
        "Fisher 1935",
    ),
    Term(
        "p-value",
        "How often chance alone does at least as well; small means unlikely to be luck, not that it is large.",
        "(1 + #{null >= value}) / (1 + n); over several layers after Benjamini-Hochberg",
        "under 0.05 counts as found",
        "Phipson and Smyth 2010; Benjamini and Hochberg 1995",
    ),
    Term("effect", "The size of a finding: the measure minus its average under chance.", "value - mean null", "0"),
    Term(
        "interval",
        "The range that holds the true value in 95 % of such samples, allowing for tokens of one document being alike.",
        "Wilson, tokens divided by the design effect",
        "",
        "Wilson 1927; Korn and Graubard 1998",
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
        "unigram baseline",
        "The loss of a guess by word frequency alone, without any context; a model must be well below it.",
        "-mean ln((count + 1) / (total + V))",
    ),
    Term("uniform baseline", "The loss of a blind guess among all tokens.", "ln V"),
    Term("validation", "Documents made like the training ones but never trained on."),
    Term("unseen", "Documents of templates or sources that training never touched: the harder test."),
)

GLOSSARY: dict[str, Term] = {term.name: term for term in _TERMS}
"""Terms by name, in the order a reader would want them."""
