"""What a run writes down about itself: held-out loss, routing of the probe set, events in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moe_core.config import TrainingConfig
from moe_core.data.prepare import PreparedData
from moe_core.data.tokens import TokenDataset
from moe_core.evaluation.loss import evaluate_loss, unigram_nats
from moe_core.model.transformer import MoETransformer
from moe_core.progress import Progress
from moe_core.runs.folder import RunFolder
from moe_core.training.probe import compact, domain_experts, load_records, ownership_events, probe_routing
from moe_core.training.trainer_state import TrainerState


def held_out_sets(data: PreparedData, training: TrainingConfig) -> tuple[dict[str, TokenDataset], TokenDataset]:
    """The part of each held-out split that is scored, and the probe set, a part of validation; the same every time."""
    whole = {
        "validation": TokenDataset.build(data.validation, data.tokenizer, data.domains),
        "unseen": TokenDataset.build(data.unseen, data.tokenizer, data.domains),
    }
    scored = {split: dataset.select(training.evaluation_tokens, training.seed) for split, dataset in whole.items()}
    return scored, whole["validation"].select(training.probe_tokens, training.seed)


def log_baselines(run: RunFolder, data: PreparedData, held_out: dict[str, TokenDataset]) -> None:
    """What a model must beat on the very tokens that are scored while training."""
    run.append_metrics(
        {
            "kind": "baseline",
            "unigram_nats": {split: unigram_nats(data.token_counts, dataset) for split, dataset in held_out.items()},
            "uniform_nats": float(np.log(data.tokenizer.vocab_size)),
        }
    )


def log_event(run: RunFolder, step: int, message: str) -> None:
    """One sentence about something that happened."""
    run.append_metrics({"kind": "event", "step": step, "message": message})


def evaluate_splits(
    run: RunFolder,
    model: MoETransformer,
    held_out: dict[str, TokenDataset],
    state: TrainerState,
    *,
    seq_len: int,
    progress: Progress | None,
) -> None:
    """Score both splits, log a line for each, and remember the figures in `state`."""
    total = sum(len(dataset) for dataset in held_out.values())
    done = 0
    for split, dataset in held_out.items():
        report = evaluate_loss(model, dataset, seq_len=seq_len)
        done += len(dataset)
        if progress is not None:
            progress("final evaluation", done, total)
        state.nats[split] = report.nats_per_token
        run.append_metrics(
            {
                "kind": "evaluation",
                "step": state.step,
                "split": split,
                "nats_per_token": report.nats_per_token,
                "bits_per_byte": report.bits_per_byte,
                "by_domain": report.by_domain,
                "tokens": report.tokens,
            }
        )


def observe_routing(
    run: RunFolder,
    model: MoETransformer,
    probe: TokenDataset,
    state: TrainerState,
    *,
    seq_len: int,
    vocabulary: Sequence[str],
    fine_tuning: bool = False,
) -> None:
    """Keep the probe set's routing, log the load of every MoE layer, and say which experts a domain has come to own.

    `fine_tuning`: the weights were trained before; experts that a domain owns at step 0 are known, not news.
    A dense model has no routing to observe.
    """
    if not model.config.moe_layers:
        return
    trace = probe_routing(
        model,
        probe,
        seq_len=seq_len,
        vocabulary=vocabulary,
        source=f"run {run.name}, step {state.step}, probe set",
    )
    run.write_probe(state.step, compact(trace))
    for record in load_records(trace, state.step):
        run.append_metrics(record)
    if state.step == 0 and not fine_tuning:
        return  # random weights: what they prefer was not learned
    found = domain_experts(trace, state.owned_experts)
    state.owned_experts += [owner for owner, _ in found]
    if state.step:
        for event in ownership_events(found):
            log_event(run, state.step, event)
