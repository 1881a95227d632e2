"""Comparing orders of steps: how alike two sequences are. The items are anything that can be hashed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Order = Sequence[Hashable]


def edit_distance(a: Order, b: Order) -> int:
    """The fewest insertions, deletions and substitutions that turn `a` into `b`.

    Levenshtein, Binary codes capable of correcting deletions, insertions and reversals, 1966.
    """
    row = list(range(len(b) + 1))
    for i, item in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (item != other))
    return row[-1]


def edit_score(a: Order, b: Order) -> float:
    """1 - distance / length of the longer one: 1 for equal orders, 0 where nothing can stay. Two empty ones are equal.

    The segmental edit score of Lea et al., Temporal Convolutional Networks for Action Segmentation and Detection,
    CVPR 2017, as a share instead of per cent.
    """
    longer = max(len(a), len(b))
    return 1 - edit_distance(a, b) / longer if longer else 1.0


def iou(a: Order, b: Order) -> float:
    """The share that two orders have in common as sets, |a & b| / |a | b|; 1 if both are empty."""
    first, second = set(a), set(b)
    return len(first & second) / len(first | second) if first or second else 1.0


def edit_scores(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> np.ndarray:
    """`edit_score` of every order of `a` with every one of `b`, none of them empty -> float [len(a), len(b)]."""
    import numpy as np

    lengths_a, lengths_b = (np.array([len(order) for order in orders]) for orders in (a, b))
    items_a, items_b = _padded(a, -1), _padded(b, -2)
    distance = np.zeros((len(a), len(b)), np.int16)
    # One row of the table of `edit_distance` for all pairs at once: row[j] is [len(a), len(b)].
    row = [np.full_like(distance, j) for j in range(items_b.shape[1] + 1)]
    for i in range(items_a.shape[1]):
        above, row = row, [np.full_like(distance, i + 1)]
        for j in range(items_b.shape[1]):
            cell = above[j] + (items_a[:, i, None] != items_b[None, :, j])
            np.minimum(cell, above[j + 1] + 1, out=cell)
            row.append(np.minimum(cell, row[j] + 1, out=cell))
        ended = np.flatnonzero(lengths_a == i + 1)
        if len(ended):
            distance[ended] = np.stack(row)[lengths_b, :, np.arange(len(b))].T[ended]
    return 1 - distance / np.maximum(lengths_a[:, None], lengths_b[None, :])


def ious(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> np.ndarray:
    """`iou` of every order of `a` with every one of `b`, items from 0, none empty -> float [len(a), len(b)]."""
    import numpy as np

    width = 1 + max(max(order) for order in (*a, *b))
    sets = [np.zeros((len(orders), width), np.float32) for orders in (a, b)]
    for held, orders in zip(sets, (a, b), strict=True):
        for number, order in enumerate(orders):
            held[number, list(order)] = 1
    first, second = sets
    common = first @ second.T
    return common / (first.sum(1)[:, None] + second.sum(1)[None, :] - common)


def _padded(orders: Sequence[Sequence[int]], filler: int) -> np.ndarray:
    """Orders as rows of one length -> int [len(orders), longest]."""
    import numpy as np

    items = np.full((len(orders), max(map(len, orders))), filler)
    for number, order in enumerate(orders):
        items[number, : len(order)] = order
    return items
