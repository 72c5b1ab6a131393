"""Which cards of a site train one fine-tune together. Pure.

All of one machine: what several engines of one training say to each other does not leave it.
"""

import math
from collections.abc import Sequence
from typing import Final

from worker.ray.placement import Node, Place

RANKS_MAX: Final = 16


def ranks(nodes: Sequence[Node], *, memory_bytes: int, models: int, wanted: int = 0) -> tuple[Place, ...]:
    """A place for each of the engines; none where one of them trains alone.

    `models`: how many engines share the site. `wanted`: 0 for one on each card of the node that has most of
    them; more for at most so many, on a site without cards also on the processors of its largest node.
    """
    if wanted == 1:
        return ()
    able = [(node, cards) for node in nodes if (cards := _cards(node, memory_bytes, models))]
    if able:
        node, cards = max(able, key=lambda each: (len(each[1]), min(each[0].cards), each[0].id))
        return _several(cards[: wanted or RANKS_MAX])
    large = [node for node in nodes if node.memory_bytes >= memory_bytes * max(1, wanted)]
    if not wanted or not large or any(node.cards for node in nodes):
        return ()
    node = max(large, key=lambda each: (each.cpus, each.id))
    share = int(node.cpus) // max(1, models)
    count = min(wanted, share)
    return _several([Place(node.id, index, float(share // count), 0.0) for index in range(count)])


def _cards(node: Node, memory_bytes: int, models: int) -> list[Place]:
    """Each card of it, with an even share; none if the model does not fit on every one: it is not cut."""
    fit = [card for card in node.cards if card >= memory_bytes]
    if not fit or len(fit) < len(node.cards):  # Ray does not let anybody choose among the cards of a node
        return []
    share = max(memory_bytes / min(fit), 1 / max(1, models))
    share = min(1.0, math.ceil(share * 100) / 100)  # Ray counts in steps
    return [Place(node.id, index, 0.0, share) for index in range(len(fit))]


def _several(places: Sequence[Place]) -> tuple[Place, ...]:
    return tuple(places[:RANKS_MAX]) if len(places) > 1 else ()
