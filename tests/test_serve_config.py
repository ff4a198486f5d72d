"""The section `serve`: where it comes from, what Condor's variables mean, and that no run keeps it."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_core.config import Config, load_config
from moe_core.config.serve import CONDOR_VARIABLES, ServeConfig
from moe_core.errors import UsageError

CONDOR = {
    "CONDOR_MODEL_SIZE": "7b",
    "CONDOR_USE_MOE": "1",
    "CONDOR_PORT": "8002",
    "CONDOR_HOST": "0.0.0.0",
    "CONDOR_MAX_LENGTH": "100",
    "CONDOR_TEMPERATURE": "0.25",
    "CONDOR_LOG_LEVEL": "warning",
    "CONDOR_LOG_DIR": "logs",
}


def served(environment: dict[str, str], **more: object) -> ServeConfig:
    return load_config(environment=environment, with_condor=True, **more).serve  # type: ignore[arg-type]


def test_condors_variables_set_the_section() -> None:
    assert set(CONDOR) == set(CONDOR_VARIABLES)
    found = served(CONDOR)
    assert (found.model_size, found.use_moe, found.port, found.host) == ("7b", True, 8002, "0.0.0.0")
    assert (found.max_tokens, found.temperature, found.log_level, found.log_dir) == (100, 0.25, "WARNING", "logs")
    assert served({"CONDOR_USE_MOE": "0"}).use_moe is False


def test_what_condor_leaves_open_is_its_default_or_safer() -> None:
    found = served({})
    assert (found.port, found.max_tokens, found.temperature, found.log_level) == (8001, 2048, 0.7, "INFO")
    assert found.is_loopback
    assert found.log_dir is None
    assert served(dict.fromkeys(CONDOR, "")) == found  # as compose passes on what is not set


def test_each_source_wins_over_the_one_before_it(tmp_path: Path) -> None:
    file = tmp_path / "serve.conf"
    file.write_text('serve { port = 1, slots = 2, queue = 3, temperature = 0.1, runs = ["a", "b"], use_moe = false }')
    environment = {"CONDOR_PORT": "4", "CONDOR_TEMPERATURE": "0.5", "MOESCOPE_SERVE__TEMPERATURE": "0.6"}
    found = served(environment | {"MOESCOPE_SERVE__QUEUE": "7"}, file=file, overrides={"serve.queue": "8"})
    assert (found.slots, found.port, found.temperature, found.queue) == (2, 4, 0.6, 8)
    assert (found.runs, found.use_moe) == (("a", "b"), False)
    assert served({"MOESCOPE_SERVE__RUNS": "mine, demo"}).runs == ("mine", "demo")


def test_training_reads_no_variable_of_condor() -> None:
    assert load_config(environment={"CONDOR_PORT": "no number"}) == load_config(environment={})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("CONDOR_PORT", "eighty", "valid integer"),
        ("CONDOR_PORT", "70000", "less than or equal to 65535"),
        ("CONDOR_MODEL_SIZE", "8b", "no preset; expected one of default, quick"),
        ("CONDOR_USE_MOE", "2", "valid boolean"),
        ("CONDOR_TEMPERATURE", "nan", "finite"),
        ("CONDOR_LOG_LEVEL", "loud", "'DEBUG', 'INFO'"),
    ],
)
def test_a_wrong_value_is_told_by_its_variable(name: str, value: str, expected: str) -> None:
    with pytest.raises(UsageError, match=rf"environment variable {name} has value '{value}': .*{expected}") as caught:
        served({name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LocalHost")),
        *((host, False) for host in ("0.0.0.0", "::", "192.168.1.7", "lab.example.org", "127.0.0.1.example.org")),
    ],
)
def test_a_host_is_this_machine_or_the_network(host: str, expected: bool) -> None:
    assert ServeConfig(host=host).is_loopback is expected


def test_no_run_keeps_it() -> None:
    config = load_config(environment={"MOESCOPE_SERVE__PORT": "9"})
    assert config.serve.port == 9
    assert "serve" not in config.model_dump()
    assert "serve" not in config.model_dump_json()
    assert Config.model_validate(config.model_dump()).serve == ServeConfig()


def test_a_key_is_no_configuration() -> None:
    assert load_config(environment={"MOESCOPE_API_KEY": "secret"}) == load_config(environment={})
