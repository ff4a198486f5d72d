"""The config tree: order of the sources, hints for wrong keys, one-line errors for every broken file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_core.config import Config, load_config, parse_overrides, validate_config
from moe_core.errors import UsageError


def write(folder: Path, text: str) -> Path:
    path = folder / "my.conf"
    path.write_text(text, encoding="utf-8")
    return path


def message(folder: Path, text: str) -> str:
    """The one-line message that a config file with this text brings."""
    with pytest.raises(UsageError) as caught:
        load_config(file=write(folder, text), environment={})
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 400
    return line


# ---- sources and their order ----


def test_each_source_wins_over_the_one_before_it(tmp_path: Path) -> None:
    file = write(tmp_path, "model { num_experts = 12, top_k = 3, dim = 48 }")
    environment = {"MOESCOPE_MODEL__TOP_K": "4", "MOESCOPE_MODEL__DIM": "56", "PATH": "/bin"}
    config = load_config("quick", file=file, environment=environment, overrides={"model.dim": "64"})
    assert config.model.head_dim == 32  # preset quick
    assert config.model.num_experts == 12  # file
    assert config.model.top_k == 4  # environment over file
    assert config.model.dim == 64  # command line over all
    assert config.model.num_layers == 4  # default


def test_the_process_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESCOPE_TRAINING__STEPS", "7")
    assert load_config().training.steps == 7


def test_variables_that_are_not_config_keys_are_left_alone() -> None:
    environment = {"MOESCOPE_CHECKPOINTS": "/somewhere", "MOESCOPE_DEBUG": "1"}
    assert load_config(environment=environment) == load_config(environment={})


def test_an_unknown_environment_variable_is_named_as_such() -> None:
    with pytest.raises(UsageError, match=r"variable MOESCOPE_MODEL__NUM_EXPERT .*'model\.num_experts'"):
        load_config(environment={"MOESCOPE_MODEL__NUM_EXPERT": "4"})


def test_unknown_preset() -> None:
    with pytest.raises(UsageError, match="unknown preset 'huge'; expected one of default, quick, demo, "):
        load_config("huge")


def test_a_saved_config_comes_back_equal() -> None:
    config = load_config("quick", environment={}, overrides={"model.capacity_factor": "1.25", "data.path": "x.jsonl"})
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_a_saved_config_can_be_the_base() -> None:
    saved = load_config("quick", environment={}, overrides={"model.dim": "64"})
    assert load_config(saved, environment={}) == saved
    changed = load_config(saved, environment={"MOESCOPE_MODEL__DIM": "48"}, overrides={"training.steps": "7"})
    assert (changed.model.dim, changed.training.steps, changed.model.num_experts) == (48, 7, 8)


def test_presets_are_not_changed_by_loading() -> None:
    before = load_config("quick", environment={})
    load_config("quick", environment={}, overrides={"model.dim": "64", "training.steps": "3"})
    assert load_config("quick", environment={}) == before


# ---- HOCON files ----


@pytest.mark.parametrize(
    "text",
    [
        "model.dim = 64",
        '{"model": {"dim": 64}}',
        "model { dim = 64 } # note",
        '"model" { "dim": 64 }',
        "\ufeffmodel.dim = 64",
        "model.dim = 8\nmodel.dim = 64",
        "model.dim = ${model.num_experts}\nmodel.num_experts = 64",
    ],
)
def test_spellings_of_the_same_file(tmp_path: Path, text: str) -> None:
    assert load_config(file=write(tmp_path, text), environment={}).model.dim == 64


def test_null_and_empty_files(tmp_path: Path) -> None:
    assert load_config(file=write(tmp_path, ""), environment={}) == load_config(environment={})
    file = write(tmp_path, "training { time_budget_seconds = null }")
    assert load_config(file=file, environment={}).training.time_budget_seconds is None


@pytest.mark.parametrize("way", ["file", "environment", "override", "base"])
def test_none_is_a_value_where_it_names_a_choice_and_nothing_elsewhere(tmp_path: Path, way: str) -> None:
    keys = {"model.router.balancing": "none", "training.autocast": "none", "training.time_budget_seconds": "none"}
    if way == "file":
        text = "\n".join(f"{key} = {value}" for key, value in keys.items())
        config = load_config(file=write(tmp_path, text), environment={})
    elif way == "environment":
        names = {f"MOESCOPE_{key.upper().replace('.', '__')}": value for key, value in keys.items()}
        config = load_config(environment=names)
    else:
        config = load_config(environment={}, overrides=keys)
        config = load_config(config, environment={}) if way == "base" else config
    assert (config.model.router.balancing, config.model.router.balances_by) == ("none", "none")
    assert (config.training.autocast, config.training.time_budget_seconds) == ("none", None)
    usual = load_config(config, environment={}, overrides={"model.router.balancing": "null"})
    assert (usual.model.router.balancing, usual.model.router.balances_by) == (None, "layer")


def test_include_is_relative_to_the_file_and_must_exist(tmp_path: Path) -> None:
    (tmp_path / "base.conf").write_text("model { dim = 64, top_k = 1 }", encoding="utf-8")
    config = load_config(file=write(tmp_path, 'include "base.conf"\nmodel.top_k = 3'), environment={})
    assert (config.model.dim, config.model.top_k) == (64, 3)
    assert "nope.conf'" in message(tmp_path, 'include "nope.conf"')
    assert "nope.conf'" in message(tmp_path, 'include required(file("nope.conf"))')


def test_include_never_fetches_from_the_network(tmp_path: Path) -> None:
    assert "include url" in message(tmp_path, 'include url("http://127.0.0.1:9/x.conf")')


@pytest.mark.parametrize(
    "text",
    [
        "model { dim = 64",
        "}{",
        "a" * 300,
        "model.dim = ${NOPE}",
        "model.dim = ${model.dim}",
        "model.dim = " + "[" * 5000,
    ],
)
def test_broken_hocon_is_one_line_naming_the_file(tmp_path: Path, text: str) -> None:
    assert "my.conf" in message(tmp_path, text)


def test_a_list_and_a_scalar_where_sections_belong(tmp_path: Path) -> None:
    assert "is a list; expected sections" in message(tmp_path, "[1, 2]")
    assert "'model' has value 5" in message(tmp_path, "model = 5")
    assert "'training' has value None" in message(tmp_path, "training = null")


def test_missing_unreadable_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no config file at"):
        load_config(file=tmp_path / "nope.conf", environment={})
    with pytest.raises(UsageError, match="cannot read config file"):
        load_config(file=tmp_path, environment={})
    with pytest.raises(UsageError, match="cannot read config file"):
        load_config(file="a\0b", environment={})
    (tmp_path / "binary.conf").write_bytes(b"\xff\xfe\x00m")
    with pytest.raises(UsageError, match="cannot read config file"):
        load_config(file=tmp_path / "binary.conf", environment={})


# ---- keys and values ----


def override_message(key: str, value: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_config(environment={}, overrides={key: value})
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_an_unknown_key_brings_its_nearest_neighbour() -> None:
    line = override_message("model.num_expert", "4")
    assert line == "unknown config key 'model.num_expert' (value '4'); did you mean 'model.num_experts'?"
    assert "did you mean 'model'?" in override_message("modle.dim", "4")
    assert "expected one of" in override_message("zzzzzz.qqqqqq", "4")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.dim", "wide", "'model.dim' has value 'wide'"),
        ("model.dim", "4", "greater than or equal to 8"),
        ("model.dim", "", "'model.dim' has value ''"),
        ("model.num_experts", "16.5", "'model.num_experts' has value '16.5'"),
        ("training.learning_rate", "nan", "'training.learning_rate' has value 'nan'"),
        ("training.learning_rate", "inf", "'training.learning_rate' has value 'inf'"),
        ("training.steps", "9" * 5000, "'training.steps' has value '999"),
        ("training.optimizer", "sgd", "'muon' or 'adamw'"),
        ("data.path", "", "'data.path' has value ''"),
        ("data.seed", "-1", "'data.seed' has value '-1'"),
        ("model", "5", "'model' has value '5'"),
        ("model.head_dim", "63", "model.head_dim = 63 is odd"),
        ("model.num_kv_heads", "3", "model.num_heads = 4 is not a multiple of model.num_kv_heads = 3"),
        ("training.seq_len", "2048", "training.seq_len = 2048 is more than model.max_seq_len = 1024"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(key: str, value: str, words: str) -> None:
    line = override_message(key, value)
    assert words in line
    assert len(line) < 300


def test_top_k_beyond_the_experts_says_what_to_do() -> None:
    line = override_message("model.top_k", "17")
    assert line == ("model.top_k = 17 is more than model.num_experts = 16; lower top_k or raise num_experts")


def test_a_boolean_is_not_a_number() -> None:
    with pytest.raises(UsageError, match=r"'model\.top_k' has value True"):
        validate_config({"model": {"top_k": True}})


def test_moe_layers_follow_the_two_keys() -> None:
    def layers(**model: int) -> tuple[int, ...]:
        return validate_config({"model": model}).model.moe_layers

    assert layers(num_layers=4) == (0, 1, 2, 3)
    assert layers(num_layers=5, moe_every=2) == (1, 3)
    assert layers(num_layers=5, moe_every=2, first_dense_layers=1) == (2, 4)


# ---- --section.key VALUE ----


def test_overrides_with_space_and_equals_sign() -> None:
    assert parse_overrides(["--model.num_experts", "16", "--data.seed=3", "--data.path=a=b"]) == {
        "model.num_experts": "16",
        "data.seed": "3",
        "data.path": "a=b",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.dim"], "config key 'model.dim' has no value"),
        (["--model.dim", "--data.seed", "3"], "config key 'model.dim' has no value"),
        (["--verbose"], "unknown argument '--verbose'"),
        (["model.dim", "3"], "unknown argument 'model.dim'"),
    ],
)
def test_overrides_that_do_not_parse(arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_overrides(arguments)


KEYS = st.sampled_from(["model", "dim", "top_k", "router", "data", "path", "training", "x", ""])
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(), max_size=3)
)


@given(st.recursive(VALUES, lambda inner: st.dictionaries(KEYS, inner, max_size=4), max_leaves=8))
def test_any_tree_is_a_config_or_one_line(value: object) -> None:
    tree = value if isinstance(value, dict) else {"model": value}
    try:
        validate_config(tree)
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017


@given(
    st.lists(st.one_of(st.text(max_size=12), st.sampled_from(["--model.dim", "--model.dim=8", "8", "--"])), max_size=5)
)
def test_any_arguments_are_overrides_or_one_line(arguments: list[str]) -> None:
    try:
        assert all("." in key for key in parse_overrides(arguments))
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_key_unlike_any_other_gets_the_keys_of_its_section() -> None:
    with pytest.raises(
        UsageError, match=r"unknown config key 'model\.router\.foo'.*expected one of model\.router\.balancing"
    ):
        load_config(environment={}, overrides={"model.router.foo": "1"})
    with pytest.raises(UsageError, match=r"did you mean 'model\.num_experts'"):
        load_config(environment={}, overrides={"model.num_expert": "1"})


# ---- HOCON that asks for too much ----


def doubling(levels: int) -> str:
    return "a0 = ${?NOPE}xxxxxxxxxx\n" + "\n".join(f"a{n + 1} = ${{a{n}}}${{a{n}}}" for n in range(levels))


@pytest.mark.skipif(sys.platform == "win32", reason="the limits are those of a POSIX process")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('include "/dev/zero"', "included file 'zero' cannot be read: it is no regular file"),
        ('include "my.conf"', "'my.conf' is 9 includes deep, or includes itself"),
        ('include "fifo.conf"', "included file 'fifo.conf' cannot be read: it is no regular file"),
        ('include "large.conf"', "included file 'large.conf' cannot be read: it has"),
        ('include "folder"', "included file 'folder' does not exist or cannot be read"),
        ('include "binary.conf"', "included file 'binary.conf' cannot be read"),
        ('include "file:///etc/hostname"', "include url"),
        ('model { include url("http://127.0.0.1:9/x.conf") }', "include url"),
        ('include required(file("' + "a" * 5000 + '"))', "does not exist or cannot be read"),
        (doubling(60), "more than 256 MiB of memory or 5 s"),
        ("a = [1]\n" + "a = ${a}${a}\n" * 60, "more than 256 MiB of memory or 5 s"),
        ("b0.x = 1\n" + "\n".join(f"b{n + 1} {{ l = ${{b{n}}}, r = ${{b{n}}} }}" for n in range(60)), "more than 256"),
        ("{" * 20_000, "my.conf"),
        ("x" * 300_000, "300,000 bytes"),
    ],
)
def test_hocon_that_asks_for_too_much_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    os.mkfifo(tmp_path / "fifo.conf")
    (tmp_path / "folder").mkdir()
    (tmp_path / "large.conf").write_text("#" * 300_000, encoding="utf-8")
    (tmp_path / "binary.conf").write_bytes(b"\xff\xfe\x00m")
    assert words in message(tmp_path, text)


@pytest.mark.skipif(sys.platform == "win32", reason="devices are files on POSIX only")
def test_a_config_file_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.conf")
    for path in (Path("/dev/zero"), tmp_path / "fifo.conf"):
        with pytest.raises(UsageError, match=r"cannot read config file .*: it is no regular file"):
            load_config(file=path, environment={})


def test_a_duration_is_text_that_no_key_takes(tmp_path: Path) -> None:
    assert "'training.steps' has value" in message(tmp_path, "training.steps = 5 days")
