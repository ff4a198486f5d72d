"""The table of facts about routers says what the routers do."""

from __future__ import annotations

import pytest
import torch
from routers_support import EXPERTS, VARIANTS, lone_router, route

from moe_core.config.router import ROUTER_FACTS, ROUTER_KINDS, RouterConfig, RouterKind
from moe_core.model.routers import ROUTERS, RouterShape

OWN_KEYS = {key for facts in ROUTER_FACTS.values() for key in facts.own_keys}
OTHER_VALUES = {
    "hash_weights": "learned", "top_p": 0.9, "entropy_loss_coef": 0.5, "mean_experts": 2.5, "threshold_decay": 0.5,
    "pool_size": 3,
}  # fmt: skip


def test_every_kind_has_facts_and_a_class_that_names_them() -> None:
    assert list(ROUTER_FACTS) == list(ROUTER_KINDS)
    assert set(ROUTERS) == set(ROUTER_KINDS)
    for kind, router in ROUTERS.items():
        assert router.facts is ROUTER_FACTS[kind]
    assert set(RouterConfig.model_fields) >= OWN_KEYS
    assert set(OTHER_VALUES) == OWN_KEYS


@pytest.mark.parametrize("kind", ROUTER_KINDS)
def test_a_router_tells_the_contract_its_facts(kind: RouterKind) -> None:
    facts, router = ROUTER_FACTS[kind], lone_router(kind)
    told = (router.score_function, router.varying_experts, router.cannot_choose)
    assert told == (facts.score_function, facts.varying_experts, facts.cannot_choose)
    config = RouterConfig.model_validate(VARIANTS[kind])
    weights = [parameter for parameter in router.parameters() if parameter.ndim == 2]
    assert len(weights) == config.matrices
    assert ("expert_bias" in router.state_dict()) is config.has_bias


@pytest.mark.parametrize("kind", ROUTER_KINDS)
def test_a_choice_follows_from_the_state_alone_where_the_facts_say_so(kind: RouterKind) -> None:
    """The last of twelve tokens, among others before it, and with another id."""
    torch.manual_seed(0)
    router, logits, ids = lone_router(kind), torch.randn(12, EXPERTS), torch.arange(1, 13)
    chosen = route(router, logits, ids).router_indices[-1].tolist()
    others = []
    for _ in range(20):
        among = torch.cat([3 * torch.randn(11, EXPERTS), logits[-1:]])
        others.append(route(router, among, torch.cat([ids[:-1], torch.randint(1, 300, (1,))])).router_indices[-1])
    same = all(other.tolist() == chosen for other in others)
    assert same is ROUTER_FACTS[kind].by_state_alone


@pytest.mark.parametrize("kind", ROUTER_KINDS)
def test_unused_slots_are_by_rule_where_the_facts_say_so(kind: RouterKind) -> None:
    torch.manual_seed(0)
    routed = route(lone_router(kind), 3 * torch.randn(200, EXPERTS))
    assert bool((routed.router_indices < 0).any()) is ROUTER_FACTS[kind].varying_experts


@pytest.mark.parametrize("kind", ROUTER_KINDS)
@pytest.mark.parametrize("key", sorted(OWN_KEYS))
def test_a_key_that_is_not_a_kinds_own_changes_nothing(kind: RouterKind, key: str) -> None:
    """Neither the choice nor what a step leaves behind; of its own keys all but a loss's weight change one of them."""
    logits = torch.randn(60, EXPERTS, generator=torch.Generator().manual_seed(0))

    def outcome(**changes: object) -> list[torch.Tensor]:
        router = ROUTERS[kind](
            RouterShape(EXPERTS, EXPERTS, 3, vocab_size=300),
            RouterConfig.model_validate({"kind": kind, "mean_experts": 1.0, "pool_size": 4, **changes}),
        )
        for parameter in router.parameters():
            torch.nn.init.eye_(parameter)
        found = []
        for step in range(1, 4):
            routed = route(router.eval(), step * logits)
            router.after_step(routed)
            found += [routed.router_scores, routed.router_indices]
        return [*found, *router.buffers()]

    plain, changed = outcome(), outcome(**{key: OTHER_VALUES[key]})
    same = all(torch.equal(one, other) for one, other in zip(plain, changed, strict=True))
    assert same is (key not in ROUTER_FACTS[kind].own_keys or key == "entropy_loss_coef")
