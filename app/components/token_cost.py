"""What a token costs where the number of its experts varies: from the experts that this text passed."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import loaders
from moe_core.model import size
from moe_core.runs import RunFolder
from moe_core.words import number


def show_token_cost(run: RunFolder, balance: pd.DataFrame) -> None:
    """A sentence, with what it would cost if every choice were an expert that computes; nothing where the number is
    fixed. `balance`: the frame of metrics.load_balance."""
    config = loaders.config(run)
    model, context = config.model, config.training.seq_len
    if not model.varying_experts:
        return
    passed = float(balance["experts_per_token"].mean())
    now, most = (size.flops_per_token(model, context, experts) / 1e6 for experts in (passed, float(model.top_k)))
    st.caption(
        f"A token passes {number(passed)} of at most {model.top_k} experts in each layer on this text (on average), "
        f"which makes {number(now)} million operations forward; with {model.top_k} it would be {number(most)} million."
    )
