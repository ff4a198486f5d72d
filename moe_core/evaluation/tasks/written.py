"""What the model writes: how varied it is, and whether its code is code. Written text is read, never executed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moe_core.data.document import Document
from moe_core.data.python_syntax import correct_so_far, parses, whole_lines
from moe_core.evaluation.tasks.context import Context, Outcome
from moe_core.evaluation.tasks.registry import benchmark
from moe_core.evaluation.tasks.result import Sample
from moe_core.evaluation.tasks.scores import of_paired_shares, of_pairs
from moe_core.inference.engine import Engine, Request
from moe_core.inference.sampling import SamplingConfig

PROMPT_TOKENS = 32
"""Tokens of a held-out document that the model goes on from."""
DOCUMENTS_PER_DOMAIN = 4
NEW_TOKENS = 64
CODE_DOMAIN = "code"
CODE_DOCUMENTS = 20
CODE_TOKENS = 96
CODE_PROMPT_TOKENS = 64
"""More than of other text: code may begin with prose in a docstring, and what to write has to be seen."""
LEAST_TOKENS = 16
"""A document must go on for so many tokens after its prompt."""
DISTINCT = (1, 2, 4)
REPETITION_SPAN = 32


@dataclass(frozen=True)
class Continued:
    """A document's beginning, and two ways in which it goes on for as many tokens: the model's and its own."""

    domain: str
    prompt: str
    text: str
    token_ids: list[int]
    ended: bool
    """The model ended the text before it had written all tokens."""
    own_text: str
    own_ids: list[int]
    own_ended: bool
    """The document ends where the model's text does, or before."""


@benchmark("generation", "Is what it writes as varied as real text?")
def generation(context: Context) -> Outcome:
    """Distinct-n and repetition of sampled text against the documents' own text of the same length."""
    domains = context.loaded.run.domains()
    documents = [one for domain in domains for one in _documents(context, domain, DOCUMENTS_PER_DOMAIN, PROMPT_TOKENS)]
    if not documents:
        return _too_short(context, PROMPT_TOKENS)
    written = go_on(context, documents, PROMPT_TOKENS, NEW_TOKENS)
    scores = [
        of_pairs(
            f"distinct-{n}",
            [distinct(one.token_ids, n) for one in written],
            [distinct(one.own_ids, n) for one in written],
            "the documents themselves",
        )
        for n in DISTINCT
    ]
    repeated = of_pairs(
        "repetition",
        [repetition(one.token_ids) for one in written],
        [repetition(one.own_ids) for one in written],
        "the documents themselves",
    )
    sampling = SamplingConfig()
    note = (
        f"Unseen documents, going on from their first {PROMPT_TOKENS} tokens for up to {NEW_TOKENS}, at temperature "
        f"{sampling.temperature}, top-k {sampling.top_k}, top-p {sampling.top_p}. distinct-n: different n-grams over "
        f"all n-grams of a text's tokens (1510.03055). repetition: tokens that stand among the {REPETITION_SPAN} "
        "before them (1908.04319)."
    )
    return Outcome((*scores, repeated), _first_of_each_domain(written), note)


@benchmark("code_syntax", "Is the code it writes valid Python?")
def code_syntax(context: Context) -> Outcome:
    """The share of continued code that parses, against the documents themselves cut at the same length."""
    if CODE_DOMAIN not in context.loaded.run.domains():
        return Outcome(not_run=f"the run's text has no domain {CODE_DOMAIN!r} to go on from")
    documents = _documents(context, CODE_DOMAIN, CODE_DOCUMENTS, CODE_PROMPT_TOKENS)
    written = go_on(context, documents, CODE_PROMPT_TOKENS, CODE_TOKENS)
    pairs = [
        (whole_lines(one.prompt + one.text, one.ended), whole_lines(one.prompt + one.own_text, one.own_ended))
        for one in written
    ]
    pairs = [(model, own) for model, own in pairs if own.strip()]
    if not pairs:
        return _too_short(context, CODE_PROMPT_TOKENS)
    models, own = ([*side] for side in zip(*pairs, strict=True))
    level_is = "the documents, cut at the same length"
    note = (
        f"Unseen code, going on from its first {CODE_PROMPT_TOKENS} tokens for up to {CODE_TOKENS}. An unfinished last "
        "line is dropped, and so are documents that have no other by then. Correct so far: some valid program could "
        "begin with these lines. Parses: ast.parse takes them as they stand, nothing is left open. Nothing is executed."
    )
    return Outcome(
        (
            of_paired_shares("correct so far", [*map(correct_so_far, models)], [*map(correct_so_far, own)], level_is),
            of_paired_shares("parses", [*map(parses, models)], [*map(parses, own)], level_is),
        ),
        _first_of_each_domain(written),
        note,
    )


def go_on(context: Context, documents: Sequence[Document], prompt_tokens: int, new_tokens: int) -> list[Continued]:
    """Let the model go on from the first tokens of each document, for as many more as it has or `new_tokens`."""
    engine, tokenizer, written = Engine(context.model), context.model.tokenizer, []
    for number, document in enumerate(documents):
        ids = tokenizer.encode(document.text)
        begun = b"".join(tokenizer.token_bytes(token_id) for token_id in ids[:prompt_tokens]).decode("utf-8", "ignore")
        most = min(new_tokens, len(ids) - prompt_tokens)
        tokens = []
        # The seed differs by document: prompts that are alike are not to be continued alike.
        sampling = SamplingConfig(max_new_tokens=most, seed=context.seed + number)
        for token in engine.start(Request(begun, sampling)).tokens():
            tokens.append(token)
            context.progress("writing", number * new_tokens + len(tokens), len(documents) * new_tokens)
        end = prompt_tokens + len(tokens)
        written.append(
            Continued(
                domain=document.domain,
                prompt=begun,
                text="".join(token.text for token in tokens),
                token_ids=[token.token_id for token in tokens],
                ended=len(tokens) < most,
                own_text=document.text[len(begun) : len(tokenizer.decode(ids[:end]))],
                own_ids=ids[prompt_tokens:end],
                own_ended=end >= len(ids),
            )
        )
    return written


def distinct(token_ids: Sequence[int], n: int) -> float:
    """Different n-grams over all n-grams, 0..1 (Li et al. 2016, arXiv:1510.03055); NaN with fewer than n tokens."""
    grams = [tuple(token_ids[at : at + n]) for at in range(len(token_ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(token_ids: Sequence[int], span: int = REPETITION_SPAN) -> float:
    """Share of tokens that occur among the `span` tokens before them, 0..1; the first one never does.

    rep/l of Welleck et al. 2020 (arXiv:1908.04319), section 6. NaN without tokens.
    """
    repeated = [token in token_ids[max(0, at - span) : at] for at, token in enumerate(token_ids)]
    return sum(repeated) / len(repeated) if repeated else math.nan


def _documents(context: Context, domain: str, most: int, prompt_tokens: int) -> Sequence[Document]:
    return context.documents(most, domain, prompt_tokens + LEAST_TOKENS)


def _too_short(context: Context, prompt_tokens: int) -> Outcome:
    least = prompt_tokens + LEAST_TOKENS
    return Outcome(not_run=f"no unseen document of run {context.loaded.run.name!r} has {least} tokens or more")


def _first_of_each_domain(written: Sequence[Continued]) -> tuple[Sample, ...]:
    first: dict[str, Continued] = {}
    for one in written:
        first.setdefault(one.domain, one)
    return tuple(Sample(domain, one.prompt, one.text) for domain, one in first.items())
