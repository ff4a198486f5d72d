"""Windows of attention: which tokens a layer sees, and a cache that keeps no more than those."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from routers_support import WINDOWED, model_with
from test_inference_tracing import tiny_loaded
from transformers import GptOssConfig
from transformers.masking_utils import sliding_window_causal_mask_function
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention

from moe_core.config import Config, ModelConfig, load_config, parse_overrides
from moe_core.errors import UsageError
from moe_core.exchange.gguf_architectures import architecture_of
from moe_core.exchange.targets import target_family
from moe_core.inference.engine import Engine, PromptRead, Request
from moe_core.inference.own_model import OwnModel
from moe_core.inference.sampling import SamplingConfig
from moe_core.inference.scheduler import Scheduler
from moe_core.model import KVCache, MoETransformer, size
from moe_core.model.attention import Attention
from moe_core.model.evicting_cache import EvictingCache, HeavyHitterCache
from moe_core.model.quantised_cache import QuantisedCache
from moe_core.model.rope import apply_rope, rope_angles
from moe_core.model.token_cache import TokenCache

SMALL: dict[str, Any] = {
    "vocab_size": 300, "dim": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "max_seq_len": 64,
    "num_experts": 4, "top_k": 2, "expert_hidden_dim": 16, "dense_hidden_dim": 24,
}  # fmt: skip
REACHES: list[dict[str, Any]] = [
    {"window": 1}, {"window": 7}, {"window": 64}, {"window": 4, "first_tokens": 3},
    {"window": 5, "pattern": ["local", "local", "global"]},
    {"window": 3, "pattern": ["global", "local"], "first_tokens": 6}, {"sinks": True}, {"window": 4, "sinks": True},
]  # fmt: skip


def model_of(attention: dict[str, Any], **changes: Any) -> MoETransformer:
    torch.manual_seed(0)
    model = MoETransformer(ModelConfig.model_validate({**SMALL, "attention": attention, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
            elif name.endswith("sinks"):
                parameter.normal_()
    return model.eval()


@pytest.mark.parametrize("window", [1, 3, 8, 9])
def test_attention_equals_softmax_under_the_mask_of_transformers(window: int) -> None:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({**SMALL, "num_kv_heads": 4, "qk_norm": False, "attention": {"window": window}})
    attention, x_BSD = Attention(config, 0), torch.randn(2, 8, 32)
    cos, sin = rope_angles(config, 0, 8, torch.device("cpu"))
    split = (2, 8, 4, 8)
    queries, keys = (
        apply_rope(project(x_BSD).view(split), cos, sin).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj)
    )
    values = attention.v_proj(x_BSD).view(split).transpose(1, 2)
    rule = sliding_window_causal_mask_function(window)
    seen = torch.tensor([[bool(rule(0, 0, torch.tensor(q), torch.tensor(k))) for k in range(8)] for q in range(8)])
    scores = (queries @ keys.mT / math.sqrt(8)).masked_fill(~seen, -math.inf)
    expected = attention.o_proj((scores.softmax(-1) @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x_BSD, cos, sin, None), expected)


@pytest.mark.parametrize("window", [None, 4])
def test_sinks_equal_those_of_gpt_oss_and_their_gradients_too(window: int | None) -> None:
    torch.manual_seed(0)
    theirs = GptOssAttention(
        GptOssConfig(
            hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_bias=False,
            num_hidden_layers=1, layer_types=["sliding_attention" if window else "full_attention"],
            attn_implementation="eager",
        ),
        0,
    )  # fmt: skip
    attention = {"sinks": True, "window": window}
    config = ModelConfig.model_validate({**SMALL, "qk_norm": False, "attention": attention})
    ours = Attention(config, 0)
    torch.nn.init.normal_(theirs.sinks)
    ours.load_state_dict(theirs.state_dict())
    x_BSD = torch.randn(2, 9, 32)
    cos, sin = rope_angles(config, 0, 9, torch.device("cpu"))
    seen = torch.ones(9, 9).tril() * torch.ones(9, 9).triu(1 - (window or 9))
    hidden = torch.zeros(9, 9).masked_fill(seen == 0, -math.inf)[None, None]
    both = tuple(angle[:, 0][None].expand(2, -1, -1) for angle in (cos, sin))
    expected, found = theirs(x_BSD, both, hidden)[0], ours(x_BSD, cos, sin, None)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    weight = torch.randn_like(found)
    gradients = [torch.autograd.grad(out, (one.sinks, one.k_proj.weight), weight) for out, one in
                 ((found, ours), (expected, theirs))]  # fmt: skip
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_sinks_are_counted_and_drawn_as_zeros_and_change_the_model() -> None:
    model = MoETransformer(ModelConfig.model_validate({**SMALL, "attention": {"sinks": True}}))
    assert model.total_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert all(not block.attention.sinks.any() for block in model.layers)
    with pytest.raises(ValidationError, match="tensor = 2 spreads heads"):
        Config.model_validate({"model": {"attention": {"sinks": True}}, "parallel": {"tensor": 2}})
    with pytest.raises(UsageError, match="another cache"):
        HeavyHitterCache(model.config, 1, 32, budget=8)


@torch.inference_mode()
def test_what_is_out_of_reach_changes_nothing_to_the_bit() -> None:
    """Over L layers the reach is L (W - 1). Dense layers: who shares an expert's product changes how it is rounded."""
    ids = torch.randint(0, 300, (1, 48))
    other = ids.clone()
    other[0, 10] = (ids[0, 10] + 1) % 300
    for layers in (1, 2, 3):
        model = model_of({"window": 6}, num_layers=layers, first_dense_layers=layers)
        changed = (model(ids).logits != model(other).logits).any(-1)[0].nonzero()[:, 0]
        assert changed.tolist() == list(range(10, 10 + layers * 5 + 1))
    # A layer that looks at everything carries it to the end, as do first tokens that stay in sight.
    for attention, place in (
        ({"window": 6, "pattern": ["local", "global"]}, 10),
        ({"window": 6, "first_tokens": 2}, 1),
    ):
        other = ids.clone()
        other[0, place] = (ids[0, place] + 1) % 300
        model = model_of(attention, first_dense_layers=3)
        assert (model(ids).logits != model(other).logits).any(-1)[0, place:].all()


@pytest.mark.parametrize("attention", REACHES)
@pytest.mark.parametrize("pieces", [[1] * 40, [10, 1, 13, 1, 15], [2, 38], [39, 1]])
@torch.inference_mode()
def test_a_text_read_through_a_cache_is_the_text_read_at_once(attention: dict[str, Any], pieces: list[int]) -> None:
    model = model_of(attention)
    ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    whole = model(ids)
    exact = QuantisedCache(model.config, 2, 40, recent=40)
    caches: list[TokenCache] = [KVCache(model.config, 2, 40), KVCache(model.config, 2, 60), exact]
    for cache in caches:
        parts = [model(part, cache=cache) for part in ids.split(pieces, dim=1)]
        found = torch.cat([part.logits for part in parts], dim=1)
        torch.testing.assert_close(found, whole.logits, atol=1e-5, rtol=0)


def test_memory_is_bounded_by_the_window_and_said_before() -> None:
    def kept(attention: dict[str, Any], tokens: int) -> int:
        config = ModelConfig.model_validate({**SMALL, "attention": attention, "max_seq_len": 4096})
        cache = KVCache(config, 1, tokens)
        told = size.serving_memory(config.model_copy(update={"max_seq_len": tokens}), "float32").kv_cache
        assert cache.key_value_bytes == told
        return told

    a_token = 2 * 2 * 8 * 4  # keys and values of a layer: two heads of eight numbers of four bytes
    assert kept({"window": 32, "first_tokens": 4}, 100) == kept({"window": 32, "first_tokens": 4}, 4000)
    assert kept({"window": 32, "first_tokens": 4}, 4000) == 3 * 36 * a_token
    assert kept({"window": 32, "pattern": ["local", "local", "global"]}, 4000) == (2 * 32 + 4000) * a_token
    assert kept({"window": 5000}, 4000) == kept({}, 4000) == 3 * 4000 * a_token


@torch.inference_mode()
def test_a_ring_is_cut_back_as_far_as_it_remembers() -> None:
    model = model_of({"window": 8, "pattern": ["local", "global"], "first_tokens": 2})
    ids = torch.randint(0, 300, (1, 32))
    cache = KVCache(model.config, 1, 32)
    model(ids[:, :9], cache=cache)
    assert cache.cut_back(3)  # nothing was replaced yet
    model(ids[:, 3:20], cache=cache)
    assert not cache.cut_back(18)
    assert cache.length == 20
    assert cache.cut_back(19)
    assert not cache.cut_back(18), "two behind the newest that was ever there"
    found = model(ids[:, 19:], cache=cache).logits
    torch.testing.assert_close(found, model(ids).logits[:, 19:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", WINDOWED)
def test_the_engine_writes_what_whole_passes_say_and_reads_anew_what_was_forgotten(variant: str) -> None:
    model = OwnModel(model_with(variant), tiny_loaded().tokenizer, "windowed", 30)

    def greedy(prompt: tuple[int, ...], tokens: int) -> list[int]:
        ids = list(prompt)
        with torch.inference_mode():
            for _ in range(tokens):
                ids.append(int(model.model(torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[len(prompt) :]

    def request(prompt: tuple[int, ...], thread: str = "") -> Request:
        return Request(prompt, SamplingConfig(max_new_tokens=6, temperature=0.0), thread=thread)

    prompts = [tuple(range(5, 5 + length)) for length in (2, 17, 9)]
    with Scheduler(Engine(model), slots=3) as scheduler:
        together = [generation.result() for generation in [scheduler.start(request(prompt)) for prompt in prompts]]
    for prompt, found in zip(prompts, together, strict=True):
        assert [token.token_id for token in found.tokens] == greedy(prompt, 6)
    engine = Engine(model)
    first = prompts[1]
    written = [token.token_id for token in engine.start(request(first, "a")).result().tokens]
    longer = (*first, *written, 7)
    for prompt, reused in ((longer, len(longer) - 1), (first[:12], 0)):
        generation = engine.start(request(prompt, "a"))
        events = list(generation)
        read = next(event for event in events if isinstance(event, PromptRead))
        assert read.reused == reused
        assert [event.token_id for event in events if hasattr(event, "token_id")][:6] == greedy(prompt, 6)


def test_without_a_window_nothing_is_saved_and_with_one_it_comes_back() -> None:
    assert "attention" not in Config().model_dump(mode="json")["model"]
    asked = parse_overrides(["--model.attention.window=16", "--model.attention.pattern", "local, global"])
    saved = load_config(environment={}, overrides=asked).model_dump(mode="json")
    again = Config.model_validate(saved).model.attention
    assert (again.window, again.pattern) == (16, ("local", "global"))
    assert [again.sees(layer) for layer in range(3)] == [16, None, 16]


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({"pattern": "local,global"}, "set model.attention.window"),
        ({"first_tokens": 4}, "set model.attention.window"),
        ({"window": 8, "pattern": "global"}, "no local layer"),
        ({"window": 8, "pattern": "local,sparse"}, "'local' or 'global'"),
        ({"window": 0}, "greater than or equal to 1"),
    ],
)
def test_what_makes_no_sense_is_refused(attention: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate({"attention": attention})


def test_a_budget_of_tokens_is_refused_where_a_window_bounds_them() -> None:
    with pytest.raises(UsageError, match="window is 8"):
        EvictingCache(model_of({"window": 8}).config, 1, 32, budget=16)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"attention": {"window": 8, "first_tokens": 2}}, "first_tokens = 2"),
        ({"attention": {"sinks": True}}, "attention sinks"),
        ({"attention": {"window": 8}, "router": {"kind": "sigmoid"}}, "a sigmoid router and a window"),
        ({"attention": {"window": 8, "pattern": ["local", "global"]}}, "QK-norm and layers of both kinds"),
    ],
)
def test_windows_that_no_family_has_are_refused_by_name(model: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        target_family(ModelConfig.model_validate(SMALL | model))


def test_llama_cpp_gets_no_model_with_a_window() -> None:
    config = ModelConfig.model_validate(SMALL | {"attention": {"window": 8}})
    with pytest.raises(UsageError, match="has no windows of attention"):
        architecture_of(config, target_family(config))
