"""Loading Hugging Face models: exact where it works, one clear line where it does not, and no code of others."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers", reason="Hugging Face models need requirements-huggingface.txt")

from moe_core.errors import ModelError, MoescopeError, TraceError, UsageError  # noqa: E402
from moe_core.routing import capture  # noqa: E402
from moe_core.routing.instruments.huggingface import hub  # noqa: E402
from moe_core.routing.instruments.huggingface.loading import load  # noqa: E402

TOKENS = torch.arange(3, 27).view(2, 12)
WEIGHTS = "model.safetensors"
MIXTRAL = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral with a byte-level tokenizer. Read only."""
    folder = tmp_path_factory.mktemp("models") / "tiny-mixtral"
    torch.manual_seed(0)
    transformers.MixtralForCausalLM(transformers.MixtralConfig(**MIXTRAL)).save_pretrained(folder)
    tokenizer_of(280).save_pretrained(folder)
    return folder


def tokenizer_of(size: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}": i for i in range(size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w2")


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path | str, words: str, kind: type[MoescopeError] = ModelError, **options: Any) -> None:
    with pytest.raises(kind, match=words) as refusal:
        load(folder, **options)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_a_loaded_model_is_the_one_that_was_saved(checkpoint: Path) -> None:
    loaded = load(checkpoint)
    assert loaded.name == "tiny-mixtral"
    assert not loaded.model.training
    assert loaded.tokenizer.encode("w5 w7") == [5, 7]
    saved = load_file(checkpoint / WEIGHTS)
    assert torch.equal(loaded.model.get_parameter("lm_head.weight"), saved["lm_head.weight"])
    with torch.no_grad(), capture(loaded.model) as recorder:
        loaded.model(input_ids=TOKENS)
    trace = recorder.trace(token_ids=TOKENS)
    assert (trace.layers, trace.num_experts, trace.top_k) == ([0, 1], 4, 2)
    assert np.allclose(trace.router_scores.sum(-1), 1)


def test_dtype_and_a_relative_path(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent)
    loaded = load("tiny-mixtral", dtype=torch.bfloat16)
    assert next(loaded.model.parameters()).dtype == torch.bfloat16
    assert next(load("./tiny-mixtral").model.parameters()).dtype == torch.float32


def test_a_missing_tokenizer_leaves_token_ids(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert load(folder).tokenizer is None


def test_the_library_says_no_more_and_no_less_than_before(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    load(checkpoint)
    assert capfd.readouterr() == ("", "")
    assert (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()) == before


def test_a_dense_model_has_no_router(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    refused(tmp_path / "dense", r"^dense \(llama\) has no router: it is a dense model", TraceError)


def test_encoder_and_decoder_are_two_texts(tmp_path: Path) -> None:
    config = transformers.SwitchTransformersConfig(
        vocab_size=99,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=2,
        num_heads=2,
        num_experts=4,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
    )
    transformers.SwitchTransformersForConditionalGeneration(config).save_pretrained(tmp_path / "switch")
    refused(tmp_path / "switch", r"routers in 2 parts that read different tokens; capture one: .*encoder", TraceError)


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library alone would try again and again; nothing is said of whether the hub has such a model."""
    assert hub.HUB_SECONDS <= 3
    monkeypatch.setattr(hub, "HUB_SECONDS", 0.2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        refused("nobody/nothing", "the hub is not reachable: check this machine's network")


def test_a_name_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        Thread(target=server.serve_forever, daemon=True).start()
        refused("nobody/nothing", "no folder 'nobody/nothing', and no model of this name in the cache or on the hub")
        server.shutdown()


def test_what_is_not_there(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "nowhere", "there is no model folder")
    refused(folder / "config.json", "there is no model folder")
    refused(tmp_path, "has no config.json")
    refused("nobody/nothing", "no folder 'nobody/nothing' and no model of this name in the cache, .* HF_HUB_OFFLINE is")
    refused("nobody/no thing", "nobody/no thing could not be loaded: Repo id must use alphanumeric chars")
    (folder / WEIGHTS).unlink()
    refused(folder, r"copy has no weights; expected \*\.safetensors")


def test_damage_is_named(folder: Path) -> None:
    weights = (folder / WEIGHTS).read_bytes()
    for cut in (0, 4, len(weights) // 2, len(weights) - 10):
        (folder / WEIGHTS).write_bytes(weights[:cut])
        refused(folder, r"copy/model\.safetensors is damaged or cut off .* copy it again")
    (folder / WEIGHTS).write_bytes(weights)
    (folder / "config.json").write_text("{")
    refused(folder, "copy/config.json is damaged: it is not valid JSON; copy it again")


def test_a_shard_that_was_not_copied_is_named(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": WEIGHTS, "model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "lacks 1 of its files of weights, such as 'model-00002-of-00002.safetensors'")
    (folder / "model.safetensors.index.json").write_text("[]")
    refused(folder, "model.safetensors.index.json is damaged")


def test_weights_that_lack_parameters_are_not_filled_up_with_noise(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    refused(folder, r"lack 1 of its parameters, such as 'model\.layers\.1\.self_attn\.q_proj\.weight'")


def test_weights_of_another_shape(folder: Path) -> None:
    edit_config(folder, num_local_experts=5)
    refused(folder, "copy")


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    tokenizer_of(301).save_pretrained(folder)
    refused(folder, "the tokenizer of copy has 301 tokens, its model reads 300")
    (folder / "tokenizer.json").write_text("{}")
    refused(folder, "copy could not be loaded")


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickles_are_refused_unopened(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"lm_head.weight": Canary(folder / "opened")}, folder / "pytorch_model.bin")
    refused(folder, r"are a pickle \(pytorch_model\.bin\).*convert it: .*save_pretrained")
    assert not (folder / "opened").exists()


CODE = """
from pathlib import Path
from transformers import MixtralConfig, MixtralForCausalLM
Path({canary!r}).touch()
class OwnConfig(MixtralConfig):
    model_type = "own"
class OwnForCausalLM(MixtralForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_others_runs_only_when_told(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    (folder / "own.py").write_text(CODE.format(canary=str(canary)))
    edit_config(
        folder,
        model_type="own",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    )
    refused(folder, "copy brings its own code, which was not run; .*--trust-remote-code")
    assert not canary.exists()
    # The library fuses the experts' weights of kinds that it knows; this one reads them as they stand.
    weights = transformers.AutoModelForCausalLM.from_config(transformers.MixtralConfig(**MIXTRAL)).state_dict()
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    modules = tmp_path / "modules"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
    monkeypatch.setattr(sys, "path", [str(modules), *sys.path])
    loaded = load(folder, trust_remote_code=True)
    assert canary.exists()
    with torch.no_grad(), capture(loaded.model) as recorder:
        loaded.model(input_ids=TOKENS)
    assert recorder.trace(token_ids=TOKENS).num_experts == 4


def test_an_unknown_kind_of_model(folder: Path) -> None:
    edit_config(folder, model_type="from_the_future")
    refused(folder, "is of a kind that this transformers does not know; update it")


def test_device_map_without_its_library(checkpoint: Path) -> None:
    pytest.importorskip("transformers")
    if transformers.utils.is_accelerate_available():
        loaded = load(checkpoint, device_map="cpu")
        assert next(loaded.model.parameters()).device.type == "cpu"
    else:
        refused(checkpoint, "device_map needs the accelerate library", device_map="auto")


def test_without_transformers(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(checkpoint, r"need the transformers library; .*requirements-huggingface\.txt", UsageError)


@pytest.mark.parametrize("family", ["deepseek_v3", "minimax_m2", "laguna", "kimi_linear", "afmoe", "longcat_flash"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_biases_that_only_move_the_choice_are_not_rounded(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """The library keeps them for most families by itself; of the others 64 biases became nine."""
    from bench.family_configs import tiny_model

    model = tiny_model(family)
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    biases = {name: tensor for name, tensor in named.items() if name.endswith(("correction_bias", "expert_bias"))}
    assert biases
    with torch.no_grad():
        for bias in biases.values():
            bias.copy_(6.82 + 0.246 * torch.rand_like(bias))
    model.save_pretrained(tmp_path)
    strict = type(model)._keep_in_fp32_modules_strict  # type: ignore[attr-defined]
    loaded: Any = load(tmp_path, dtype=dtype).model
    assert type(model)._keep_in_fp32_modules_strict is strict, "the library's class is left as it was"  # type: ignore[attr-defined]
    found = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    for name, bias in biases.items():
        assert torch.equal(found[name], bias)
    assert loaded.lm_head.weight.dtype == dtype
    with torch.no_grad(), capture(loaded) as recorder:
        loaded(input_ids=TOKENS)
    assert recorder.trace(token_ids=TOKENS).num_tokens == TOKENS.numel()
