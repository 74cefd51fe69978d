"""A benchmark of Lipschitz training whose every number says which side it is true from."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipbench.adversarial.attack import attack as attack
    from lipbench.layers.sorting import GroupSort as GroupSort
    from lipbench.layers.sorting import MaxMin as MaxMin
    from lipbench.lipschitz.bracket import bracket as bracket
    from lipbench.planning.plan import plan as plan
    from lipbench.runs.run import run as run
    from lipbench.runs.run import run_cell as run_cell
    from lipbench.runs.run import run_cells as run_cells

__all__ = ["GroupSort", "MaxMin", "attack", "bracket", "plan", "run", "run_cell", "run_cells"]

_HOMES = {
    "GroupSort": "lipbench.layers.sorting",
    "MaxMin": "lipbench.layers.sorting",
    "attack": "lipbench.adversarial.attack",
    "bracket": "lipbench.lipschitz.bracket",
    "plan": "lipbench.planning.plan",
    "run": "lipbench.runs.run",
    "run_cell": "lipbench.runs.run",
    "run_cells": "lipbench.runs.run",
}


def __getattr__(name: str) -> Any:
    # Late, so that the command line answers before torch could be imported.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lipbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
