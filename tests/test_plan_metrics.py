"""Plan metrics against values counted by hand."""

from __future__ import annotations

import pytest

from ksgen_core.metrics.plans import METRICS, accuracy, score_plans, success


def test_values_counted_by_hand():
    assert accuracy("abc", "abd") == pytest.approx(2 / 3)
    assert accuracy("ab", "abcd") == accuracy("abcd", "ab") == 0.5
    assert accuracy("bcd", "abcd") == 0, "one step too few at the head moves all others"
    assert success("ab", ("a", "b")) == 1 and success("ab", "ba") == success("ab", "abc") == 0


def test_means_are_over_single_pairs():
    figures = score_plans([("abc", "abc"), ("ab", "bc")])
    assert figures == pytest.approx({"edit_score": 0.5, "miou": 2 / 3, "success_rate": 0.5, "mean_accuracy": 0.5})
    assert list(figures) == list(METRICS)


def test_an_empty_plan_scores_nothing_and_no_pair_is_refused():
    assert set(score_plans([("", "ab")]).values()) == {0}
    with pytest.raises(ValueError, match="empty"):
        score_plans([])
