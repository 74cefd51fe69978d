"""Rules for the ranges of fields: what keeps them, what breaks them, and what is said then."""

import math

import pytest

from lipbench.ranges import (
    at_least,
    between,
    finite_at_least,
    finite_positive,
    optional,
    positive,
    require,
)

RULES = {
    "at least": (lambda value: at_least("x", value, 2), "at least 2"),
    "finite, at least": (lambda value: finite_at_least("x", value, 2), "at least 2 and finite"),
    "positive": (lambda value: positive("x", value), "positive"),
    "finite, positive": (lambda value: finite_positive("x", value), "positive and finite"),
    "closed": (lambda value: between("x", value, 0, 1), "in [0, 1]"),
    "left open": (lambda value: between("x", value, 0, 1, without_low=True), "in (0, 1]"),
    "right open": (lambda value: between("x", value, 0, 1, without_high=True), "in [0, 1)"),
    "open": (
        lambda value: between("x", value, 0, 1, without_low=True, without_high=True),
        "in (0, 1)",
    ),
}
KEPT = {
    "at least": [2, 2.5, math.inf],
    "finite, at least": [2, 2.5],
    "positive": [5e-324, 3, math.inf],
    "finite, positive": [5e-324, 3],
    "closed": [0, 0.5, 1],
    "left open": [5e-324, 1],
    "right open": [0, 0.5],
    "open": [5e-324, 0.5],
}
BROKEN = {
    "at least": [1.5, -math.inf],
    "finite, at least": [1, math.inf, -math.inf],
    "positive": [0, -1, -math.inf],
    "finite, positive": [0, -1, math.inf],
    "closed": [-5e-324, 1.5, math.inf],
    "left open": [0, 1.5, -math.inf],
    "right open": [-0.5, 1, math.inf],
    "open": [0, 1, math.inf],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, some in KEPT.items() for v in some])
def test_a_value_in_the_range_keeps_the_rule(name, value):
    rule, _ = RULES[name]
    require(rule(value))


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, some in BROKEN.items() for v in [*some, math.nan]]
)
def test_a_value_outside_is_refused_by_key_range_and_value(name, value):
    rule, text = RULES[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        require(rule(value))
    assert str(caught.value) == f"x must be {text}, got {value}"


def test_all_broken_rules_are_told_at_once_and_the_others_not():
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        require(positive("a", 0), positive("b", 1), at_least("c", 0, 1))
    assert str(caught.value) == "a must be positive, got 0\nc must be at least 1, got 0"


def test_no_rules_are_kept():
    require()


def test_none_keeps_an_optional_rule_and_a_number_may_break_it():
    require(optional(at_least, "size", None, 1), optional(at_least, "size", 1, 1))
    require(optional(positive, "scale", None))
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        require(optional(at_least, "size", 0, 1))
