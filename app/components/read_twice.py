"""A model held against itself: what is changed for the second reading, the work behind a button, and what it cost."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

from app import effect_loaders, state
from app.components.measuring import SOON_SECONDS, show_measuring
from app.components.page import prose
from app.effect_loaders import ReadTwice
from moe_core.evaluation.twice_read import LossChange, loss_change, loss_verdict
from moe_core.figures.sides import Comparison, Side, compare
from moe_core.inference.cache_choice import CacheChoice
from moe_core.inference.measuring_job import start_measuring
from moe_core.inference.rounding import Rounding, missing_library
from moe_core.inference.subjects import Live
from moe_core.inference.token_by_token import Decoding
from moe_core.inference.two_readings import Variant
from moe_core.once import Once
from moe_core.progress import Progress
from moe_core.runs import RunFolder
from moe_core.words import percent

CHANGE = "precision"  # key, in the URL: what the second reading is in
DTYPES = ("bfloat16", "float16")
BITS = (8, 4, 3, 2)
CACHES = ("int8", "int4", "int2", "sinks:64", "heavy:64")
_COLUMNS = {
    "group": st.column_config.TextColumn("Predictions"),
    "tokens": st.column_config.NumberColumn("Tokens", format="localized"),
    "before": st.column_config.NumberColumn("Nats before", format="%.3f"),
    "after": st.column_config.NumberColumn("After", format="%.3f"),
    "change": st.column_config.NumberColumn("Change", format="%+.4f"),
    "low": st.column_config.NumberColumn("95 %, from", format="%+.4f"),
    "high": st.column_config.NumberColumn("to", format="%+.4f"),
}
_GROUPS = {"all": "all", "flipped": "experts flipped in some layer", "kept": "experts the same in all"}


def variants(subject: Live) -> dict[str, Variant]:
    """What can be chosen, by name; without torchao no fewer bits, and caches of runs alone."""
    found = [*(Variant(name) for name in DTYPES)]
    if not missing_library():
        found += [Variant(rounding=Rounding(bits)) for bits in BITS]
    if isinstance(subject, RunFolder):
        found += [Variant(cache=CacheChoice.parse(given)) for given in CACHES]
    return {variant.name: variant for variant in found}


def against_itself(subject: Live) -> Comparison | None:
    """The model as it was saved against itself changed; None while that is not measured: then it is offered, or its bar
    is shown."""
    known = variants(subject)
    state.preset(CHANGE, list(known), DTYPES[0])
    variant = known[
        state.present(
            st.segmented_control("Read a second time in", list(known), required=True, key=CHANGE, bind="query-params")
        )
    ]
    if missing_library():
        st.caption("Fewer bits need torchao: pip install 'moescope[low-precision]'.")
    place = effect_loaders.read_twice_place(subject, variant)
    if place.made is None:
        _offer(place, subject, variant)
    if place.made is None:
        return None
    sides = zip(place.made.readings, place.made.measured, strict=True)
    return compare(*(Side(f"{subject.name} in {one.name}", measured) for one, measured in sides), one_model=True)


def show_cost(subject: Live) -> None:
    """What the chosen change did to the loss, where experts flipped and elsewhere."""
    variant = variants(subject)[st.session_state[CHANGE]]
    made = effect_loaders.read_twice_place(subject, variant).made
    if made is None:
        return
    first, second = made.readings
    found: LossChange = made.measured[0].keep(("loss", variant.name), lambda: loss_change(first.text, second.text))
    st.markdown("#### What does it cost?")
    st.markdown(prose(loss_verdict(found)))
    frame: pd.DataFrame = found.frame.assign(group=found.frame["group"].map(_GROUPS))
    st.dataframe(frame, hide_index=True, key="loss_change", column_config=_COLUMNS)
    if second.rounded is not None and variant.rounding is not None:
        st.caption(prose(second.rounded.describe(variant.rounding)))
    if first.decoding is not None and second.decoding is not None and variant.cache is not None:
        _show_cache(variant.cache, first.decoding, second.decoding)


def _show_cache(cache: CacheChoice, whole: Decoding, kept: Decoding) -> None:
    """What the cache saves in memory, and at what speed texts were read by it."""
    share = f"{percent(kept.kept_bytes / kept.whole_bytes)} of {kept.whole_bytes:,}"
    with st.container(horizontal=True):
        st.metric("Keys and values of a window", f"{kept.kept_bytes:,} bytes", border=True, delta_color="off",
                  delta_description=share)  # fmt: skip
        st.metric("Tokens/s", f"{kept.tokens_per_second:,.0f}", border=True,
                  delta_description=f"{whole.tokens_per_second:,.0f} with the whole cache")  # fmt: skip
    st.caption(prose(kept.describe(cache, whole)))


def _offer(place: Once[ReadTwice], subject: Live, variant: Variant) -> None:
    """The button that starts it, or the bar while it runs."""
    key = f"read twice {effect_loaders.key_of(subject)} {variant.name}"
    if show_measuring(key, "The text could not be read twice"):
        return
    offer = st.empty()
    with offer.container():
        st.markdown(
            "How far does the routing depend on how precisely the weights are kept? The same text goes through the "
            "model as it was saved and changed, one after the other; an expert is the same in both, so that every "
            "choice can be held against its twin."
            if variant.cache is None
            else "Which experts are chosen otherwise once keys and values are not kept as they were computed? The same "
            "text is read twice, token by token as it would be written: with the whole cache and with this one."
        )
        is_wanted = st.button(
            f"Read it in {variant.name}", key="precisions_start", type="primary", icon=":material/play_arrow:"
        )
    if is_wanted:
        offer.empty()
        job = start_measuring(key, f"{subject.name} in {variant.name}", partial(_measure, place, subject, variant))
        job.wait(SOON_SECONDS)
        if job.is_running or job.error is not None:
            show_measuring(key, "The text could not be read twice")


def _measure(place: Once[ReadTwice], subject: Live, variant: Variant, progress: Progress) -> None:
    place.once(lambda: effect_loaders.read_both(subject, variant, progress))
