"""The mode per_token of SGLang's recorder: a dump that the recorder itself wrote, and files as its source has them.

The recorder of SGLang 0.5.23 was given the choices in `choice_of_fixture`; its server was not run.
The writer below follows python/sglang/srt/eplb/expert_distribution.py of sgl-project/sglang at commit
02295fe5ac5ccff3e8829800d50450351c56fb53 (_DetailSinglePassGatherer, _DetailAccumulator): 8 slots whatever the model's
k, -1 where nothing was written, physical experts. A scheduler like SGLang's makes the passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.errors import TraceError
from moe_core.routing import RoutingTrace, recordings
from moe_core.routing.opening import open_routing
from moe_core.routing.recordings import sglang_tokens

Integers = npt.NDArray[Any]
L, K, E, P = 4, 3, 10, 14
DENSE = 0
"""The layer without a router: its rows stay -1."""
EXTEND, DECODE, MIXED, IDLE, VERIFY = 1, 2, 3, 4, 5
REPLICAS = np.stack([np.random.default_rng(layer).permutation([*range(E), *range(P - E)]) for layer in range(L)])
"""[L,P] the expert of each physical one."""


class Request:
    """A text: its ids, and the experts of each token."""

    def __init__(self, number: int, prompt: int, answer: int, cached: int = 0) -> None:
        generator = np.random.default_rng(number)
        self.prompt, self.cached = prompt, cached
        self.ids = generator.integers(1, 500, prompt + answer)
        self.experts = np.argsort(generator.random((prompt + answer, L, E)), axis=2)[:, :, :K]


def physical(experts_TLK: Integers, seed: int) -> Integers:
    """Each expert as one of its replicas."""
    generator = np.random.default_rng(seed)
    found = np.empty_like(experts_TLK)
    for place in np.ndindex(experts_TLK.shape):
        found[place] = generator.choice(np.flatnonzero(REPLICAS[place[1]] == experts_TLK[place]))
    return found


def record(number: int, mode: int, spans: list[tuple[Request, int, int]], rank: int = 0, padding: int = 0) -> Any:
    """A forward pass through tokens start..end of some requests, as the recorder appends it."""
    ids = [int(x) for one, start, end in spans for x in one.ids[start:end]]
    places = [x for _, start, end in spans for x in range(start, end)]
    topk = np.full((L, len(ids) + padding, 8), -1, dtype=np.int32)
    if ids:
        experts = np.concatenate([one.experts[start:end] for one, start, end in spans])
        topk[:, : len(ids), :K] = physical(experts, number).transpose(1, 0, 2)
    topk[DENSE] = -1
    return {
        **{"forward_pass_id": number, "rank": rank, "gatherer_key": "primary"},
        **{"input_ids": ids + [0] * padding, "positions": places + [0] * padding},
        "extend_seq_lens": None if mode == DECODE else [end - start for _, start, end in spans],
        "forward_mode": mode,
        "topk_ids_of_layer": torch.from_numpy(topk),
        "misc_objects": [],
        "global_physical_count": torch.zeros(L, P, dtype=torch.int32),
    }


def saved(folder: Path, rank: int, records: list[Any], replicas: Any = REPLICAS) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"expert_distribution_recorder_1764320000.5{rank}_{rank}.pt"
    content = {"records": records, "last_physical_to_logical_map": None if replicas is None else torch.tensor(replicas)}
    torch.save(content, path)
    return path


def served(requests: list[Request], chunk: int, rank: int = 0) -> Iterator[Any]:
    """Passes of a server that reads at most `chunk` tokens of prompts at a time, and decodes all others in turn."""
    waiting, running = list(requests), []
    cut: tuple[Request, int] | None = None
    number = 0
    while waiting or running or cut:
        if waiting or cut:
            spans, left = [], chunk
            while left and (cut or waiting):
                one, start = cut or (waiting[0], waiting.pop(0).cached)
                cut = None
                end = min(one.prompt, start + left)
                spans.append((one, start, end))
                left -= end - start
                if end < one.prompt:
                    cut = (one, end)
            yield record(number, EXTEND, spans, rank)
            running += [[one, end] for one, _, end in spans if end == one.prompt]
        running = [one for one in running if one[1] < len(one[0].ids)]
        if running:
            number += 1
            yield record(number, DECODE, [(one, place, place + 1) for one, place in running], rank)
            for one in running:
                one[1] += 1
        running = [one for one in running if one[1] < len(one[0].ids)]
        number += 1


def check_texts(trace: RoutingTrace, requests: list[Request]) -> None:
    """Every request's tokens, in order, as one text, with the experts by their own numbers."""
    for document, one in enumerate(requests):
        here = trace.document_ids == document
        assert trace.token_ids[here].tolist() == one.ids[one.cached :].tolist()
        assert trace.positions[here].tolist() == list(range(one.cached, len(one.ids)))
        assert np.array_equal(trace.router_indices[:, here].transpose(1, 0, 2), one.experts[one.cached :, DENSE + 1 :])


def test_passes_become_the_texts_that_were_served(tmp_path: Path) -> None:
    requests = [Request(0, 5, 9), Request(1, 14, 6), Request(2, 4, 5, cached=1), Request(3, 20, 2), Request(4, 4, 7)]
    trace = recordings.read(saved(tmp_path, 0, list(served(requests, chunk=8))))
    check_texts(trace, requests)
    assert (trace.layers, trace.top_k, trace.num_experts) == ([1, 2, 3], K, E)
    assert np.all(np.diff(trace.document_ids) >= 0)
    assert "replicas were told by where they lay when the recording ended" in trace.source
    assert "begins anew" not in trace.source


def test_numbers_of_a_pass_may_be_tensors(tmp_path: Path) -> None:
    requests = [Request(0, 5, 9), Request(1, 14, 6)]
    records = list(served(requests, 8))
    for one in records:
        one |= {key: torch.tensor(one[key]) for key in ("input_ids", "positions", "extend_seq_lens") if one[key]}
    check_texts(recordings.read(saved(tmp_path, 0, records)), requests)


def test_files_larger_than_memory_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang_tokens, "CHUNK_BYTES", 1)
    monkeypatch.setattr(sglang_tokens, "PIECE_TOKENS", 7)
    requests = [Request(number, 4 + number, 5) for number in range(6)]
    path = saved(tmp_path, 0, list(served(requests, chunk=64)))
    found = recordings.convert(path, tmp_path / "t.parquet")
    check_texts(RoutingTrace.load(tmp_path / "t.parquet"), requests)
    assert (found.format, found.documents, found.token_ids) == ("sglang-tokens", 6, True)


def test_ranks_lie_side_by_side_and_count_every_token_once(tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    by_rank = {0: [Request(0, 5, 4), Request(1, 6, 3)], 1: [Request(2, 5, 4)]}
    for rank in (0, 1, 2):  # rank 2 is of the same group as rank 1
        saved(folder, rank, list(served(by_rank[min(rank, 1)], 8, rank)))
    for path in (folder, folder / "expert_distribution_recorder_*.pt"):
        trace = recordings.read(path)
        check_texts(trace, [*by_rank[0], *by_rank[1]])
        assert trace.num_tokens == 27
        assert "tokens that several ranks recorded are counted once" in trace.source
    opened = open_routing(folder)
    assert opened.format == "sglang-tokens"
    assert opened.routing.num_tokens == 27


def test_stages_of_a_pipeline_make_the_layers_together(tmp_path: Path) -> None:
    requests = [Request(0, 5, 4), Request(1, 6, 3)]
    for rank, layers in enumerate(([0, 1], [2, 3])):
        passes = list(served(requests, 8, rank))
        for one in passes:
            one["topk_ids_of_layer"][[layer for layer in range(L) if layer not in layers]] = -1
        saved(tmp_path, rank, passes)
    check_texts(recordings.read(tmp_path), requests)


def test_without_replicas_the_ids_are_the_experts(tmp_path: Path) -> None:
    requests = [Request(0, 5, 4)]
    passes = list(served(requests, 8))
    for one in passes:
        topk = one["topk_ids_of_layer"].numpy()
        own = np.take_along_axis(REPLICAS[:, :, None], np.maximum(topk, 0).reshape(L, -1, 1), axis=1)
        topk[topk >= 0] = own.reshape(topk.shape)[topk >= 0]
    check_texts(recordings.read(saved(tmp_path, 0, passes, np.tile(np.arange(E), (L, 1)))), requests)
    trace = recordings.read(saved(tmp_path, 0, passes, None), num_experts=E)
    check_texts(trace, requests)
    assert "replicas" not in trace.source


def test_mixed_idle_padded_and_speculative_passes(tmp_path: Path) -> None:
    first, second = Request(0, 4, 5), Request(1, 6, 3)
    passes = [
        record(0, EXTEND, [(first, 0, 4)]),
        record(1, IDLE, []),
        record(2, DECODE, [(first, 4, 5)], padding=3),
        record(3, MIXED, [(second, 0, 6), (first, 5, 6)]),
        record(4, VERIFY, [(second, 6, 8)]),
        record(5, DECODE, [(second, 6, 7), (first, 6, 7)]),
        record(6, EXTEND, [], padding=2),
    ]
    trace = recordings.read(saved(tmp_path, 0, passes))
    here = trace.document_ids == 0
    assert trace.token_ids[here].tolist() == first.ids[:7].tolist()
    assert trace.token_ids[~here].tolist() == second.ids[:7].tolist()
    assert "drafts" in trace.source


def test_what_positions_do_not_tell_begins_a_text_and_is_said(tmp_path: Path) -> None:
    first, second = Request(0, 4, 5), Request(1, 4, 5)
    passes = [record(0, EXTEND, [(first, 0, 4), (second, 0, 4)]), record(1, DECODE, [(second, 4, 5)])]
    trace = recordings.read(saved(tmp_path, 0, passes))
    assert trace.document_ids.tolist() == [0] * 4 + [1] * 4 + [2]
    assert trace.positions[-1] == 4
    assert "a text begins anew at 1 token," in trace.source


def spoilt(change: Any) -> list[Any]:
    passes = list(served([Request(0, 5, 4)], 8))
    change(passes, passes[1])
    return passes


def set_topk(one: Any, place: Any, value: int) -> None:
    one["topk_ids_of_layer"][place] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, _: p.__setitem__(1, [1]), r"record 1 is list; expected a pass with its fields"),
        (lambda _, one: one.update(input_ids=5), r"record 1: input_ids is object \[\]; expected a list of whole"),
        (lambda _, one: one.update(input_ids=[1.5]), r"record 1: input_ids is float64 \[1\]; expected a list of whole"),
        (lambda _, one: one.update(positions=[1, 2]), r"record 1: 1 input_ids, 2 positions and topk_ids.* 1 tokens"),
        (lambda _, one: one.update(positions=[-3]), r"record 1: positions hold -3; expected places"),
        (lambda _, one: one.update(forward_mode="x"), r"record 1: forward_mode is str; expected its number"),
        (lambda _, one: one.pop("topk_ids_of_layer"), r"record 1: topk_ids_of_layer is no tensor \[layers, tokens"),
        (
            lambda _, one: one.update(topk_ids_of_layer=torch.zeros(L, 1, 8)),
            r"record 1: topk_ids_of_layer is of type Float; expected whole numbers",
        ),
        (
            lambda _, one: one.update(topk_ids_of_layer=torch.zeros(L + 1, 1, 8, dtype=torch.int32)),
            r"record 1: topk_ids_of_layer is \[5, 1, 8\]; expected layers and slots as in record 0, \[4, 5, 8\]",
        ),
        (lambda p, _: p[0].update(extend_seq_lens=[9]), r"record 0: extend_seq_lens add up to 9 of 5 tokens"),
        (lambda p, _: p[0].update(extend_seq_lens=None), r"record 0: extend_seq_lens is object \[\]"),
        (lambda _, one: set_topk(one, (2, 0, 1), P), r"record 1, token 0, layer 2, slot 1: 14; expected a physical"),
        (lambda _, one: set_topk(one, (2, 0, 1), -2), r"record 1, token 0, layer 2, slot 1: -2; expected a physical"),
        (lambda _, one: set_topk(one, (2, 0, 6), 1), r"record 1, token 0, layer 2: an expert in slot 6; expected 3"),
        (
            lambda _, one: set_topk(one, (2, 0, slice(0, K)), int(one["topk_ids_of_layer"][2, 0, 0])),
            r"record 1, token 0, layer 2, slot 1: expert \d a second time",
        ),
    ],
)
def test_what_is_wrong_is_named_by_file_and_record(change: Any, message: str, tmp_path: Path) -> None:
    path = saved(tmp_path, 0, spoilt(change))
    with pytest.raises(TraceError, match=message) as error:
        recordings.read(path)
    assert "expert_distribution_recorder" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("replicas", "message"),
    [
        (REPLICAS[:2], r"last_physical_to_logical_map is int64 \[2, 14\]; expected an expert for each of 4 layers"),
        (REPLICAS - 1, r"last_physical_to_logical_map is int64 \[4, 14\]; expected an expert"),
        (REPLICAS * 1.0, r"last_physical_to_logical_map is float64"),
        (REPLICAS[:, :0], r"last_physical_to_logical_map is int64 \[4, 0\]"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(replicas: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=message):
        recordings.read(saved(tmp_path, 0, list(served([Request(0, 5, 4)], 8)), replicas))


def test_a_dump_without_passes_and_one_of_another_mode_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="has no pass with routed tokens"):
        recordings.read(saved(tmp_path, 0, []))
    per_pass = [{"forward_pass_id": 0, "rank": 0, "gatherer_key": "primary", "global_physical_count": torch.ones(L, P)}]
    with pytest.raises(TraceError, match="but of none of the known recordings"):
        recordings.read(saved(tmp_path, 0, per_pass))
    with pytest.raises(TraceError, match="has the token ids itself"):
        recordings.read(saved(tmp_path, 0, []), format="sglang-tokens", token_ids=tmp_path)


def choice_of_fixture(request: int, position: int, layer: int, slot: int) -> int:
    """The expert that the recorder was told, as the replica 8 of 0 or 9 of 3 at odd positions."""
    return (3 * request + 2 * position + 5 * slot + layer) % 8


def test_a_dump_of_the_recorder_itself_comes_out_to_the_last_choice() -> None:
    trace = recordings.read(Path(__file__).parent / "fixtures" / "recordings" / "sglang-0.5.23-per-token")
    assert (trace.layers, trace.top_k, trace.num_experts) == ([1, 2, 3], 2, 8)
    assert trace.token_ids.tolist() == [100, 101, 102, 103, 104, 200, 201, 202, 203, 204]
    assert trace.document_ids.tolist() == [0] * 5 + [1] * 5  # the second prompt was read in two passes
    assert trace.positions.tolist() == [*range(5), *range(5)]
    for t, token_id in enumerate(trace.token_ids.tolist()):
        told = [
            [choice_of_fixture(token_id // 100, token_id % 100, layer, slot) for slot in (0, 1)] for layer in (1, 2, 3)
        ]
        assert trace.router_indices[:, t].tolist() == told


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return saved(
        tmp_path_factory.mktemp("example"), 0, list(served([Request(0, 3, 3), Request(1, 2, 2)], 8))
    ).read_bytes()


@settings(max_examples=100, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans())
def test_damage_anywhere_is_one_line(
    at: float, value: int, cut: bool, example: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = int(at * len(example))
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(example[:place] if cut else example[:place] + bytes([value]) + example[place + 1 :])
    try:
        recordings.read(path, format="sglang-tokens")
    except TraceError as error:  # a changed id or position may well be read
        message = str(error)
    else:
        return
    assert "\n" not in message
    assert "damaged.pt" in message
