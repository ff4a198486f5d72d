"""How well the model foresees text: perplexity and token accuracy of held-out text, perplexity of a text given."""

from __future__ import annotations

import math

import numpy as np

from moe_core.data.document import Document
from moe_core.data.splits import HELD_OUT_SPLITS
from moe_core.data.tokens import TokenDataset
from moe_core.evaluation.loss import unigram_nats_by_token
from moe_core.evaluation.tasks.context import Context, Outcome
from moe_core.evaluation.tasks.registry import benchmark
from moe_core.evaluation.tasks.scored_tokens import score_tokens
from moe_core.evaluation.tasks.scores import Score, of_sources

TOP = 5
BLOCK_TOKENS = 32
"""Tokens of a given text that together count as one source, because neighbours are alike."""
UNIGRAM = "guessing by token frequency"


@benchmark("perplexity", "How well does it foresee held-out text? Lower is better.")
def perplexity(context: Context) -> Outcome:
    """exp of the mean nats a token, of each split and of each domain in it."""
    unigram_V = unigram_nats_by_token(context.loaded.run.token_counts())
    scores, bits = [], []
    for split in HELD_OUT_SPLITS:
        tokens = context.held_out[split]
        chance = unigram_V[tokens.token_ids]
        present = [name for number, name in enumerate(tokens.domains) if (tokens.domain_ids == number).any()]
        for domain in [None, *(present if len(present) > 1 else [])]:
            name = split if domain is None else f"{split}, {domain}"
            scores.append(tokens.score(name, tokens.nats, chance, UNIGRAM, domain=domain, exponential=True))
        bits.append(f"{tokens.nats.sum() / math.log(2) / tokens.domain_bytes.sum():.3f} bits a byte on {split} text")
    uniform = f"Guessing uniformly has a perplexity of {context.model.vocab_size:,}."
    return Outcome(tuple(scores), note=f"{'; '.join(bits)}. {uniform}")


@benchmark("token_accuracy", "How often is the next token its first guess, or among its first five?")
def token_accuracy(context: Context) -> Outcome:
    """Top-1 and top-5 accuracy of each split against always guessing the commonest tokens of the training text."""
    commonest = np.argsort(-context.loaded.run.token_counts(), kind="stable")[:TOP]
    shown = context.model.tokenizer.token_text(int(commonest[0]))
    scores = []
    for split in HELD_OUT_SPLITS:
        tokens = context.held_out[split]
        for top, level_is in ((1, f"always guessing {shown!r}"), (TOP, f"always the {TOP} commonest tokens")):
            hits, chance = tokens.ranks <= top, np.isin(tokens.token_ids, commonest[:top])
            scores.append(tokens.score(f"{split}, top-{top}", hits, chance, level_is, best=1.0))
    return Outcome(tuple(scores))


@benchmark("text", "How well does it foresee the text given? Lower is better.")
def text(context: Context) -> Outcome:
    """Perplexity of `--text`."""
    given = context.inputs.text
    if given is None:
        return Outcome(not_run="no text was given; --text TEXT or --text-file FILE gives one")
    loaded = context.loaded
    dataset = TokenDataset.build([Document(given, "text", "text", "")], loaded.tokenizer, ["text"])
    tokens = score_tokens(
        context.model, dataset, seq_len=loaded.config.training.seq_len, progress=context.progress
    )  # fmt: skip
    chance = unigram_nats_by_token(loaded.run.token_counts())[tokens.token_ids]
    bits = tokens.nats.sum() / math.log(2) / len(given.encode())
    return Outcome(
        (_of_blocks(tokens.nats, chance),),
        note=f"{len(tokens.nats):,} tokens, {bits:.3f} bits a byte; blocks of {BLOCK_TOKENS} tokens count as "
        "independent, which flatters the certainty about a text whose parts are alike.",
    )


def _of_blocks(nats_T: np.ndarray, chance_T: np.ndarray) -> Score:
    starts = np.arange(0, len(nats_T), BLOCK_TOKENS)
    loss, chance, tokens = (np.add.reduceat(values, starts) for values in (nats_T, chance_T, np.ones(len(nats_T))))
    strata = np.zeros(len(starts))
    return of_sources("perplexity", loss, chance, tokens, strata, UNIGRAM, exponential=True, unit="block")
