"""Where the nodes of a directed graph stand: in layers, so that edges point onwards, with few of them crossing.

A node's layer is the length of the longest path that leads to it (Sugiyama, Tagawa and Toda 1981, first step); an edge that
closes a cycle is left out of that count. Within a layer nodes are ordered by the mean place of their neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

_SWEEPS = 4


def graph_layers(edges: Sequence[tuple[str, str]]) -> list[list[str]]:
    """The nodes of each layer, from the sources on, in drawing order.

    >>> graph_layers([("embed", "head"), ("head", "logits"), ("embed", "logits")])
    [['embed'], ['head'], ['logits']]
    """
    following: dict[str, list[str]] = {}
    for source, target in edges:
        following.setdefault(source, []).append(target)
        following.setdefault(target, [])
    order, forward = _without_cycles(following)
    depth = dict.fromkeys(order, 0)
    for node in order:
        for target in forward[node]:
            depth[target] = max(depth[target], depth[node] + 1)
    layers: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for node in order:
        layers[depth[node]].append(node)
    neighbours: dict[str, set[str]] = {node: set() for node in order}
    for source, target in edges:
        neighbours[source].add(target)
        neighbours[target].add(source)
    for _ in range(_SWEEPS):
        place = {node: at / max(1, len(layer) - 1) if len(layer) > 1 else 0.5 for layer in layers for at, node in enumerate(layer)}
        for layer in layers:
            layer.sort(key=lambda node: sum(place[other] for other in neighbours[node]) / max(1, len(neighbours[node])))
            place.update({node: at / max(1, len(layer) - 1) if len(layer) > 1 else 0.5 for at, node in enumerate(layer)})
    return layers


def _without_cycles(following: dict[str, list[str]]) -> tuple[list[str], dict[str, list[str]]]:
    """Nodes in an order where every kept edge points onwards, and the kept edges (depth-first search, back edges dropped)."""
    finished: list[str] = []
    state: dict[str, str] = {}
    forward: dict[str, list[str]] = {node: [] for node in following}
    for start in following:
        if start in state:
            continue
        state[start] = "open"
        stack = [(start, iter(following[start]))]
        while stack:
            node, targets = stack[-1]
            for target in targets:
                if state.get(target) == "open":
                    continue
                forward[node].append(target)
                if target not in state:
                    state[target] = "open"
                    stack.append((target, iter(following[target])))
                    break
            else:
                state[node] = "closed"
                finished.append(node)
                stack.pop()
    return finished[::-1], forward
