"""What commands that let a model write share: how tokens are drawn, what is done to experts, what came of it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moe_core.ablation_modes import MODES
from moe_core.cli.options import Parser, whole
from moe_core.errors import UsageError

if TYPE_CHECKING:
    from moe_core.inference.engine import Event
    from moe_core.inference.protocol import LanguageModel
    from moe_core.inference.sampling import SamplingConfig
    from moe_core.routing import Intervention


def add_sampling(parser: Parser) -> None:
    """--max-new-tokens, --temperature, --top-k, --top-p and --seed"""
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=whole(1, 1_000_000),
        default=200,
        help="most tokens to write (default 200)",
    )
    parser.add_argument(
        "--temperature", metavar="T", type=float, default=0.8, help="0 = always the likeliest token (default 0.8)"
    )
    parser.add_argument(
        "--top-k", metavar="K", type=whole(0, 1_000_000), default=50, help="draw from the K likeliest "
        "tokens; 0 = from all (default 50)",
    )  # fmt: skip
    parser.add_argument(
        "--top-p", metavar="P", type=float, default=0.95, help="draw from the likeliest tokens that hold this "
        "share of the probability (default 0.95)",
    )  # fmt: skip
    parser.add_argument("--seed", metavar="S", type=whole(0, 2**32 - 1), default=0, help="default 0")


def sampling_of(arguments: argparse.Namespace) -> SamplingConfig:
    """Raises UsageError, naming the value, when one is out of its range."""
    from moe_core.inference.sampling import SamplingConfig

    return SamplingConfig(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )


def add_intervention(parser: Parser) -> None:
    """--ablate, --force and --mode"""
    parser.add_argument(
        "--ablate", metavar="L:E", action="append", default=[], help="switch off expert E of layer L, both counted "
        "from 0; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--force", metavar="L:E", action="append", default=[], help="make every token visit expert E of layer L; "
        "repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--mode", choices=MODES, help="what an ablated expert leaves behind: nothing (zero, the default), the "
        "same total weight on the token's other experts (renormalise), or another choice (reroute)",
    )  # fmt: skip


def intervention_of(arguments: argparse.Namespace) -> Intervention:
    """Raises UsageError for what is no expert, and for a mode without an expert."""
    from moe_core.routing import Intervention

    if arguments.mode is not None and not arguments.ablate:
        raise UsageError(f"--mode {arguments.mode} says what ablated experts leave behind; add --ablate L:E")
    return Intervention(
        ablate=Intervention.parse_experts(arguments.ablate),
        force=Intervention.parse_experts(arguments.force),
        mode=arguments.mode or "zero",
    )


@dataclass
class Written:
    """What came of a request so far, as --json tells it."""

    model: LanguageModel
    text: str = ""
    prompt_tokens: list[dict[str, Any]] = field(default_factory=list)
    """Each with its text and its experts [L, K]; -1 = unused slot."""
    tokens: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""
    """See Ending; empty while it is under way."""

    def add(self, event: Event) -> str:
        """Take an event in; the characters that it adds to the text."""
        from moe_core.inference.engine import Finished, GeneratedToken, PromptRead

        told = self.model.tokenizer.token_text
        if isinstance(event, PromptRead):
            pairs = zip(event.token_ids, event.experts.tolist(), strict=True)
            self.prompt_tokens = [{"text": told(token_id), "experts": experts} for token_id, experts in pairs]
            return ""
        if isinstance(event, GeneratedToken):
            self.tokens.append({"text": told(event.token_id), "experts": event.experts.tolist()})
        if isinstance(event, Finished):
            self.reason = event.reason
        self.text += event.text
        return event.text
