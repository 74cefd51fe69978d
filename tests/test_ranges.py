"""Rules for the ranges of fields: what keeps them, what breaks them, and what is said then."""

import dataclasses
import math
from typing import get_type_hints

import pytest

from lipbench.adversary import Attack
from lipbench.bound import Bound
from lipbench.certificate import Certificate
from lipbench.dataset import Dataset
from lipbench.fields import key
from lipbench.method import Method
from lipbench.model import Model
from lipbench.ranges import (
    at_least,
    between,
    finite_at_least,
    finite_positive,
    optional,
    positive,
    require,
)
from lipbench.registry import load, names

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


KINDS = {
    "lipbench.methods": Method,
    "lipbench.attacks": Attack,
    "lipbench.bounds": Bound,
    "lipbench.certificates": Certificate,
    "lipbench.datasets": Dataset,
    "lipbench.models": Model,
}
WITHOUT_RANGE = {
    ("lipsdp_layer", "tolerance"),
    ("lipsdp_neuron", "tolerance"),
    ("madry_cnn", "init_bias"),
    ("torchattacks", "alpha"),
}
"""Fields of plugins that may be any number."""


@pytest.mark.parametrize(("group", "name"), [(g, n) for g in KINDS for n in names(g)])
def test_no_number_of_a_plugin_may_be_nan(group, name):
    plugin = load(group, name, KINDS[group])
    hints = get_type_hints(plugin)
    for field in dataclasses.fields(plugin):
        if hints[field.name] not in (float, float | None) or (name, field.name) in WITHOUT_RANGE:
            continue
        with pytest.raises(ValueError, match=f"^{key(field.name)}( of {name})? must be .*got nan"):
            plugin(**{field.name: math.nan})


def test_a_method_tells_what_is_wrong_with_its_family_s_fields_and_its_own_at_once():
    method = load("lipbench.methods", "gloro", Method)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        method(epsilon=-1.0, lambda_=math.inf, iterations=0)
    assert str(caught.value).splitlines() == [
        "iterations must be at least 1, got 0",
        "epsilon must be at least 0 and finite, got -1.0",
        "lambda must be at least 0 and finite, got inf",
    ]
