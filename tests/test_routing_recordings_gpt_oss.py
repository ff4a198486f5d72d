"""The JSON of gpt-oss expert fingerprints: a real file, texts of the published table, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docs.published_routing.analyse import read_trace
from moe_core.errors import TraceError
from moe_core.routing import RoutingTrace, recordings
from moe_core.routing.recordings import gpt_oss

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
REAL, TABLE = DATA / "gpt_oss_example.json", DATA / "gpt_oss_20b_routing.parquet"


def text_of(texts: list[str], start: int = 2, layers: int = 3, k: int = 2, experts: int = 6, seed: int = 0) -> Any:
    """A text in the structure of the dataset; its first `start` tokens, the prompt, are without routing."""
    generator = np.random.default_rng(seed)

    def cell() -> Any:
        shares = generator.dirichlet(np.ones(k)).astype(np.float16)
        return {
            "selected_experts": generator.permutation(experts)[:k].tolist(),
            "selected_probs": sorted(map(float, shares), reverse=True),
        }

    return {
        "row_index": 7,
        "dataset": "mmlu_test",
        "category": "law",
        "full_text": texts,
        "generated_only": texts[start:],
        "router_data": [
            {f"token_{t}": {f"layer_{layer}": cell() for layer in range(layers)}} for t in range(start, len(texts) - 1)
        ],
    }


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return path


def texts_of(trace: RoutingTrace) -> list[str]:
    return [trace.token_text(t) for t in range(trace.num_tokens)]


WORDS = ["<|start|>", "Say", "<|message|>", " it", " is", ' "so"', ", is", " it", "<|return|>"]


def test_a_text_shows_its_tokens_without_a_tokenizer(tmp_path: Path) -> None:
    text = text_of(WORDS)
    trace = recordings.read(written(tmp_path / "x.json", text), num_experts=8)
    assert texts_of(trace) == WORDS[2:-1]
    assert trace.positions.tolist() == [2, 3, 4, 5, 6, 7]
    assert (trace.layers, trace.top_k, trace.num_experts, trace.domains) == ([0, 1, 2], 2, 8, ["law"])
    for t, entry in enumerate(text["router_data"]):
        for layer, cell in enumerate(entry[f"token_{t + 2}"].values()):
            assert trace.router_indices[layer, t].tolist() == cell["selected_experts"]
            assert trace.router_scores[layer, t].tolist() == cell["selected_probs"]
    assert "its prompt, have no routing" in trace.source


def test_texts_come_as_lines_as_a_list_and_as_a_folder_of_files(tmp_path: Path) -> None:
    texts = [text_of(WORDS, seed=seed) | {"category": name} for seed, name in enumerate(("law", "math", "law"))]
    folder = tmp_path / "files"
    folder.mkdir()
    for number, text in enumerate(texts):
        written(folder / f"{number + 8}.json", text)  # 10 comes after 9
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, texts)))
    found = [recordings.read(written(tmp_path / "x.json", texts)), recordings.read(tmp_path / "x.jsonl")]
    found += [recordings.read(folder), recordings.read(folder / "*.json")]
    for trace in found:
        assert trace.domains == ["law", "math"]
        assert trace.document_ids.tolist() == [0] * 6 + [1] * 6 + [2] * 6
        assert trace.domain_ids.tolist() == [0] * 6 + [1] * 6 + [0] * 6
        assert np.array_equal(trace.router_indices, found[0].router_indices)


def test_a_text_that_speaks_of_the_format_is_no_recording_of_it(tmp_path: Path) -> None:
    answer = {"routed_experts": [[[0, 1]], [[1, 2]]], "text": 'say "router_data": [1]'}
    assert recordings.read(written(tmp_path / "x.json", answer)).num_tokens == 2


def spoilt(change: Any) -> Any:
    text = text_of(WORDS)
    change(text, text["router_data"])
    return text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text, _: text.update(router_data={}), "router_data is dict; expected a list, an entry a token"),
        (lambda text, _: text.update(router_data=[]), "router_data is empty"),
        (lambda text, _: text.update(full_text="Say it"), "full_text is str; expected the list of the tokens' texts"),
        (lambda text, _: text.update(full_text=WORDS[:5]), r"token_7 of a text with 5 tokens; expected fewer"),
        (lambda _, data: data.insert(2, [1]), "router_data 2 is list; expected an object token_"),
        (lambda _, data: data.insert(2, data[0]), r"router_data 2: 'token_2'; expected token_4 or a later one"),
        (lambda _, data: data[1].update(x={}), r"router_data 1: 'x'; expected token_4 or a later one"),
        (lambda _, data: data[1].update(token_3=1), r"token_3 is int; expected an object with its layers"),
        (lambda _, data: data[1]["token_3"].pop("layer_1"), r"token_3 has 2 layers; expected layer_0 to layer_2"),
        (lambda _, data: data[0]["token_2"].update(head={}), r"layers are 'layer_0', .*; expected layer_0, layer_1, "),
        (lambda _, data: data[1]["token_3"].update(layer_1=1), r"token_3, layer_1: selected_experts is no list"),
        (lambda _, data: data[1]["token_3"]["layer_1"].update(selected_experts=[1, 2.0]), r"token_3, layer_1: selec"),
        (lambda _, data: data[1]["token_3"]["layer_1"].update(selected_probs=[1, "a"]), r"selected_probs is no list"),
        (lambda _, data: data[1]["token_3"]["layer_1"].update(selected_probs=[1]), r"2 experts with 1 weights"),
        (lambda _, data: data[1]["token_3"]["layer_1"].update(selected_probs=[1, 10**400]), r"selected_probs is no"),
        (lambda _, data: data[1]["token_3"]["layer_1"].update(selected_probs=[1, 1e300]), r"its weight is inf"),
        (
            lambda _, data: data[1]["token_3"].update(layer_1={"selected_experts": [1], "selected_probs": [1]}),
            r"token_3 has 1 experts in a layer; expected 2",
        ),
        (
            lambda _, data: data[1]["token_3"]["layer_1"].update(selected_experts=[5, 9]),
            r"token_3, layer_1, slot 1: 9; expected an expert id from 0 to 7",
        ),
        (
            lambda _, data: data[1]["token_3"]["layer_1"].update(selected_experts=[5, 5]),
            r"token_3, layer_1, slot 1: expert 5 a second time",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(change: Any, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.json", spoilt(change))
    with pytest.raises(TraceError, match=message) as error:
        recordings.read(path, num_experts=8, format="gpt-oss")
    assert "x.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_another_size_or_with_ids_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "x.json", text_of(WORDS))
    with pytest.raises(TraceError, match="has the texts of its tokens in place of ids"):
        recordings.read(path, token_ids=path)
    monkeypatch.setattr(gpt_oss, "MAX_BYTES", 100)
    with pytest.raises(TraceError, match=r"has [\d,]+ bytes, and JSON is held whole; expected 100 at most"):
        recordings.read(path)


EXAMPLE = json.dumps(text_of(WORDS[:5])).encode()


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, len(EXAMPLE) - 1), value=st.integers(0, 255), cut=st.booleans())
def test_damage_anywhere_is_one_line(
    place: int, value: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(EXAMPLE[:place] if cut else EXAMPLE[:place] + bytes([value]) + EXAMPLE[place + 1 :])
    try:
        recordings.read(path, format="gpt-oss")
    except TraceError as error:  # a changed letter of a text may well be read
        message = str(error)
    else:
        return
    assert "\n" not in message
    assert "damaged.json" in message


@pytest.mark.skipif(not REAL.is_file(), reason=f"the file of the dataset is not at hand, it is no part of it: {REAL}")
def test_a_real_file_of_the_dataset_comes_out_to_the_last_choice() -> None:
    trace = recordings.read(REAL)
    content = json.loads(REAL.read_text(encoding="utf-8"))
    assert (trace.num_tokens, trace.num_layers, trace.top_k, trace.num_experts) == (32, 24, 4, 32)
    assert trace.domains == ["high_school_microeconomics"]
    assert texts_of(trace) == content["generated_only"][:-1]
    assert "".join(texts_of(trace)).endswith("final<|message|>C. complements")
    for entry in content["router_data"]:
        ((name, layers),) = entry.items()
        t = int(name.removeprefix("token_")) - 124
        for layer, cell in layers.items():
            number = int(layer.removeprefix("layer_"))
            assert trace.router_indices[number, t].tolist() == cell["selected_experts"]
            assert trace.router_scores[number, t] == pytest.approx(cell["selected_probs"], abs=1e-7)


@pytest.mark.skipif(not TABLE.is_file(), reason=f"the published table is not at hand: {TABLE}")
def test_texts_of_the_published_table_go_through_the_format_unchanged(tmp_path: Path) -> None:
    """All that is published of the same model, rewritten as the dataset's own files are: 12 of its 64 texts."""
    expected = read_trace(TABLE)
    documents = [int(number) for number in dict.fromkeys(expected.document_ids.tolist())][::6][:12]
    expected = expected.select(np.isin(expected.document_ids, documents))
    for number, document in enumerate(documents):
        part = expected.select(expected.document_ids == document)
        texts = ["?"] * int(part.positions[0]) + texts_of(part)
        router = [
            {
                f"token_{part.positions[t]}": {
                    f"layer_{layer}": {
                        "selected_experts": part.router_indices[layer, t].tolist(),
                        "selected_probs": part.router_scores[layer, t].tolist(),
                    }
                    for layer in part.layers
                }
            }
            for t in range(part.num_tokens)
        ]
        domain = part.domains[part.domain_ids[0]]
        written(tmp_path / f"{number}.json", {"category": domain, "full_text": texts, "router_data": router})
    found = recordings.read(tmp_path)
    assert found.num_tokens == expected.num_tokens > 2000
    assert np.array_equal(found.router_indices, expected.router_indices)
    assert np.array_equal(found.router_scores, expected.router_scores)
    assert np.array_equal(found.positions, expected.positions)
    assert texts_of(found) == texts_of(expected)
    names = [[trace.domains[domain] for domain in trace.domain_ids] for trace in (found, expected)]
    assert names[0] == names[1]
