"""The figures of a trained run: loss on both held-out splits against its baselines, and the health of its routing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from moe_core.data.splits import HELD_OUT_SPLITS, SCORED_TOKENS_PER_DOMAIN
from moe_core.data.tokens import TokenDataset
from moe_core.data.windows import WINDOW_RULE
from moe_core.errors import RunError
from moe_core.evaluation.loss import LossReport, count_text_tokens, evaluate_loss, scored_windows, unigram_nats
from moe_core.inference.held_out import held_out_text
from moe_core.inference.tracing import trace_batches
from moe_core.model import size
from moe_core.progress import Progress, silent
from moe_core.routing import capture
from moe_core.routing.measures.decisions import router_entropy
from moe_core.routing.measures.domains import domain_nmi_test, domain_verdict
from moe_core.routing.measures.health import routing_health
from moe_core.routing.measures.load import load_balance
from moe_core.runs.evaluation import (
    Evaluation,
    GuessingFigures,
    LayerRouting,
    ParameterCounts,
    RoutingVerdicts,
    SplitFigures,
)

if TYPE_CHECKING:
    from moe_core.data.document import Document
    from moe_core.routing.instruments.capture import Recorder
    from moe_core.routing.trace.trace import RoutingTrace
    from moe_core.runs.checkpoint import LoadedRun


def evaluate_run(loaded: LoadedRun, *, progress: Progress | None = None) -> Evaluation:
    """Score and trace the run's held-out documents.

    Documents are scored alone in windows of training.seq_len tokens, at most SCORED_TOKENS_PER_DOMAIN a domain and
    split; the routing is that of the scored tokens of both splits. What is not finite is None.

    Raises RunError when the run's held-out documents are missing or do not fit its tokenizer.
    """
    report = progress or silent
    run, config, model = loaded.run, loaded.config, loaded.model
    datasets = _datasets(loaded)
    seq_len = config.training.seq_len
    total = sum(count_text_tokens(dataset) for dataset in datasets.values())
    losses: dict[str, LossReport] = {}
    with capture(model) if config.model.moe_layers else nullcontext() as recorder:
        for split in HELD_OUT_SPLITS:
            before = sum(loss.tokens for loss in losses.values())
            losses[split] = evaluate_loss(
                model,
                datasets[split],
                seq_len=seq_len,
                progress=lambda stage, done, _, before=before: report(stage, before + done, total),  # type: ignore[misc]
            )
    routing, words = _no_routing() if recorder is None else _routing(_trace(loaded, recorder, datasets))
    # How often tokens skip work is what training made of it; the configuration knows the even load alone.
    skips = config.model.null_experts and routing
    experts = sum(layer.experts_per_token or 0.0 for layer in routing) / len(routing) if skips else None
    return Evaluation(
        run=run.name,
        step=loaded.step,
        windows=WINDOW_RULE,
        validation=_split_figures(losses["validation"]),
        unseen=_split_figures(losses["unseen"]),
        baselines=GuessingFigures(
            uniform_nats=math.log(loaded.tokenizer.vocab_size),
            unigram_nats=unigram_nats(run.token_counts(), datasets["unseen"]),
        ),
        parameters=ParameterCounts(total=model.total_parameters, active=size.active_parameters(config.model, experts)),
        flops_per_token=size.flops_per_token(config.model, seq_len, experts),
        routing=routing,
        verdicts=words,
    )


def scored_documents(loaded: LoadedRun, split: str) -> list[Document]:
    """The documents of "validation" or "unseen" as `evaluate_run` scores them: a large corpus in part, some cut.

    A cut text is what its tokens decode to; where the cut parts a character, the rest of it is left out.
    """
    dataset, documents = scored_text(loaded, split), loaded.run.held_out(split)
    scored = []
    for start, end in zip(*dataset.document_bounds(), strict=True):
        document, ids = documents[int(dataset.document_ids[start])], dataset.token_ids[start + 1 : end]
        text = b"".join(loaded.tokenizer.token_bytes(int(token)) for token in ids).decode("utf-8", "ignore")
        scored.append(replace(document, text=text))
    return scored


def _trace(loaded: LoadedRun, recorder: Recorder, datasets: Mapping[str, TokenDataset]) -> RoutingTrace:
    """The trace of the scored text, split by split."""
    seq_len = loaded.config.training.seq_len
    return trace_batches(
        recorder,
        [(dataset, windows) for dataset in datasets.values() for windows in scored_windows(dataset, seq_len)],
        domains=loaded.run.domains(),
        source=f"run {loaded.run.name}, step {loaded.step}, held-out text",
        vocabulary=loaded.tokenizer.vocabulary(),
    )


def _datasets(loaded: LoadedRun) -> dict[str, TokenDataset]:
    """What is scored of each split; no two documents or sources, of whichever split, have the same id."""
    validation, unseen = (scored_text(loaded, split) for split in HELD_OUT_SPLITS)
    document_ids = unseen.document_ids + int(validation.document_ids.max()) + 1
    source_ids = unseen.source_ids + int(validation.source_ids.max()) + 1
    return {"validation": validation, "unseen": replace(unseen, document_ids=document_ids, source_ids=source_ids)}


def scored_text(loaded: LoadedRun, split: str) -> TokenDataset:
    """The tokens of "validation" or "unseen" that `evaluate_run` scores. Raises RunError as it does."""
    counted, vocabulary = len(loaded.run.token_counts()), loaded.tokenizer.vocab_size
    if counted != vocabulary:
        raise RunError(
            f"the held-out text of run {loaded.run.name!r} does not belong to it: it has token counts of {counted} "
            f"entries, its tokenizer has {vocabulary}; restore the run's folder from a copy"
        )
    return held_out_text(loaded.run, loaded.tokenizer, SCORED_TOKENS_PER_DOMAIN, splits=[split])


def _split_figures(loss: LossReport) -> SplitFigures:
    return SplitFigures(
        nats_per_token=_finite(loss.nats_per_token),
        perplexity=_finite(loss.perplexity),
        bits_per_byte=_finite(loss.bits_per_byte),
        by_domain={domain: _finite(nats) for domain, nats in loss.by_domain.items()},
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _routing(trace: RoutingTrace) -> tuple[tuple[LayerRouting, ...], RoutingVerdicts]:
    """One entry per MoE layer, and the verdicts in words."""
    balance, entropy, nmi = load_balance(trace), router_entropy(trace), domain_nmi_test(trace)
    # Both tables count sources and tokens; here they are those of the load.
    domains = nmi[["layer", "nmi", "null_p99", "p_value"]]
    table = balance.merge(entropy, on="layer").merge(domains, on="layer")
    layers = tuple(
        LayerRouting(
            layer=int(row["layer"]),
            load_imbalance=_finite(row["load_imbalance"]),
            dead_experts=int(row["dead_experts"]),
            router_entropy=_finite(row["router_entropy"]),
            experts_per_token=_finite(row["experts_per_token"]),
            dropped_fraction=_finite(row["dropped_fraction"]),
            domain_nmi=_finite(row["nmi"]),
            domain_nmi_null_p99=_finite(row["null_p99"]),
            p_value=_finite(row["p_value"]),
            load_low=_finite(row["load_low"]),
            load_high=_finite(row["load_high"]),
            surely_dead=int(row["surely_dead"]),
            sources=int(row["sources"]),
            effective_tokens=_finite(row["effective_tokens"]),
        )
        for _, row in table.iterrows()
    )
    return layers, RoutingVerdicts(routing=routing_health(balance, entropy), domains=domain_verdict(nmi))


def _no_routing() -> tuple[tuple[LayerRouting, ...], RoutingVerdicts]:
    nothing = "The model is dense: it has no routers."
    return (), RoutingVerdicts(routing=nothing, domains=nothing)
