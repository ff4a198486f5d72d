"""The application: what stands at which path, over the models of a pool.

app = create_api(ModelPool({"demo": run_source("demo")}), ApiOptions())
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator

from anyio import to_thread
from fastapi import FastAPI, Response
from starlette.responses import StreamingResponse

from moe_core import __version__
from moe_core.errors import ShutDownError
from moe_core.inference.model_pool import ModelPool
from moe_core.server.answering import Answering
from moe_core.server.api_options import ApiOptions
from moe_core.server.completions import CompletionAnswer
from moe_core.server.refusals import Json, refuse_in_one_shape
from moe_core.server.wire_questions import CompletionQuestion
from moe_core.server.writing import completion_writing


def create_api(pool: ModelPool, options: ApiOptions | None = None) -> FastAPI:
    """The API over the models of `pool`, which its caller closes."""
    options = options or ApiOptions()
    app = FastAPI(title="Moescope", version=__version__, docs_url=None, redoc_url=None)
    refuse_in_one_shape(app)
    started = int(time.time())

    @app.get("/health")
    async def health() -> Response:
        state = "ready" if pool.is_ready else "shutting down" if pool.is_closing else "opening models"
        return Response(json.dumps({"status": state}), 200 if pool.is_ready else 503, media_type="application/json")

    @app.get("/v1/models")
    async def models() -> Json:
        names = await to_thread.run_sync(pool.names)
        cards = [{"id": name, "object": "model", "created": started, "owned_by": "moescope"} for name in names]
        return {"object": "list", "data": cards}

    @app.post("/v1/completions", response_model=None)
    async def completions(question: CompletionQuestion) -> Json | Response:
        name = question.model or options.default_model or (await to_thread.run_sync(pool.names))[0]
        while True:
            scheduler = await to_thread.run_sync(pool.scheduler, name)
            writing = completion_writing(scheduler.engine.model, question, options)
            answering = Answering(scheduler, writing.requests, whole=False)
            try:
                await answering.__aenter__()
                break
            except ShutDownError:
                if pool.is_closing:
                    raise
        answer = CompletionAnswer(writing, name)
        if not question.stream:
            try:
                return await answer.whole(answering)
            finally:
                await answering.__aexit__()
        include_usage = bool(question.stream_options and question.stream_options.include_usage)

        async def stream() -> AsyncIterator[bytes]:
            try:
                async for piece in answer.pieces(answering, include_usage=include_usage):
                    yield piece
            finally:
                await answering.__aexit__()

        return StreamingResponse(stream(), media_type="text/event-stream")

    return app
