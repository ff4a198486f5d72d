"""Models of the transformers library read, trace and write as ours do, held against their own plain forward pass."""

from __future__ import annotations

import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from generation_support import generate
from huggingface_support import FAMILIES, TEXT, VOCABULARY, Foreign, tiny_config, tiny_model, trained_tokenizer
from test_inference_tracing import tiny_loaded

from moe_core.data.document import Document
from moe_core.data.tokens import TokenDataset
from moe_core.errors import TraceError, UsageError
from moe_core.evaluation.ablation import ablation_map
from moe_core.evaluation.ablation_passes import effects_by_passes
from moe_core.evaluation.effects import token_effects
from moe_core.inference import tracing
from moe_core.inference.expert_outputs import expert_saliency, expert_similarity
from moe_core.inference.open import context_window, language_model
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.sampling import SamplingConfig
from moe_core.inference.scoring import as_dataset
from moe_core.inference.tracing import trace_documents, trace_text, write_documents_trace
from moe_core.routing import Intervention, RoutingTrace, capture, intervene
from moe_core.routing.instruments.huggingface import few_tokens
from moe_core.routing.trace import parquet

GREEDY = SamplingConfig(max_new_tokens=12, temperature=0)


@pytest.fixture(scope="module", params=FAMILIES)
def foreign(request: pytest.FixtureRequest) -> LanguageModel:
    return language_model(Foreign(tiny_model(request.param), trained_tokenizer("byte-level"), request.param))


@pytest.fixture(scope="module")
def qwen() -> LanguageModel:
    return language_model(Foreign(tiny_model("qwen3_moe"), trained_tokenizer("byte-level"), "some/qwen"))


def read_plainly(model: Any, ids: list[int]) -> tuple[torch.Tensor, RoutingTrace]:
    with torch.inference_mode(), capture(model) as recorder:
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    return logits, recorder.trace(token_ids=ids)


def test_what_has_to_be_known_of_it_is_what_it_does(foreign: LanguageModel) -> None:
    experts, layers = {"qwen3_moe": (4, (1, 2)), "mixtral": (5, (0, 1, 2)), "olmoe": (6, (0, 1, 2))}[foreign.name[6:]]
    assert (foreign.num_experts, tuple(foreign.moe_layers), foreign.top_k) == (experts, layers, 2)
    assert (foreign.context_window, foreign.vocab_size, foreign.end_ids) == (64, VOCABULARY, {0})
    assert language_model(foreign) is foreign
    assert context_window(foreign) == 64


def test_a_text_within_the_window_has_the_losses_ranks_and_routing_of_one_plain_forward_pass(
    foreign: LanguageModel,
) -> None:
    traced = trace_text(foreign, "The café")
    ids = [0, *foreign.tokenizer.encode("The café")]
    logits, expected = read_plainly(foreign.model, ids)
    assert traced.trace.token_ids.tolist() == ids
    assert traced.trace.source == foreign.name
    np.testing.assert_array_equal(traced.trace.router_indices, expected.router_indices)
    np.testing.assert_array_equal(traced.trace.router_scores, expected.router_scores)
    log_p = logits.log_softmax(-1)
    assert np.isnan(traced.losses[0])
    for i in range(1, len(ids)):
        assert traced.losses[i] == pytest.approx(-log_p[i - 1, ids[i]].item(), rel=1e-5)
        assert traced.ranks[i] == 1 + log_p[i - 1].argsort(descending=True).tolist().index(ids[i])
    assert traced.trace.predicted_ids is not None
    assert traced.trace.predicted_ids.tolist() == log_p.argmax(dim=-1).tolist()
    assert "".join(traced.trace.token_text(i) for i in range(1, len(ids))) == "The café"


def test_long_texts_go_through_in_windows_that_begin_anew(foreign: LanguageModel) -> None:
    text = TEXT * 2
    ids = [0, *foreign.tokenizer.encode(text)]
    traced = trace_text(foreign, text)
    assert traced.trace.token_ids.tolist() == ids
    last = len(ids) - 1
    assert 64 < last < 128, "two windows, and one for the last token"
    for first, end, fresh in ((0, 64, 0), (last - 64, last, 64), (last - 63, last + 1, last)):
        _, alone = read_plainly(foreign.model, ids[first:end])
        np.testing.assert_array_equal(
            traced.trace.router_indices[:, fresh:end], alone.router_indices[:, fresh - first :]
        )


def test_greedy_generation_with_its_cache_is_the_uncached_argmax_and_its_experts_those_of_the_whole_text(
    foreign: LanguageModel,
) -> None:
    found = list(generate(foreign, "The café", GREEDY))
    ids = [0, *foreign.tokenizer.encode("The café")]
    prompt = len(ids)
    for token in found:
        logits, _ = read_plainly(foreign.model, ids)
        assert int(logits[-1].argmax()) == token.token_id
        assert token.loss == pytest.approx(-logits[-1].double().log_softmax(-1)[token.token_id].item(), abs=1e-5)
        ids.append(token.token_id)
    _, whole = read_plainly(foreign.model, ids)
    np.testing.assert_array_equal(np.stack([t.experts for t in found], axis=1), whole.router_indices[:, prompt:])
    np.testing.assert_allclose(np.stack([t.scores for t in found], axis=1), whole.router_scores[:, prompt:], atol=1e-6)


def test_it_writes_what_the_library_itself_writes(foreign: LanguageModel) -> None:
    model: Any = foreign.model
    ids = torch.tensor([[0, *foreign.tokenizer.encode("Der Rest")]])
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    found = [token.token_id for token in generate(foreign, "Der Rest", GREEDY)]
    assert found == [token_id for token_id in expected if token_id != 0]


def test_generation_goes_on_beyond_the_window(qwen: LanguageModel) -> None:
    found = [token.token_id for token in generate(qwen, "The", replace(GREEDY, max_new_tokens=90))]
    assert len(found) == 90
    ids = [0, *qwen.tokenizer.encode("The"), *found]
    # The cache was filled at 64 tokens; the later half of it and what followed is what the next one is read from.
    logits, _ = read_plainly(qwen.model, ids[64 - 32 + 1 : 65])
    assert int(logits[-1].argmax()) == ids[65]


def test_a_sentencepiece_model_begins_its_texts_with_its_own_token_and_writes_whole_characters() -> None:
    model = language_model(Foreign(tiny_model("mixtral"), trained_tokenizer("sentencepiece"), "m"))
    traced = trace_text(model, "The 日 café")
    assert traced.trace.token_ids[0] == 1
    assert [traced.trace.token_text(i) for i in range(7)] == ["<s>", " The", " ", "\\xE6", "\\x97", "\\xA5", " "]
    sampling = SamplingConfig(max_new_tokens=60, temperature=1, top_k=0, top_p=1)
    text = "".join(token.text for token in generate(model, "The", sampling))
    assert text.encode().decode() == text


def test_a_tokenizer_without_begin_or_end_leaves_the_first_token_unforeseen() -> None:
    tokenizer = trained_tokenizer("byte-level")
    tokenizer.eos_token = None
    model = language_model(Foreign(tiny_model("olmoe", eos_token_id=None), tokenizer, "m"))
    documents = [Document("The café", "a", "", ""), Document("", "a", "", ""), Document("waits", "a", "", "")]
    trace = trace_documents(model, documents)
    encoded = [model.tokenizer.encode(document.text) for document in documents]
    assert trace.token_ids.tolist() == [i for ids in encoded for i in ids]
    assert trace.document_ids.tolist() == [0] * len(encoded[0]) + [2] * len(encoded[2])
    assert np.isnan(trace_text(model, "The café").losses).tolist() == [True] + [False] * (len(encoded[0]) - 1)
    with pytest.raises(UsageError, match="expected a prompt of at least one token"):
        generate(model, "")
    assert next(generate(model, "The", GREEDY)).experts.shape == (3, 2)


def test_a_model_without_tokenizer_reads_and_shows_ids() -> None:
    model = language_model(Foreign(tiny_model("olmoe"), None, "bare"))
    trace = trace_text(model, "17 4 256").trace
    assert trace.token_ids.tolist() == [17, 4, 256]
    assert trace.token_text(1) == "#4"
    token = next(generate(model, "17 4", GREEDY))
    assert token.text == f"{token.token_id} "
    with pytest.raises(UsageError, match="'The' is no token id"):
        trace_text(model, "The court")


def test_a_tokenizer_of_another_model_is_refused_before_the_model_reads() -> None:
    model = language_model(Foreign(tiny_model("olmoe", vocab_size=200), trained_tokenizer("byte-level"), "odd"))
    for reading in (lambda: trace_text(model, TEXT), lambda: generate(model, TEXT), lambda: as_dataset(model, [TEXTS])):
        with pytest.raises(UsageError, match=r"token id \d+ is outside the 200 ids that model odd reads"):
            reading()


TEXTS = Document(TEXT, "a", "", "")


def test_what_is_no_causal_language_model_with_experts_is_refused_by_name() -> None:
    tokenizer = trained_tokenizer("byte-level")
    body = transformers.AutoModel.from_config(tiny_config("olmoe")).eval()
    with pytest.raises(UsageError, match=r"model m \(OlmoeModel\) predicts no tokens"):
        language_model(Foreign(body, tokenizer, "m"))
    switch = transformers.SwitchTransformersConfig(
        vocab_size=99, d_model=16, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2, d_kv=8, num_experts=2
    )
    both = transformers.AutoModelForSeq2SeqLM.from_config(switch).eval()
    with pytest.raises(UsageError, match=r"\(switch_transformers\) reads one text and writes another"):
        language_model(Foreign(both, tokenizer, "m"))
    doge = transformers.DogeConfig(
        is_moe=True, num_experts=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1
    )
    with pytest.raises(UsageError, match=r"\(doge\) routes a token otherwise when other texts are read beside it"):
        language_model(Foreign(transformers.DogeForCausalLM(doge).eval(), tokenizer, "m"))
    dense = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                 num_attention_heads=2)
    )  # fmt: skip
    with pytest.raises(TraceError, match="has no router"):
        language_model(Foreign(dense.eval(), tokenizer, "m"))
    with pytest.raises(UsageError, match=r"\(object\) is not a fast one"):
        language_model(Foreign(tiny_model("olmoe"), object(), "m"))


def test_experts_of_a_foreign_model_are_weighed_as_by_hand(qwen: LanguageModel) -> None:
    """REAP and EAN against their definitions, from what the experts of transformers were given."""
    given: dict[int, tuple[torch.Tensor, ...]] = {}
    handles = [
        qwen.model.model.layers[layer].mlp.experts.register_forward_pre_hook(
            lambda _, args, layer=layer: given.update({layer: args})
        )
        for layer in qwen.moe_layers
    ]
    found = expert_saliency(qwen, [Document("The café opened at noon", "a", "", "")]).set_index(["layer", "expert"])
    for handle in handles:
        handle.remove()
    for layer, (x_TD, chosen_TK, weights_TK) in given.items():
        experts = qwen.model.model.layers[layer].mlp.experts
        for expert in range(qwen.num_experts):
            tokens, slots = torch.nonzero(chosen_TK == expert, as_tuple=True)
            gate, up = (x_TD[tokens] @ experts.gate_up_proj[expert].t()).chunk(2, dim=1)
            norms = ((torch.nn.functional.silu(gate) * up) @ experts.down_proj[expert].t()).norm(dim=1).detach()
            row = found.loc[(layer, expert)]
            assert row["tokens"] == len(tokens)
            assert row["ean"] == pytest.approx(float(norms.sum()), rel=1e-5)
            if len(tokens):
                assert row["reap"] == pytest.approx(float((norms * weights_TK[tokens, slots]).mean()), rel=1e-5)
    assert set(given) == set(qwen.moe_layers)


def test_how_alike_experts_are_needs_our_own_and_says_so(qwen: LanguageModel) -> None:
    with pytest.raises(UsageError, match="expert_similarity needs the experts of a run of our own; model some/"):
        expert_similarity(qwen, [TEXTS])


def test_dynamic_rope_is_not_read_beyond_the_length_it_was_made_for() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 32}
    model = Foreign(tiny_model("qwen3_moe", rope_parameters=rope), None, "m")
    assert context_window(model) == 32


# ---- interventions ----


def test_token_effects_are_those_of_the_model_read_twice(qwen: LanguageModel) -> None:
    change = Intervention(ablate=((1, 0), (2, 3)))
    effects = token_effects(qwen, [Document("The café opened", "a", "", "")], change)
    ids = [0, *qwen.tokenizer.encode("The café opened")]
    before, _ = read_plainly(qwen.model, ids)
    with intervene(qwen.model, change):
        after, _ = read_plainly(qwen.model, ids)
    for i in range(1, len(ids)):
        p, q = before[i - 1].log_softmax(-1), after[i - 1].log_softmax(-1)
        assert effects.delta[i] == pytest.approx((p[ids[i]] - q[ids[i]]).item(), abs=1e-4)
        assert effects.kl[i] == pytest.approx((p.exp() * (p - q)).sum().item(), abs=1e-4)
    assert np.abs(effects.delta[1:]).max() > 1e-3


def test_generation_under_an_intervention_avoids_the_expert_and_leaves_nothing_behind(qwen: LanguageModel) -> None:
    change = Intervention(ablate=((1, 0),))
    plain = list(generate(qwen, "The café", GREEDY))
    found = list(generate(qwen, "The café", GREEDY, change))
    assert any(0 in token.experts[0] for token in plain)
    assert all(0 not in token.experts[0] for token in found)
    assert [t.token_id for t in generate(qwen, "The café", GREEDY)] == [t.token_id for t in plain]


def test_the_causal_map_by_whole_passes_is_the_one_by_layers() -> None:
    """A model of ours, measured the way that works for any."""
    loaded = tiny_loaded()
    documents = [Document(TEXT[:90], "ab"[i % 2], f"{i // 2}", "") for i in range(6)]
    quick = ablation_map(loaded, documents)
    dataset = as_dataset(loaded, documents)
    todo = list(dict.fromkeys(zip(quick["layer"], quick["expert"], strict=True)))
    rows = [row for _, found in effects_by_passes(language_model(loaded), dataset, todo, "zero") for row in found]
    slow = pd.DataFrame(rows)
    for exact in ("layer", "expert", "domain", "tokens", "affected"):
        assert slow[exact].tolist() == quick[exact].tolist()
    for column in ("delta_nats", "low", "high", "kl"):
        np.testing.assert_allclose(slow[column], quick[column], atol=2e-5)


def test_the_causal_map_of_another_model_is_the_difference_of_two_readings(qwen: LanguageModel) -> None:
    documents = [Document(TEXT[i : i + 50], "ab"[i % 2], f"{i}", "") for i in range(4)]
    found = ablation_map(qwen, documents, layers=[2])
    assert found["expert"].unique().tolist() == [0, 1, 2, 3]
    total = found[(found["expert"] == 1) & (found["domain"] == "all")].iloc[0]
    effects = token_effects(qwen, documents, Intervention(ablate=((2, 1),)))
    scored = effects.trace.positions > 0
    assert total["delta_nats"] == pytest.approx(effects.delta[scored].mean(), abs=1e-5)
    assert total["kl"] == pytest.approx(effects.kl[scored].mean(), abs=1e-5)
    assert total["affected"] == (effects.trace.router_indices[1] == 1).any(axis=1).sum()
    with pytest.raises(UsageError, match="model some/qwen has no held-out text"):
        ablation_map(qwen)


def test_experts_visited_as_on_an_accelerator_give_the_same_text(foreign: LanguageModel) -> None:
    """Few tokens go through copies of their experts' weights, many through one grouped product."""
    model: Any = foreign.model
    ways: list[int] = []
    before = list(generate(foreign, TEXT[:40], GREEDY))
    kinds = model.get_experts_implementation()
    assert "grouped_mm" in kinds.values()
    plain = few_tokens.by_tokens

    def watched(experts: Any, *given: Any) -> torch.Tensor:
        ways.append(len(given[0]))
        return plain(experts, *given)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(few_tokens, "by_tokens", watched)
            few_tokens.visit_experts_by_tokens(model)
        after = list(generate(foreign, TEXT[:40], GREEDY))
    finally:
        model.set_experts_implementation(kinds)
    assert [token.token_id for token in after] == [token.token_id for token in before]
    np.testing.assert_array_equal([token.experts for token in after], [token.experts for token in before])
    np.testing.assert_allclose([token.loss for token in after], [token.loss for token in before], atol=1e-5)
    assert {1} < set(ways), "the prompt in one pass, then a token at a time"


def test_what_is_not_of_the_library_visits_its_experts_as_before() -> None:
    model = torch.nn.Linear(2, 2)
    few_tokens.visit_experts_by_tokens(model)


# ---- into a file ----


def test_a_trace_written_as_it_is_read_is_the_trace_in_memory(
    foreign: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [Document(TEXT[: 9 * i + 1], "ab"[i % 2], f"{i // 3}", "") for i in range(12)]
    whole = trace_documents(foreign, documents)
    calls: list[tuple[str, int, int]] = []
    monkeypatch.setattr("moe_core.data.windows.TOKENS_PER_BATCH", 128)
    stored = write_documents_trace(
        foreign, documents, tmp_path / "x.parquet", progress=lambda *call: calls.append(call)
    )
    found = RoutingTrace.load(stored.path)
    for name in ("router_indices", "token_ids", "document_ids", "source_ids", "positions", "domain_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name), err_msg=name)
    np.testing.assert_allclose(found.router_scores, whole.router_scores, atol=1e-6)
    np.testing.assert_array_equal(found.predicted_ids, whole.predicted_ids)  # type: ignore[arg-type]
    assert found.vocabulary == whole.vocabulary
    assert (stored.domains, stored.source) == (["a", "b"], foreign.name)
    tracing_calls = [call for call in calls if call[0] == "tracing"]
    assert len(tracing_calls) > 2
    assert tracing_calls[-1] == ("tracing", whole.num_tokens, whole.num_tokens)


def test_fewer_tokens_a_batch_make_shorter_windows_and_smaller_matrices(
    qwen: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, ...]] = []
    logits = type(qwen).logits
    monkeypatch.setattr(
        type(qwen), "logits", lambda model, ids: (sizes.append(tuple(ids.shape)), logits(model, ids))[1]
    )
    stored = write_documents_trace(qwen, [TEXTS] * 3, tmp_path / "x.parquet", tokens_per_batch=20)
    assert sizes
    assert max(rows * places for rows, places in sizes) <= 20
    assert stored.num_tokens == 3 * (1 + len(qwen.tokenizer.encode(TEXT)))
    with pytest.raises(UsageError, match="tokens_per_batch = 1 is too few"):
        write_documents_trace(qwen, [TEXTS], tmp_path / "x.parquet", tokens_per_batch=1)


def test_logits_are_left_out_of_a_large_file(
    qwen: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = write_documents_trace(qwen, [TEXTS], tmp_path / "x.parquet")
    assert RoutingTrace.load(small.path).router_logits is not None
    monkeypatch.setattr(tracing, "MAX_LOGITS_BYTES", tracing.logits_bytes(qwen, small.num_tokens) - 1)
    large = write_documents_trace(qwen, [TEXTS], tmp_path / "y.parquet")
    assert RoutingTrace.load(large.path).router_logits is None


def test_memory_grows_with_the_text_and_not_with_its_routing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 layers of 4 slots are 384 bytes a token; the text itself, in all its arrays, stays far below."""
    deep = tiny_model("olmoe", num_hidden_layers=16, num_experts_per_tok=4, hidden_size=16, intermediate_size=8)
    model = language_model(Foreign(deep, trained_tokenizer("byte-level"), "deep"))
    monkeypatch.setattr(parquet, "ROW_GROUP_TOKENS", 1024)
    monkeypatch.setattr("moe_core.data.windows.TOKENS_PER_BATCH", 1024)
    monkeypatch.setattr(tracing, "MAX_LOGITS_BYTES", 0)

    def peak(documents: int) -> tuple[int, int]:
        tracemalloc.start()
        try:
            stored = write_documents_trace(model, [TEXTS] * documents, tmp_path / "x.parquet")
            return stored.num_tokens, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(20)
    (few, before), (many, after) = peak(50), peak(250)
    assert many == 5 * few > 14_000
    assert after - before < 0.3 * (many - few) * 16 * 4 * 6


def test_an_unreadable_id_or_an_interruption_leaves_no_file(qwen: LanguageModel, tmp_path: Path) -> None:
    def interrupt(stage: str, *_: int) -> None:
        if stage == "tracing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_documents_trace(qwen, [TEXTS], tmp_path / "x.parquet", progress=interrupt)
    with pytest.raises(UsageError, match="no text to trace"):
        write_documents_trace(qwen, [Document("", "a", "", "")], tmp_path / "x.parquet")
    assert not list(tmp_path.iterdir())


def test_what_goes_wrong_while_a_part_is_written_ends_the_reading(
    qwen: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that writes has no reader of its own: its error comes out where the trace was asked for."""
    monkeypatch.setattr(parquet, "ROW_GROUP_TOKENS", 64)
    threads: list[threading.Thread] = []

    def full(writer: parquet.TraceWriter, trace: RoutingTrace) -> None:
        del writer, trace
        threads.append(threading.current_thread())
        raise TraceError("the disk is full")

    monkeypatch.setattr(parquet.TraceWriter, "write", full)
    with pytest.raises(TraceError, match="the disk is full"):
        write_documents_trace(qwen, [TEXTS] * 9, tmp_path / "x.parquet")
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()
    assert not threads[0].is_alive()
    assert not list(tmp_path.iterdir())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in qwen.model.modules())


def test_a_dataset_can_be_made_before_and_traced_after(qwen: LanguageModel) -> None:
    dataset = TokenDataset.build([TEXTS, Document("waits", "b", "", "")], qwen.tokenizer, ["a", "b"])
    traced = tracing.trace_dataset(qwen, dataset)
    assert traced.trace.token_ids.tolist() == dataset.token_ids.tolist()
    assert np.isfinite(traced.losses[dataset.positions > 0]).all()
