"""Replicas and GPUs of experts, as the published balancer for expert parallelism chooses them, in numpy.

The method is EPLB of DeepSeek-V3 (2412.19437, section 3.4; github.com/deepseek-ai/EPLB): groups of experts are packed
on nodes, experts that are much in demand get replicas within their node, and replicas are packed on the node's GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_core.errors import UsageError
from moe_core.routing.trace.types import Float64Array, Int64Array

MOST_SLOTS = 65_536
GPUS = 8
"""Where nothing is said: one node of eight, or as many as have two experts each."""


@dataclass(frozen=True)
class Fleet:
    """The GPUs that share a layer's experts. Raises UsageError where experts cannot be dealt to them evenly."""

    num_experts: int
    """E, logical experts of a layer."""
    gpus: int
    slots: int
    """Physical experts of a layer, replicas included; as many on each GPU."""
    nodes: int = 1
    groups: int = 1
    """Groups of experts that the router chooses from (n_group in DeepSeek's models); 1 where it knows none."""

    def __post_init__(self) -> None:
        E = self.num_experts
        for name, number in (("gpus", self.gpus), ("nodes", self.nodes), ("groups", self.groups)):
            if number < 1:
                raise UsageError(f"{name} is {number}; expected 1 or more")
        if self.gpus % self.nodes:
            raise UsageError(f"{self.gpus} GPUs on {self.nodes} nodes; expected as many GPUs on each node")
        if E % self.groups:
            raise UsageError(f"{E} experts in {self.groups} groups; expected groups of equal size, a divisor of {E}")
        if not E <= self.slots <= MOST_SLOTS:
            raise UsageError(f"{self.slots} physical experts; expected {E}, one for each expert, to {MOST_SLOTS:,}")
        if self.slots % self.gpus:
            near = -(-self.slots // self.gpus) * self.gpus
            raise UsageError(f"{self.slots} physical experts on {self.gpus} GPUs; expected a multiple, such as {near}")

    @property
    def slots_per_gpu(self) -> int:
        """Physical experts on each GPU."""
        return self.slots // self.gpus

    @property
    def is_hierarchical(self) -> bool:
        """Are groups packed on nodes first? Else all GPUs are one node to the balancer."""
        return self.groups % self.nodes == 0


def default_fleet(
    num_experts: int, gpus: int | None = None, nodes: int = 1, groups: int = 1, slots: int | None = None
) -> Fleet:
    """A fleet with what is not given: GPUs so that each has two experts at least, up to GPUS, as many in
    each node; slots for the experts, rounded up to a multiple of the GPUs."""
    if gpus is None:
        gpus = max(1, min(GPUS, num_experts // 2) // max(nodes, 1)) * max(nodes, 1)
    if slots is None:
        slots = -(-num_experts // max(gpus, 1)) * max(gpus, 1)
    return Fleet(num_experts, gpus, slots, nodes, groups)


@dataclass(frozen=True)
class Placement:
    """Where each physical expert is. Axes: L layers, S slots, E experts, R replicas of the most replicated expert.

    Slot s is on GPU s // fleet.slots_per_gpu, and GPUs of a node are neighbours.
    """

    fleet: Fleet
    physical_to_logical: Int64Array
    """[L,S] the expert in each slot."""
    logical_to_physical: Int64Array
    """[L,E,R] the slots of each expert, -1 where it has fewer."""
    replicas: Int64Array
    """[L,E] how many slots each expert has, 1 or more."""

    def gpu_load(self, load_LE: npt.NDArray[np.number[Any]]) -> Float64Array:
        """[L,G] load of each GPU, an expert's being shared evenly by its replicas."""
        per_slot = np.take_along_axis(load_LE / self.replicas, self.physical_to_logical, axis=1)
        return per_slot.reshape(len(per_slot), self.fleet.gpus, -1).sum(axis=2)  # type: ignore[no-any-return]


def balance(load_LE: npt.NDArray[np.number[Any]], fleet: Fleet) -> Placement:
    """Place every layer's experts by their load [L,E] >= 0. Raises UsageError where load and fleet do not fit.

    Hierarchical where groups can be dealt to nodes, else global. Weights are float32, as the original's, so that ties
    fall as they do there.
    """
    weight = np.asarray(load_LE, dtype=np.float32)
    if weight.ndim != 2 or weight.shape[1] != fleet.num_experts:
        raise UsageError(f"load is {list(weight.shape)}; expected [layers, {fleet.num_experts}]")
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise UsageError("load holds negative or infinite numbers; expected loads of 0 or more")
    groups, nodes = (fleet.groups, fleet.nodes) if fleet.is_hierarchical else (1, 1)
    L, E = weight.shape
    # Groups to nodes: [L,E] the experts in the order of their new places, node by node.
    per_group = weight.reshape(L, groups, -1).sum(axis=2)
    node, rank = _packed(per_group, nodes)
    place_of_group = node * (groups // nodes) + rank
    group_at_place = np.argsort(place_of_group, axis=1)
    size = E // groups
    expert_at_place = (group_at_place[:, :, None] * size + np.arange(size)).reshape(L, E)
    own = np.take_along_axis(weight, expert_at_place, axis=1).reshape(L * nodes, E // nodes)
    # Replicas within a node, then slots to its GPUs.
    expert_of_slot, replicas = _replicated(own, fleet.slots // nodes)
    per_slot = np.take_along_axis(own / replicas.astype(np.float32), expert_of_slot, axis=1)
    gpu, rank = _packed(per_slot, fleet.gpus // nodes)
    slot_order = np.argsort(gpu * fleet.slots_per_gpu + rank, axis=1)
    places = np.take_along_axis(expert_of_slot, slot_order, axis=1).reshape(L, nodes, -1)
    places = (places + (np.arange(nodes) * (E // nodes))[:, None]).reshape(L, fleet.slots)
    physical = np.take_along_axis(expert_at_place, places, axis=1)
    # Which replica a slot holds, in the order in which replicas were made.
    made = _replica_numbers(expert_of_slot)
    numbers = np.take_along_axis(made, slot_order, axis=1).reshape(L, fleet.slots)
    counted = np.zeros((L, E), dtype=np.int64)
    np.put_along_axis(counted, expert_at_place, replicas.reshape(L, E), axis=1)
    slots_of = np.full((L, E, int(counted.max())), -1, dtype=np.int64)
    slots_of[np.arange(L)[:, None], physical, numbers] = np.arange(fleet.slots)
    return Placement(fleet, physical, slots_of, counted)


def in_order(layers: int, fleet: Fleet) -> Placement:
    """Experts in the order of their numbers, as an engine starts without a placement: expert s modulo E in slot s."""
    L, E, S = layers, fleet.num_experts, fleet.slots
    physical = np.tile(np.arange(S) % E, (L, 1))
    replicas = np.tile(np.bincount(np.arange(S) % E, minlength=E), (L, 1))
    slots_of = np.full((L, E, int(replicas.max())), -1, dtype=np.int64)
    slots_of[:, np.arange(S) % E, np.arange(S) // E] = np.arange(S)
    return Placement(fleet, physical, slots_of, replicas)


def _packed(weight_XN: npt.NDArray[Any], packs: int) -> tuple[Int64Array, Int64Array]:
    """([X,N] pack of each item, [X,N] its rank there): the heaviest first, each to the lightest pack that has room.

    As many items in every pack. Where that is one, item n is pack n.
    """
    X, N = weight_XN.shape
    room = N // packs
    if room == 1:
        return np.tile(np.arange(N), (X, 1)), np.zeros((X, N), dtype=np.int64)
    order_XN = np.argsort(-weight_XN, axis=1, kind="stable")
    heavy = np.zeros((X, packs), dtype=np.float32)
    held = np.zeros((X, packs), dtype=np.int64)
    pack_XN, rank_XN = np.zeros((X, N), dtype=np.int64), np.zeros((X, N), dtype=np.int64)
    rows = np.arange(X)
    for place in range(N):
        item = order_XN[:, place]
        pack = np.where(held < room, heavy, np.inf).argmin(axis=1)
        pack_XN[rows, item], rank_XN[rows, item] = pack, held[rows, pack]
        heavy[rows, pack] += weight_XN[rows, item]
        held[rows, pack] += 1
    return pack_XN, rank_XN


def _replicated(weight_XN: npt.NDArray[np.float32], slots: int) -> tuple[Int64Array, Int64Array]:
    """([X,slots] item of each slot, [X,N] slots of each item): every further slot goes to the item whose slots
    have most to do."""
    X, N = weight_XN.shape
    item_XS = np.tile(np.arange(slots), (X, 1))
    replicas = np.ones((X, N), dtype=np.int64)
    rows = np.arange(X)
    for slot in range(N, slots):
        busiest = (weight_XN / replicas.astype(np.float32)).argmax(axis=1)
        item_XS[:, slot] = busiest
        replicas[rows, busiest] += 1
    return item_XS, replicas


def _replica_numbers(item_XS: Int64Array) -> Int64Array:
    """[X,S] how often the slot's item came in earlier slots."""
    order = np.argsort(item_XS, axis=1, kind="stable")
    ordered = np.take_along_axis(item_XS, order, axis=1)
    S = item_XS.shape[1]
    is_first = np.concatenate([np.ones((len(item_XS), 1), bool), ordered[:, 1:] != ordered[:, :-1]], axis=1)
    first = np.maximum.accumulate(np.where(is_first, np.arange(S), 0), axis=1)
    numbers = np.zeros_like(item_XS)
    np.put_along_axis(numbers, order, np.arange(S) - first, axis=1)
    return numbers
