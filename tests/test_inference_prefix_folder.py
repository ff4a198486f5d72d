"""Beginnings of prompts on disk: the same to the bit, of this model alone, within a bound, through kills and races."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import Run, assert_one_line
from routers_support import model_with

from moe_core.config import validate_config
from moe_core.errors import RunError, UsageError
from moe_core.inference.cache_choice import CacheChoice
from moe_core.inference.engine import Engine, PromptRead, Request
from moe_core.inference.own_model import OwnModel
from moe_core.inference.prefix_folder import BLOCK, PrefixFolder
from moe_core.inference.sampling import SamplingConfig
from moe_core.inference.scheduler import Scheduler
from moe_core.runs.checkpoint import load_run
from moe_core.runs.places import SHIPPED

PROMPT = tuple(range(20, 120))
GREEDY = SamplingConfig(max_new_tokens=6, temperature=0)


def opened(seed: int = 0, router: str = "softmax") -> OwnModel:
    """A model with windows of 128 tokens."""
    torch.manual_seed(seed)
    loaded = load_run("demo", SHIPPED)
    if router == "softmax" and not seed:
        return OwnModel.of(loaded)
    model = model_with(router, vocab_size=2048, max_seq_len=128)
    return OwnModel(model.eval(), loaded.tokenizer, f"{router} {seed}", 128)


def told(engine: Engine, prompt: tuple[int, ...] = PROMPT) -> tuple[int, list[object]]:
    """How many tokens were kept, and all that came of a prompt."""
    found: list[object] = []
    reused = -1
    for event in engine.start(Request(prompt, GREEDY, likeliest=3)):
        if isinstance(event, PromptRead):
            reused = event.reused
            found += [event.token_ids, event.experts.tobytes(), event.scores.tobytes()]
        else:
            found.append(
                [value.tobytes() if isinstance(value, np.ndarray) else value for value in vars(event).values()]
            )
    return reused, found


@pytest.mark.parametrize("router", ["softmax", "document_pool"])
def test_what_follows_is_the_same_to_the_bit(router: str, tmp_path: Path) -> None:
    model = opened(int(router != "softmax"), router)
    cold, kept = told(Engine(model, prefix_cache=tmp_path / "a"))[1], tmp_path / "b"
    told(Engine(model, prefix_cache=kept))
    for _ in range(2):  # a process of its own each time, as far as memory goes
        reused, warm = told(Engine(model, prefix_cache=kept))
        assert reused == 96
        assert warm == cold
    # Another end behind the same two blocks, and one that ends with a block.
    other = (*PROMPT[:70], *range(200, 240))
    assert told(Engine(model, prefix_cache=kept), other)[0] == 64
    assert told(Engine(model, prefix_cache=kept), other) == (
        96,
        told(Engine(model, prefix_cache=tmp_path / "c"), other)[1],
    )
    assert told(Engine(model, prefix_cache=kept), PROMPT[:96])[0] == 64
    assert told(Engine(model, prefix_cache=kept), PROMPT[:97]) == (
        96, told(Engine(model, prefix_cache=tmp_path / "d"), PROMPT[:97])[1]
    )  # fmt: skip
    assert told(Engine(model, prefix_cache=kept), PROMPT[:20])[0] == 0
    plain = [event for event in Engine(model).start(Request(PROMPT, GREEDY)) if not isinstance(event, PromptRead)]
    assert [getattr(event, "token_id", None) for event in plain] == [
        event[0] if isinstance(event, list) and len(event) > 3 else None for event in cold[3:]
    ]
    if os.name == "posix":
        assert not any(path.stat().st_mode & 0o077 for path in (kept, *kept.iterdir()))


def test_many_requests_at_once_find_it(tmp_path: Path) -> None:
    model = opened()
    alone = told(Engine(model, prefix_cache=tmp_path))[1]
    with Scheduler(Engine(model, prefix_cache=tmp_path)) as scheduler:
        asked = [scheduler.start(Request(PROMPT, GREEDY, likeliest=3), whole=True) for _ in range(3)]
        for generation in asked:
            events = list(generation)
            assert isinstance(events[0], PromptRead)
            assert events[0].reused == 96
            assert events[0].scores.tobytes() == alone[2]


def test_files_of_another_model_are_refused_and_damaged_ones_go(tmp_path: Path) -> None:
    model = opened(1)
    told(Engine(model, prefix_cache=tmp_path))
    (path,) = tmp_path.glob("*.safetensors")
    tokenizer = OwnModel(model.model, opened(1).tokenizer, "renamed", 128)
    assert PrefixFolder(tmp_path, tokenizer).load(path, 32).token_ids == PROMPT[:32]  # its name does not matter
    changed, rounded = opened(1), opened(1)
    with torch.no_grad():
        changed.model.embedding.weight[7, 3] += 1e-6
    rounded.model.to(torch.bfloat16)
    shorter = OwnModel(model.model, model.tokenizer, model.name, 96)
    for other, what in ((changed, "another weights"), (shorter, "another cache"), (rounded, "another weights")):
        folder = PrefixFolder(tmp_path, other)
        assert folder.find(list(PROMPT)) is None
        with pytest.raises(RunError, match=f"is of {what}"):
            folder.load(path, 32)
    folder = PrefixFolder(tmp_path, model)
    folder._told["tokenizer"] = "another"
    with pytest.raises(RunError, match="is of another tokenizer"):
        folder.load(path, 32)
    path.write_bytes(path.read_bytes()[:3000])
    reused, _ = told(Engine(model, prefix_cache=tmp_path))
    assert reused == 0
    assert told(Engine(model, prefix_cache=tmp_path))[0] == 96
    with pytest.raises(UsageError, match="the model a int4 cache; leave out one"):
        PrefixFolder(tmp_path, OwnModel(model.model, model.tokenizer, "m", 128, CacheChoice("int4")))
    local = model_with("softmax", attention={"window": 8})
    with pytest.raises(UsageError, match=r"model.attention.window = 8 forgets some; leave out --prefix-cache"):
        PrefixFolder(tmp_path, OwnModel(local, model.tokenizer, "m", 32))
    with pytest.raises(UsageError, match="no prefix cache at"):
        PrefixFolder(path / "below", model)


def test_the_folder_stays_within_its_bound(tmp_path: Path) -> None:
    model = opened(1)
    size = 0
    for shift in range(4):
        engine = Engine(model, prefix_cache=tmp_path)
        assert engine.folder is not None
        engine.folder._most_bytes = 3 * size or 1 << 30
        told(engine, tuple(token + 7 * shift for token in PROMPT))
        files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
        size = size or next(iter(files)).stat().st_size
        assert len(files) == min(shift + 1, 3)
        if shift == 2:  # the first one is used again, so the second one goes
            assert told(Engine(model, prefix_cache=tmp_path))[0] == 96
    assert told(Engine(model, prefix_cache=tmp_path))[0] == 96


def test_the_command(cli: Run, tmp_path: Path) -> None:
    text = "The tenant shall pay the rent on the first day of each month. " * 8
    asked = ("generate", "--run", "demo", "--prompt", text, "--max-new-tokens", "8", "--temperature", "0")
    first, second = (
        json.loads(cli(SHIPPED, *asked, "--prefix-cache", str(tmp_path / "kept"), "--json")[1]) for _ in range(2)
    )
    assert (first["prompt_reused"], second["prompt_reused"]) == (0, 96)
    assert first["tokens"] == second["tokens"]
    assert first["prompt_tokens"] == second["prompt_tokens"]
    code, _, err = cli(SHIPPED, *asked, "--prefix-cache", str(tmp_path / "kept"), "--cache", "int4")
    assert code == 2
    assert_one_line(err, "--prefix-cache keeps whole keys and values of runs of ours")
    code, _, err = cli(SHIPPED, "serve", "--model", "some/model", "--prefix-cache", "x")
    assert code == 2
    assert_one_line(err, "--prefix-cache x keeps what runs of ours read; leave out --model some/model")
    assert validate_config({"serve": {"prefix_cache": "kept"}}).serve.prefix_cache == "kept"


WRITER = """
import sys, itertools
from pathlib import Path
import numpy as np
from moe_core.inference.engine import Engine, Request
from moe_core.inference.sampling import SamplingConfig
from moe_core.runs.checkpoint import load_run
from moe_core.runs.places import SHIPPED
engine = Engine(load_run("demo", SHIPPED), prefix_cache=Path(sys.argv[1]))
engine.folder._most_bytes = 3_000_000
print("ready", flush=True)
for turn in itertools.count(int(sys.argv[2])):
    prompt = tuple((turn % 40 + at) % 2000 + 5 for at in range(100))
    list(engine.start(Request(prompt, SamplingConfig(max_new_tokens=1))))
"""


@pytest.mark.slower
def test_kills_and_two_writers_leave_whole_files(tmp_path: Path) -> None:
    model = opened()
    for turn in range(10):
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(start)], stdout=subprocess.PIPE)
            for start in (turn, turn + 3)
        ]
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        time.sleep(0.5 + 0.13 * turn)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()
        folder = PrefixFolder(tmp_path, model, most_bytes=3_000_000)
        files = list(tmp_path.glob("*.safetensors"))
        assert files
        for path in files:
            assert folder.load(path, BLOCK).token_ids[0] >= 5
        assert not list(tmp_path.glob(".tmp-*"))
        assert sum(path.stat().st_size for path in files) <= 2 * 3_000_000  # each writer looks before it adds its own
