"""Plan metrics: how near the planned steps come to the true ones, 0..1, higher is better.

The three of procedure planning are defined by Chang et al., Procedure Planning in Instructional Videos, ECCV 2020, for
plans of one known length. Here a planner chooses the length, so position-wise accuracy is taken over the longer of the
two plans: what is missing or too much counts as wrong. All are means over single pairs, never over batches: a mIoU over
a batch depends on its size (Wang et al., PDPP, CVPR 2023). The edit score is that of Lea et al., CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..orders import Order, edit_score, iou


def success(planned: Order, true: Order) -> float:
    """1 if the plan is the true one, step by step, else 0. Its mean is the success rate (SR)."""
    return float(tuple(planned) == tuple(true))


def accuracy(planned: Order, true: Order) -> float:
    """The share of positions, of the longer plan, that hold the same step. Its mean is the mean accuracy (mAcc)."""
    longer = max(len(planned), len(true))
    return sum(a == b for a, b in zip(planned, true, strict=False)) / longer if longer else 1.0


METRICS: dict[str, Callable[[Order, Order], float]] = {
    "edit_score": edit_score,
    "miou": iou,
    "success_rate": success,
    "mean_accuracy": accuracy,
}
"""Every metric `(planned, true) -> 0..1`, by the name that reports use."""


def score_plans(pairs: Iterable[tuple[Order, Order]]) -> dict[str, float]:
    """The mean of every metric over pairs (planned, true). Raises `ValueError` if there is no pair."""
    sums, count = dict.fromkeys(METRICS, 0.0), 0
    for planned, true in pairs:
        count += 1
        for name, metric in METRICS.items():
            sums[name] += metric(planned, true)
    if not count:
        raise ValueError("no plans to score: the pairs are empty")
    return {name: total / count for name, total in sums.items()}
