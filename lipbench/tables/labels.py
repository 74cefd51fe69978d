"""Display names of methods, of attacks, and of the parameters that tell rows apart."""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

_TARGET = "target_accuracy"
_SPELT = {
    "aoc": "AOC",
    "aol": "AOL",
    "at": "AT",
    "bjorck": "Björck",
    "fast": "Fast",
    "free": "Free",
    "gloro": "GloRo",
    "gram": "Gram",
    "jacobian": "Jacobian",
    "lip": "Lip",
    "lipbound": "LipBound",
    "lipmlp": "LipMLP",
    "lipschitz": "Lipschitz",
    "local": "Local",
    "trades": "TRADES",
}
"""Words that are proper names, or short and no acronyms."""


def display_name(name: str) -> str:
    """Return an entry point's name for a table, with words spelt as the field spells them.

    Another first word of up to four letters is taken for an acronym.
    """
    first, *rest = name.replace("_", " ").replace(":", " ").split() or [name]
    if first not in _SPELT:
        is_acronym = len(first) <= 4 and first.islower()
        first = first.upper() if is_acronym else first[:1].upper() + first[1:]
    return " ".join(_SPELT.get(word, word) for word in (first, *rest))


def labels(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return one label for each distinct pair of a method's name and its params in JSON.

    A label is the name, the target accuracy if there is one, and of the other parameters the
    fewest that tell apart the pairs which share both.
    """
    params = [parse(text) for _, text in rows]
    targets = [target(table) for table in params]
    result = []
    for index, (name, _) in enumerate(rows):
        twins = [
            params[j]
            for j, row in enumerate(rows)
            if row[0] == name and targets[j] == targets[index] and j != index
        ]
        remarks = [
            f"{key} = {_short(params[index].get(key))}" for key in _telling(params[index], twins)
        ]
        goal = targets[index]
        if goal is not None:
            text = f"{goal:.2f}" if round(goal, 2) == goal else f"{goal:g}"
            remarks.insert(0, text.removeprefix("0"))
        result.append(display_name(name) + (f" ({', '.join(remarks)})" if remarks else ""))
    return result


def target(params: Mapping[str, Any]) -> float | None:
    """Return the accuracy that the strength of a method is driven to, None if it is not."""
    value = params.get(_TARGET)
    return float(value) if isinstance(value, int | float) else None


def parse(text: str) -> dict[str, Any]:
    """Return the object that a JSON column holds, an empty one if it is something else."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {"name": table}


def _telling(params: Mapping[str, Any], twins: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    keys = sorted({key for table in (params, *twins) for key in table})
    varying = [key for key in keys if any(table.get(key) != params.get(key) for table in twins)]
    for size in range(min(len(varying), 3) + 1):
        for chosen in combinations(varying, size):
            if all(any(table.get(k) != params.get(k) for k in chosen) for table in twins):
                return chosen
    return tuple(varying)


def _short(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int | float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(", ", ": "))
