"""A run that was watched in someone else's loop: what the pages show of it, and what they say is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from app_support import Open, payload_of, shown
from routers_support import model_with, tokens
from watch_support import train

from moe_core.runs import RunFolder
from moe_core.training import watch


@pytest.fixture
def watched_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoints folder with the watched run "theirs"."""
    monkeypatch.setattr("moe_core.training.watching.READ_SHARE", np.inf)
    model = model_with("softmax").train()
    with watch(model, run="theirs", every=2, root=tmp_path) as log:
        for _ in train(model, torch.optim.SGD(model.parameters(), lr=0.01)):
            log.record(loss=2.5)
    return tmp_path


def test_training_overview_and_time_show_what_was_counted(dashboard: Open, watched_root: Path) -> None:
    at = dashboard(watched_root, "training")
    text = shown(at)
    assert "Finished 7 steps in" in text
    figures = {metric.label: str(metric.value) for metric in at.metric}
    assert figures["Loss while training"] == "2.50 nats"
    assert figures["Dead experts"].endswith(" of 18")
    assert not [button for button in at.button if button.key in ("stop_training", "resume_training")]

    at = dashboard(watched_root)
    assert "3 MoE layers of 6 experts, 3 for each token." in shown(at)
    assert "168 tokens at 4 steps: the text that it is trained on, read at steps 2 to 7." in shown(at)

    at = dashboard(watched_root, "time", layer="1", step="4")
    assert "At step 7 expert" in shown(at)
    assert "Step 4:" in shown(at)
    assert "Only counts were kept of this run" in shown(at)
    assert at.select_slider[0].value == 4


def test_pages_that_need_more_say_in_a_sentence_what(dashboard: Open, watched_root: Path) -> None:
    assert "6 experts" not in shown(dashboard(watched_root, "experts", layer="1", expert="2"))
    assert "layer 1" in shown(dashboard(watched_root, "experts", layer="1", expert="2"))
    for page in ("tokens", "domains", "flow", "compare"):
        assert "give watch(...) a probe text" in shown(dashboard(watched_root, page)), page
    for page in ("generation", "chat", "interventions"):
        assert "watched in another training loop, and its model is there" in shown(dashboard(watched_root, page)), page


def test_a_damaged_description_breaks_this_run_alone(dashboard: Open, watched_root: Path) -> None:
    path = RunFolder("theirs", watched_root).path / "watched.json"
    path.write_bytes(path.read_bytes().replace(b'"top_k": 3', b'"top_k": 2'))
    assert "was changed after it was written" in shown(dashboard(watched_root))


@pytest.fixture
def probed_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with a probe text of two domains."""
    monkeypatch.setattr("moe_core.training.watching.READ_SHARE", np.inf)
    model = model_with("softmax").train()
    probe = {
        name: [tokens(1, 20, seed + 10 * k)[0].tolist() for k in range(4)] for name, seed in (("legal", 1), ("code", 2))
    }
    with watch(model, run="theirs", every=2, root=tmp_path, probe=probe, probe_every=2):
        list(train(model, torch.optim.SGD(model.parameters(), lr=0.01)))
    return tmp_path


def test_with_a_probe_text_every_page_that_needs_no_model_shows_it(dashboard: Open, probed_root: Path) -> None:
    overview = shown(dashboard(probed_root))
    assert "read at steps 2 to 7" in overview
    assert "one domain" not in overview
    assert payload_of(dashboard(probed_root, "tokens"))["layers"] == [0, 1, 2]
    assert payload_of(dashboard(probed_root, "time"))["layers"] == [0, 1, 2]
    for page in ("domains", "experts", "flow", "compare", "training"):
        at = dashboard(probed_root, page)
        assert not at.error, (page, [error.value for error in at.error])
        assert "probe text" not in " ".join(str(info.value) for info in at.info), page
    assert "measured on a model, which is in another training loop" in shown(dashboard(probed_root, "experts"))
    assert "its model is there" in shown(dashboard(probed_root, "generation"))


def test_runs_plots_and_report_take_it_and_what_needs_a_model_says_so(
    cli: Callable[..., tuple[int, str, str]], watched_root: Path, tmp_path: Path
) -> None:
    code, out, _ = cli(watched_root, "runs")
    assert code == 0
    assert "7/7" in out
    assert "Watched: its model is elsewhere." in out
    page = tmp_path / "report.html"
    code, out, err = cli(watched_root, "report", "--run", "theirs", "--out", str(page))
    assert code == 0, err
    assert "7 steps by another program, which was watched" in page.read_text()
    assert "Is the work shared evenly" in out
    code, out, err = cli(watched_root, "plots", "--run", "theirs", "--out", str(tmp_path / "plots"), "--format", "csv")
    assert code == 0, err
    assert {"expert_load_map.csv", "loss.csv"} <= {path.name for path in (tmp_path / "plots").iterdir()}
    for command in (["generate", "--run", "theirs", "--prompt", "x"], ["ablate", "--run", "theirs"]):
        code, _, err = cli(watched_root, *command)
        assert code == 1
        assert "was watched in another training loop, so its model is not here" in err
        assert err.count("\n") == 1
