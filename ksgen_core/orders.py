"""Comparing orders of steps: how alike two sequences are. The items are anything that can be hashed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

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
