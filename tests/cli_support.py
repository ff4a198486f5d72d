"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]
"""Runs a command line: (exit code, stdout, stderr)."""
TINY = [
    *("--model.vocab_size=300", "--model.dim=32", "--model.num_layers=2", "--model.num_heads=2"),
    *("--model.num_kv_heads=1", "--model.head_dim=16", "--model.num_experts=4", "--model.expert_hidden_dim=32"),
    *("--model.max_seq_len=128", "--data.documents=12", "--training.steps=10", "--training.batch_size=4"),
    *("--training.seq_len=32", "--training.threads=1", "--training.evaluation_interval=5"),
    *("--training.evaluation_tokens=128", "--training.probe_tokens=128"),
]
"""Options of a training of seconds."""


def assert_one_line(err: str, *words: str) -> None:
    """An error of one line, foreseen, with these words."""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "unexpected" not in err
    for word in words:
        assert word in err
