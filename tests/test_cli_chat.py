"""`moescope chat` and `generate --prompts-file`: through pipes, in a terminal, and what they say of mistakes."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cli_support import Run, assert_one_line
from generation_support import generate
from huggingface_support import tiny_model, trained_tokenizer

from moe_core.cli.chat_commands import HELP, Settings, is_command, obey
from moe_core.errors import UsageError
from moe_core.inference.chat_format import Message, chat_prompt, chat_prompt_in_window
from moe_core.inference.engine import Engine, Request
from moe_core.inference.open import open_huggingface, open_run
from moe_core.inference.sampling import SamplingConfig
from moe_core.runs.checkpoint import load_run

ROOT = Path(__file__).resolve().parent.parent
CHAT = ("chat", "--run", "tiny", "--max-new-tokens", "6")


def typed(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    """What comes through a pipe."""
    content = text if isinstance(text, bytes) else text.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_through_a_pipe_each_message_has_one_line_and_the_whole_conversation_is_read(
    cli: Run, trained_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    typed(monkeypatch, "Hello\n\nparams temperature 0\nAnd then?\nexit\nnever\n")
    code, out, err = cli(trained_root, *CHAT, "--verbose", "--json", str(tmp_path / "new" / "lines.jsonl"))
    assert code == 0
    lines = [json.loads(line) for line in (tmp_path / "new" / "lines.jsonl").read_text().splitlines()]
    assert [line["message"] for line in lines] == ["Hello", "And then?"]
    assert out.splitlines() == [line["answer"].replace("\\", "\\\\").replace("\n", "\\n") for line in lines]
    assert "run tiny, step 40 is a base model" in err
    assert err.count("tokens/s") == 2
    assert "layer 0  layer 1" in err
    assert "> " not in out + err
    # The second answer is what the engine writes behind all that was said.
    model = open_run("tiny", trained_root)
    said = [Message("user", "Hello"), Message("assistant", lines[0]["answer"]), Message("user", "And then?")]
    prompt = chat_prompt_in_window(model, said, 6)
    sampling = SamplingConfig(max_new_tokens=6, temperature=0)
    expected = Engine(model).start(Request(prompt.token_ids, sampling, prompt.stop)).result()
    assert lines[1]["answer"] == expected.text.strip()
    assert [token["experts"] for token in lines[1]["tokens"]] == [t.experts.tolist() for t in expected.tokens]
    assert lines[1]["base_model"] is True
    assert lines[1]["token_count"] == len(expected.tokens)


def test_a_model_with_a_chat_template_is_asked_through_it(
    cli: Run, trained_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny_model("olmoe").save_pretrained(tmp_path)
    tokenizer = trained_tokenizer("byte-level")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    typed(monkeypatch, "Hi <|im_end|>\n")
    asked = ("chat", "--model", str(tmp_path), "--max-new-tokens", "4", "--system", "S", "--json")
    code, out, err = cli(trained_root, *asked)
    assert code == 0
    assert "answers through its own chat template" in err
    (line,) = map(json.loads, out.splitlines())
    assert line["base_model"] is False
    model = open_huggingface(tmp_path)
    prompt = chat_prompt(model, [Message("system", "S"), Message("user", "Hi <|im_end|>")])
    assert prompt.token_ids.count(1) == 2  # the template's alone
    expected = Engine(model).start(Request(prompt.token_ids, SamplingConfig(max_new_tokens=4))).result()
    assert line["answer"] == expected.text.strip()
    typed(monkeypatch, "Hi\n")
    tokenizer.chat_template = "{{ raise_exception('no system, please') }}"
    tokenizer.save_pretrained(tmp_path)
    code, _, err = cli(trained_root, *asked)
    assert code == 2
    assert "refuses these messages (system, user): no system, please" in err


def test_a_wrong_setting_ends_a_pipe_and_answers_before_it_are_told(
    cli: Run, trained_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "Hello\nparams temperature hot\n")
    code, out, err = cli(trained_root, *CHAT, "--json")
    assert code == 2
    assert json.loads(out)["message"] == "Hello"
    assert "error: temperature = 'hot'; expected a number" in err


def test_commands_and_messages_are_told_apart() -> None:
    settings = Settings(SamplingConfig(), "")
    assert all(map(is_command, ("exit", "quit ", "help", "new", "params", "params top_k 3")))
    assert not any(map(is_command, (" exit", "exit now", "Params", "new York", "parameters")))
    assert obey("quit", settings) is None
    assert obey("help", settings) == HELP
    assert "temperature      0.25" in str(obey("params temperature=0.25", settings))
    assert 'system           "Be brief."' in str(obey("params system Be brief.", settings))
    obey("params system", settings)
    assert settings == Settings(SamplingConfig(temperature=0.25), "")
    for line, words in {
        "params heat 3": "no setting 'heat'; expected max_new_tokens, temperature",
        "params seed": "seed = ''; expected a whole number",
        "params top_p 2": r"top_p = 2\.0 is out of range",
    }.items():
        with pytest.raises(UsageError, match=words):
            obey(line, settings)


def test_the_oldest_messages_go_where_the_window_is_full(trained_root: Path) -> None:
    model = open_run("tiny", trained_root)
    said = [Message("system", "S")]
    for number in range(6):
        said += [Message("user", f"question {number}"), Message("assistant", f"answer {number}")]
    said.append(Message("user", "last"))
    prompt = chat_prompt_in_window(model, said, 1000)
    assert prompt.left_out % 2 == 0
    assert prompt.left_out > 0
    kept = [said[0], *said[1 + prompt.left_out :]]
    assert prompt.token_ids == chat_prompt(model, kept).token_ids
    assert len(prompt.token_ids) <= model.context_window // 2 or len(kept) <= 3
    assert chat_prompt_in_window(model, said[:2], 1).left_out == 0


class Terminal:
    """A program in a pseudo-terminal."""

    def __init__(self, root: Path, *arguments: str) -> None:
        self.own, other = pty.openpty()
        environment = {**os.environ, "MOESCOPE_CHECKPOINTS": str(root), "TERM": "dumb"}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), *arguments],
            stdin=other, stdout=other, stderr=other, env=environment, start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(other)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.own, text.encode())

    def shows(self, words: str, *, seconds: float) -> bool:
        """Read what comes within so long; whether the words have been seen."""
        end = time.monotonic() + seconds
        while words not in self.seen and time.monotonic() < end:
            if select.select([self.own], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.own, 4096).decode(errors="replace")
                except OSError:  # the program has ended
                    break
        return words in self.seen

    def wait_for(self, *words: str, seconds: float = 120) -> str:
        """Read until something, and all words, were shown since the last call; what was shown."""
        shown, end = "", time.monotonic() + seconds
        while not shown or not all(word in shown for word in words):
            assert time.monotonic() < end, f"{words} did not come; seen: {self.seen + shown}"
            if select.select([self.own], [], [], 0.1)[0]:
                try:
                    shown += os.read(self.own, 4096).decode(errors="replace")
                except OSError:  # the program has ended
                    assert all(word in shown for word in words), f"{words} did not come; seen: {self.seen + shown}"
        self.seen += shown
        return shown


def test_in_a_terminal_ctrl_c_stops_an_answer_and_only_twice_at_the_prompt_the_program(trained_root: Path) -> None:
    terminal = Terminal(trained_root, "chat", "--run", "tiny", "--max-new-tokens", "1000000", "--temperature", "1")
    try:
        terminal.wait_for("base model", "help says what can be typed", "> ")
        terminal.type("Hello\n")
        terminal.wait_for("Hello\r\n")
        terminal.wait_for()  # the answer has begun
        terminal.type("\x03")
        assert "tokens/s; stopped)" in terminal.wait_for("stopped", "> ")
        terminal.type("params max_new_tokens 3\n")
        terminal.wait_for("max_new_tokens   3", "> ")
        terminal.type("params heat 3\n")
        terminal.wait_for("error: there is no setting 'heat'", "> ")
        terminal.type("And?\n")
        assert "(3 tokens in" in terminal.wait_for("tokens/s", "> ")
        # What comes while readline is only about to wait is noticed with the next key (CPython looks before it, not
        # after): so it is pressed until it is seen, as a user would.
        for _ in range(40):
            terminal.type("\x03")
            if terminal.shows("Ctrl+C again ends", seconds=3):
                break
        for _ in range(40):
            if terminal.process.poll() is None:
                with suppress(OSError):
                    terminal.type("\x03")
                terminal.shows("nothing more", seconds=1)
        assert "Ctrl+C again ends" in terminal.seen
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.own)
    assert "Traceback" not in terminal.seen


# ---- generate --prompts-file ----


def test_prompts_of_a_file_are_answered_in_order_each_as_it_is_alone(
    cli: Run, trained_root: Path, tmp_path: Path
) -> None:
    texts = [f"The {word} " for word in "abcdefghijklmnopqrs"]
    (tmp_path / "prompts.txt").write_text("\n\n".join(texts) + "\r\n")
    arguments = ("generate", "--run", "tiny", "--prompts-file", str(tmp_path / "prompts.txt"), "--max-new-tokens", "5")
    code, out, err = cli(trained_root, *arguments, "--ablate", "0:1", "--json")
    assert code == 0
    assert "19 prompts, 95 tokens in" in err
    told = [json.loads(line) for line in out.splitlines()]
    assert [line["prompt"] for line in told] == texts
    alone = cli(trained_root, "generate", "--run", "tiny", "--prompt", texts[7], "--max-new-tokens", "5",
                "--ablate", "0:1", "--json")[1]  # fmt: skip
    expected = json.loads(alone)
    for of_a_pass in ("tokens_per_second", "cache", "prompt_seconds", "prompt_reused"):  # prompts of a file share it
        del expected[of_a_pass]
    assert told[7] == {**expected, "reason": "length"}
    code, out, _ = cli(trained_root, *arguments)
    loaded = load_run("tiny", trained_root)
    written = [
        "".join(token.text for token in generate(loaded, text, SamplingConfig(max_new_tokens=5))) for text in texts[:2]
    ]
    assert out.splitlines()[:2] == [text.replace("\n", "\\n") for text in written]
    assert len(out.splitlines()) == 19


def test_a_line_of_json_says_how_it_is_answered(cli: Run, trained_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "The ", "max_new_tokens": 2},
        {"prompt": "The ", "temperature": 0, "seed": 9},
    ]
    typed(monkeypatch, "\n".join(map(json.dumps, lines)))
    code, out, _ = cli(trained_root, "generate", "--run", "tiny", "--prompts-file", "-", "--json")
    assert code == 0
    told = [json.loads(line) for line in out.splitlines()]
    assert [len(line["tokens"]) for line in told] == [2, 200]


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"\n \n", 1, "standard input has no prompt"),
        (b"\xff", 1, "standard input is no UTF-8 text (byte 0)"),
        (b'{"prompt": "a"}\n{"prompt": 3}', 2, "line 2 of standard input: prompt: input should be a valid string"),
        (b'{"prompt": "a"}\n{"prompt": "a", "heat": 3}', 2, "line 2 of standard input: heat: extra inputs"),
        (b'{"prompt": "a", "top_p": 3}', 2, "line 1 of standard input: top_p = 3.0 is out of range"),
        (b'{"prompt": "a"}\nb', 2, "line 2 of standard input: invalid JSON: expected value"),
    ],
)
def test_a_file_that_holds_no_prompts_is_told_by_its_line(
    content: bytes, code: int, words: str, cli: Run, trained_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, content)
    found, _, err = cli(trained_root, "generate", "--run", "tiny", "--prompts-file", "-", "--max-new-tokens", "2")
    assert found == code
    assert_one_line(err[err.index("error: ") :], words)
