"""Every mixture-of-experts family of the installed transformers: captured exactly, or named with its reason."""

from __future__ import annotations

import functools

import pytest

transformers = pytest.importorskip("transformers", reason="Hugging Face models need requirements-huggingface.txt")

from bench import families as page_of  # noqa: E402
from bench.family_configs import families  # noqa: E402

# One worker for all: they share the imports and the outcomes.
pytestmark = pytest.mark.xdist_group("families")

NOT_EXACT = {"gemma4_unified", "granite_docling", "nllb_moe"}
check = functools.cache(page_of.check)


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    transformers.logging.set_verbosity_error()


@pytest.mark.parametrize("family", families())
def test_what_is_captured_is_what_the_experts_received(family: str) -> None:
    outcome = check(family)
    assert outcome.exact is (family not in NOT_EXACT), outcome
    assert outcome.exact is not bool(outcome.reason)


def test_the_page_in_docs_is_current() -> None:
    outcomes = [check(family) for family in families()]
    assert sum(outcome.exact for outcome in outcomes) >= 60
    written = page_of.PAGE.read_text(encoding="utf-8")
    assert written == page_of.page(outcomes), "run python -m bench.families"
