"""What can be done about an answer: unfold its tokens, read it without an expert, send it to another page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import streamlit as st

from app import chat_loaders, state
from app.components.goto import go_to_saved
from app.components.page import INTERVENTIONS, TOKENS, errors_as_boxes, plain, prose
from app.components.text_choice import OWN
from app.components.text_pair import difference_words, differences
from app.components.token_view import token_view, view_payload
from moe_core.conversations.answer_verdict import first_experts
from moe_core.conversations.store import Conversations
from moe_core.conversations.threads import Answer, Message, Writer, WrittenTokens
from moe_core.errors import UsageError
from moe_core.inference.saved_texts import save_text
from moe_core.inference.subjects import ForeignModel
from moe_core.routing.instruments.change import ABOUT, MODES, Change
from moe_core.routing.token_arrays import TokenArrays
from moe_core.words import count_of, fixed

_ENDINGS = {
    "end of text": "the model ended it",
    "stop": "the model ended it",
    "length": "as long as was asked for",
    "cancelled": "stopped",
    "interrupted": "unfinished, as the program ended",
    "failed": "unfinished",
}


def facts_line(answer: Answer) -> str:
    """Who wrote it, how much, how fast, and how it ended."""
    name = answer.settings.model if answer.writer is None else answer.writer.name
    parts = [name, *([] if answer.change is None else [answer.change.what])]
    parts.append(count_of(answer.tokens, "token"))
    if (speed := answer.tokens_per_second) is not None:
        parts.append(f"{fixed(speed, 0, thousands=True)} tokens/s")
    if answer.is_written(time.time()):
        parts.append("writing" if answer.tokens else "reading" if answer.writer is not None else "opening the model")
    else:
        settings = answer.settings
        parts.append(f"seed {settings.seed}" if settings.temperature else "always the likeliest token")
        parts.append(_ENDINGS["interrupted" if answer.ending is None else answer.ending])
    if answer.left_out and answer.writer is not None:
        window = f"its window of {count_of(answer.writer.context_window, 'token')}"
        parts.append(f"the first {count_of(answer.left_out, 'message')} did not fit {window}")
    return " · ".join(parts)


def show_tokens(kept: Conversations, message: Message, layer: int, *, live: bool) -> None:
    """The answer unfolded into its tokens, each on the colour of its expert."""
    answer = message.answer
    if answer is None or answer.writer is None or not answer.writer.layers or not answer.tokens:
        return
    key = f"chat_tokens_{message.id}"
    with st.expander("Tokens and the experts that wrote them", on_change="rerun", key=key, type="compact") as box:
        if box.open and (tokens := kept.tokens(message.id)) is not None:
            _view(arrays_of(answer.writer, tokens), answer, layer, f"chat_view_{message.id}", live=live)


def show_compared(kept: Conversations, message: Message, layer: int) -> None:
    """The answer beside that of the changed model, the last one that was asked for or the one that is chosen."""
    if not message.compared or message.answer is None:
        return
    by_name = {f"{number}. {_change_of(one)}": one for number, one in enumerate(message.compared, 1)}
    with st.container(border=True, key=f"chat_beside_{message.id}"):
        name = list(by_name)[-1]
        if len(by_name) > 1:
            key = f"chat_compared_{message.id}"
            name = st.selectbox("Side by side", list(by_name), len(by_name) - 1, key=key, format_func=plain) or name
        other = by_name[name]
        if other.answer is None:
            return
        written = [kept.tokens(one.id) for one in (message, other)]
        is_written = other.answer.is_written(time.time())
        if not is_written and other.answer.error:
            st.error(prose(other.answer.error), icon=":material/error:")
        elif not is_written:
            first, second = ([] if tokens is None else tokens.token_ids.tolist() for tokens in written)
            advice = "Interventions measures the size of the effect on a whole text"
            st.markdown(prose(difference_words(first, second, _change_of(other), advice)))
        pairs = zip(st.columns(2), (message, other), marked(written), strict=True)
        for place, (column, one, (tokens, marks)) in enumerate(pairs):
            with column:
                assert one.answer is not None
                st.markdown(f"**{plain(_capital(_change_of(one) or 'as the model is'))}**")
                st.caption(plain(facts_line(one.answer)))
                if tokens is not None and one.answer.writer is not None:
                    arrays = replace(arrays_of(one.answer.writer, tokens), marks=marks, mark_label="not in the other")
                    key = f"chat_pair_{message.id}_{place}"
                    _view(arrays, one.answer, layer, key, live=is_written, series=f"{one.id}")


def ask_without_expert(kept: Conversations, message: Message, layer: int) -> None:
    """Choose an expert, and let the same answer be written without it."""
    answer = message.answer
    if answer is None or answer.writer is None or not answer.writer.layers:
        return
    with st.expander("The same again without an expert", on_change="rerun", type="compact",
                     key=f"chat_change_{message.id}") as box:  # fmt: skip
        if not box.open:
            return
        writer = answer.writer
        place = writer.layers.index(layer) if layer in writer.layers else len(writer.layers) - 1
        keys = [f"chat_change_{what}_{message.id}" for what in ("layer", "expert", "mode")]
        with st.container(horizontal=True, vertical_alignment="bottom"):
            at = st.selectbox("Layer", writer.layers, place, key=keys[0], width=110)
            experts = _busiest_first(kept.tokens(message.id), writer.layers.index(at), writer.num_experts)
            expert = st.selectbox("Expert", experts, key=f"{keys[1]}_{at}", width=110,
                                  help="The one that wrote most of this answer comes first.")  # fmt: skip
            mode = st.selectbox("What is done to it", list(MODES), key=keys[2], width=300, help=ABOUT)
            st.button("Write it beside this one", type="primary", key=f"chat_change_go_{message.id}",
                      on_click=_ask_changed, args=(message, Change(at, expert, MODES[mode])))  # fmt: skip
        st.caption("With the same messages, settings and seed; the model is changed for that answer alone.")


def send_elsewhere(message: Message) -> None:
    """Open the answer's text on a page that reads text."""
    answer = message.answer
    if answer is None or not message.text.strip():
        return
    with st.popover("Send to", icon=":material/send:", type="tertiary", key=f"chat_send_{message.id}",
                    on_change="rerun") as box:  # fmt: skip
        if not box.open:
            return
        st.caption("The answer's text, read alone, without the messages before it. It is kept there until it is "
                   "deleted there.")  # fmt: skip
        for name, page, source, link in (
            ("Tokens", TOKENS, "text", state.TOKENS_SAVED),
            ("Interventions", INTERVENTIONS, "loss_text", state.LOSS_SAVED),
        ):
            st.button(name, key=f"chat_to_{name}_{message.id}", on_click=_send,
                      args=(message.text, page, source, link, answer.settings.model))  # fmt: skip


def arrays_of(writer: Writer, tokens: WrittenTokens) -> TokenArrays:
    """As the token view takes them."""
    return TokenArrays(
        tokens=tokens.pieces,
        layers=writer.layers,
        num_experts=writer.num_experts,
        indices=tokens.experts.transpose(1, 0, 2),
        scores=tokens.weights.transpose(1, 0, 2),
        losses=tokens.losses,
    )


def marked(both: Sequence[WrittenTokens | None]) -> list[tuple[WrittenTokens | None, np.ndarray | None]]:
    """Two answers, each with the tokens [L, S] that the other does not have; without marks while one is missing."""
    first, second = both
    if first is None or second is None:
        return [(tokens, None) for tokens in both]
    marks = differences(first.token_ids.tolist(), second.token_ids.tolist())
    return [
        (tokens, np.broadcast_to(own, (tokens.experts.shape[1], len(own))))
        for tokens, own in zip((first, second), marks, strict=True)
    ]


def _view(arrays: TokenArrays, answer: Answer, layer: int, key: str, *, live: bool, series: str = "") -> None:
    name = answer.settings.model
    whose = chat_loaders.live_subject(name) or ForeignModel(name, "")  # one that is gone has no names of experts
    is_chosen = whose.name == state.subject().name
    shown = layer if layer in arrays.layers else arrays.layers[-1]
    choice = token_view(
        view_payload(arrays, series=series or key, live=live),
        layer=shown,
        key=key,
        on_layer=partial(state.follow_layer, key) if is_chosen else None,
        subject=whose,
    )
    if is_chosen and choice.layer is not None and choice.layer != shown:
        st.rerun()


def _busiest_first(tokens: WrittenTokens | None, row: int, num_experts: int) -> list[int]:
    if tokens is None:
        return list(range(num_experts))
    first = first_experts(tokens, row)
    counts = np.bincount(first[first >= 0], minlength=num_experts)
    return [int(expert) for expert in np.argsort(-counts, kind="stable")]


def _ask_changed(message: Message, change: Change) -> None:
    with errors_as_boxes("It was not written again"):
        if message.parent is not None and message.answer is not None:
            chat_loaders.answers().ask(message.parent, message.answer.settings, change, message.id)


def _send(text: str, page: str, source: str, link: str, model: str) -> None:
    with errors_as_boxes("It was not sent"):
        name = save_text(text)
        if name is None:
            raise UsageError("this text cannot be kept for another page: it is too long, or the disk refuses it")
        go_to_saved(page, {source: OWN, link: name}, model)


def _change_of(message: Message) -> str:
    return "" if message.answer is None or message.answer.change is None else message.answer.change.what


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
