"""The box that opens any file of routing: by path, with what the file does not say, again later, and its errors."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from app_support import SOON, Open, in_box, settled, wait_until
from streamlit.testing.v1 import AppTest

from moe_core.errors import TraceError, UsageError
from moe_core.files import is_remembered, private_folder
from moe_core.inference import command_line_subjects, kept_files
from moe_core.inference.command_line_subjects import open_from_command_line
from moe_core.inference.kept_files import FOLDER, Said, file_of_ours, forget_kept_files
from moe_core.inference.opening_job import running_jobs, start_opening
from moe_core.inference.recently_opened import FILE, MOST, Recent, recently_opened, remember
from moe_core.inference.subjects import OPENED, Registry, RoutingFile
from moe_core.inference.uploaded import Upload, open_uploads, safe_name
from moe_core.progress import Progress
from moe_core.routing import RoutingCounts, RoutingTrace
from moe_core.routing.opening import Opened

IMATRIX = Path(__file__).parent / "fixtures" / "recordings" / "llama.cpp-imatrix.gguf"
pytestmark = pytest.mark.usefixtures("dashboard", "own_cache")


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache in which nothing was opened yet."""
    monkeypatch.setenv("MOESCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the recordings that were read, rather than found kept."""
    read: list[str] = []

    def counted(path: Path, **options: object) -> Opened:
        read.append(Path(path).name)
        return whole(path, **options)  # type: ignore[arg-type]

    whole = kept_files.open_routing
    monkeypatch.setattr(kept_files, "open_routing", counted)
    return read


def answers(path: Path, texts: int = 3) -> Path:
    """Answers of a server with the experts of 12 tokens in 2 layers of 8 experts."""
    experts = np.random.default_rng(0).permuted(np.broadcast_to(np.arange(8), (12, 2, 8)), axis=2)[:, :, :2]
    answer = json.dumps({"prompt_token_ids": list(range(13)), "routed_experts": experts.tolist()})
    path.write_text(f"{answer}\n" * texts, encoding="utf-8")
    return path


def activations(path: Path) -> Path:
    """A table that does not say how many of its rows are one token's: 5 tokens in 2 layers, 2 experts each."""
    rows = [f"{layer},{(token + slot) % 4}\n" for token in range(5) for layer in range(2) for slot in range(2)]
    path.write_text("".join(rows), encoding="utf-8")
    return path


def rank_upload(rank: int) -> Upload:
    """What one of two ranks counted, of 4 experts the half of them."""
    tpe = [[3, 5]] if rank == 0 else [[6, 2]]
    line = {"iter": 1, "block": "decoder", "layer": 0, "tpe": tpe}
    return Upload(f"rank{rank}.jsonl", (json.dumps(line) + "\n").encode())


def press_open(at: AppTest, path: Path | str) -> AppTest:
    at.text_input(key=in_box(at, "open_path")).set_value(str(path))
    at.button(key="open_button").click()
    return settled(at)


def opened_box(at: AppTest) -> AppTest:
    at.session_state["open_other"] = True
    return at.run()


def title(at: AppTest) -> str:
    return str(at.title[0].value).replace("\\", "")


def error(at: AppTest) -> str:
    (box,) = at.sidebar.error
    return str(box.value).replace("\\", "")


def beside(at: AppTest) -> str:
    return " ".join(str(caption.value) for caption in at.sidebar.caption).replace("\\", "")


def test_a_recording_opens_by_its_path_and_says_what_was_found(dashboard: Open, tmp_path: Path) -> None:
    at = press_open(dashboard(tmp_path), answers(tmp_path / "answers.jsonl"))
    assert title(at).startswith("What is trace answers.jsonl")
    assert "36 tokens of 3 sources, from routed_experts array. Answers" in beside(at)
    assert at.text_input(key=in_box(at, "open_path")).value == ""
    assert not at.session_state["open_other"], "the box is still open"
    assert not at.sidebar.error


def test_counts_of_an_engine_open_by_their_path(dashboard: Open, tmp_path: Path) -> None:
    at = press_open(dashboard(tmp_path), IMATRIX)
    assert title(at).startswith("What are counts llama.cpp-imatrix.gguf")
    assert "from llama.cpp importance matrix" in beside(at)
    (opened,) = OPENED.all()
    assert isinstance(opened, RoutingFile)
    assert opened.opened == IMATRIX.resolve()
    assert RoutingCounts.load(opened.path).num_experts == 8


def test_what_the_file_does_not_say_is_asked_for_by_its_field(dashboard: Open, tmp_path: Path) -> None:
    at = press_open(dashboard(tmp_path), activations(tmp_path / "a.csv"))
    assert "say with “Experts a token” how many" in error(at)
    assert at.session_state[in_box(at, "open_options")], "the fields are not unfolded"
    at.number_input(key=in_box(at, "open_top_k")).set_value(2)
    at.button(key="open_button").click()
    settled(at)
    assert title(at).startswith("What is trace a.csv")
    assert not at.sidebar.error
    assert at.number_input(key=in_box(at, "open_top_k")).value is None, "the next file would be read with it too"


def test_options_change_what_is_read(dashboard: Open, tmp_path: Path) -> None:
    at = dashboard(tmp_path)
    at.number_input(key=in_box(at, "open_num_experts")).set_value(16)
    at.text_input(key=in_box(at, "open_layers")).set_value("3-4")
    press_open(at, answers(tmp_path / "answers.jsonl"))
    (opened,) = OPENED.all()
    assert isinstance(opened, RoutingFile)
    trace = RoutingTrace.load(opened.path)
    assert (trace.num_experts, trace.layers) == (16, [3, 4])
    at.text_input(key=in_box(at, "open_layers")).set_value("4-3")
    press_open(at, tmp_path / "answers.jsonl")
    assert "'4-3' is no list of layers; expected ascending ones such as 3-47" in error(at)


@pytest.mark.parametrize("content", [b"", b"\x00" * 99, b'{"a":', b"<script>alert(1)</script>", b"[" * 100_000])
def test_what_is_no_recording_is_named_in_one_line(dashboard: Open, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    at = press_open(dashboard(tmp_path), path)
    assert "x.json" in error(at)
    assert "\n" not in error(at)
    assert not at.exception
    assert recently_opened() == ([], "")
    assert not list(private_folder(FOLDER).iterdir())


def test_hostile_names_stay_text(dashboard: Open, tmp_path: Path) -> None:
    at = press_open(dashboard(tmp_path), answers(tmp_path / "<img src=x> :red[x]\n\u202e.jsonl"))
    (opened,) = OPENED.all()
    assert opened.name == "trace <img src=x> :red[x]��.jsonl"
    assert "\\<img src\\=x\\> \\:red\\[x\\]" in at.title[0].value
    assert not at.exception
    for name in ("../../etc/passwd", "..\\..\\x.npy", "\x00", "", "a" * 5000 + ".jsonl", "con\u202e.json", "..."):
        safe = safe_name(name)
        assert safe == Path(safe).name
        assert 0 < len(safe) <= 100
        assert safe.isprintable()
    assert safe_name("rank_10.jsonl") == "rank_10.jsonl"


def test_ranks_that_are_uploaded_together_are_one_recording() -> None:
    job = open_uploads(OPENED, [rank_upload(1), rank_upload(0)], Said(top_k=2))
    assert job.wait(SOON)
    assert job.error is None
    assert job.result is not None
    assert job.result.name == "counts rank1.jsonl and 1 more"
    assert RoutingCounts.load(job.result.path).tokens_per_expert.tolist() == [[[[3, 5, 6, 2]]]]


@pytest.mark.parametrize("names", [["x.json"], ["x.csv"], ["rank0.jsonl", "rank1.jsonl"]])
def test_what_is_wrong_with_an_upload_is_said_without_the_servers_folders(names: list[str]) -> None:
    job = open_uploads(OPENED, [Upload(name, b"{}") for name in names], Said())
    assert job.wait(SOON)
    assert names[0] in str(job.error)
    assert "/" not in str(job.error).replace("see docs/trace-format.md", "").replace(" / ", "")


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_kept_file_that_is_broken_is_named_as_its_user_knows_it(
    dashboard: Open, tmp_path: Path, is_gone: bool
) -> None:
    content = file_of_ours(answers(tmp_path / "a.jsonl")).path.read_bytes()
    job = open_uploads(OPENED, [Upload("mine.parquet", content)], Said())
    assert job.wait(SOON)
    assert job.result is not None
    path = job.result.path
    path.unlink() if is_gone else path.write_bytes(content[:500])
    at = dashboard(tmp_path / "none", run="trace mine.parquet")
    messages = [error.value.replace("\\", "") for error in (*at.main.error, *at.sidebar.error)]
    assert messages
    for message in messages:
        assert "hat was kept of trace mine.parquet is" in message
        assert str(path.parent) not in message


def test_what_is_open_already_is_uploaded_each_by_itself(tmp_path: Path) -> None:
    content = file_of_ours(answers(tmp_path / "a.jsonl")).path.read_bytes()
    job = open_uploads(OPENED, [Upload("one.parquet", content), Upload("two.parquet", content)], Said())
    assert job.wait(SOON)
    assert [one.name for one in OPENED.all()] == ["trace two.parquet", "trace one.parquet"]


def test_progress_is_shown_and_can_be_cancelled(dashboard: Open, tmp_path: Path) -> None:
    go_on = threading.Event()

    def slow(progress: Progress) -> RoutingFile:
        for done in range(10_000):
            progress("checking <b>", 25, 100)
            assert done < 9_999
            if go_on.wait(0.02):
                break
        return OPENED.open_file(answers(tmp_path / "slow.jsonl"))

    job = start_opening("slow", "slow.jsonl", slow)
    wait_until(lambda: job.reached().share == 0.25)
    at = dashboard(tmp_path, wait=False)
    (bar,) = at.sidebar.get("progress")
    assert bar.value == 25
    assert bar.proto.text.replace("\\", "").startswith("Opening slow.jsonl: checking <b>, ")
    assert "left" in bar.proto.text
    (cancel,) = [button for button in at.sidebar.button if button.label == "Cancel"]
    cancel.click().run()
    assert job.wait(SOON)
    assert job.was_cancelled
    assert not running_jobs()
    at.run()
    assert not at.sidebar.get("progress")
    assert not OPENED.all()


def test_a_cancelled_conversion_leaves_nothing(tmp_path: Path) -> None:
    started, is_known = threading.Event(), threading.Event()

    def work(progress: Progress) -> RoutingFile:
        def report(stage: str, done: int, total: int) -> None:
            started.set()
            assert is_known.wait(SOON)  # the job below has its name
            if stage.startswith("writing"):
                job.cancel()
            progress(stage, done, total)

        return OPENED.open_file(answers(tmp_path / "a.jsonl", texts=50), progress=report)

    job = start_opening("cancelled", "a.jsonl", work)
    is_known.set()
    assert started.wait(SOON)
    assert job.wait(SOON)
    assert job.was_cancelled
    assert not list(private_folder(FOLDER).iterdir())


def test_a_reader_that_fails_is_an_error_in_one_line() -> None:
    def work(_: Progress) -> RoutingFile:
        raise ValueError("of no use\nto anyone")

    job = start_opening("broken", "x.bin", work)
    assert job.wait(SOON)
    assert str(job.error) == "'x.bin' could not be read: of no use; see the server's own messages"


def test_the_same_file_is_read_once_also_after_a_restart(tmp_path: Path, conversions: list[str]) -> None:
    path = answers(tmp_path / "answers.jsonl")
    first = Registry().open_file(path)
    assert Registry().open_file(path) == first
    assert conversions == ["answers.jsonl"]
    Registry().open_file(path, said=Said(num_experts=16))
    assert conversions == ["answers.jsonl"] * 2, "other options make another file"
    answers(path, texts=4)
    changed = Registry().open_file(path)
    assert RoutingTrace.load(changed.path).num_tokens == 48
    assert len(conversions) == 3
    changed.path.write_bytes(changed.path.read_bytes()[:-9])
    assert RoutingTrace.load(Registry().open_file(path).path).num_tokens == 48, "a damaged kept file is read anew"
    assert len(conversions) == 4


def test_the_cache_is_the_users_own_and_bounded(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry()
    kept = [registry.open_file(answers(tmp_path / f"{i}.jsonl", texts=i + 1)) for i in range(3)]
    for folder in (own_cache, own_cache / FOLDER):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    registry.close(kept[0].name)
    monkeypatch.setattr(kept_files, "MOST_KEPT_BYTES", 1)
    registry.open_file(answers(tmp_path / "last.jsonl", texts=9))
    assert not kept[0].path.exists(), "what is not open makes room"
    assert kept[1].path.exists(), "what is open stays"
    forget_kept_files()
    assert not list((own_cache / FOLDER).iterdir())
    with pytest.raises(TraceError, match="gone, as newer files took its room; open the original again"):
        file_of_ours(kept[1].path)


def test_a_cache_that_cannot_be_written_is_no_reason_to_refuse(
    dashboard: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    monkeypatch.setenv("MOESCOPE_CACHE", str(tmp_path / "file" / "cache"))
    assert not is_remembered()
    at = press_open(dashboard(tmp_path), answers(tmp_path / "answers.jsonl"))
    assert title(at).startswith("What is trace answers.jsonl")
    assert "forgotten when the server ends" in beside(opened_box(at))


def test_what_was_opened_is_offered_after_a_restart(
    dashboard: Open, tmp_path: Path, conversions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_files, "_readers", lambda: "the same")
    path, said = activations(tmp_path / "a.csv"), Said(top_k=2)
    Registry().open_file(path, said=said)
    at = opened_box(dashboard(tmp_path))
    assert at.button(key="recent_0").label == "a.csv · just now"
    at.button(key="recent_0").click()
    settled(at)
    assert title(at).startswith("What is trace a.csv")
    assert conversions == ["a.csv"]
    path.unlink()
    opened_box(at)
    assert at.button(key="recent_0").label == "a.csv · gone"
    assert at.button(key="recent_0").disabled
    at.button(key="forget_recent").click()
    settled(at)
    assert recently_opened() == ([], "")


def test_an_upload_is_offered_after_a_restart(dashboard: Open, tmp_path: Path) -> None:
    upload = Upload("answers.jsonl", answers(tmp_path / "x").read_bytes())
    assert open_uploads(Registry(), [upload], Said()).wait(SOON)
    at = opened_box(dashboard(tmp_path))
    at.button(key="recent_0").click()
    settled(at)
    assert title(at).startswith("What is trace answers.jsonl")
    assert "from routed_experts array" in beside(at)
    forget_kept_files()
    OPENED.close("trace answers.jsonl")
    assert opened_box(at).button(key="recent_0").label == "answers.jsonl · gone"


def test_the_list_is_short_and_its_entries_are_once_each(tmp_path: Path) -> None:
    for number in [*range(MOST + 3), 5]:
        remember(Recent("trace", f"{number}.parquet", str(tmp_path / f"{number}.parquet"), float(number)))
    found, wrong = recently_opened()
    assert wrong == ""
    assert [one.shown for one in found][:3] == ["5.parquet", f"{MOST + 2}.parquet", f"{MOST + 1}.parquet"]
    assert len(found) == MOST


def test_sessions_that_open_at_once_lose_nothing(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=remember, args=(Recent("trace", str(n), str(tmp_path / str(n)), 0.0),))
        for n in range(MOST)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.shown for one in recently_opened()[0]} == {str(n) for n in range(MOST)}


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        '{"opened": []}',
        '{"opened": [{"kind": "model", "place": 3}]}',
        "[" * 100_000,
        "",
        "x" * 3_000_000,
    ],
)
def test_a_damaged_list_begins_anew_and_says_so(dashboard: Open, tmp_path: Path, damaged: str | None) -> None:
    Registry().open_file(activations(tmp_path / "a.csv"), said=Said(top_k=2))
    path = private_folder() / FILE
    if damaged is None:
        damaged = path.read_text(encoding="utf-8").replace("a.csv", "b.csv")
    path.write_text(damaged, encoding="utf-8")
    found, wrong = recently_opened()
    assert found == []
    assert "begins anew" in wrong
    assert wrong in beside(opened_box(dashboard(tmp_path)))
    Registry().open_file(activations(tmp_path / "a.csv"), said=Said(top_k=2))
    assert len(recently_opened()[0]) == 1


def test_a_recording_on_the_command_line_is_read_before_a_page_is_drawn(dashboard: Open, tmp_path: Path) -> None:
    at = dashboard(tmp_path, "overview", ("--trace", str(answers(tmp_path / "answers.jsonl"))))
    assert title(at).startswith("What is trace answers.jsonl")


def test_what_is_named_first_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    whole = kept_files.open_routing

    def slow(place: Path, **options: object) -> Opened:
        assert Path(place).name != "first.jsonl" or go_on.wait(SOON)
        return whole(place, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(kept_files, "open_routing", slow)
    monkeypatch.setattr(command_line_subjects, "SOON_SECONDS", 0.0)
    monkeypatch.setattr(command_line_subjects, "_command_line", command_line_subjects._CommandLine())
    names = [str(answers(tmp_path / name)) for name in ("first.jsonl", "second.jsonl")]
    given = ["streamlit_app.py", "--trace", names[0], "--trace", names[1], "--trace", "/nowhere.gguf"]
    open_from_command_line(given)
    wait_until(lambda: len(OPENED.all()) == 1)
    assert (open_from_command_line(given).first, open_from_command_line(given).is_opening) == (None, True)
    go_on.set()
    wait_until(lambda: not running_jobs())
    named = open_from_command_line(given)
    assert (named.first, named.is_opening) == ("trace first.jsonl", False)
    assert len(named.errors) == 1
    assert "/nowhere.gguf" in named.errors[0]


@pytest.mark.parametrize("text", ["", "a", "3-", "3-1", "1,1", "-1-2", "0-99999999999", "9" * 5000])
def test_layers_that_are_none_are_named(text: str) -> None:
    from moe_core.routing.recordings.pieces import layers_of_text

    with pytest.raises(UsageError, match="is no list of layers"):
        layers_of_text(text)


def test_a_link_to_what_was_opened_before_a_restart_leads_to_it(
    dashboard: Open, tmp_path: Path, trained_root: Path
) -> None:
    path = answers(tmp_path / "answers.jsonl")
    Registry().open_file(path)
    at = dashboard(trained_root, run="trace answers.jsonl")
    assert title(at).startswith("What is tiny"), "a link alone opens nothing"
    assert "is not open any more" in at.sidebar.warning[0].value
    at.button(key="open_missing").click()
    settled(at)
    assert title(at).startswith("What is trace answers.jsonl")
    assert not at.sidebar.warning
    OPENED.close("trace answers.jsonl")
    path.unlink()
    at = dashboard(trained_root, run="trace answers.jsonl")
    assert not [button for button in at.sidebar.button if button.key == "open_missing"]


def test_two_servers_may_read_one_recording_at_once(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = answers(tmp_path / "answers.jsonl", texts=20)
    both_have_written = threading.Barrier(2, timeout=SOON)
    whole = kept_files.open_routing

    def open_together(place: Path, **options: object) -> Opened:
        found = whole(place, **options)  # type: ignore[arg-type]
        both_have_written.wait()
        return found

    monkeypatch.setattr(kept_files, "open_routing", open_together)
    found: list[RoutingFile] = []
    servers = [threading.Thread(target=lambda: found.append(Registry().open_file(path))) for _ in range(2)]
    for server in servers:
        server.start()
    for server in servers:
        server.join()
    assert [RoutingTrace.load(one.path).num_tokens for one in found] == [240, 240]
    (kept,) = (own_cache / FOLDER).iterdir()
    assert kept.name.endswith(".array.tokens.parquet")
    assert [one.shown for one in recently_opened()[0]] == ["answers.jsonl"]


@pytest.mark.parametrize("form", ["folder", "pattern"])
def test_the_files_of_ranks_open_by_their_folder_or_a_pattern(dashboard: Open, tmp_path: Path, form: str) -> None:
    folder = tmp_path / "tokens_per_expert"
    folder.mkdir()
    for rank in range(2):
        (folder / f"rank{rank}.jsonl").write_bytes(rank_upload(rank).content)
    at = press_open(dashboard(tmp_path), folder if form == "folder" else f"{folder}/rank*.jsonl")
    assert title(at).startswith(f"What are counts {'tokens_per_expert' if form == 'folder' else 'rank*.jsonl'}")
    (opened,) = OPENED.all()
    assert isinstance(opened, RoutingFile)
    assert RoutingCounts.load(opened.path).tokens_per_expert.tolist() == [[[[3, 5, 6, 2]]]]
