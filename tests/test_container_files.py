"""Dockerfile and compose.yaml say what the code does: port, variables, health check, user. No container is started."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from moe_core.cli.parser import parse
from moe_core.cli.serve import KEY_VARIABLE, serve_config
from moe_core.config import load_config
from moe_core.config.serve import CONDOR_VARIABLES, ServeConfig

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVER, ON_GPU = COMPOSE["services"]["moescope"], COMPOSE["services"]["moescope-gpu"]
OUTSIDE = {"OMP_WAIT_POLICY", "PATH", "PIP_DISABLE_PIP_VERSION_CHECK", "PIP_NO_CACHE_DIR"}
"""Variables of the image that others than Moescope read, besides NVIDIA's."""


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} +(.*)$", DOCKERFILE, re.MULTILINE)


def image_variables() -> dict[str, str]:
    pairs = (word.partition("=") for line in instructions("ENV") for word in shlex.split(line))
    return {name: value for name, _, value in pairs}


def substituted(text: str, environment: dict[str, str]) -> str:
    """compose's ${NAME:-default}."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1]) or found[2], text)


def test_the_image_starts_the_server_as_a_user_of_its_own() -> None:
    command = [*json.loads(instructions("ENTRYPOINT")[-1]), *json.loads(instructions("CMD")[-1])]
    assert command == ["moescope", "serve"]
    assert parse(command[1:]).handler.__name__ == "serve"
    (user,) = instructions("USER")
    assert user == "moescope"
    assert re.search(r"useradd --uid [1-9]\d{4} .*moescope", DOCKERFILE)
    assert "root" not in user


def test_the_images_variables_are_known_and_agree() -> None:
    variables = {name: value for name, value in image_variables().items() if not name.startswith("NVIDIA_")}
    ours = {name: value for name, value in variables.items() if name not in OUTSIDE}
    assert set(ours) <= {*CONDOR_VARIABLES, "MOESCOPE_CHECKPOINTS", "MOESCOPE_CACHE"}
    config = load_config(environment=ours, with_condor=True).serve
    assert config.port == ServeConfig().port == int(instructions("EXPOSE")[0])
    assert not config.is_loopback  # so a key is asked for
    assert config.log_dir == "/data/logs"


def test_the_health_check_asks_the_path_that_tells() -> None:
    (check,) = re.findall(r"^HEALTHCHECK .*?CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    python, option, code = json.loads(check)
    assert (python, option) == ("python", "-c")
    assert "'/health'" in code
    assert "os.environ['CONDOR_PORT']" in code
    compile(code, "health check", "exec")


def test_what_is_copied_is_there_and_sent_to_the_builder() -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [name for line in instructions("COPY") for name in line.split()[:-1]]
    assert {"moe_core", "app", "data_gen", "pyproject.toml"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(Path(name).match(pattern) for pattern in let_in), name


def test_compose_passes_on_the_same_variables() -> None:
    given = SERVER["environment"]
    assert {name for name in given if name.startswith("CONDOR_")} == set(CONDOR_VARIABLES)
    assert KEY_VARIABLE in given
    for name, value in given.items():
        assert value == "/data/logs" or value.startswith(f"${{{name}:-"), name
    values = {name: substituted(value, {}) for name, value in given.items()}
    values.pop(KEY_VARIABLE)
    found = load_config(environment=values, with_condor=True).serve
    assert found == ServeConfig(host="0.0.0.0", log_dir="/data/logs")
    chosen = {"CONDOR_MODEL_SIZE": "7b", "CONDOR_USE_MOE": "1", "CONDOR_PORT": "9000"}
    values = {name: substituted(value, chosen) for name, value in given.items() if name != KEY_VARIABLE}
    found = load_config(environment=values, with_condor=True).serve
    assert (found.model_size, found.use_moe, found.port) == ("7b", True, 9000)


def test_compose_starts_a_command_that_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    plain = shlex.split(substituted(SERVER["command"], {}))
    assert serve_config(parse(plain)) == ServeConfig()
    open_to_all = shlex.split(substituted(SERVER["command"], {"SERVE_OPTIONS": "--no-api-key"}))
    assert parse(open_to_all).no_api_key


def test_compose_opens_the_port_to_this_machine_alone_and_waits_for_answers() -> None:
    (port,) = SERVER["ports"]
    assert substituted(port, {}) == f"127.0.0.1:{ServeConfig().port}:{ServeConfig().port}"
    assert float(SERVER["stop_grace_period"].removesuffix("s")) > ServeConfig().drain_seconds
    checkpoints, logs = SERVER["volumes"]
    assert checkpoints == f"./checkpoints:{image_variables()['MOESCOPE_CHECKPOINTS']}:ro"
    assert logs.split(":") == ["logs", SERVER["environment"]["CONDOR_LOG_DIR"]]
    assert "logs" in COMPOSE["volumes"]


def test_the_gpu_service_is_the_same_with_gpus_and_starts_only_when_asked() -> None:
    same = {name: value for name, value in ON_GPU.items() if name not in ("profiles", "deploy")}
    assert same == SERVER
    assert ON_GPU["profiles"] == ["gpu"]
    (device,) = ON_GPU["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert image_variables()["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
