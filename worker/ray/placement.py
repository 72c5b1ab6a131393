"""Where on a site a model's replicas go: pure, by what the nodes have and what the model needs.

A site with cards serves on its cards, one replica for each: requests on one card are batched by one engine
better than by two. A share of a card is what the model needs of its memory, and no less than an even share
among the models served, so that replicas of one model do not crowd on one card while another idles. A model
larger than a card gets whole cards. A site without cards gets one replica for each node.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# Engines that use cards; the published llama.cpp runs on the processor.
ON_CARDS: Final = frozenset({"torch", "trainer"})
REPLICAS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the site. `cards`: bytes of memory of each, 0 where it cannot be told."""

    id: str
    address: str
    port: int  # of its raylet
    cpus: float
    memory_bytes: int
    cards: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """One replica's: what it reserves on which node. `index` tells those on one node apart."""

    node: str
    index: int
    cpus: float
    cards: float


def places(
    nodes: Sequence[Node],
    *,
    engine: str,
    memory_bytes: int,
    threads: int,
    models: int,
    replicas_max: int = 0,
    trains: bool = False,
) -> tuple[Place, ...]:
    """One for each replica, nodes in turn; none if the model fits nowhere.

    `threads`: of each engine on a processor, at most the node's; 0: an even share of these.
    `models`: how many share the site. `replicas_max`: 0 for as many as there is room for. What `trains` is
    one alone, and takes the last place: whatever serves takes the first.
    """
    if engine in ON_CARDS and any(node.cards for node in nodes):
        found = [place for node in nodes for place in _on_cards(node, memory_bytes, max(1, models))]
    else:
        found = [
            Place(node.id, 0, min(float(threads or max(1, node.cpus // max(1, models))), node.cpus), 0.0)
            for node in nodes
            if node.cpus >= 1 and node.memory_bytes >= memory_bytes
        ]
    found.sort(key=lambda place: (place.index, place.node))
    return tuple(found[-1:] if trains else found[: replicas_max or REPLICAS_MAX])


def _on_cards(node: Node, memory_bytes: int, models: int) -> list[Place]:
    card = min(node.cards, default=0)
    share = max(memory_bytes / card, 1 / models) if card else 1.0
    if share <= 1:
        share = math.ceil(share * 100) / 100  # Ray counts in steps; a card is never promised twice
        return [Place(node.id, index, 0.0, min(share, 1.0)) for index in range(len(node.cards))]
    whole = math.ceil(share)
    return [Place(node.id, index, 0.0, float(whole)) for index in range(len(node.cards) // whole)]
