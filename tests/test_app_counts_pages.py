"""Every page on every kind of counts: what they can tell, in the words of the other pages, and what the rest takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from app_support import Open, shown
from streamlit.testing.v1 import AppTest

from moe_core.routing import RoutingCounts, RoutingTrace
from moe_core.routing.measures.capability import DOMAINS, MODEL, PAIRS, SOURCES, STEPS, TOKENS
from moe_core.routing.trace.groups import Group

HOSTILE = ("<b>x</b>", "**bold** [here](http://x.y) $y$ :red[z]")
PAGES = ("overview", "tokens", "domains", "experts", "flow", "generation", "chat", "interventions", "time", "compare")
IMATRIX = Path(__file__).parent / "fixtures" / "recordings" / "llama.cpp-imatrix.gguf"


def text_of_domains(L: int = 4, E: int = 8, K: int = 2, domains: tuple[str, ...] = ("law", *HOSTILE)) -> RoutingTrace:
    """24 documents of 50 tokens; every domain prefers K experts of its own."""
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(24), 50)
    domain_ids = documents % len(domains)
    wish = rng.gumbel(size=(L, len(documents), E))
    for slot in range(K):
        wish[:, np.arange(len(documents)), K * domain_ids + slot] += 1.0
    chosen = np.argsort(-wish, axis=2)[..., :K]
    return RoutingTrace.from_arrays(
        router_indices=chosen, router_scores=np.full(chosen.shape, 1 / K), num_experts=E, document_ids=documents,
        token_ids=rng.integers(0, 9, len(documents)), domain_ids=domain_ids, domains=list(domains),
        source="made by a test",
    )  # fmt: skip


def steps_of(number: int, L: int = 4, E: int = 8) -> RoutingCounts:
    """So many steps of 500 tokens, with two experts each; expert 0 takes more and more."""
    rng = np.random.default_rng(1)
    taste = [np.r_[1 + 3 * s / number, np.ones(E - 1)] for s in range(number)]
    counts = [[rng.multinomial(1000, one / one.sum()) for _ in range(L)] for one in taste]
    return RoutingCounts.from_arrays(np.stack(counts), top_k=2, tokens=500 * np.ones(number, int), steps=range(number))


def choices() -> RoutingCounts:
    """Neither tokens nor K are known; all that comes from the file is markup."""
    counts = np.full((4, 8), 500)
    counts[2, 3] = 0
    return RoutingCounts.from_arrays(counts, source=HOSTILE[0], notes=[HOSTILE[1]])


def steps_of_domains() -> RoutingCounts:
    counts = np.random.default_rng(2).multinomial(1000, [1 / 8] * 8, size=(3, 4, 2))
    return RoutingCounts.from_arrays(counts, top_k=2, groups=[Group("law"), Group(HOSTILE[0])], steps=[10, 20, 30])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("counts")
    text = text_of_domains()
    kinds = {
        "source": text.counts(),
        "pairs": text.counts(extras=("pairs",)),
        "domain": text.counts("domain"),
        "choices": choices(),
        "steps": steps_of(12),
        "steps of domains": steps_of_domains(),
        "large": text_of_domains(48, 128, 8, ("law", "code", "news")).counts(extras=("pairs",)),
    }
    for name, counts in kinds.items():
        counts.save(folder / f"{name}.counts.parquet")
    return {name: folder / f"{name}.counts.parquet" for name in kinds} | {"imatrix": IMATRIX}


@pytest.fixture
def opened(dashboard: Open, tmp_path: Path, files: dict[str, Path]) -> Open:
    """The dashboard on the counts of these names, without a run, at a page."""

    def open_page(*names: str, page: str = "overview", **query: str) -> AppTest:
        arguments = [part for name in names for part in ("--trace", str(files[name]))]
        return dashboard(tmp_path, page, tuple(arguments), **query)

    return open_page


def charts(at: AppTest) -> int:
    return len(at.main.get("vega_lite_chart")) + len(at.main.get("plotly_chart"))


OPEN_PAGES = {
    "source": ("overview", "domains", "experts", "placement", "compare"),
    "pairs": ("overview", "domains", "experts", "placement", "flow", "compare"),
    "domain": ("overview", "domains", "experts", "placement", "compare"),
    "choices": ("overview", "experts", "placement"),
    "imatrix": ("overview", "experts", "placement"),
    "steps": ("overview", "experts", "placement", "time"),
    "steps of domains": ("overview", "domains", "experts", "placement", "time", "compare"),
    "large": ("overview", "domains", "experts", "placement", "flow", "compare"),
}
"""The pages with a picture, by kind."""


@pytest.mark.parametrize("kind", OPEN_PAGES)
def test_every_page_shows_what_counts_can_tell_or_says_what_it_takes(opened: Open, kind: str) -> None:
    at = opened(kind)
    for page in PAGES:
        at.switch_page(f"app_pages/{page}.py").run()
        assert not at.exception, (page, at.exception)
        assert not at.error, (page, [error.value for error in at.error])
        text = shown(at)
        assert (charts(at) > 0) == (page in OPEN_PAGES[kind]), page
        if page in ("tokens", "generation", "chat", "interventions"):
            needed = TOKENS if page == "tokens" else MODEL
            assert f"takes {needed}" in text
            assert text.count(needed) == 1
            # Colours that Streamlit gives to a language's words are too pale to read on the light page.
            assert {code.language for code in at.main.code} == {"plaintext"}
        raw = [str(part.value) for part in (*at.main.markdown, *at.main.caption, *at.main.info, *at.main.title)]
        raw += [str(metric.proto.delta_description) for metric in at.metric]
        raw += [str(part.value) for part in at.sidebar.caption]
        raw += [option.content for group in at.main.get("button_group") for option in group.proto.options]
        for part in raw:
            assert "<b>" not in part, (page, part)
            assert "**bold" not in part, (page, part)
            assert "[here](" not in part, (page, part)


def test_overview_says_what_is_certain_and_what_is_counted_only(opened: Open) -> None:
    text = shown(at := opened("source"))
    assert "4 MoE layers of 8 experts, 2 for each token." in text
    assert "1,200 tokens of 24 sources" in text
    assert "Experts know a token's domain" in text
    assert at.main.expander[0].label.startswith("7 of 27 questions can be told")

    at = opened("domain")
    text, figures = shown(at), {metric.label: metric for metric in at.metric}
    assert "keep neither sources nor steps apart; as counted" in text
    assert figures["Busiest expert"].proto.delta_description == "as counted; 2 is uneven"
    assert figures["Experts know domains"].value == "–"

    at = opened("choices")
    text, figures = shown(at), {metric.label: metric for metric in at.metric}
    assert "4 MoE layers of 8 experts. Whether" in text  # not: 1 for each token
    assert "4,000 choices: what the counts hold" in text
    assert figures["Choices"].value == "4k"
    assert figures["Dead experts"].value == "1 of 32"
    assert HOSTILE[1] in text  # the note

    at = opened("steps")
    assert "6,000 tokens at 12 steps: what the counts hold" in shown(at)
    links = [getattr(link, "label", "") for link in at.main.get("page_link")]
    assert "When did each expert become what it is?" in links
    assert "Where does each token of my text go?" not in links


def test_the_real_imatrix_of_llama_cpp_says_what_it_can(opened: Open) -> None:
    at = opened("imatrix")
    assert "4 MoE layers of 8 experts, 2 for each token." in shown(at)
    assert "92,032 tokens" in shown(at)
    told = at.main.dataframe[0].value.set_index("question")
    assert told.loc["Which expert does how much of the work?", "answer"] == "yes"
    assert told.loc["Is the work shared evenly, and is an expert dead?", "answer"] == "as counted"
    assert told.loc["How decided is the router?", "needs"] == TOKENS


def test_domains_are_faded_where_sources_are_not_told_apart(opened: Open) -> None:
    at = opened("source", page="domains", layer="3")
    assert "Layer 3: Experts know a token's domain: NMI" in shown(at)
    at = opened("domain", page="domains")
    assert "cannot be tested, as the counts do not tell the sources of a domain apart" in shown(at)
    assert f"All is faded, as counted: a test takes {SOURCES}." in shown(at)
    at = opened("imatrix", page="domains")
    assert f"takes {DOMAINS}" in shown(at)


def test_an_expert_is_shown_by_its_load_its_domains_and_its_pairs(opened: Open) -> None:
    at = opened("pairs", page="experts", expert="0", layer="1")
    text = shown(at)
    assert "Expert 0 of layer 1 takes" in text
    assert "specialises in law text" in text
    assert text.count(TOKENS) == 2  # for its words; for a test of the pairs
    neighbours = next(frame.value for frame in at.main.dataframe if "together" in frame.value)
    assert neighbours["expert"].iloc[0] == 1  # law has experts 0 and 1
    assert neighbours["together"].iloc[0] > 1.2
    assert "certain" not in neighbours
    at = opened("choices", page="experts")
    assert f"Who it works with takes {PAIRS}." in shown(at)
    assert shown(at).count(TOKENS) == 1


def test_flow_shows_pairs_as_counted(opened: Open) -> None:
    text = shown(opened("pairs", page="flow", layer="1"))
    assert f"That takes {TOKENS}." in text
    assert "Layer 1: As counted, experts 0 and 1 are chosen together most for their load" in text
    assert PAIRS in shown(opened("source", page="flow"))


def test_time_shows_steps_and_the_map_at_one(opened: Open) -> None:
    at = opened("steps", page="time", layer="1", step="3")
    assert "At step 11 expert 0 of layer 1 takes the most" in shown(at)
    assert at.select_slider[0].value == 3
    assert "Step 3:" in shown(at)
    at.select_slider[0].set_value(11).run()
    assert "Step 11:" in shown(at)
    assert "neither sources nor steps" not in shown(at)
    assert f"takes {STEPS}" in shown(opened("imatrix", page="time"))
    at = opened("steps of domains", page="time", layer="1")
    at.segmented_control(key="time_counted").select("Domains").run()
    assert "Step 30, layer 1: Whether experts know a token's domain cannot be tested" in shown(at)


def test_two_files_are_compared_where_they_are_one_model(opened: Open) -> None:
    """Both were counted on one text, so that nothing moved; the trace says the same of its source."""
    at = opened("source", "pairs", page="compare", run="counts source.counts.parquet",
                compare="counts pairs.counts.parquet")  # fmt: skip
    assert "no expert's share of any domain surely changed" in shown(at)
    assert not at.toggle
    at = opened("source", "choices", page="compare", run="counts source.counts.parquet",
                compare="counts choices.counts.parquet")  # fmt: skip
    assert "nothing says that they are one model" in shown(at)
    at.toggle(key="one_model").set_value(True).run()
    assert "cannot be tested, as the counts do not tell sources apart. As counted, most for expert" in shown(at)
    assert "of all choices" in shown(at)
    assert not at.exception
    assert not at.error


def test_counts_are_held_against_a_trace_and_a_run(
    dashboard: Open, trained_root: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    trace = tmp_path / "text.parquet"
    replace(text_of_domains()).save(trace)
    at = dashboard(trained_root, "compare", ("--trace", str(files["source"]), "--trace", str(trace)),
                   run="counts source.counts.parquet", compare="trace text.parquet")  # fmt: skip
    assert "no expert's share of any domain surely changed" in shown(at)
    at.selectbox(key="compare").select("tiny").run()
    assert not at.exception
    assert not at.error
    assert "Here A has 4 layers of 8 experts" in shown(at)
    assert charts(at) == 4


def test_two_domains_of_counts_are_two_texts_also_by_a_name_full_of_markup(opened: Open) -> None:
    at = opened("source", page="compare", text_b=HOSTILE[1])
    assert f"A is law text, B is {HOSTILE[1]} text." in shown(at)
    assert "shares surely changed" in shown(at)


def test_a_file_that_is_gone_or_damaged_is_one_line_on_every_page(
    dashboard: Open, files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "gone.counts.parquet"
    path.write_bytes(files["source"].read_bytes())
    at = dashboard(tmp_path, "overview", ("--trace", str(path)))
    path.write_bytes(path.read_bytes()[:200])
    for page in PAGES:
        at.switch_page(f"app_pages/{page}.py").run()
        assert not at.exception, page
        assert "gone.counts.parquet" in "".join(error.value for error in at.error).replace("\\", ""), page
        assert all("\n" not in error.value for error in at.error), page
