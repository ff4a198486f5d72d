"""The API over real HTTP in a thread of the tests' process, with the tiny run behind it."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.inference.model_pool import ModelPool, ModelSource, RunSources
from moe_core.inference.scheduler import Scheduler


@dataclass(frozen=True)
class Served:
    """A server that answers until its block ends."""

    address: str
    pool: ModelPool
    app: Any

    @property
    def scheduler(self) -> Scheduler:
        return self.pool.scheduler("tiny")

    def client(self, **options: Any) -> Any:
        """The official SDK, which does not try again by itself."""
        openai = pytest.importorskip("openai", reason="openai is missing: `make test` installs it")
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, **options)


@contextmanager
def serving_api(
    root: Path, *, options: Any = None, sources: Mapping[str, ModelSource] | None = None, **pool_options: Any
) -> Iterator[Served]:
    """`pool_options`: of the ModelPool over the runs in `root`, or over `sources`."""
    uvicorn = pytest.importorskip("uvicorn", reason="the extra serve is missing: `make test` installs it")
    from moe_core.server.api import create_api
    from moe_core.server.listening import listening_socket, url_of

    with ModelPool(RunSources(root) if sources is None else sources, **pool_options) as pool:
        app = create_api(pool, options)
        listener = listening_socket("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield Served(url_of(listener), pool, app)
        finally:
            server.should_exit = True
            thread.join()
            listener.close()


def array_of(text: str) -> np.ndarray[Any, Any]:
    """What the API sends as base64 of a .npy file."""
    found: np.ndarray[Any, Any] = np.load(io.BytesIO(base64.b64decode(text)))
    return found
