"""Every benchmark of ours; importing this registers them."""

from moe_core.evaluation.tasks import choices, known_benchmarks, predicting, written  # noqa: F401

ORDER = (
    "perplexity",
    "token_accuracy",
    "text",
    "generation",
    "code_syntax",
    "letter_counting",
    "arithmetic",
    "arc",
    "mmlu",
    "gsm8k",
)
"""In which they are run and reported."""
