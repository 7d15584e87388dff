"""Rows of nearly the same tokens: alike in at least 0.8 of their stretches of three tokens (Jaccard similarity)."""

from __future__ import annotations

from collections.abc import Mapping

LIKENESS = 0.8
_STRETCH = 3
_HASHES = 64
_BANDS = (16, 4)
"""Of the signatures: rows that are alike in four hashes of one of them are compared, which misses 1 in 4,000 that are alike at 0.8."""
_MOST_COMPARED = 32
"""Rows of other groups that a row is compared with, of all that may be like it."""
Stretches = frozenset[tuple[int, ...]]


def groups(rows: Mapping[int, tuple[int, ...]]) -> dict[int, int]:
    """The group of each row, by row: the smallest row in it. A row is in a group when it is like one row of it.

    Candidates come from MinHash signatures (datasketch), and each is compared in full. Equal rows are told without them.
    """
    first_of: dict[tuple[int, ...], int] = {}
    leader = {row: first_of.setdefault(tokens, row) for row, tokens in sorted(rows.items())}
    found = _alike({row: _stretches(tokens) for tokens, row in first_of.items()})
    smallest: dict[int, int] = {}
    for row in sorted(first_of.values()):
        smallest.setdefault(found[row], row)
    return {row: smallest[found[first]] for row, first in leader.items()}


def _alike(rows: Mapping[int, Stretches]) -> dict[int, int]:
    """One row for each group, by row."""
    from datasketch import MinHashLSH  # type: ignore[import-untyped]

    index = MinHashLSH(num_perm=_HASHES, params=_BANDS)
    parent = {row: row for row in rows}

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for row, stretches in rows.items():
        signature = _signature(stretches)
        compared = 0
        for other in sorted(index.query(signature)):
            if compared == _MOST_COMPARED:
                break
            if root(other) != root(row):
                compared += 1
                if likeness(stretches, rows[other]) >= LIKENESS:
                    parent[root(row)] = root(other)
        index.insert(row, signature)
    return {row: root(row) for row in rows}


def likeness(one: Stretches, other: Stretches) -> float:
    """Jaccard similarity."""
    return len(one & other) / len(one | other)


def _stretches(tokens: tuple[int, ...]) -> Stretches:
    return frozenset(tokens[at : at + _STRETCH] for at in range(max(1, len(tokens) - _STRETCH + 1)))


def _signature(stretches: Stretches) -> object:
    from datasketch import MinHash

    signature = MinHash(num_perm=_HASHES, seed=1, hashfunc=_hash)
    signature.update_batch(list(stretches))
    return signature


def _hash(stretch: tuple[int, ...]) -> int:
    """32 bits; of numbers, so the same in every process."""
    return hash(stretch) & 0xFFFFFFFF
