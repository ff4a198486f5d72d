"""What the model writes at an evaluation: a sample from nothing and, where asked for, how much of its code is valid."""

from __future__ import annotations

from statistics import fmean

from moe_core.config import Config
from moe_core.data.prepare import PreparedData
from moe_core.data.python_syntax import correct_so_far, parses, whole_lines
from moe_core.data.syntax import LANGUAGE_OF_DOMAIN
from moe_core.data.tokenizer import Tokenizer
from moe_core.inference.batch import Batch
from moe_core.inference.engine import Engine, Finished, PromptRead, Request
from moe_core.inference.mailbox import Mailbox
from moe_core.inference.sampling import SamplingConfig
from moe_core.model.transformer import MoETransformer
from moe_core.runs.checkpoint import LoadedRun
from moe_core.runs.folder import RunFolder
from moe_core.training.trainer_state import TrainerState

SAMPLE_TOKENS = 40
SYNTAX_PROMPT_TOKENS, SYNTAX_TOKENS = 64, 64
"""Of each beginning of code, and of what is written from it."""


def write_texts(run: RunFolder, model: MoETransformer, data: PreparedData, config: Config, state: TrainerState) -> None:
    """Let the model write, if it can, and log it. It is in eval mode meanwhile; each evaluation draws anew."""
    if not model.config.can_write:
        return
    was_training = model.training
    try:
        engine = Engine(LoadedRun(run, config, model.eval(), data.tokenizer, state.step))
        seed = config.training.seed + state.step
        text = engine.start(Request("", SamplingConfig(max_new_tokens=SAMPLE_TOKENS, seed=seed))).result().text
        run.append_metrics({"kind": "sample", "step": state.step, "text": text})
        if config.training.syntax_samples:
            _write_code(run, engine, data, config.training.syntax_samples, seed, state.step)
    finally:
        model.train(was_training)


def _write_code(run: RunFolder, engine: Engine, data: PreparedData, most: int, seed: int, step: int) -> None:
    """Go on from the beginnings of held-out code, the same ones each time, and log how much is valid."""
    code = [one for one in data.validation if LANGUAGE_OF_DOMAIN.get(one.domain) == "python"][:most]
    prompts = [_beginning(one.text, data.tokenizer) for one in code]
    if not prompts:
        return
    written = zip(prompts, _written(engine, prompts, seed), strict=True)
    # Who has not ended a single line by then has written no code, however right its beginning is.
    lines = [(prompt, whole_lines(prompt + text, ended)) for prompt, (text, ended) in written]
    texts = [text if len(text) > len(prompt) else "" for prompt, text in lines]
    figures = {"parses": fmean(map(parses, texts)), "correct_so_far": fmean(map(correct_so_far, texts))}
    run.append_metrics({"kind": "syntax", "step": step, "samples": len(texts), **figures})


def _written(engine: Engine, prompts: list[str], seed: int) -> list[tuple[str, bool]]:
    """(what the model writes, whether it ended it) of each prompt; all of them share passes."""
    mailboxes = [Mailbox() for _ in prompts]
    with Batch(engine.model) as batch:
        for number, (prompt, mailbox) in enumerate(zip(prompts, mailboxes, strict=True)):
            sampling = SamplingConfig(max_new_tokens=SYNTAX_TOKENS, seed=seed + number)
            batch.add(engine.row(Request(prompt, sampling), mailbox))
        while len(batch):
            for row in batch.step():
                row.tell_end()
    return [_read(mailbox) for mailbox in mailboxes]


def _read(mailbox: Mailbox) -> tuple[str, bool]:
    text, ended = "", False
    while (event := mailbox.pop()) is not None:
        text += "" if isinstance(event, PromptRead) else event.text
        ended = isinstance(event, Finished) and event.reason == "end of text"
    return text, ended


def _beginning(text: str, tokenizer: Tokenizer) -> str:
    """The first SYNTAX_PROMPT_TOKENS tokens of a document; half of it where that is less."""
    ids = tokenizer.encode(text)
    kept = ids[: min(SYNTAX_PROMPT_TOKENS, len(ids) // 2)]
    return b"".join(map(tokenizer.token_bytes, kept)).decode("utf-8", "ignore")
