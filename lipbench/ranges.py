"""Range checks of fields: rules, and the sentences that refuse what breaks them.

A value that is not a number is in no range.
"""

import math
from collections.abc import Callable
from typing import Concatenate, ParamSpec

Rule = tuple[bool, str]
"""Whether it holds, and what to say if not; the sentence begins with the key."""

Real = float | int
"""A number; an int where a field says float is one too."""

_Limits = ParamSpec("_Limits")


def require(*rules: Rule) -> None:
    """Check all rules, so that a reader of a file can tell all broken ones at once.

    Raises:
        ValueError: If rules are broken; the message has a line for each.
    """
    broken = [text for holds, text in rules if not holds]
    if broken:
        raise ValueError("\n".join(broken))


def at_least(key: str, value: Real, least: Real) -> Rule:
    """Return the rule least ≤ value; infinity keeps it."""
    return value >= least, f"{key} must be at least {least}, got {value}"


def finite_at_least(key: str, value: Real, least: Real) -> Rule:
    """Return the rule least ≤ value < ∞."""
    return least <= value < math.inf, f"{key} must be at least {least} and finite, got {value}"


def positive(key: str, value: Real) -> Rule:
    """Return the rule 0 < value; infinity keeps it."""
    return value > 0, f"{key} must be positive, got {value}"


def finite_positive(key: str, value: Real) -> Rule:
    """Return the rule 0 < value < ∞."""
    return 0 < value < math.inf, f"{key} must be positive and finite, got {value}"


def between(
    key: str,
    value: Real,
    low: Real,
    high: Real,
    *,
    without_low: bool = False,
    without_high: bool = False,
) -> Rule:
    """Return the rule that a value lies in an interval, with its ends unless told otherwise."""
    above = low < value if without_low else low <= value
    below = value < high if without_high else value <= high
    left, right = "(" if without_low else "[", ")" if without_high else "]"
    return above and below, f"{key} must be in {left}{low}, {high}{right}, got {value}"


def optional(
    rule: Callable[Concatenate[str, Real, _Limits], Rule],
    key: str,
    value: Real | None,
    *limits: _Limits.args,
    **more_limits: _Limits.kwargs,
) -> Rule:
    """Return a rule such as `at_least` for a value that may be None, which keeps every rule."""
    return (True, "") if value is None else rule(key, value, *limits, **more_limits)
