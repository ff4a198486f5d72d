"""The application: what stands at which path, over the models of a pool.

app = create_api(ModelPool({"demo": run_source("demo")}), ApiOptions())
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import FastAPI, Query, Request
from starlette.responses import PlainTextResponse, Response

from moe_core import __version__
from moe_core.inference.chat_format import chat_prompt
from moe_core.inference.model_pool import ModelPool
from moe_core.inference.protocol import LanguageModel, check_token_ids
from moe_core.inference.requests import prompt_ids
from moe_core.json_values import Json
from moe_core.server.answering import Answering
from moe_core.server.api_metrics import CONTENT_TYPE, ApiMetrics
from moe_core.server.api_options import ApiOptions
from moe_core.server.door import Door
from moe_core.server.model_facts import control_token, model_card, model_facts, tokenizer_facts
from moe_core.server.presence import EventStream, while_present
from moe_core.server.refusals import refuse_in_one_shape, refused
from moe_core.server.served_models import ServedModels
from moe_core.server.wire_questions import (
    ChatQuestion,
    CompletionQuestion,
    DetokenizeQuestion,
    TokenizeQuestion,
    WritingQuestion,
    check_extra,
)
from moe_core.server.writing import Writing, chat_writing, completion_writing, messages_of
from moe_core.server.written_answers import Answer, to_json

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": meaning, "content": {"application/json": {"schema": {"type": "object"}}}}
    for status, meaning in {
        400: "the request cannot be",
        401: "the key is missing or wrong",
        404: "no such model",
        413: "the body is too large",
        429: "the queue is full",
        500: "a fault of the server or the model",
        503: "models are being opened or taken down",
    }.items()
}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "the answer, or its pieces while it is written", "content": {"text/event-stream": {}}}
}
ModelName = Annotated[str | None, Query(min_length=1, max_length=1_000)]


def create_api(pool: ModelPool, options: ApiOptions | None = None) -> FastAPI:
    """The API over the models of `pool`, which its caller closes."""
    options = options or ApiOptions()
    app = FastAPI(title="Moescope", version=__version__, docs_url=None, redoc_url=None, responses=ERRORS)
    refuse_in_one_shape(app)
    metrics = ApiMetrics(pool)
    app.add_middleware(Door, options=options, metrics=metrics)
    models = ServedModels(pool, options.default_model)
    _add_facts(app, models, metrics)
    _add_tokens(app, models)
    _add_writing(app, models, options)
    return app


def _add_facts(app: FastAPI, models: ServedModels, metrics: ApiMetrics) -> None:
    pool, started = models.pool, int(time.time())

    def cards() -> list[Json]:
        schedulers = pool.open_schedulers()
        return [model_card(name, started, schedulers.get(name)) for name in pool.names()]

    @app.get("/health")
    async def health() -> Response:
        """200 once the models that are to be open are open, 503 before and while the server ends."""
        state = "ready" if pool.is_ready else "shutting down" if pool.is_closing else "opening models"
        return _json({"status": state}, 200 if pool.is_ready else 503)

    @app.get("/v1/models")
    async def list_models() -> Response:
        """The models that can be asked, open or not."""
        return _json({"object": "list", "data": await to_thread.run_sync(cards)})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        """One of them."""
        found = await to_thread.run_sync(pool.opened, name)
        return _json(model_card(name, started, found))

    @app.get("/model/info")
    async def model_info(model: ModelName = None) -> Response:
        """Size, experts, context and precision of a model, which is opened for it."""
        name = await models.name(model)
        scheduler = await models.scheduler(name)
        return _json(await to_thread.run_sync(model_facts, name, scheduler))

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Requests, tokens, queue, and tokens per layer and expert."""
        return Response(await to_thread.run_sync(metrics.text), headers={"Content-Type": CONTENT_TYPE})


def _add_tokens(app: FastAPI, models: ServedModels) -> None:
    async def model_of(given: str | None) -> LanguageModel:
        return (await models.scheduler(await models.name(given))).engine.model

    @app.post("/tokenize")
    async def tokenize(question: TokenizeQuestion) -> Response:
        """The token ids of a text, or of a conversation as a model reads it."""
        check_extra(question)
        model = await model_of(question.model)
        return _json(await to_thread.run_sync(_tokenized, model, question))

    @app.post("/detokenize")
    async def detokenize(question: DetokenizeQuestion) -> Response:
        """The text of token ids, without control tokens."""
        check_extra(question)
        model = await model_of(question.model)
        check_token_ids(model, question.tokens)
        return _json({"prompt": await to_thread.run_sync(model.tokenizer.decode, question.tokens)})

    @app.get("/tokenizer_info")
    async def tokenizer_info(model: ModelName = None) -> Response:
        """The names of a model's begin and end tokens."""
        return _json(tokenizer_facts(await model_of(model)))


def _tokenized(model: LanguageModel, question: TokenizeQuestion) -> Json:
    if (question.prompt is None) == (question.messages is None):
        raise refused("expected one of prompt and messages", "prompt")
    if question.messages is not None:
        ids = list(chat_prompt(model, messages_of(question.messages)).token_ids)
    elif question.prompt is None or question.add_special_tokens:
        ids = prompt_ids(model, question.prompt or "")
    else:
        named = control_token(model, question.prompt)
        ids = model.tokenizer.encode(question.prompt) if named is None else [named]
    names = [model.tokenizer.token_text(token_id) for token_id in ids] if question.return_token_strs else None
    return {"count": len(ids), "max_model_len": model.context_window, "tokens": ids, "token_strs": names}


def _add_writing(app: FastAPI, models: ServedModels, options: ApiOptions) -> None:
    @app.post("/v1/completions", responses=STREAMED)
    async def completions(question: CompletionQuestion, request: Request) -> Response:
        """Text that goes on from a prompt."""

        def writing(model: LanguageModel) -> Writing:
            return completion_writing(model, question, options)

        return await _answered("text", request, question, models, writing)

    @app.post("/v1/chat/completions", responses=STREAMED)
    async def chat(question: ChatQuestion, request: Request) -> Response:
        """The next message of a conversation."""

        def writing(model: LanguageModel) -> Writing:
            return chat_writing(model, question, options)

        return await _answered("chat", request, question, models, writing)


async def _answered(
    kind: Literal["text", "chat"],
    request: Request,
    question: WritingQuestion,
    models: ServedModels,
    writing_for: Callable[[LanguageModel], Writing],
) -> Response:
    check_extra(question)
    name = await models.name(question.model)
    loan = await models.lend(name)
    try:
        # What takes a moment is done in a thread, so that other answers go on.
        writing = await to_thread.run_sync(writing_for, loan.scheduler.engine.model)
        answering = Answering(loan, writing.requests, whole=writing.shown.needs_all, in_pieces=bool(question.stream))
        await answering.begin()
    except BaseException:
        loan.give_back()
        raise

    answer = Answer(kind, writing, name)
    if question.stream:
        include_usage = bool(question.stream_options and question.stream_options.include_usage)
        return EventStream(answer.pieces(answering, include_usage=include_usage), answering.end)
    try:
        content = await while_present(request, lambda: answer.whole(answering))
    finally:
        answering.end()
    # Nobody reads what is sent to a client that has gone.
    return Response(status_code=499) if content is None else Response(content, media_type="application/json")


def _json(content: Json, status: int = 200) -> Response:
    return Response(to_json(content), status, media_type="application/json")
