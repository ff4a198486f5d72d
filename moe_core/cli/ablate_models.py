"""`moescope ablate --model`: what a model of the transformers library loses without its experts."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from moe_core.cli.ablate_tables import effects_table
from moe_core.cli.models import load_language_model, said_of
from moe_core.cli.output import Output, progress_on_stderr
from moe_core.errors import UsageError
from moe_core.words import count_of, duration

if TYPE_CHECKING:
    from moe_core.data.document import Document
    from moe_core.inference.protocol import LanguageModel

GENERATED = "generated text"


def documents_for(model: LanguageModel, data: str | None) -> tuple[list[Document], str]:
    """What --data names, or beginnings of our own text for a model that has a tokenizer; and how to call it."""
    from moe_core.data.shards.documents_at import documents_at
    from moe_core.inference.foreign_tokenizer import IdTokenizer
    from moe_core.inference.held_out import beginnings, text_of_ours

    if data is not None:
        return documents_at(data), data
    if isinstance(model.tokenizer, IdTokenizer):
        raise UsageError(f"{model.name} came without a tokenizer, so no text can be sent through it; add one beside it")
    return beginnings(text_of_ours()), GENERATED


def ablate_model(arguments: argparse.Namespace, output: Output) -> int:
    """Switch its experts off one by one, all or those of --layer; nothing is kept, --json writes it down."""
    from moe_core.data.windows import window_words
    from moe_core.evaluation.ablation import ablation_map, seconds_for_experts
    from moe_core.inference.held_out import ABLATED_TOKENS_PER_DOMAIN
    from moe_core.inference.scoring import as_dataset
    from moe_core.routing.measures.causes import ablation_verdict

    model = load_language_model(arguments)
    documents, text = documents_for(model, arguments.data)
    dataset = as_dataset(model, as_dataset(model, documents).select(ABLATED_TOKENS_PER_DOMAIN, seed=0))
    layers = None if arguments.layer is None else [arguments.layer]
    experts = None if arguments.expert is None else [arguments.expert]
    count = (len(model.moe_layers) if layers is None else 1) * (model.num_experts if experts is None else 1)
    began = time.perf_counter()
    expected = duration(seconds_for_experts(model, dataset, count))
    print(f"switching off {count_of(count, 'expert')}, about {expected}; --layer measures one layer", file=sys.stderr)
    with progress_on_stderr() as progress:
        effects = ablation_map(
            model, dataset, mode=arguments.mode, layers=layers, experts=experts, text=text, progress=progress
        )
    verdict = ablation_verdict(effects)
    output.say(effects_table(effects))
    output.say(verdict)
    output.say(window_words(model.context_window, effects.attrs["windows"]))
    seconds = time.perf_counter() - began
    output.say(f"{effects.attrs['tokens']:,} tokens of {text} through {model.name} in {duration(seconds)}")
    output.figures(
        {
            "model": arguments.model,
            **said_of(model),
            "mode": arguments.mode,
            "text": text,
            "tokens": effects.attrs["tokens"],
            "windows": effects.attrs["windows"],
            "seconds": seconds,
            "effects": effects.to_dict("records"),
            "verdicts": {"ablation": verdict},
        }
    )
    return 0
