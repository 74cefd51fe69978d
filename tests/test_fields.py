"""Fields of plugins and settings as JSON."""

import dataclasses
from dataclasses import dataclass, field

import pytest

from lipbench.fields import fields_json, non_defaults_json


@dataclass(frozen=True, kw_only=True)
class Inner:
    name: str = "sgd"
    lr: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Outer:
    epochs: int
    lambda_: float = 1.0
    inner: Inner = field(default_factory=Inner)
    more: Inner | None = None
    norms: tuple[float, ...] = (float("inf"),)


def test_what_has_no_default_is_always_told():
    assert non_defaults_json(Outer(epochs=3)) == {"epochs": 3}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lambda_": 2.0}, {"lambda": 2.0}),
        ({"lambda_": 1.0}, {}),
        ({"inner": Inner(lr=0.2)}, {"inner": {"lr": 0.2}}),
        ({"inner": Inner(lr=0.1)}, {}),
        ({"more": Inner()}, {"more": {}}),
        ({"more": Inner(name="adam")}, {"more": {"name": "adam"}}),
        ({"norms": (1.0, float("inf"))}, {"norms": [1.0, "inf"]}),
        ({"norms": (float("inf"),)}, {}),
    ],
)
def test_of_the_others_only_what_is_not_at_its_default(changes, told):
    assert non_defaults_json(Outer(epochs=3, **changes)) == {"epochs": 3, **told}


@pytest.mark.parametrize(("default", "value"), [(0.0, -0.0), (0, 0.0), (0, False), (1, True)])
def test_values_that_compare_equal_are_told_apart(default, value):
    cls = dataclasses.make_dataclass("Made", [("x", object, default)])
    assert default == value
    assert non_defaults_json(cls(value)) == {"x": value}
    assert non_defaults_json(cls(default)) == {}


def test_a_new_option_changes_nothing_that_is_told():
    more = dataclasses.make_dataclass(
        "Outer", [("option", bool, field(default=False))], bases=(Outer,), kw_only=True, frozen=True
    )
    old, new = Outer(epochs=3, lambda_=2.0), more(epochs=3, lambda_=2.0)
    assert non_defaults_json(new) == non_defaults_json(old)
    assert fields_json(new) == {**fields_json(old), "option": False}
    assert non_defaults_json(dataclasses.replace(new, option=True))["option"] is True
