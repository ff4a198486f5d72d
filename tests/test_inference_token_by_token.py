"""A text read token by token: with a whole cache as in windows, with one of few bits other experts are chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from moe_core.data.tokens import TokenDataset
from moe_core.evaluation.twice_read import loss_change
from moe_core.inference.cache_choice import CacheChoice
from moe_core.inference.open import language_model
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.token_by_token import TokenByToken
from moe_core.inference.tracing import trace_dataset
from moe_core.inference.two_readings import Reading, Variant, read_twice
from moe_core.routing.measures.agreement import routing_agreement
from moe_core.runs.checkpoint import load_run
from moe_core.runs.folder import RunFolder
from moe_core.runs.places import SHIPPED

DEMO = RunFolder("demo", SHIPPED)
"""Its windows of 128 tokens are longer than the 32 that are rounded together."""


def text_of(model: LanguageModel) -> TokenDataset:
    """Three documents, some hundred tokens of each."""
    documents = [replace(document, text=document.text[:420]) for document in DEMO.held_out("unseen")[::40][:3]]
    return TokenDataset.build(documents, model.tokenizer, DEMO.domains())


def twice(cache: CacheChoice) -> tuple[Reading, Reading]:
    return read_twice(DEMO, text_of, Variant(), Variant(cache=cache))


def test_with_a_whole_cache_it_reads_what_windows_read_and_fewer_bits_flip_more() -> None:
    model = language_model(load_run("demo", SHIPPED))
    in_windows = trace_dataset(model, text_of(model)).trace
    identical = []
    for kind in ("int8", "int2"):
        first, second = twice(CacheChoice(kind, recent=1))
        assert np.array_equal(first.text.trace.token_ids, in_windows.token_ids), "in the order of the text"
        agreed = routing_agreement(in_windows, first.text.trace).all_choices.value
        assert agreed > 0.999, "the same choices but for ties"
        for reading in (first, second):
            assert reading.decoding is not None
            assert reading.decoding.whole_bytes == first.decoding.kept_bytes  # type: ignore[union-attr]
        assert second.decoding is not None
        assert second.decoding.kept_bytes < second.decoding.whole_bytes
        identical.append(routing_agreement(first.text.trace, second.text.trace).all_choices.value)
        # Flips counted by hand: slots whose expert is another, of all tokens and layers.
        one, two = (np.sort(side.text.trace.router_indices, axis=-1) for side in (first, second))
        same = np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(one.reshape(-1, one.shape[-1]),
                        two.reshape(-1, two.shape[-1]), strict=True)])  # fmt: skip
        assert abs(same - identical[-1]) < 1e-9
        change = loss_change(first.text, second.text).frame.set_index("group")
        assert change.loc["flipped", "tokens"] + change.loc["kept", "tokens"] == change.loc["all", "tokens"]
    assert 1 > identical[0] > identical[1] or identical[0] == 1 > identical[1]


def test_a_cache_within_its_recent_window_changes_nothing() -> None:
    model = language_model(load_run("demo", SHIPPED))
    singly = TokenByToken.of_model(model, CacheChoice("int2", recent=10_000))  # type: ignore[arg-type]
    text = text_of(model)
    whole, read = trace_dataset(model, text).trace, trace_dataset(singly, text).trace
    assert routing_agreement(whole, read).all_choices.value > 0.999
    assert singly.decoding.exact > 1
    assert singly.decoding.tokens_per_second > 0


def test_the_command(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    target = tmp_path / "agree.json"
    text = " ".join(document.text for document in DEMO.held_out("unseen")[:2])[:600]
    arguments = ("agree", "--run", "demo", "--cache", "int4", "--cache-recent", "1", "--text", text)
    code, out, err = cli(SHIPPED, *arguments, "--json", str(target))
    assert code == 0, err
    assert "bytes of keys and values for a window of" in out
    assert "look at nothing that was changed" in out
    figures = json.loads(target.read_text())
    assert figures["second"]["cache"]["kept_bytes"] < figures["second"]["cache"]["whole_bytes"]
    code, _, err = cli(tmp_path, "agree", "a.parquet", "b.parquet", "--cache", "int4")
    assert code != 0
    assert "--cache say how a model reads" in err
