"""Where the API's endpoints stand, and where its key comes from: known without importing any of it."""

from __future__ import annotations

PATHS = (
    "/v1/{rest:path}",
    "/health",
    "/model/info",
    "/tokenize",
    "/detokenize",
    "/tokenizer_info",
    "/metrics",
    "/openapi.json",
)
"""As starlette's routes; everything else is the dashboard's."""
KEY_VARIABLE = "MOESCOPE_API_KEY"
"""The environment's variable with a server's key: of ours, and of one that `trace --server` asks."""
