"""Comparisons of orders: values counted by hand, and what must hold for any two orders."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksgen_core.orders import edit_distance, edit_score, iou

ORDERS = st.lists(st.sampled_from("abcd"), max_size=7)


@pytest.mark.parametrize(
    ("a", "b", "distance", "share"),
    [
        ("abc", "abc", 0, 1),
        ("abc", "abd", 1, 2 / 4),
        ("abcd", "acd", 1, 3 / 4),
        ("ab", "ba", 2, 1),
        ("abc", "xyz", 3, 0),
        ("aab", "ab", 1, 1),
        ("kitten", "sitting", 3, 3 / 7),
        ("", "ab", 2, 0),
        ("", "", 0, 1),
    ],
)
def test_values_counted_by_hand(a, b, distance, share):
    assert edit_distance(a, b) == distance
    assert edit_score(a, b) == pytest.approx(1 - distance / max(len(a), len(b), 1))
    assert iou(a, b) == pytest.approx(share)


def test_whole_texts_are_items_too():
    assert edit_score(("pour milk", "stir"), ("stir",)) == 0.5
    assert iou(("pour milk", "stir"), ("stir",)) == 0.5


@given(ORDERS, ORDERS, ORDERS)
def test_the_distance_is_a_metric(a, b, c):
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


@given(ORDERS, ORDERS)
def test_scores_are_shares_and_the_set_knows_no_order(a, b):
    assert 0 <= edit_score(a, b) <= 1 and 0 <= iou(a, b) <= 1
    assert iou(a, b) == iou(list(reversed(a)), b + b)
