"""The `model.router` section: which router, what keeps its load even, and what is dropped while training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field, model_validator

from moe_core.config.section import Section

RouterKind = Literal[
    "softmax", "noisy", "hash", "sigmoid", "top_p", "expert_threshold", "expert_choice", "document_pool"
]
ROUTER_KINDS: tuple[RouterKind, ...] = get_args(RouterKind)
Balancing = Literal["layer", "global_batch", "cv_squared", "bias", "none"]
BALANCINGS: tuple[Balancing, ...] = get_args(Balancing)

# One line each, for people who choose.
BALANCING_MEANINGS: dict[Balancing, str] = {
    "layer": "load-balancing loss of each layer over one micro-batch (Switch, GShard)",
    "global_batch": "the same with the load of all micro-batches of the step",
    "cv_squared": "squared coefficient of variation of importance, and of load where it is differentiable (Shazeer)",
    "bias": "no loss: a selection bias rises for experts with too few tokens (DeepSeek-V3)",
    "none": "nothing keeps the load even",
}
SIGHT_WARNING = "Its router lets later tokens decide about earlier ones: its loss is not one of a language model."
"""For every loss of a model whose router sees the future."""


@dataclass(frozen=True)
class RouterFacts:
    """What holds for a kind of router, whatever its model. Formula and source of each: moe_core/model/routers."""

    meaning: str
    """One line, for people who choose."""
    usual_balancing: Balancing
    """What keeps the load even if the configuration names nothing."""
    score_function: Literal["softmax", "sigmoid"] = "softmax"
    """How logits become probabilities."""
    takes_bias: bool = False
    """Whether its selection can take a bias."""
    always_biased: bool = False
    """Whether checkpoints hold that bias whatever the balancing is: the families that route so have one."""
    load_is_learned: bool = True
    """False where the load is what the rule makes it: a loss would pull at logits that do not decide about it."""
    varying_experts: bool = False
    """Whether the rule gives some tokens fewer than top_k experts, so that an unused slot need not be a dropped one."""
    reads_context: bool = False
    """Whether the choice depends on the ids of the token and of those before it."""
    sees_future: bool = False
    """Whether the choice depends on later tokens. Such a model cannot write text."""
    cannot_choose: str = ""
    """Why a token cannot be made to choose other experts, after the router's name; empty = it can."""
    own_keys: tuple[str, ...] = ()
    """Keys of model.router that mean something for this kind and not for every other."""
    matrices: int = 1
    """Weight matrices [E, D] of a layer's router."""
    training_matrices: int = 0
    """How many of them only training uses."""
    exported_as: Literal["softmax", "sigmoid"] | None = None
    """The rule of the transformers library that equals it in evaluation mode; None = there is none."""

    @property
    def by_state_alone(self) -> bool:
        """Whether a token's choice follows from its state, whatever the other tokens are and the token itself is."""
        return not (self.reads_context or self.sees_future)


ROUTER_FACTS: dict[RouterKind, RouterFacts] = {
    "softmax": RouterFacts(
        "the K likeliest experts of a softmax (Mixtral, Qwen3)", "layer", takes_bias=True, exported_as="softmax"
    ),
    "noisy": RouterFacts(
        "the same with learned noise on the logits while training (Shazeer)",
        "cv_squared",
        takes_bias=True,
        matrices=2,
        training_matrices=1,
        exported_as="softmax",
    ),
    "hash": RouterFacts(
        "a fixed table: every vocabulary entry has its experts, nothing is learned",
        "none",
        load_is_learned=False,
        reads_context=True,
        cannot_choose="goes by a table of token ids, which knows no second choice",
        own_keys=("hash_weights",),
    ),
    "sigmoid": RouterFacts(
        "the K largest of independent sigmoids, corrected by a selection bias (DeepSeek-V3)",
        "bias",
        score_function="sigmoid",
        takes_bias=True,
        always_biased=True,
        exported_as="sigmoid",
    ),
    "top_p": RouterFacts(
        "as few experts as reach a probability of top_p together, K at most",
        "layer",
        varying_experts=True,
        own_keys=("top_p", "entropy_loss_coef"),
    ),
    "expert_threshold": RouterFacts(
        "every expert whose score exceeds its own running threshold, K at most",
        "none",
        score_function="sigmoid",
        load_is_learned=False,
        varying_experts=True,
        own_keys=("mean_experts", "threshold_decay"),
    ),
    "expert_choice": RouterFacts(
        "experts choose their tokens: sees the future, for ablation only, cannot generate",
        "none",
        load_is_learned=False,
        varying_experts=True,
        sees_future=True,
        cannot_choose="has experts that choose tokens, so what one token would choose instead is not defined",
        own_keys=("mean_experts",),
    ),
    "document_pool": RouterFacts(
        "softmax among the experts that the document so far has used most",
        "global_batch",
        reads_context=True,
        own_keys=("pool_size",),
    ),
}
"""Everything else reads what it must know of a kind here."""


class RouterConfig(Section):
    """How a token's router logits become chosen experts and their weights."""

    kind: RouterKind = "softmax"
    """Which router, see ROUTER_FACTS; formula and source of each are in moe_core/model/routers."""
    normalize_scores: bool = True
    """Divide the chosen experts' probabilities by their sum (Mixtral). At top_k = 1 the weight stays p_i, else the
    router would get no gradient from the language-model loss. It means nothing to hash, expert_threshold and
    expert_choice."""
    balancing: Balancing | None = None
    """What keeps the load even, see BALANCING_MEANINGS. None = what is usual for the kind: bias for sigmoid, cv_squared
    for noisy, global_batch for document_pool, none for hash, expert_threshold and expert_choice, else layer."""
    bias_update_speed: float = Field(0.01, ge=0.0, le=1.0)
    """Only for balancing bias: after every step an expert's selection bias rises by this if it got fewer tokens than
    the mean, and falls if it got more (0 = it stays as it is). The papers' 0.001 is for far more steps than ours: after
    75 steps it left a load of 3.1 times the mean, 0.01 one of 1.2 times after 88."""
    noise_std: float = Field(0.0, ge=0.0, le=10.0)
    """Standard deviation of Gaussian noise added to the logits while training (0 = none)."""
    load_balancing_loss_coef: float = Field(0.01, ge=0.0, le=10.0)
    """Weight of the loss of balancing layer, global_batch or cv_squared, averaged over layers."""
    router_z_loss_coef: float = Field(0.001, ge=0.0, le=10.0)
    """Weight of the router z-loss, averaged over layers."""
    hash_weights: Literal["equal", "learned"] = "equal"
    """Only for hash. equal: each of the K experts weighs 1/K (arXiv:2106.04426). learned: the softmax of logits weighs
    the experts that the table chose (as DeepSeek-V4's hash layers do, there with another score function)."""
    top_p: float = Field(0.4, gt=0.0, le=1.0)
    """Only for top_p: experts are added, likeliest first, until their probabilities sum to this."""
    entropy_loss_coef: float = Field(1e-4, ge=0.0, le=10.0)
    """Only for top_p: weight of the entropy of the router's probabilities, averaged over layers; without it the router
    spreads them to be given more experts (arXiv:2403.07652, eq. 6)."""
    mean_experts: float = Field(1.0, gt=0.0, le=256.0)
    """Only for expert_threshold and expert_choice: experts per token on average, at most top_k, which bounds the
    experts of one token. Thresholds are the (1 - mean_experts / E) quantile; an expert chooses T * mean_experts / E of
    T tokens."""
    threshold_decay: float = Field(0.95, ge=0.0, lt=1.0)
    """Only for expert_threshold: part of the old threshold that a training step keeps."""
    pool_size: int | None = Field(None, ge=1, le=4_096)
    """Only for document_pool: experts a document may choose from at each token. None = half of them, at least top_k."""
    expert_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Probability that a whole expert is left out of one training step: no token can choose it (arXiv:2207.09094, sec.
    3.3); at least top_k stay. 0 = off. Not to be confused with the two other meanings of the term:
    model.expert_hidden_dropout and expert_output_dropout."""
    expert_output_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Probability that one token goes without one of its chosen experts' outputs while training (expert output masking
    of NLLB-200, arXiv:2207.04672, sec. 4.2.1): the slot becomes -1 with score 0, the others keep their weight. 0 =
    off."""

    @property
    def facts(self) -> RouterFacts:
        """What holds for the kind."""
        return ROUTER_FACTS[self.kind]

    @property
    def balances_by(self) -> Balancing:
        """`balancing`, or what is usual for the kind."""
        return self.balancing or self.facts.usual_balancing

    @property
    def has_bias(self) -> bool:
        """Whether checkpoints hold a selection bias."""
        return self.facts.always_biased or self.balances_by == "bias"

    @property
    def matrices(self) -> int:
        """Weight matrices [E, D] of a layer's router; a table with equal weights has none."""
        reads_table_only = "hash_weights" in self.facts.own_keys and self.hash_weights == "equal"
        return 0 if reads_table_only else self.facts.matrices

    @model_validator(mode="after")
    def _fits_together(self) -> RouterConfig:
        if self.balancing == "bias" and not self.facts.takes_bias:
            raise ValueError(
                f"model.router.balancing = bias needs a router that selects by a bias; expected model.router.kind = "
                f"{', '.join(kind for kind in ROUTER_KINDS if ROUTER_FACTS[kind].takes_bias)}, not {self.kind}"
            )
        if self.expert_dropout > 0 and self.facts.cannot_choose:
            raise ValueError(
                f"model.router.expert_dropout = {self.expert_dropout:g} has no meaning for model.router.kind = "
                f"{self.kind}, where tokens cannot choose another expert; expected 0"
            )
        if self.balancing not in (None, "none") and not self.facts.load_is_learned:
            raise ValueError(
                f"model.router.balancing = {self.balancing} has nothing to act on: the load of model.router.kind = "
                f"{self.kind} follows from its rule; leave it out"
            )
        return self
