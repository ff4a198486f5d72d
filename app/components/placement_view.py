"""The parts of the Placement page: the GPUs to place for, the files for engines, and the cache."""

from __future__ import annotations

import streamlit as st

from app.components.figure import show_figure
from app.components.one_choice import pick
from app.components.page import answer, prose
from app.components.progress import progress_bar
from moe_core.figures.placement import cache_figure
from moe_core.program import program
from moe_core.routing.measured import Measured
from moe_core.routing.measures.caches import cache_verdict, expert_cache
from moe_core.routing.measures.capability import COMMANDS, TOKENS
from moe_core.routing.placement.balancer import Fleet, Placement, default_fleet
from moe_core.routing.placement.engine_files import sglang_json, sglang_options, tensorrt_llm_yaml
from moe_core.routing.trace.routing_counts import RoutingCounts

# Session keys, in the URL.
GPUS, NODES, GROUPS, EXTRA, KEPT = "gpus", "nodes", "groups", "extra", "kept"
MOST_GPUS = 256
_FILES = "expert_location.json", "moe_load_balancer.yaml"


def pick_fleet(num_experts: int) -> Fleet:
    """Draw the choice of GPUs, nodes, groups and further slots; every offered combination can be placed."""
    gpus = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, MOST_GPUS) if n <= max(2, num_experts)]
    with st.container(horizontal=True, gap="small"):
        G = pick(
            "GPUs",
            GPUS,
            gpus,
            max(n for n in gpus if n <= max(1, min(8, num_experts // 2))),
            "GPUs that share the experts of each layer.",
        )
        nodes = [n for n in gpus if G % n == 0]
        N = pick("Nodes", NODES, nodes, 1, "Machines that the GPUs are in.")
        groups = [n for n in (1, 2, 4, 8, 16) if num_experts % n == 0 and n <= num_experts]
        groups_help = "Groups that the router chooses from (n_group in the model's configuration); 1 where it has none."
        M = pick("Expert groups", GROUPS, groups, 1, groups_help)
        extra_help = "Further slots on each GPU, for replicas of experts much in demand."
        extra = pick("Replicas on each GPU", EXTRA, [0, 1, 2, 4, 8], 0, extra_help)
    least = default_fleet(num_experts, G).slots
    return Fleet(num_experts, G, least + extra * G, N, M)


def show_files(placement: Placement, layers: list[int]) -> None:
    """Both files to save, and how each engine takes it."""
    sglang, tensorrt = sglang_json(placement, layers), tensorrt_llm_yaml(placement, layers)
    with st.container(horizontal=True, gap="small"):
        st.download_button("For SGLang", sglang, _FILES[0], "application/json", key="to_sglang",
                           icon=":material/download:", on_click="ignore",
                           help="A file for --init-expert-location.")  # fmt: skip
        st.download_button("For TensorRT-LLM", tensorrt, _FILES[1], "application/yaml", key="to_tensorrt_llm",
                           icon=":material/download:", on_click="ignore",
                           help="A file for moe_config.load_balancer.")  # fmt: skip
    fleet = placement.fleet
    st.caption(
        prose(
            f"{fleet.slots} physical experts a layer, {fleet.slots_per_gpu} on each GPU. SGLang takes it with "
            f"`{sglang_options(placement, _FILES[0])}`, TensorRT-LLM as moe_config.load_balancer with ep_size "
            f"{fleet.gpus}. vLLM reads no such file. `{program()} placement` writes both for any number of slots."
        )
    )


def show_cache(measured: Measured) -> None:
    """How often a cache of so many experts has what is needed; of counts, what that takes."""
    if isinstance(measured.trace, RoutingCounts):
        answer(f"How often a cache of some experts has what is needed takes {TOKENS}: counts keep no order.")
        st.code(f"{program()} {COMMANDS[TOKENS]}", language=None)
        return
    if not measured.has(expert_cache):
        with progress_bar("Following a cache of experts through the text") as bar:
            bar("measuring", 0, 1)
            measured.look(expert_cache)
    frame = measured.look(expert_cache)
    E = measured.trace.num_experts
    options = [n for n in range(1, E + 1) if n <= 8 or n % 4 == 0 or n == E]
    kept = pick("Experts in each layer's cache", KEPT, options, max(n for n in options if n <= max(1, E // 2)))
    answer(cache_verdict(frame, kept))
    show_figure(cache_figure(frame, kept), key="expert_cache", title="", terms=["hit rate of a cache"])
    st.caption("Documents follow each other as in the file, and the cache goes on over their borders, empty at first.")
