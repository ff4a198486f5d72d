"""Whatever the schema allows, and whatever it forbids, is answered as documented and without a fault of the server."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from api_support import Served
from hypothesis import HealthCheck, Phase, given, settings

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is missing: `make test` installs it")
EXAMPLES = 15
"""Of each operation that takes something, in each mode."""
Mode = Literal["positive", "negative"]


def sensible(body: Any) -> Any:
    """The same question of a model that is there, for few tokens: most that are drawn would be refused for either."""
    if isinstance(body, dict):
        small = {"model": "tiny", "max_tokens": 2, "max_completion_tokens": 2, "n": 2}
        return body | {name: value for name, value in small.items() if name == "model" or body.get(name) is not None}
    return body


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_every_endpoint_bears_whatever_comes(api: Served, mode: Mode) -> None:
    from schemathesis.checks import (
        content_type_conformance,
        negative_data_rejection,
        not_a_server_error,
        status_code_conformance,
        unsupported_method,
    )

    checks = [not_a_server_error, status_code_conformance, content_type_conformance, unsupported_method]
    if mode == "negative":
        checks.append(negative_data_rejection)
    schema = schemathesis.openapi.from_url(f"{api.address}/openapi.json")
    statuses: dict[str, set[int]] = {}

    def ask(operation: Any) -> None:
        @settings(
            max_examples=EXAMPLES if operation.method == "post" else 3,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        def answered(case: Any) -> None:
            if mode == "positive":
                case.body = sensible(case.body)
            response = case.call()
            statuses.setdefault(operation.label, set()).add(response.status_code)
            case.validate_response(response, checks=checks)

        answered()

    for found in schema.get_all_operations():
        operation = found.ok()
        takes_something = bool(operation.body or operation.query)  # any path is a text
        if mode == "positive" or takes_something:
            ask(operation)
    posts = {label: found for label, found in statuses.items() if label.startswith("POST")}
    assert len(posts) == 4
    for label, found in posts.items():
        assert (200 in found) if mode == "positive" else (found <= {400, 404, 422}), (label, found)
