"""The frame: navigation, the choices that all pages share, and one place where errors become boxes."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app import loaders, state
from app.components import goto, pickers
from app.components.accessibility import add_aids
from app.components.no_run import DENSE, explain_broken_run, explain_need, explain_no_runs, need
from app.components.open_other import open_field
from app.components.open_progress import finish_opening, show_running
from app.components.page import errors_as_boxes, header, prose
from app.components.page_tools import page_tools
from moe_core.figures.palette import DARK_TEXT, LIGHT_TEXT
from moe_core.inference.ahead import load_ahead
from moe_core.inference.command_line_subjects import open_from_command_line
from moe_core.runs import RunFolder, RunSummary
from moe_core.words import sentence

ICON = str(Path(__file__).with_name("icon.svg"))  # a file of ours: an icon by name would be fetched from outside
NAME = "Moescope"
DENSE_TOO = "chat"
"""The page, besides Training, that has something to show of a dense model."""


def pages() -> dict[str, list[st.Page]]:
    """The navigation: what one wants, and the pages that answer it."""
    return {
        "Look": [
            st.Page(
                "app_pages/overview.py",
                title="Overview",
                icon=":material/dashboard:",
                default=True,
                help="What this run is, and whether its routing is healthy, in plain words.",
            ),
            st.Page(
                "app_pages/tokens.py",
                title="Tokens",
                icon=":material/text_fields:",
                help="Type or paste text and see which expert every token goes to, layer by layer.",
            ),
            st.Page(
                "app_pages/domains.py",
                title="Domains",
                icon=":material/category:",
                help="Which experts prefer which kind of text, and whether that is more than chance.",
            ),
            st.Page(
                "app_pages/experts.py",
                title="Experts",
                icon=":material/hub:",
                help="One expert at a time: its load, domains, words, contexts, neighbours, and what it is worth.",
            ),
            st.Page(
                "app_pages/flow.py",
                title="Flow",
                icon=":material/alt_route:",
                help="How tokens travel from layer to layer, and which experts work together.",
            ),
            st.Page(
                "app_pages/placement.py",
                title="Placement",
                icon=":material/memory:",
                help="Which experts are hot, what a cache of some would do, and on which GPU each belongs.",
            ),
            st.Page(
                "app_pages/long_context.py",
                title="Long context",
                icon=":material/straighten:",
                help="Whether the model reads beyond its trained length, and whether its routing holds there.",
            ),
        ],
        "Change": [
            st.Page(
                "app_pages/generation.py",
                title="Generation",
                icon=":material/edit_note:",
                help="Let the model write, and see each new token coloured by its expert.",
            ),
            st.Page(
                "app_pages/chat.py",
                title="Chat",
                icon=":material/forum:",
                help="Talk with the model in threads that are kept, and see which experts wrote each answer.",
            ),
            st.Page(
                "app_pages/interventions.py",
                title="Interventions",
                icon=":material/switch_access_shortcut:",
                help="Switch an expert off, or force it, and see what changes.",
            ),
        ],
        "Follow": [
            st.Page(
                "app_pages/training.py",
                title="Training",
                icon=":material/model_training:",
                help="Start a training, watch it learn, stop and resume it.",
            ),
            st.Page(
                "app_pages/time.py",
                title="Time",
                icon=":material/timeline:",
                help="When each expert became what it is: the routing at every snapshot of training.",
            ),
            st.Page(
                "app_pages/compare.py",
                title="Compare",
                icon=":material/compare_arrows:",
                help="What changed between two runs, two steps of one run, or two texts.",
            ),
        ],
    }


def _named_logo() -> str:
    """The icon with the name beside it, as SVG. A picture does not inherit the page's ink, so it is given it."""
    ink = DARK_TEXT if st.context.theme.type == "dark" else LIGHT_TEXT
    icon = Path(ICON).read_text(encoding="utf-8").replace('viewBox="0 0 32 32"', 'width="32" height="32"')
    # Every machine has another sans-serif face: the name is fitted into the same room in all of them.
    fitted = (
        'textLength="100" lengthAdjust="spacingAndGlyphs" font-family="sans-serif" font-size="20" font-weight="600"'
    )
    name = f'<text x="42" y="23" {fitted} fill="{ink}">{NAME}</text>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 146 32" width="146" height="32">{icon}{name}</svg>'


def draw() -> None:
    """The page that is asked for, in its frame; Streamlit runs this at every change."""
    st.set_page_config(page_title=NAME, page_icon=ICON, layout="wide")
    st.logo(_named_logo(), size="large")
    navigation = pages()
    page = st.navigation(navigation, expanded=True)  # of over twelve pages the last would be folded away
    state.drop_links_of_other_pages(page.url_path)
    training = navigation["Follow"][0]  # starts runs, so it opens without one
    named = open_from_command_line()
    finish_opening()
    runs = loaders.runs()
    if named.is_opening and not state.has_subject():
        header("What does the recording hold?", "It is being read; this page opens by itself when that is done.")
        show_running()
        return
    with st.sidebar:
        add_aids()
        goto.follow()
        show_running()
        chosen = pickers.pick_subject(runs, named.first)
        pickers.pick_layer(chosen)
        pickers.pick_comparison(chosen, runs)
        open_field()
        for error in named.errors:
            st.error(prose(sentence(error)), icon=":material/error:")

    page_tools(chosen)
    with errors_as_boxes():
        if page.url_path == training.url_path:
            page.run()
        elif chosen is None:
            explain_no_runs()
        elif isinstance(chosen, RunSummary):
            if chosen.error is not None or (chosen.state == "preparing" and not RunFolder(chosen.name).probe_steps()):
                explain_broken_run(chosen)
            elif page.url_path != DENSE_TOO and not loaders.moe_layers(RunFolder(chosen.name)):
                explain_need(chosen, page.title.lower(), DENSE)
            elif (missing := need(page.url_path, RunFolder(chosen.name))) is not None:
                explain_need(chosen, page.title.lower(), missing)
            else:
                page.run()
        elif (reason := need(page.url_path, chosen)) is not None:
            explain_need(chosen, page.title.lower(), reason)
        else:
            page.run()
    load_ahead()
