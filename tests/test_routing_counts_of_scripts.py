"""Counts of two scripts, OLMoE's Counters and REAP's observations: written here as their sources write them."""

from __future__ import annotations

import os
import pickle
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_core.errors import TraceError
from moe_core.routing.opening import open_routing
from moe_core.routing.trace.groups import Group
from moe_core.routing.trace.routing_counts import RoutingCounts

Choices = np.ndarray[Any, Any]


def opened(path: Path, **options: Any) -> RoutingCounts:
    found = open_routing(path, **options)
    assert isinstance(found.routing, RoutingCounts)
    return found.routing


def choices(tokens: int, seed: int, experts: int = 6, top_k: int = 2) -> Choices:
    """[tokens, K] different experts."""
    return np.argsort(np.random.default_rng(seed).random((tokens, experts)), axis=1)[:, :top_k]


def counters(path: Path, layers: list[Choices]) -> Path:
    """As run_routing_analysis.py counts: a Counter of numpy's numbers, brought up to date batch by batch."""
    found: dict[int, Counter[Any]] = defaultdict(Counter)
    for layer, chosen in enumerate(layers):
        for batch in np.array_split(chosen, 2):
            found[layer].update(Counter(batch.flatten()))
    with path.open("wb") as file:
        pickle.dump([found[layer] for layer in range(len(layers))], file)
    return path


def test_a_folder_of_counters_is_a_domain_each(tmp_path: Path) -> None:
    book = [np.array([[0, 5], [5, 3]]), np.array([[1, 2], [1, 0]])]
    code = [np.array([[4, 0], [4, 1], [4, 2]]), np.array([[0, 1], [0, 2], [0, 3]])]
    counters(tmp_path / "book.pkl", book)
    counters(tmp_path / "github.pkl", code)
    counts = opened(tmp_path, top_k=2, layers=[0, 15], num_experts=64)
    assert (counts.domains, counts.groups) == (["book", "github"], [Group("book"), Group("github")])
    assert (counts.tokens.tolist(), counts.layers, counts.num_experts, counts.notes) == ([[2, 3]], [0, 15], 64, ())
    assert counts.tokens_per_expert[0, :, :, :6].tolist() == [
        [[1, 0, 0, 1, 0, 2], [1, 1, 1, 0, 3, 0]],
        [[1, 2, 1, 0, 0, 0], [3, 1, 1, 1, 0, 0]],
    ]
    counts.save(tmp_path / "x.counts.parquet")
    assert RoutingCounts.load(tmp_path / "x.counts.parquet") == counts
    alone = opened(tmp_path / "github.pkl")
    assert (alone.domains, alone.unit, alone.num_experts, open_routing(tmp_path).format) == (
        ["github"],
        "choice",
        5,
        "olmoe",
    )
    assert alone.notes == (
        "the file does not name its 2 layers: they are counted from 0",
        "the number of experts, 5, is the largest id + 1: give --num-experts if the model has more",
        "neither the number of tokens nor K is in the file: the counts are of choices; --top-k gives K",
    )


def test_three_layers_are_those_of_the_script_as_the_user_says(tmp_path: Path) -> None:
    path = counters(tmp_path / "c4.pkl", [choices(50, seed) for seed in range(3)])
    assert "OLMoE's script keeps 0, 7 and 15: --layers 0,7,15" in opened(path).notes[0]
    counts = opened(path, layers=[0, 7, 15], top_k=2)
    assert (counts.layers, counts.num_tokens, len(counts.notes)) == ([0, 7, 15], 50, 1)
    both = counts + opened(counters(tmp_path / "book.pkl", [choices(30, 9)] * 3), layers=[0, 7, 15], top_k=2)
    assert (both.domains, both.num_tokens) == (["c4", "book"], 80)


def test_counters_by_number_of_layer_open_too(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({1: Counter([3, 4]), 0: Counter([1, 2])}))
    assert opened(path).tokens_per_expert[0, :, 0].tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]


class Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, ("hostile-ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds a list; expected a list of Counters"),
        ({}, "holds a dict; expected a list"),
        (7, "holds a int; expected a list of Counters"),
        ({5: Counter([1])}, "holds a dict; expected a list"),
        ([Counter([1]), Counter()], "layer 1 is a dict of nothing"),
        ([[1, 2]], "layer 0 is a list; expected a Counter"),
        ([np.arange(3)], "layer 0 is a ndarray; expected a Counter"),
        ([{"a": 1}], "layer 0: 'a' was chosen 1 times"),
        ([{-1: 1}], "layer 0: -1 was chosen 1 times"),
        ([{40_000: 1}], "layer 0: 40000 was chosen 1 times"),
        ([{1: -1}], "layer 0: 1 was chosen -1 times"),
        ([{1: 2**60}], "layer 0: 1 was chosen 1152921504606846976 times"),
        ([{1: 2.0}], r"layer 0: 1 was chosen 2\.0 times"),
        ([{1: True}], "layer 0: 1 was chosen True times"),
        ([defaultdict(Counter, {3: Counter("aab")})], "layer 0: 3 was chosen a dict times"),
        ([Counter({(0, 1): 2})], "the key a tuple; expected a number or text"),
        ([Counter([1]), Hostile()], r"it names '(posix|nt)\.mkdir'"),
        ([{1: 0}], "nothing was routed"),
    ],
)
def test_what_is_no_list_of_counters_is_refused(
    content: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(TraceError, match=message) as refusal:
        opened(path)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "hostile-ran").exists()


def test_files_of_different_models_do_not_go_together(tmp_path: Path) -> None:
    counters(tmp_path / "a.pkl", [choices(5, 0)])
    counters(tmp_path / "b.pkl", [choices(5, 0), choices(5, 1)])
    with pytest.raises(TraceError, match=r"b\.pkl' has 2 layers, .*a\.pkl' 1"):
        opened(tmp_path)


def norms(chosen: Choices, experts: int) -> Choices:
    """[tokens, E] made-up norms of the experts' outputs."""
    return np.random.default_rng(len(chosen)).random((len(chosen), experts)) + chosen.sum(axis=1, keepdims=True)


def observations(layers: dict[int, Choices], experts: int = 6, *, real_pairs: bool = False) -> dict[int, Any]:
    """What MoETransformerObserver.report_state gives for these choices, with router weights of 1/4."""
    state: dict[int, Any] = {}
    for number, chosen in layers.items():
        one_hot = np.zeros((len(chosen), experts), np.int64)
        np.put_along_axis(one_hot, chosen, 1, axis=1)
        frequency, ean = one_hot.sum(axis=0), (norms(chosen, experts) * one_hot).sum(axis=0)
        mean = np.divide(ean, frequency, out=np.zeros(experts), where=frequency > 0)
        pairs = one_hot.T @ one_hot if real_pairs else frequency[:, None] + frequency
        state[number] = {
            "total_tokens": torch.tensor(len(chosen)),
            "expert_frequency": torch.tensor(frequency),
            "pairwise_expert_frequency": torch.tensor(pairs),
            "ean_sum": torch.tensor(ean),
            "weighted_ean_sum": torch.tensor(ean / 4),
            "ean_mean": torch.tensor(mean, dtype=torch.float32),
            "reap": torch.tensor(mean / 4, dtype=torch.float32),
            "weighted_expert_frequency_sum": torch.tensor(frequency / 4),
            "max_activations": torch.tensor(mean, dtype=torch.float32),
        }
    return state


def saved(path: Path, state: Any) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    torch.save(state, path)
    return path


LAYERS = {3: np.array([[0, 1], [1, 2], [1, 5]]), 1: np.array([[2, 4], [4, 3], [0, 4]])}


def test_observations_by_hand(tmp_path: Path) -> None:
    path = saved(tmp_path / "observations_128.pt", observations(LAYERS))
    counts = opened(path)
    assert counts.tokens_per_expert[0, :, 0].tolist() == [[1, 0, 1, 1, 3, 0], [1, 3, 1, 0, 0, 1]]
    assert (counts.layers, counts.num_tokens, counts.top_k, counts.domains) == ([1, 3], 3, 2, ["all"])
    assert list(counts.extras) == ["ean_sum", "reap_sum", "weighted_expert_frequency_sum"]
    noise = norms(LAYERS[3], 6)
    ean_of_expert_1 = noise[0, 1] + noise[1, 1] + noise[2, 1]
    assert counts.extras["ean_sum"][1, 1] == pytest.approx(ean_of_expert_1, rel=1e-12)
    np.testing.assert_allclose(counts.extras["reap_sum"], counts.extras["ean_sum"] / 4)
    assert counts.extras["weighted_expert_frequency_sum"][1].tolist() == [0.25, 0.75, 0.25, 0, 0, 0.25]
    assert counts.notes == (
        "pairwise_expert_frequency holds f_i + f_j, as REAP itself writes it: not which experts were chosen together",
    )
    assert open_routing(path).format == "reap"
    counts.save(tmp_path / "x.counts.parquet")
    assert RoutingCounts.load(tmp_path / "x.counts.parquet") == counts


def test_means_become_sums_where_no_sum_was_kept_and_halves_add_up_to_the_whole(tmp_path: Path) -> None:
    whole = {0: choices(40, 0), 1: choices(40, 1)}
    parts = []
    for name, part in (("a", slice(0, 15)), ("b", slice(15, 40))):
        state = observations({layer: chosen[part] for layer, chosen in whole.items()})
        for layer, chosen in whole.items():  # norms of the same tokens as in the whole
            kept = np.zeros((25 if name == "b" else 15, 6))
            np.put_along_axis(kept, chosen[part], 1, axis=1)
            frequency = kept.sum(axis=0)
            mean = (norms(chosen, 6)[part] * kept).sum(axis=0) / np.maximum(frequency, 1)
            state[layer] |= {"ean_mean": torch.tensor(mean), "reap": torch.tensor(mean / 4)}
            del state[layer]["ean_sum"], state[layer]["weighted_ean_sum"]
        parts.append(opened(saved(tmp_path / f"{name}.pt", state)))
    expected = opened(saved(tmp_path / "whole.pt", observations(whole)))
    both = parts[0] + parts[1]
    np.testing.assert_array_equal(both.tokens_per_expert, expected.tokens_per_expert)
    for name in ("ean_sum", "reap_sum"):
        np.testing.assert_allclose(both.extras[name], expected.extras[name], rtol=1e-12)


def test_pairs_are_kept_where_they_are_tokens_that_chose_both(tmp_path: Path) -> None:
    counts = opened(saved(tmp_path / "x.pt", observations(LAYERS, real_pairs=True)))
    assert counts.extras["pairs"][1].tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 3, 1, 0, 0, 1],
        [0, 1, 1, 0, 0, 0],
        [0] * 6,
        [0] * 6,
        [0, 1, 0, 0, 0, 1],
    ]
    state = observations(LAYERS, real_pairs=True)
    state[3]["pairwise_expert_frequency"][0, 0] += 1
    other = opened(saved(tmp_path / "y.pt", state))
    assert "pairs" not in other.extras
    assert other.notes == (
        "pairwise_expert_frequency is left out: it is neither f_i + f_j nor how many tokens chose both experts",
    )


def test_pairs_without_experts_paired_with_themselves_and_a_plain_number_of_tokens(tmp_path: Path) -> None:
    expected = opened(saved(tmp_path / "x.pt", observations(LAYERS, real_pairs=True)))
    state = observations(LAYERS, real_pairs=True)
    for layer in state.values():
        layer["pairwise_expert_frequency"].fill_diagonal_(0)
        layer["total_tokens"] = int(layer["total_tokens"])
    assert opened(saved(tmp_path / "y.pt", state)) == expected
    assert "pairs" in expected.extras


def test_a_file_for_each_kind_of_text_is_a_domain(tmp_path: Path) -> None:
    for number, name in enumerate(("code", "law")):
        saved(tmp_path / name / "observations_8.pt", observations({0: choices(10 + number, number)}))
    counts = opened(tmp_path / "*" / "observations_8.pt")
    assert (counts.domains, counts.tokens.tolist()) == (["code", "law"], [[10, 11]])
    single = [opened(tmp_path / name / "observations_8.pt") for name in ("code", "law")]
    np.testing.assert_allclose(counts.extras["ean_sum"], sum(one.extras["ean_sum"] for one in single))
    saved(tmp_path / "code" / "observations_9.pt", observations({0: choices(7, 5)}))
    assert opened(tmp_path / "code").domains == ["observations_8", "observations_9"]


def test_a_run_that_was_stopped_has_layers_of_fewer_tokens(tmp_path: Path) -> None:
    counts = opened(saved(tmp_path / "partial.pkl", observations({0: choices(10, 0), 1: choices(8, 1)})))
    assert (counts.num_tokens, counts.varying_experts) == (10, True)
    assert not [note for note in counts.notes if "dropped" in note]
    assert "layers saw 8 to 10 tokens, as where REAP was stopped in a pass" in counts.notes


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("expert_frequency", torch.ones(6), "layer 3: expert_frequency is float32"),
        ("expert_frequency", torch.tensor([1, 2]), r"layer 3: expert_frequency is \[2\]; expected \[6\]"),
        ("expert_frequency", torch.tensor([-1, 3, 1, 2, 0, 1]), "layer 3: expert_frequency is int64 from -1 on"),
        ("expert_frequency", torch.tensor([1, 3, 1, 0, 0, 0]), "layer 3: 5 choices of 3 tokens"),
        ("expert_frequency", [1, 2], "layer 3: expert_frequency is list; expected a tensor"),
        ("total_tokens", torch.tensor([3]), r"layer 3: total_tokens is \[1\]; expected \[\]"),
        ("total_tokens", torch.tensor(0), "layer 3: 6 choices of 0 tokens"),
        ("ean_sum", torch.full((6,), torch.nan), "layer 3: ean_sum holds NaN"),
        ("ean_sum", torch.ones(7), r"layer 3: ean_sum is \[7\]; expected \[6\]"),
        ("reap", Hostile(), r"it names '(posix|nt)\.mkdir'"),
    ],
)
def test_observations_that_cannot_be_are_refused_by_layer(
    name: str, value: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = observations(LAYERS)
    state[3][name] = value
    with pytest.raises(TraceError, match=message):
        opened(saved(tmp_path / "x.pt", state))
    assert not (tmp_path / "hostile-ran").exists()


@pytest.mark.parametrize("content", [{"expert_frequency": 1}, {-1: {"expert_frequency": 1}}, [{"expert_frequency": 1}]])
def test_files_without_layers_are_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"layer 'expert_frequency'|layer -1|dict of layers"):
        opened(saved(tmp_path / "x.pt", content))


def test_counters_that_numpy_1_26_wrote_open() -> None:
    """Made by a script that counts as OLMoE's does, under numpy 1.26, whose pickles name other modules."""
    path = Path(__file__).parent / "fixtures" / "recordings" / "olmoe-numpy-1.26-github.pkl"
    assert b"numpy.core.multiarray" in path.read_bytes()
    token, slot, layer = np.indices((40, 8, 3))
    chosen = [((token + batch) ** 2 * 7 + slot * 8 + layer) % 64 for batch in range(2)]
    expected = [sum(np.bincount(one[:, :, at].ravel(), minlength=64) for one in chosen) for at in range(3)]
    counts = opened(path, top_k=8, layers=[0, 7, 15], num_experts=64)
    assert counts.tokens_per_expert[0, :, 0].tolist() == np.stack(expected).tolist()
    assert (counts.num_tokens, counts.domains, counts.notes) == (80, ["olmoe-numpy-1.26-github"], ())
