"""The paths that the dashboard hands to the API are those that the API has."""

from __future__ import annotations

from starlette.routing import Match, Route

from moe_core.inference.model_pool import ModelPool
from moe_core.server.api import create_api
from moe_core.server.paths import PATHS


def test_every_endpoint_is_reached_beside_the_dashboard_and_no_path_is_idle() -> None:
    with ModelPool({}) as pool:
        found = {route.path for route in create_api(pool).routes if isinstance(route, Route)}
    handed_on = [Route(path, endpoint=create_api) for path in PATHS]
    reached: set[str] = set()
    for path in found:
        scope = {"type": "http", "method": "GET", "path": path}
        matching = [route.path for route in handed_on if route.matches(scope)[0] is not Match.NONE]
        assert matching, f"{path} is the dashboard's"
        reached.update(matching)
    assert reached == set(PATHS)
