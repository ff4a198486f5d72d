"""A server of routed experts for tests: real HTTP on loopback, in a thread, answering as the recordings do.

It knows the recorded answers by the text that is asked about, gives as many tokens of them as were asked for, and does
whatever a test tells it to do wrong.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

RECORDINGS = Path(__file__).parent / "fixtures" / "recordings"
Answer = dict[str, Any]
Fault = Callable[["Handler"], bool]
"""Answers instead of the server, or returns False to let it answer."""


def recorded_answers(name: str) -> dict[str, Answer]:
    """The answers of a recording by the text "text 0", "text 1" ...; each with one choice."""
    lines = (RECORDINGS / f"vllm-0.30-{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return {f"text {number}": json.loads(line) for number, line in enumerate(lines)}


def npy_base64(array: np.ndarray[Any, Any]) -> str:
    """As vLLM sends an array."""
    content = io.BytesIO()
    np.save(content, array)
    return base64.b64encode(content.getvalue()).decode()


def experts_of(answer: Answer) -> np.ndarray[Any, Any]:
    """[tokens, layers, k] in a recorded answer."""
    content = base64.b64decode(answer["choices"][0]["routed_experts"])
    found: np.ndarray[Any, Any] = np.load(io.BytesIO(content))
    return found


class Engine:
    """What the server knows and does; tests set it and read what was asked."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        self.answers = answers
        self.models: list[Answer] = [{"id": "demo", "owned_by": "vllm", "max_model_len": 128}]
        self.faults: list[Fault] = []
        """The first questions of routing meet these, one each."""
        self.change: Callable[[Answer], Answer] = lambda answer: answer
        """Made of every answer about a text."""
        self.detokenizes = True
        self.asked: list[str | list[int]] = []
        """Texts that were asked about, in order, or their ids."""
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.sglang_top_k: int | None = None
        """Set: it answers as SGLang does, at /generate too where `native`."""
        self.native = True
        self.completes = True
        """Unset: SGLang stops before it has written a token."""
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    def next_fault(self) -> Fault | None:
        with self._lock:
            return self.faults.pop(0) if self.faults else None

    def vllm_answer(self, text: str | list[int], tokens: int) -> Answer:
        """What was recorded of a text, or of the beginning that is given as ids, with `tokens` of its answer."""
        if isinstance(text, list):
            begun = [one["choices"][0]["prompt_token_ids"][: len(text)] for one in self.answers.values()]
            whole = json.loads(json.dumps([*self.answers.values()][begun.index(text)]))
            whole["choices"][0]["prompt_token_ids"] = text
        else:
            whole = json.loads(json.dumps(self.answers[text]))
        choice = whole["choices"][0]
        prompt = len(choice["prompt_token_ids"])
        choice["routed_experts"] = npy_base64(experts_of(whole)[: prompt + tokens - 1])
        choice["token_ids"] = choice["token_ids"][:tokens]
        whole["usage"] = {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}
        return self.change(whole)

    def sglang_answer(self, text: str | list[int], tokens: int) -> Answer:
        """The same as /generate of SGLang gives it."""
        vllm = self.vllm_answer(text, tokens)
        choice = vllm["choices"][0]
        if not self.completes:
            tokens, choice["token_ids"] = 0, []
        flat = experts_of(vllm).astype(np.int32).ravel()
        return {
            "text": "",
            "output_ids": choice["token_ids"],
            "meta_info": {
                "prompt_tokens": vllm["usage"]["prompt_tokens"],
                "completion_tokens": tokens,
                "routed_experts": base64.b64encode(flat.tobytes()).decode(),
                "input_token_logprobs": [[None, one, None] for one in choice["prompt_token_ids"]],
                "output_token_logprobs": [[-1.0, one, None] for one in choice["token_ids"]],
            },
        }

    def sglang_completion(self, text: str | list[int], tokens: int) -> Answer:
        """The same through SGLang's form of OpenAI's interface."""
        native, vllm = self.sglang_answer(text, tokens), self.vllm_answer(text, tokens)
        vllm["choices"][0].pop("routed_experts")
        vllm["sglext"] = {"routed_experts": native["meta_info"]["routed_experts"]}
        return vllm


class Handler(BaseHTTPRequestHandler):
    """One request; `server.engine` knows what to answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def engine(self) -> Engine:
        found: Engine = self.server.engine  # type: ignore[attr-defined]
        return found

    def do_GET(self) -> None:
        self.engine.paths.append(self.path)
        if self.path == "/v1/models":
            self.send(200, {"object": "list", "data": self.engine.models})
        elif self.path == "/model_info" and self.engine.sglang_top_k and self.engine.native:
            self.send(200, {"model_path": "demo"})
        else:
            self.send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        self.engine.paths.append(self.path)
        self.engine.headers.append(dict(self.headers))
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/detokenize" and self.engine.detokenizes:
            self.send(200, {"prompt": "".join(f" t{one}" for one in question["tokens"])})
        elif self.path in ("/v1/completions", "/generate"):
            with self.engine.counted():
                fault = self.engine.next_fault()
                if fault is None or not fault(self):
                    self.answer(question)
        elif self.path == "/tokenize":
            choice = self.engine.answers[question["prompt"]]["choices"][0]
            self.send(200, {"tokens": choice["prompt_token_ids"], "max_model_len": 128})
        else:
            self.send(404, {"detail": "Not Found"})

    def answer(self, question: Answer) -> None:
        engine = self.engine
        if self.path == "/generate":
            text, tokens = (
                question.get("text", question.get("input_ids")),
                question["sampling_params"]["max_new_tokens"],
            )
            engine.asked.append(text)
            self.send(200, engine.sglang_answer(text, tokens))
            return
        text, tokens = question["prompt"], question["max_tokens"]
        engine.asked.append(text)
        ask = engine.sglang_completion if engine.sglang_top_k else engine.vllm_answer
        self.send(200, ask(text, tokens))

    def send(self, status: int, answer: Any, **headers: str) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no fault of the test."""


@contextmanager
def serving(engine: Engine) -> Iterator[str]:
    """Serve on a free port of loopback; the address."""
    server = _Server(("127.0.0.1", 0), Handler)
    server.engine = engine  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
