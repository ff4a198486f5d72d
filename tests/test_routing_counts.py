"""RoutingCounts: what adds up, what is refused, the file, and measures that are made of counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.errors import MoescopeError, TraceError, UsageError
from moe_core.routing import RoutingTrace, baselines, metrics
from moe_core.routing.measures.health import UNKNOWN_SPREAD, health, routing_health
from moe_core.routing.trace.counts import expert_counts, pair_counts
from moe_core.routing.trace.counts_file import counts_frame
from moe_core.routing.trace.groups import MAX_NUMBERS, Group
from moe_core.routing.trace.joining import concatenate
from moe_core.routing.trace.routing_counts import RoutingCounts
from tests.routing_support import random_trace, trace_of

TWO = [Group("code", "a"), Group("law", "b")]


def small(**changes: object) -> RoutingCounts:
    """Two groups of 3 and 2 tokens with two experts each, of three; layer 4 alone."""
    given = {"top_k": 2, "tokens": [[3, 2]], "layers": [4], "groups": TWO, "source": "by hand"} | changes
    return RoutingCounts.from_arrays([[[[3, 2, 1], [0, 2, 2]]]], **given)  # type: ignore[arg-type]


def many_sources(seed: int = 0, documents: int = 12, **columns: object) -> RoutingTrace:
    """Twelve documents of 40 tokens of two domains, 6 experts, top-2."""
    rng = np.random.default_rng(seed)
    T = documents * 40
    documents_T = np.repeat(np.arange(documents), 40)
    logits = rng.normal(size=(2, T, 6))
    logits[..., 0] += 1.5 * (documents_T % 2)
    return trace_of(
        np.argsort(-logits)[..., :2], num_experts=6, document_ids=documents_T,
        domain_ids=documents_T % 2, domains=["code", "law"], **columns,
    )  # fmt: skip


def test_a_trace_counts_its_sources_by_hand() -> None:
    trace = trace_of(
        [[[0, 1], [1, -1], [2, 0]]], num_experts=3, layers=[4], document_ids=[0, 1, 2],
        source_ids=[7, 7, 9], domain_ids=[0, 1, 1], domains=["code", "law", "empty"], source="x",
    )  # fmt: skip
    counts = trace.counts(extras=("weights", "pairs"))
    assert counts.groups == [Group("code", "7"), Group("law", "7"), Group("law", "9")]
    assert counts.domains == ["code", "law", "empty"]
    assert counts.tokens.tolist() == [[1, 1, 1]]
    assert counts.tokens_per_expert.tolist() == [[[[1, 1, 0], [0, 1, 0], [1, 0, 1]]]]
    assert (counts.layers, counts.steps, counts.top_k, counts.source) == ([4], [0], 2, "x")
    assert counts.extras["pairs"].tolist() == [[[2, 1, 1], [1, 2, 0], [1, 0, 1]]]
    weights = np.zeros(3)
    for expert, score in zip(trace.router_indices.ravel(), trace.router_scores.ravel(), strict=True):
        weights[expert] += score if expert >= 0 else 0
    assert counts.extras["weights"][0] == pytest.approx(weights)
    assert trace.counts("domain").groups == [Group("code"), Group("law")]
    assert trace.counts("domain").tokens.tolist() == [[1, 2]]
    assert trace.counts("all").groups == [Group()]
    assert trace.counts("all").tokens_per_expert.tolist() == [[[[2, 2, 1]]]]
    with pytest.raises(UsageError, match="by is 'token'; expected one of source, domain, all"):
        trace.counts("token")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="extra 'reap' is unknown; expected one of weights, pairs"):
        trace.counts(extras=("reap",))


def test_a_source_of_two_domains_is_one_name_in_the_file(tmp_path: Path) -> None:
    """A name twice in a dictionary is no category for pandas, and Parquet fills the file with whatever memory held."""
    counts = random_trace(0, T=200).counts()
    assert len({group.source for group in counts.groups}) < len(counts.groups)
    frame = counts_frame(counts)
    assert frame.source.cat.categories.is_unique
    assert set(frame.source) == {"0", "1", "2", "3"}
    counts.save(tmp_path / "x.counts.parquet")
    assert RoutingCounts.load(tmp_path / "x.counts.parquet") == counts


def test_the_sum_of_many_is_that_of_one_after_the_other() -> None:
    parts = [random_trace(seed, T=30 + seed).counts("domain", ("weights", "pairs")) for seed in range(4)]
    total = RoutingCounts.sum_of(parts)
    one_by_one = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    assert total == one_by_one
    assert (total.groups, total.domains) == (one_by_one.groups, one_by_one.domains)
    assert sum(parts) == total  # type: ignore[comparison-overlap]
    assert RoutingCounts.sum_of(parts[:1]) == parts[0]
    assert parts[0] == random_trace(0, T=30).counts("domain", ("weights", "pairs"))  # as it was
    with pytest.raises(TraceError, match="no counts to add up"):
        RoutingCounts.sum_of([])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), by=st.sampled_from(["source", "domain", "all"]), cut=st.integers(1, 24))
def test_halves_add_up_to_the_whole(seed: int, by: str, cut: int) -> None:
    trace = random_trace(seed, L=2)
    first = np.arange(trace.num_tokens) < cut
    halves = [trace.select(own).counts(by, ("pairs",)) for own in (first, ~first)]  # type: ignore[arg-type]
    whole = trace.counts(by, ("pairs",))  # type: ignore[arg-type]
    assert halves[0] + halves[1] == whole
    assert halves[1] + halves[0] == whole
    assert whole.num_tokens == trace.num_tokens


def test_a_file_of_a_trace_is_counted_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = many_sources()
    trace.save(tmp_path / "x.parquet")
    monkeypatch.setattr("moe_core.routing.trace.trace.PART_TOKENS", 64)
    assert RoutingTrace.open(tmp_path / "x.parquet").counts(extras=("pairs",)) == trace.counts(extras=("pairs",))


def test_adding_joins_steps_by_number_and_groups_by_name() -> None:
    early = small(steps=[10])
    late = RoutingCounts.from_arrays(
        [[[[1, 1, 0]]], [[[0, 2, 2]]]], top_k=2, steps=[10, 20], layers=[4], groups=[Group("law", "c")], source="other"
    )
    both = early + late
    assert both.steps == [10, 20]
    assert both.groups == [*TWO, Group("law", "c")]
    assert both.tokens.tolist() == [[3, 2, 1], [0, 0, 2]]
    assert both.tokens_per_expert[0, 0].tolist() == [[3, 2, 1], [0, 2, 2], [1, 1, 0]]
    assert both.source == "by hand, other"
    assert both.at(20).tokens_per_expert.sum() == 4
    assert both.total().steps == [0]
    assert both.total().tokens.tolist() == [[3, 2, 3]]
    assert (both + both).num_tokens == 16
    with pytest.raises(TraceError, match="step 15 is not in these counts; expected one of"):
        both.at(15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [5]}, r"layers is \[4\] here and \[5\] there; only counts of one model add up"),
        ({"top_k": 3, "tokens": [[3, 2]]}, "top_k is 2 here and 3 there"),
        (
            {"extras": {"weights": np.ones((1, 3))}},
            "extra 'weights' is in one of the counts only",
        ),
        ({"varying_experts": True}, "varying_experts is False here and True there"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        small() + small(**changes)


def test_extras_add_up_and_can_be_left_out() -> None:
    counts = small(extras={"ean_sum": [[1.0, 2.0, 3.5]]})
    assert (counts + counts).extras["ean_sum"].tolist() == [[2.0, 4.0, 7.0]]
    assert (counts.without("ean_sum") + small()).num_tokens == 10


def test_counts_without_tokens_or_slots_are_choices() -> None:
    counts = RoutingCounts.from_arrays([[6, 2], [3, 3]])
    assert (counts.unit, counts.top_k, counts.num_tokens, counts.varying_experts) == ("choice", 1, 8, True)
    assert RoutingCounts.from_arrays([[4, 4], [4, 3]], top_k=2).num_tokens == 4
    assert RoutingCounts.from_arrays([[4, 4], [4, 3]], tokens=4).top_k == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RoutingCounts.from_arrays([[6, 2]], top_k=2), "8 choices of 4 tokens, 6 of one expert"),
        (lambda: RoutingCounts.from_arrays([[1, -2]]), "holds -2; expected counts of 0 or more"),
        (lambda: RoutingCounts.from_arrays([[0, 0]]), "these counts are of no tokens"),
        (lambda: RoutingCounts.from_arrays([1, 2]), "has 1 axes; expected"),
        (lambda: RoutingCounts.from_arrays([[1.5, 2]]), "tokens_per_expert is float64"),
        (lambda: RoutingCounts.from_arrays([[1, 2]], layers=[3, 4]), r"expected int64 \[1, 2, 1, 2\]"),
        (
            lambda: RoutingCounts.from_arrays([[[1, 2]], [[1, 2]]], steps=[5, 5]),
            r"steps is \[5, 5\]; expected",
        ),
        (lambda: small(groups=[TWO[0], TWO[0]]), "group 'a' of domain 'code' is there twice"),
        (lambda: small(domains=["code"]), "expected the domain of every group"),
        (lambda: small(top_k=4, tokens=[[3, 2]]), "top_k is 4; expected 1 to 3"),
        (lambda: small(extras={"ean": np.ones((2, 3))}), r"extra 'ean' is float64 \[2, 3\]; expected float64 \[1, 3\]"),
        (lambda: small(extras={"ean": [[1, np.nan, 2]]}), "extra 'ean' holds values that are not finite"),
    ],
)
def test_counts_that_cannot_be_are_refused(make: Callable[[], RoutingCounts], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        make()


def test_too_many_counts_are_refused_before_memory_is_taken() -> None:
    E = 16_384
    wide = RoutingCounts.from_arrays(np.ones((64, 1, E), int), steps=list(range(64)))
    other = RoutingCounts.from_arrays(
        np.ones((1, 1, 64, E), int), steps=[99], groups=[Group("all", str(source)) for source in range(64)]
    )
    assert 65 * 65 * E > MAX_NUMBERS
    with pytest.raises(TraceError, match="are more than 67,108,864 counts; count fewer groups"):
        wide + other
    with pytest.raises(TraceError, match="are more than 67,108,864 counts"):
        trace_of(np.zeros((2**15, 1), int), num_experts=2**11 + 1).counts()


# The file.


def full() -> RoutingCounts:
    """Several steps, an unnamed source, a group without choices, both kinds of extras, odd names."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 3, (2, 2, 3, 4))
    counts[1, :, 2] = 0
    return RoutingCounts.from_arrays(
        counts, top_k=4, tokens=np.full((2, 3), 9), steps=[0, 40], layers=[1, 3],
        groups=[Group("code", "a'b\"\n"), Group("law", "ü"), Group("law")], domains=["law", "empty", "code"],
        extras={"pairs": rng.normal(size=(2, 4, 4)), "reap sum": rng.normal(size=(2, 4))},
        source="an engine", notes=["a note"],
    )  # fmt: skip


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.counts.parquet"
    full().save(path)
    found = RoutingCounts.load(path)
    assert found == full()
    assert (found.domains, found.groups) == (full().domains, full().groups)
    assert (found.source, found.notes) == ("an engine", ("a note",))
    frame = pd.read_parquet(path)
    assert list(frame) == ["step", "layer", "expert", "domain", "source", "tokens", "group_tokens"]
    assert frame["tokens"].sum() == full().tokens_per_expert.sum()
    silent = frame[(frame["step"] == 40) & frame["source"].isna()]
    assert silent[["tokens", "group_tokens"]].to_numpy().tolist() == [[0, 9]]


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no counts at"):
        RoutingCounts.load(tmp_path / "none.parquet")
    many_sources().save(tmp_path / "trace.parquet")
    with pytest.raises(TraceError, match="Parquet, but no routing counts"):
        RoutingCounts.load(tmp_path / "trace.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(TraceError, match="are damaged"):
        RoutingCounts.load(tmp_path / "text.parquet")


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.counts.parquet"
    small(extras={"ean_sum": [[1.0, 2.0, 3.5]]}).save(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(TraceError):
            RoutingCounts.load(path)
    for length in range(0, len(whole), 31):
        path.write_bytes(whole[:length])
        with pytest.raises(TraceError):
            RoutingCounts.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2}, {"num_experts": 10**9}, {"layers": [9]}, {"steps": []}, {"groups": [[0, "a"]]},
        {"groups": [[7, "a"], [1, "b"]]}, {"top_k": 0}, {"unit": "word"}, {"extras": {"pairs": 3}}, {"notes": None},
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_is_one_line(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "x.counts.parquet"
    small().save(path)
    table = pq.read_table(path)
    metadata = json.loads(pq.read_metadata(path).metadata[b"moescope_counts"]) | {"checksum": False} | changes
    pq.write_table(table.replace_schema_metadata({b"moescope_counts": json.dumps(metadata).encode()}), path)
    with pytest.raises(TraceError) as caught:
        RoutingCounts.load(path)
    assert "\n" not in str(caught.value)


def test_rows_that_the_metadata_does_not_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.counts.parquet"
    small().save(path)
    table = pq.read_table(path)
    metadata = json.loads(pq.read_metadata(path).metadata[b"moescope_counts"]) | {"checksum": False}
    table = table.replace_schema_metadata({b"moescope_counts": json.dumps(metadata).encode()})
    for name, values in (("expert", [9] * len(table)), ("source", ["z"] * len(table)), ("tokens", [None] * len(table))):
        place = table.column_names.index(name)
        kind = pa.string() if name == "source" else pa.int64()
        pq.write_table(table.set_column(place, name, pa.array(values, kind)), path)
        with pytest.raises(TraceError, match=r"unknown to the metadata|expected whole numbers"):
            RoutingCounts.load(path)


# Measures.


@pytest.mark.parametrize(
    "measure",
    [metrics.expert_load, metrics.load_balance, metrics.domain_nmi, metrics.domain_specialization,
     metrics.domain_divergence, baselines.domain_nmi, baselines.domain_cells],
)  # fmt: skip
@pytest.mark.parametrize("documents", [12, 40, 200])
def test_counts_by_source_measure_as_the_trace_does(measure: Callable[..., pd.DataFrame], documents: int) -> None:
    trace = many_sources(documents=documents)
    of_trace, of_counts = measure(trace), measure(trace.counts())
    pd.testing.assert_frame_equal(of_trace, of_counts, check_dtype=False)


def test_coactivation_is_made_of_pairs() -> None:
    trace = many_sources()
    pd.testing.assert_frame_equal(metrics.coactivation(trace), metrics.coactivation(trace.counts(extras=("pairs",))))
    np.testing.assert_array_equal(pair_counts(trace), trace.counts(extras=("pairs",)).extras["pairs"])
    with pytest.raises(TraceError, match="do not say which experts were chosen together"):
        metrics.coactivation(trace.counts())


@pytest.mark.parametrize(
    "measure",
    [metrics.router_entropy, metrics.persistence, baselines.coactivation, baselines.coactivation_pairs,
     baselines.layer_flow, baselines.persistence, baselines.vocabulary],
)  # fmt: skip
def test_what_takes_tokens_says_so_to_counts(measure: Callable[..., pd.DataFrame]) -> None:
    with pytest.raises(TraceError, match="counts keep no single tokens"):
        measure(many_sources().counts(extras=("weights", "pairs")))


def test_counts_that_keep_nothing_apart_cannot_tell_of_health() -> None:
    balance = metrics.load_balance(many_sources().counts("all"))
    assert set(balance["varies_by"]) == {""}
    assert health(balance).state == "too little text"
    assert health(balance).sentence.startswith(UNKNOWN_SPREAD)
    assert "interval" not in health(balance).sentence
    choices = RoutingCounts.from_arrays([[50, 0, 50]])
    assert "1 expert not seen" in routing_health(metrics.load_balance(choices))
    assert "100 choices" in routing_health(metrics.load_balance(choices))


def test_steps_stand_in_for_sources() -> None:
    """Sixty steps of an even router tell that it is healthy, of an overloaded one that it is not."""
    rng = np.random.default_rng(1)
    even = rng.multinomial(2_000, np.full(4, 0.25), size=(60, 1))
    balance = metrics.load_balance(RoutingCounts.from_arrays(even, top_k=1))
    assert set(balance["varies_by"]) == {"step"}
    assert balance["sources"].tolist() == [60]
    assert health(balance).state == "healthy"
    assert "of 60 steps" in health(balance).sentence
    uneven = rng.multinomial(2_000, [0.7, 0.3, 0, 0], size=(60, 1))
    found = health(metrics.load_balance(RoutingCounts.from_arrays(uneven, top_k=1)))
    assert (found.state, found.surely_dead) == ("not healthy", 2)


@pytest.mark.parametrize(("steps", "phi"), [(60, 0.0), (60, 0.8), (24, 0.8), (200, 0.95)])
def test_the_interval_of_steps_holds_the_true_load_though_neighbours_are_alike(steps: int, phi: float) -> None:
    """Logits that drift as AR(1) from step to step, even in the long run: 60 seeds each."""
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        drift = np.zeros((steps, 8))
        drift[0] = rng.normal(size=8)
        for step in range(1, steps):
            drift[step] = phi * drift[step - 1] + np.sqrt(1 - phi**2) * rng.normal(size=8)
        logits = 0.3 * drift[:, None] + rng.gumbel(size=(steps, 100, 8))
        chosen = np.argpartition(-logits, 2, axis=2)[..., :2].reshape(steps, -1)
        counts = np.stack([np.bincount(experts, minlength=8) for experts in chosen])
        (row,) = metrics.load_balance(RoutingCounts.from_arrays(counts[:, None], top_k=2)).itertuples()
        held += row.load_low <= 1.0 <= row.load_high
    assert held >= 54


def test_domains_without_sources_cannot_be_tested() -> None:
    counts = many_sources().counts("domain")
    test = baselines.domain_nmi(counts)
    assert set(test["verdict"]) == {"cannot be tested: the counts do not tell sources apart"}
    assert test["nmi"].tolist() == metrics.domain_nmi(many_sources())["nmi"].tolist()
    assert baselines.domain_cells(counts)["uncertain"].all()
    assert metrics.domain_specialization(counts)["uncertain"].all()


def test_the_whole_folder_of_traces_is_the_sum_of_its_files() -> None:
    parts = [many_sources(seed) for seed in range(3)]
    sources = [part.counts() for part in parts]
    together = sources[0] + sources[1] + sources[2]
    np.testing.assert_array_equal(expert_counts(together), expert_counts(concatenate(parts)))
    assert isinstance(TraceError("x"), MoescopeError)
