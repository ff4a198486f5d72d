"""RoutingTrace: refuses what is inconsistent, survives the disk unchanged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_support import random_experts

from moe_core.errors import TraceError
from moe_core.routing import RoutingTrace, StoredTrace, concatenate
from moe_core.routing.measures.load import load_balance
from moe_core.routing.trace import trace as trace_file
from moe_core.routing.trace.trace import open_or_load

LAYERED = ("router_indices", "router_scores", "router_logits")
ARRAYS = (*LAYERED, "token_ids", "document_ids", "source_ids", "positions", "domain_ids", "predicted_ids")


def small(**changes: Any) -> RoutingTrace:
    """Two layers, three tokens, two slots, four experts."""
    arguments: dict[str, Any] = {
        "router_indices": [[[0, 1], [2, -1], [3, 0]], [[1, 0], [1, 2], [-1, -1]]],
        "router_scores": [[[0.7, 0.3], [1.0, 0.0], [0.6, 0.4]], [[0.9, 0.1], [0.5, 0.5], [0.0, 0.0]]],
        "router_logits": np.arange(24).reshape(2, 3, 4) / 8,
        "num_experts": 4,
        "token_ids": [5, 6, 5],
        "document_ids": [0, 0, 1],
        "source_ids": [7, 7, 9],
        "predicted_ids": [6, 5, 8],
        "domain_ids": [0, 0, 1],
        "domains": ["legal", "code"],
        "layers": [1, 3],
        "vocabulary": {5: "the", 6: " <img onerror=x>\n"},
        "source": "a test",
    }
    return RoutingTrace.from_arrays(**(arguments | changes))


def assert_same(a: RoutingTrace, b: RoutingTrace) -> None:
    for name in ARRAYS:
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            assert x.dtype == y.dtype
            assert np.array_equal(x, y), name
    for name in (
        "domains",
        "layers",
        "num_experts",
        "top_k",
        "score_function",
        "varying_experts",
        "source",
        "vocabulary",
    ):
        assert getattr(a, name) == getattr(b, name), name


def test_fields_have_the_documented_types() -> None:
    trace = small()
    kinds = [getattr(trace, name).dtype for name in ARRAYS]
    assert kinds == [np.int16, np.float32, np.float16, np.int32, np.int32, np.int32, np.int32, np.int16, np.int32]
    assert (trace.num_layers, trace.num_tokens, trace.top_k, trace.num_experts) == (2, 3, 2, 4)
    assert trace.positions.tolist() == [0, 1, 0]
    assert trace.layer_position(3) == 1
    assert trace.token_text(1) == " <img onerror=x>\n"
    assert small(vocabulary=None).token_text(1) == "#6"
    with pytest.raises(TraceError, match=r"layer 0 is not in this trace; expected one of \[1, 3\]"):
        trace.layer_position(0)


def test_a_trace_cannot_be_changed() -> None:
    mine = np.array([5, 6, 5], dtype=np.int32)
    trace = small(token_ids=mine)
    with pytest.raises(ValueError, match="read-only"):
        trace.router_indices[0, 0, 0] = 1
    with pytest.raises(AttributeError):
        trace.num_experts = 5  # type: ignore[misc]
    assert mine.flags.writeable


def test_least_input_is_enough() -> None:
    trace = RoutingTrace.from_arrays(
        router_indices=[[0], [1]], router_scores=[[1.0], [1.0]], num_experts=2, token_ids=[7, 8]
    )
    assert (trace.layers, trace.domains) == ([0], ["all"])
    assert trace.document_ids.tolist() == trace.source_ids.tolist() == trace.positions.tolist() == [0, 1]
    assert trace.predicted_ids is None
    assert small(source_ids=None).source_ids.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router_indices": [[[0, 4], [2, -1], [3, 0]]] * 2}, r"router_indices holds 4; expected -1 to 3"),
        ({"router_indices": [[[0, -2], [2, -1], [3, 0]]] * 2}, r"router_indices holds -2"),
        ({"router_indices": [[[0, 65537], [2, -1], [3, 0]]] * 2}, r"reaches from -1 to 65537"),
        ({"router_indices": [[[0.0, 1.0]]]}, r"float64 \[1, 1, 2\]; expected whole numbers"),
        ({"router_indices": [0, 1]}, r"expected int16 \[L,T,K\]"),
        ({"router_indices": np.zeros((2, 0, 2), int)}, r"nothing was routed"),
        (
            {"router_scores": [[[0.7, 0.3], [1.0, 0.1], [0.6, 0.4]]] * 2},
            r"index -1 \(unused\) has a score other than 0",
        ),
        ({"router_scores": [[[0.7, np.nan], [1.0, 0.0], [0.6, 0.4]]] * 2}, r"router_scores holds NaN"),
        ({"router_scores": np.zeros((2, 3, 1))}, r"shape \[2, 3, 1\]; expected \[2, 3, 2\] = \[L,T,K\]"),
        ({"router_scores": [["a", "b"]]}, r"expected real numbers"),
        ({"router_logits": np.zeros((2, 3, 3))}, r"expected \[2, 3, 4\] = \[L,T,E\]"),
        ({"router_logits": np.full((2, 3, 4), np.inf)}, r"router_logits holds NaN or \+infinity"),
        ({"num_experts": 1}, r"num_experts is 1 with 2 slots"),
        ({"num_experts": 40_000}, r"expected 2 to 32767 experts"),
        ({"num_experts": 32_767, "router_logits": None}, r"16\.0 GiB of counts; expected 4096 experts at most"),
        ({"router_indices": [[[0, 1], [2, 2], [3, 0]]] * 2}, r"token 1, layer number 0 of the trace: expert 2 twice"),
        ({"token_ids": [1, 2]}, r"token_ids has shape \[2\]; expected \[3\]"),
        ({"token_ids": [1, 2, -3]}, r"token_ids holds -3"),
        ({"positions": [0, 1, -1]}, r"positions holds -1"),
        ({"document_ids": [0, 1]}, r"document_ids has shape \[2\]"),
        ({"source_ids": [0, 1]}, r"source_ids has shape \[2\]"),
        ({"predicted_ids": [0, 1, -1]}, r"predicted_ids holds -1"),
        ({"predicted_ids": [0, 1, 0.5]}, r"predicted_ids is float64 \[3\]; expected whole numbers"),
        ({"domain_ids": [0, 1, 2]}, r"domain_ids holds 2; expected 0 to 1"),
        ({"domain_ids": None}, r"2 domains but no domain_ids"),
        ({"domains": ["a", "a"]}, r"each once"),
        ({"domains": []}, r"expected at least one name"),
        ({"layers": [3, 1]}, r"expected 2 ascending layer numbers"),
        ({"layers": [1]}, r"expected 2 ascending layer numbers"),
        ({"score_function": "relu"}, r"'relu'; expected one of softmax, sigmoid"),
    ],
)
def test_inconsistent_input_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        small(**changes)
    assert "\n" not in str(caught.value)


def test_the_constructor_wants_exact_types() -> None:
    fields = {name: getattr(small(), name) for name in small().__dataclass_fields__}
    with pytest.raises(TraceError, match=r"token_ids is int64 \[3\]; expected int32 \[T\]"):
        RoutingTrace(**(fields | {"token_ids": np.arange(3)}))
    with pytest.raises(TraceError, match="router_indices is list"):
        RoutingTrace(**(fields | {"router_indices": [[[0]]]}))


def test_select_and_concatenate() -> None:
    trace = small()
    first, rest = trace.select(np.array([True, False, False])), trace.select(np.array([False, True, True]))
    assert rest.token_ids.tolist() == [6, 5]
    assert rest.router_indices[0].tolist() == [[2, -1], [3, 0]]
    assert_same(concatenate([first, rest]), trace)
    with pytest.raises(TraceError, match="mask is int64"):
        trace.select([0, 1, 0])
    with pytest.raises(TraceError, match="nothing was routed"):
        trace.select(np.zeros(3, bool))


def test_concatenate_matches_domains_by_name_and_refuses_other_models() -> None:
    joined = concatenate([small(), small(domains=["code", "prose"], source="b")])
    assert joined.domains == ["legal", "code", "prose"]
    assert joined.domain_ids.tolist() == [0, 0, 1, 1, 1, 2]
    assert joined.source == "a test, b"
    with pytest.raises(TraceError, match="trace 1 has num_experts = 5, the first 4"):
        concatenate([small(), small(num_experts=5, router_logits=np.zeros((2, 3, 5)))])
    with pytest.raises(TraceError, match="trace 1 has layers"):
        concatenate([small(), small(layers=[0, 1])])
    with pytest.raises(TraceError, match="same keep_logits"):
        concatenate([small(), small(router_logits=None)])
    with pytest.raises(TraceError, match="predicted_ids and some have not"):
        concatenate([small(), small(predicted_ids=None)])
    with pytest.raises(TraceError, match="one tokenizer"):
        concatenate([small(), small(vocabulary={5: "other"})])
    with pytest.raises(TraceError, match="no traces"):
        concatenate([])


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_disk_round_trip_is_exact(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    L, T, K = (data.draw(st.integers(1, most)) for most in (3, 6, 3))
    E = data.draw(st.integers(K, 300))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    indices = np.where(rng.random((L, T, K)) < 0.2, -1, random_experts(rng, (L, T), K, E))
    indices[0, 0] = range(K)  # at least one token is routed
    trace = RoutingTrace.from_arrays(
        router_indices=indices,
        router_scores=np.where(indices < 0, 0, rng.random((L, T, K))),
        router_logits=rng.normal(size=(L, T, E)) if data.draw(st.booleans()) else None,
        num_experts=E,
        token_ids=rng.integers(0, 9, T),
        document_ids=rng.integers(0, 3, T),
        source_ids=rng.integers(0, 3, T) if data.draw(st.booleans()) else None,
        predicted_ids=rng.integers(0, 9, T) if data.draw(st.booleans()) else None,
        domain_ids=rng.integers(0, 2, T),
        domains=data.draw(st.lists(st.text(min_size=1), min_size=2, max_size=2, unique=True)),
        layers=sorted(rng.choice(64, L, replace=False).tolist()),
        score_function=data.draw(st.sampled_from(["softmax", "sigmoid"])),
        varying_experts=data.draw(st.booleans()),
    )
    path = tmp_path_factory.mktemp("trace") / "t.parquet"
    trace.save(path)
    assert_same(RoutingTrace.load(path), trace)


def test_the_file_is_plain_parquet_for_others(tmp_path: Path) -> None:
    small(vocabulary={5: "the", 6: "a", 8: "guessed", 99: "never"}).save(tmp_path / "new folder" / "x.parquet")
    frame = pd.read_parquet(tmp_path / "new folder" / "x.parquet")
    assert frame["token_id"].tolist() == [5, 6, 5]
    assert frame["layer_1_expert_0"].tolist() == [0, 2, 3]
    assert frame["layer_3_score_1"].tolist() == [np.float32(x) for x in (0.1, 0.5, 0.0)]
    assert frame["layer_3_logits"][0].tolist() == [1.5, 1.625, 1.75, 1.875]
    metadata = json.loads(pq.read_schema(tmp_path / "new folder" / "x.parquet").metadata[b"moescope"])
    assert metadata["vocabulary"] == {"5": "the", "6": "a", "8": "guessed"}
    assert frame["source_id"].tolist() == [7, 7, 9]
    assert frame["predicted_id"].tolist() == [6, 5, 8]
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["x.parquet"]


def test_a_trace_is_in_memory_where_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    small().save(path)
    assert isinstance(trace_file.open_or_load(path), RoutingTrace)
    monkeypatch.setattr(trace_file, "MAX_IN_MEMORY_BYTES", 10)
    assert isinstance(trace_file.open_or_load(path), StoredTrace)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    small().save(path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("moe_core.files.os.fsync", full)
    with pytest.raises(TraceError, match=r"cannot write trace .*No space left on device"):
        small(source="new").save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.parquet"]


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"no trace at '.*nowhere\.parquet'"):
        RoutingTrace.load(tmp_path / "nowhere.parquet")
    with pytest.raises(TraceError, match="no trace at"):
        RoutingTrace.load(tmp_path)


def test_every_damaged_byte_and_length_is_caught_or_harmless(tmp_path: Path) -> None:
    trace = small()
    trace.save(tmp_path / "good.parquet")
    good, bad = (tmp_path / "good.parquet").read_bytes(), tmp_path / "bad.parquet"
    for length in range(0, len(good), 97):
        bad.write_bytes(good[:length])
        with pytest.raises(TraceError, match=r"bad\.parquet") as caught:
            RoutingTrace.load(bad)
        assert "\n" not in str(caught.value)
    messages = []
    for place in range(0, len(good), 61):
        bad.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        try:
            RoutingTrace.load(bad)
        except TraceError as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)


def test_a_flipped_data_byte_is_caught_by_its_checksum(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    indices = random_experts(rng, (1, 5000), 2, 4)
    trace = RoutingTrace.from_arrays(
        router_indices=indices, router_scores=rng.random(indices.shape), num_experts=4, token_ids=np.arange(5000)
    )
    path = tmp_path / "x.parquet"
    trace.save(path)
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(0).column(5).data_page_offset
    content[start + 500] ^= 1
    path.write_bytes(content)
    with pytest.raises(TraceError, match="damaged"):
        RoutingTrace.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: None, "no routing trace"),
        (lambda _: "not json", "damaged"),
        (lambda _: json.dumps([1]), "damaged"),
        (lambda meta: json.dumps(meta | {"format": 9}), "format 9 is unknown"),
        (lambda meta: json.dumps(meta | {"layers": [1, 2]}), "column 'layer_2_logits' is missing"),
        (lambda meta: json.dumps(meta | {"top_k": 3}), "column 'layer_1_expert_2' is missing"),
        (lambda meta: json.dumps(meta | {"num_experts": 3}), "expected"),
        (lambda meta: json.dumps({k: v for k, v in meta.items() if k != "domains"}), "has no key 'domains'"),
        (lambda meta: json.dumps(meta | {"vocabulary": {"x": "y"}}), "'vocabulary.x.* is 'x': input should be"),
        (lambda meta: json.dumps(meta | {"num_experts": "4"}), "'num_experts' is '4': input should be a valid integer"),
        (
            lambda meta: json.dumps(meta | {"num_experts": None}),
            "'num_experts' is None: input should be a valid integer",
        ),
        (lambda meta: json.dumps(meta | {"num_experts": [4]}), r"'num_experts' is \[4\]: input should be"),
        (lambda meta: json.dumps(meta | {"num_experts": 4.0}), "'num_experts' is 4.0: input should be"),
        (lambda meta: json.dumps(meta | {"num_experts": True}), "'num_experts' is True: input should be"),
        (lambda meta: json.dumps(meta | {"num_experts": 10**30}), "'num_experts' is 10{30}: input should be"),
        (lambda meta: json.dumps(meta | {"num_experts": 32_767}), "16.0 GiB of counts; expected 4096 experts at most"),
        (lambda meta: json.dumps(meta | {"top_k": 10**9}), "'top_k' is 1000000000: input should be less than"),
        (lambda meta: json.dumps(meta | {"top_k": 5}), "num_experts is 4 with 5 slots"),
        (lambda meta: json.dumps(meta | {"layers": list(range(10**5))}), "column 'layer_0_logits' is missing"),
        (lambda meta: json.dumps(meta | {"layers": [-1, 1]}), "'layers.0' is -1: input should be"),
        (lambda meta: json.dumps(meta | {"layers": [4, 1]}), "expected ascending layer numbers"),
        (lambda meta: json.dumps(meta | {"layers": []}), "'layers' is .*at least 1 item"),
        (lambda meta: json.dumps(meta | {"domains": "ab"}), "'domains' is 'ab': input should be a valid array"),
        (lambda meta: json.dumps(meta | {"domains": ["a", "a"]}), "expected each name once"),
        (lambda meta: json.dumps(meta | {"domains": [1, 2]}), "'domains.0' is 1: input should be a valid string"),
        (lambda meta: json.dumps(meta | {"score_function": 5}), "'score_function' is 5: input should be 'softmax'"),
        (lambda meta: json.dumps(meta | {"router_logits": "yes"}), "'router_logits' is 'yes': input should be"),
        (lambda meta: json.dumps(meta | {"varying_experts": 1}), "'varying_experts' is 1: input should be"),
        (lambda meta: json.dumps(meta | {"source": None}), "'source' is None: input should be a valid string"),
        (lambda meta: json.dumps(meta | {"vocabulary": []}), r"'vocabulary' is \[\]: input should be an object"),
        (lambda meta: json.dumps(meta | {"format": "1"}), "'format' is '1': input should be a valid integer"),
        (lambda _: "[" * 200_000, "damaged"),
        (lambda meta: json.dumps(meta)[:-1] + ', "more": ' + "[" * 200_000 + "]" * 200_000 + "}", "damaged"),
        (lambda _: "null", "damaged"),
        (lambda _: "{}", "has no key 'format'"),
    ],
)
def test_alien_metadata_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "x.parquet"
    small().save(path)
    table = pq.read_table(path)
    metadata = change(json.loads(table.schema.metadata[b"moescope"]))
    pq.write_table(table.replace_schema_metadata({b"moescope": metadata.encode()} if metadata else None), path)
    with pytest.raises(TraceError, match=message) as caught:
        RoutingTrace.load(path)
    assert "\n" not in str(caught.value)


META_KEYS = ("format", "num_experts", "top_k", "layers", "domains", "score_function", "varying_experts", "source",
             "router_logits", "vocabulary")  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(META_KEYS), json_values, min_size=1, max_size=3))
def test_any_metadata_is_a_trace_or_one_line(changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("trace") / "x.parquet"
    small().save(path)
    table = pq.read_table(path)
    metadata = json.dumps(json.loads(table.schema.metadata[b"moescope"]) | changes)
    pq.write_table(table.replace_schema_metadata({b"moescope": metadata.encode()}), path)
    try:
        load_balance(RoutingTrace.load(path))
        load_balance(RoutingTrace.open(path))
    except TraceError as error:
        message = str(error)
    else:
        return
    assert "\n" not in message
    assert len(message) < 500


def test_a_trace_without_any_expert_is_refused_in_memory_and_on_disk(tmp_path: Path) -> None:
    unused = RoutingTrace.from_arrays(
        router_indices=np.full((2, 3, 2), -1), router_scores=np.zeros((2, 3, 2)), num_experts=4, token_ids=[1, 2, 3]
    )
    unused.save(tmp_path / "x.parquet")
    for read in (RoutingTrace.load, RoutingTrace.open, open_or_load):
        with pytest.raises(TraceError, match=r"x\.parquet.*no token has an expert"):
            read(tmp_path / "x.parquet")


@pytest.mark.parametrize("name", ["token_id", "layer_1_expert_0"])
def test_a_column_that_is_there_twice_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    small().save(path)
    table = pq.read_table(path)
    pq.write_table(table.append_column(name, table.column(name)), path)
    with pytest.raises(TraceError, match=rf"column '{name}' is there twice"):
        RoutingTrace.load(path)


TOO_MUCH = """
import resource, sys
import pyarrow.parquet
from moe_core.routing.trace.trace import open_or_load
from moe_core.errors import TraceError
resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
for path in sys.argv[1:]:
    try:
        open_or_load(path)
        print("no fault")
    except TraceError as error:
        print(error)
"""


def test_metadata_that_asks_for_memory_is_refused_before_it_is_taken(tmp_path: Path) -> None:
    small(router_logits=None).save(tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    good = json.loads(table.schema.metadata[b"moescope"])
    paths = []
    for changes in (
        {"top_k": 10**9, "num_experts": 2 * 10**9},
        {"top_k": 30_000, "num_experts": 32_767, "layers": [1]},
        {"num_experts": 32_767},
        {"layers": list(range(300_000))},
    ):
        path = tmp_path / f"{len(paths)}.parquet"
        pq.write_table(table.replace_schema_metadata({b"moescope": json.dumps(good | changes).encode()}), path)
        paths.append(str(path))
    done = subprocess.run([sys.executable, "-c", TOO_MUCH, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("trace ") for line in lines), lines


def test_a_file_without_sources_takes_each_document_as_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    small().save(path)
    pq.write_table(pq.read_table(path).drop_columns(["source_id", "predicted_id"]), path)
    assert_same(
        RoutingTrace.load(path),
        small(source_ids=None, predicted_ids=None, vocabulary={5: "the", 6: " <img onerror=x>\n"}),
    )


@pytest.mark.parametrize("values", [["a", "b", "c"], [1, None, 2], [0.5, 1.5, 2.5]])
def test_alien_columns_are_refused(tmp_path: Path, values: list[Any]) -> None:
    path = tmp_path / "x.parquet"
    small().save(path)
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "token_id", pa.array(values)), path)
    with pytest.raises(TraceError, match=r"x\.parquet.*token_id"):
        RoutingTrace.load(path)
