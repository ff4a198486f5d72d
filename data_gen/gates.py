"""Measures that tell rich text from a handful of templates, with the limits a corpus has to keep.

The limits stand between five naive templates and real text (calibration in docs and tests): compression and
distinct n-grams (2403.00553), the entropy of the next word, what an unseen template shares with training, and how
well words alone tell the domains apart. Samples are of equal size, because all of these vary with length.
"""

from __future__ import annotations

import ast
import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from data_gen.row import DOMAINS, PROSE_DOMAINS, Row

SAMPLE_WORDS = 60_000  # word tokens per domain that the measures look at
WINDOW_WORDS = 16
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Gate:
    """One measured figure, its limit in words ("<= 6") and whether it was kept. `domain` is "all" for comparisons."""

    name: str
    domain: str
    value: float
    limit: str
    passed: bool


def words(text: str) -> list[str]:
    """Word tokens: runs of letters and digits in lower case, and single punctuation marks."""
    return _WORD.findall(text.lower())


def sample(documents: Iterable[Row], size: int = SAMPLE_WORDS) -> list[Row]:
    """The first documents that together hold `size` word tokens (or all of them)."""
    chosen: list[Row] = []
    total = 0
    for document in documents:
        if total >= size:
            break
        chosen.append(document)
        total += len(words(document.text))
    return chosen


def compression_ratio(texts: Sequence[str]) -> float:
    """Bytes of UTF-8 per byte after zlib at its strongest; real prose has 3 to 4, repeated templates over 10."""
    raw = "\n".join(texts).encode()
    return len(raw) / len(zlib.compress(raw, 9))


def distinct(tokens: Sequence[str], n: int) -> float:
    """Share of the n-grams that are different from one another, in 0..1."""
    count = len(tokens) - n + 1
    return len(set(zip(*(tokens[start:] for start in range(n)), strict=False))) / count if count > 0 else 0.0


def conditional_entropy(tokens: Sequence[str]) -> float:
    """H(word | previous word) in bits, from the counts themselves."""
    pairs = Counter(pairwise(tokens))
    firsts = Counter(tokens[:-1])
    total = max(1, len(tokens) - 1)
    return -sum(count / total * math.log2(count / firsts[first]) for (first, _), count in pairs.items())


def seen_ngrams(tokens: Sequence[str], training: Sequence[str], n: int = 8) -> float:
    """Share of the n-grams of `tokens` that occur in `training`, in 0..1."""
    known = set(zip(*(training[start:] for start in range(n)), strict=False))
    grams = list(zip(*(tokens[start:] for start in range(n)), strict=False))
    return sum(gram in known for gram in grams) / len(grams) if grams else 0.0


def jaccard(left: Iterable[str], right: Iterable[str]) -> float:
    """Size of the intersection over size of the union, in 0..1."""
    a, b = set(left), set(right)
    return len(a & b) / len(a | b) if a | b else 0.0


def parses(text: str) -> bool:
    """Whether the text is a Python module."""
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def windows(documents: Iterable[Row]) -> tuple[list[str], list[str]]:
    """Runs of 16 word tokens and their domains; no run crosses a document's end."""
    texts, labels = [], []
    for document in documents:
        tokens = words(document.text)
        for start in range(0, len(tokens) - WINDOW_WORDS + 1, WINDOW_WORDS):
            texts.append(" ".join(tokens[start : start + WINDOW_WORDS]))
            labels.append(document.domain)
    return texts, labels


def classifier_accuracy(train: tuple[list[str], list[str]], test: tuple[list[str], list[str]]) -> float:
    """Accuracy on `test` of TF-IDF over words and a logistic regression fitted on `train`."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    vectoriser = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", sublinear_tf=True)
    model = make_pipeline(vectoriser, LogisticRegression(C=10.0, max_iter=200, tol=1e-3))
    model.fit(*train)
    return float(model.score(*test))


def window_accuracy(documents: Sequence[Row], domains: Sequence[str]) -> float:
    """How often the classifier names the domain of 16 words: fitted on train, judged on validation documents."""
    halves = []
    for split in ("train", "validation"):
        chosen = [
            document
            for domain in domains
            for document in sample((d for d in documents if d.split == split and d.domain == domain), SAMPLE_WORDS // 3)
        ]
        halves.append(windows(chosen))
    return classifier_accuracy(halves[0], halves[1])


def document_accuracy(documents: Sequence[Row]) -> float:
    """How often the classifier names the domain of a whole validation document."""
    halves = []
    for split in ("train", "validation"):
        chosen = [
            d for domain in DOMAINS for d in sample(d for d in documents if d.split == split and d.domain == domain)
        ]
        halves.append(([d.text for d in chosen], [d.domain for d in chosen]))
    return classifier_accuracy(halves[0], halves[1])


def _at_most(name: str, domain: str, value: float, limit: float) -> Gate:
    return Gate(name, domain, value, f"<= {limit:g}", value <= limit)


def _at_least(name: str, domain: str, value: float, limit: float) -> Gate:
    return Gate(name, domain, value, f">= {limit:g}", value >= limit)


def _gate_between(name: str, domain: str, value: float, low: float, high: float) -> Gate:
    return Gate(name, domain, value, f"{low:g} to {high:g}", low <= value <= high)


def _domain_gates(domain: str, splits: dict[str, list[Row]]) -> list[Gate]:
    """The gates of one domain, on samples of its splits."""
    train = sample(splits["train"])
    tokens = [token for document in train for token in words(document.text)][:SAMPLE_WORDS]
    gates = [
        _at_most("zlib ratio", domain, compression_ratio([document.text for document in train]), 6),
        _at_least("distinct-2", domain, distinct(tokens, 2), 0.15),
        _at_least("distinct-4", domain, distinct(tokens, 4), 0.35),
        _at_least("H(word | previous)", domain, conditional_entropy(tokens), 3),
    ]
    if splits["unseen"]:
        unseen = [token for document in sample(splits["unseen"]) for token in words(document.text)]
        gates.append(_at_most("unseen 8-grams seen in training", domain, seen_ngrams(unseen, tokens), 0.10))
    everything = [document for documents in splits.values() for document in documents]
    repeated = len(everything) - len({document.text for document in everything})
    gates.append(_at_most("identical documents", domain, repeated, 0))
    if domain == "code":
        parsed = sum(parses(document.text) for document in everything) / len(everything)
        gates.append(_at_least("share that parses", domain, parsed, 1))
    return gates


def measure_gates(documents: Sequence[Row]) -> list[Gate]:
    """All gates that a generated corpus can be held to by itself, domain by domain, then between the domains.

    Gates that need a split or a domain the corpus does not have are left out.
    """
    by_domain: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for document in documents:
        by_domain[document.domain][document.split].append(document)
    gates = [gate for domain in by_domain for gate in _domain_gates(domain, by_domain[domain])]
    splits = {document.split for document in documents}
    if set(DOMAINS) <= by_domain.keys() and {"train", "validation"} <= splits:
        gates.append(_at_least("document accuracy of a word classifier", "all", document_accuracy(documents), 0.85))
        accuracy = window_accuracy(documents, DOMAINS)
        gates.append(_gate_between("window accuracy of a word classifier", "all", accuracy, 0.60, 0.95))
    vocabulary = {
        domain: {token for document in sample(by_domain[domain]["train"]) for token in words(document.text)}
        for domain in PROSE_DOMAINS
        if domain in by_domain
    }
    names = list(vocabulary)
    for index, left in enumerate(names):
        for right in names[index + 1 :]:
            value = jaccard(vocabulary[left], vocabulary[right])
            gates.append(_gate_between("vocabulary Jaccard", f"{left}/{right}", value, 0.1, 0.5))
    return gates
