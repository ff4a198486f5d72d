"""How commands end: exit codes, one line for every failure, output that never breaks on a terminal's encoding."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import main as command_line
from moe_core.cli import output as output_module
from moe_core.cli.exits import guarded, one_line
from moe_core.cli.output import Output, _Lines, progress_on_stderr, table, write_bytes
from moe_core.errors import DataError, RunError, UsageError
from moe_core.json_values import json_safe

ROOT = Path(__file__).resolve().parent.parent


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("a value"), 2, "error: a value"),
        (DataError("two\nlines"), 1, "error: two lines"),
        (RunError("\x1b[31mred"), 1, "error: \\x1b[31mred"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "out of memory; lower training.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "out of memory"),
        (OSError(errno.ENOSPC, "No space", "x.bin"), 1, "no space left to write 'x.bin'"),
        (PermissionError(errno.EACCES, "Permission denied", "x.bin"), 1, "cannot use 'x.bin': Permission denied"),
        (ZeroDivisionError("a\nb"), 1, "unexpected ZeroDivisionError in test_cli_exits.py line"),
    ],
)
def test_an_exception_becomes_a_code_and_one_line(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(lambda: raising(error)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert "Traceback" not in captured.err


def test_a_bug_shows_its_traceback_when_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded(lambda: raising(ZeroDivisionError()))
    assert "set MOESCOPE_DEBUG=1" in capsys.readouterr().err
    monkeypatch.setenv("MOESCOPE_DEBUG", "1")
    guarded(lambda: raising(ZeroDivisionError()))
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_a_command_with_their_code_and_leave_the_handlers_as_they_were(
    number: signal.Signals, code: int
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background

    def work() -> int:
        os.kill(os.getpid(), number)
        while True:  # until the signal arrives
            time.sleep(0.1)

    try:
        assert guarded(work) == code
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_ascii_terminal_gets_codes_instead_of_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert guarded(lambda: print("naïve → \ud800") or 0) == 0
    assert raw.getvalue() == b"na\\xefve \\u2192 \\ud800\n"


def test_control_characters_never_reach_the_terminal() -> None:
    assert one_line("a\x00b\x9bc\r\nd") == "a\\x00b\\x9bc d"


def test_json_alone_on_stdout_even_when_libraries_print(capsys: pytest.CaptureFixture[str]) -> None:
    with Output("-") as output:
        print("a library speaks")
        output.say("words")
        output.figures({"nats": float("nan"), "list": [float("inf"), 1.5], "text": "é"})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"nats": None, "list": [None, 1.5], "text": "é"}
    assert captured.out.isascii()
    assert captured.err == "a library speaks\nwords\n"


def test_json_to_a_file_replaces_it_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "figures.json"
    for value in (1, 2):
        with Output(str(target)) as output:
            output.say("words")
            output.figures({"value": value})
    assert json.loads(target.read_text()) == {"value": 2}
    assert list(target.parent.iterdir()) == [target]
    assert capsys.readouterr().out == "words\nwords\n"


def test_a_json_file_that_cannot_be_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in ("", str(tmp_path), str(tmp_path / "file" / "x.json"), "a\0b"):
        with pytest.raises(UsageError, match="--json"):
            Output(target)


def test_devices_are_written_to_and_never_replaced() -> None:
    with pytest.raises(OSError, match="No space left"):
        write_bytes(Path("/dev/full"), b"x" * 100_000)
    write_bytes(Path("/dev/null"), b"x")
    assert Path("/dev/null").is_char_device()
    assert Path("/dev/full").is_char_device()


def test_json_safe_keeps_everything_else() -> None:
    value = {"a": [1, True, None, "x", (2.5,)], "b": {"c": -float("inf")}}
    assert json_safe(value) == {"a": [1, True, None, "x", [2.5]], "b": {"c": None}}


def test_table_aligns_and_keeps_a_row_on_its_line() -> None:
    assert table(["run", "state"], [["a", "x\ny"], ["long", ""]]) == "run   state\na     x y\nlong"


def test_progress_lines_are_throttled_and_tell_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(output_module.time, "monotonic", lambda: now[0])
    lines = _Lines()
    for second in range(11):  # 100 steps a second, 2,000 to do
        lines.report("training", 100 * second, 2000)
        now[0] += 1.0
    assert capsys.readouterr().err == (
        "training: 500 of 2,000, about 15 s left\ntraining: 1,000 of 2,000, about 10 s left\n"
    )


def test_what_stands_in_brackets_begins_no_new_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(output_module.time, "monotonic", lambda: now[0])
    lines = _Lines()
    for second in range(6):
        lines.report(f"counting tokens ({second} of 20 files)", 100 * second, 2000)
        now[0] += 1.0
    assert capsys.readouterr().err == "counting tokens (5 of 20 files): 500 of 2,000, about 15 s left\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_bar_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_on_stderr() as progress:
        for done in range(5):
            progress("reading", done, 4)
        progress("training", 0, 10)
        progress("training", 10, 10)
    shown = terminal.getvalue()
    assert "reading: 100%" in shown
    assert "training:   0%" in shown
    assert "<" in shown  # elapsed<left


def test_help_imports_nothing_heavy() -> None:
    """`main.py --help` must answer at once: no torch, pandas, numpy, pydantic."""
    code = (
        "import sys, main\n"
        "for words in ([], ['data'], ['trace'], ['plots'], ['generate'], ['runs'], ['slim'], ['convert']):\n"
        "    assert main.main([*words, '--help']) == 0\n"
        "heavy = {'torch', 'pandas', 'numpy', 'pydantic', 'altair', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: python main.py") == 8
    assert done.stdout.count("example") == 8


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    environment = {**os.environ, "MOESCOPE_CHECKPOINTS": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), "runs"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_a_full_disk_behind_stdout_is_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "MOESCOPE_CHECKPOINTS": str(tmp_path)}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, str(ROOT / "main.py"), "runs"],
            stdout=full, stderr=subprocess.PIPE, env=environment, text=True, timeout=240,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: no space left to write")
    assert done.stderr.count("\n") == 1


# ---- the parser ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'trace'; see `python main.py --help`"),
        (["--run", "x", "trace"], "'trace' must come first: python main.py trace"),
        (["--verbose"], "unknown argument '--verbose'"),
        (["--qui"], "unknown argument '--qui'"),
        (["--seed"], "argument --seed: expected one argument; see `python main.py --help`"),
        (["--model.dim"], "config key 'model.dim' has no value"),
        (["--model.num_expert", "4"], "did you mean 'model.num_experts'?"),
        (["--quick", "--model.top_k", "9"], "model.top_k = 9 is more than model.num_experts = 8"),
        (["--seed", "-1"], "config key 'data.seed' has value '-1'"),
        (["--seed", "x"], "config key 'data.seed' has value 'x'"),
        (["--config", "nope.conf"], "no config file at 'nope.conf'"),
        (["--evaluate", "--resume"], "takes no --resume"),
        (["--evaluate", "--model.dim", "8"], "takes no --section.key"),
        (["trace", "--run", "x", "--out", "y"], "one of the arguments --text --data is required"),
        (["trace", "--run", "x", "--text", "a", "--out", "/dev/full"], "--out '/dev/full' is a device or pipe"),
        (["trace", "--run", "x", "--text", "a", "--out", ""], "--out '' is not a file name"),
        (["plots", "--run", "x", "--out", "o", "--format", "gif"], "invalid choice: 'gif'"),
        (["plots", "--run", "x", "--out", "main.py"], "--out 'main.py' is not a folder"),
        (["data", "--out", "o", "--documents", "3"], "'3' is not a whole number from 10 to 1000000"),
        (["data"], "the following arguments are required: --out; see `python main.py data --help`"),
        (["runs", "more"], "unrecognized arguments: more"),
        (["generate", "--run", "x", "--prompt", "a", "--seed", "1.5"], "'1.5' is not a whole number"),
        (["--run", "../x"], "run name '../x' is not allowed"),
        (["--run", ""], "run name '' is not allowed"),
        (["--run", "a\0b"], "run name 'a\\x00b' is not allowed"),
        (["--run", "x" * 5000], "is not allowed"),
        (["--evaluate", "--run", "../x"], "run name '../x' is not allowed"),
        (["generate", "--run", "/etc", "--prompt", "a"], "run name '/etc' is not allowed"),
        (["slim", "--run", "a/../b"], "run name 'a/../b' is not allowed"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MOESCOPE_CHECKPOINTS", str(tmp_path))
    monkeypatch.chdir(ROOT)
    assert command_line.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert not list(tmp_path.iterdir())  # nothing was started
