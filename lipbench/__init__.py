"""A benchmark of Lipschitz training whose every number says which side it is true from.

What a plugin's author needs is handed out here, each name when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipbench.adversarial.attack import attack as attack
    from lipbench.adversarial.queries import numbers as numbers
    from lipbench.adversarial.queries import on_rows as on_rows
    from lipbench.adversary import Attack as Attack
    from lipbench.adversary import AttackInvalid as AttackInvalid
    from lipbench.adversary import Classifier as Classifier
    from lipbench.bound import Bound as Bound
    from lipbench.bound import Lipschitz as Lipschitz
    from lipbench.bound import Side as Side
    from lipbench.certificate import Certificate as Certificate
    from lipbench.data.splits import Batch as Batch
    from lipbench.data.splits import Data as Data
    from lipbench.dataset import DataMissing as DataMissing
    from lipbench.dataset import Dataset as Dataset
    from lipbench.dataset import Raw as Raw
    from lipbench.dataset import Task as Task
    from lipbench.layers.explanations import ConvResidual as ConvResidual
    from lipbench.layers.explanations import Residual as Residual
    from lipbench.layers.explanations import Slopes as Slopes
    from lipbench.layers.normalise import Normalise as Normalise
    from lipbench.layers.sorting import GroupSort as GroupSort
    from lipbench.layers.sorting import MaxMin as MaxMin
    from lipbench.lipschitz.bracket import bracket as bracket
    from lipbench.lipschitz.lower_bounds.witness import witness as witness
    from lipbench.method import Claim as Claim
    from lipbench.method import Method as Method
    from lipbench.method import Params as Params
    from lipbench.method import Scalars as Scalars
    from lipbench.method import State as State
    from lipbench.method import Strength as Strength
    from lipbench.method import Summary as Summary
    from lipbench.model import Model as Model
    from lipbench.networks.net import Net as Net
    from lipbench.networks.network import Network as Network
    from lipbench.norm import NORMS as NORMS
    from lipbench.norm import Norm as Norm
    from lipbench.planning.plan import plan as plan
    from lipbench.ranges import at_least as at_least
    from lipbench.ranges import between as between
    from lipbench.ranges import finite_at_least as finite_at_least
    from lipbench.ranges import finite_positive as finite_positive
    from lipbench.ranges import optional as optional
    from lipbench.ranges import positive as positive
    from lipbench.ranges import require as require
    from lipbench.refused import Refused as Refused
    from lipbench.runs.run import run as run
    from lipbench.runs.run import run_cell as run_cell
    from lipbench.runs.run import run_cells as run_cells
    from lipbench.threat import Box as Box
    from lipbench.threat import Threat as Threat

__all__ = [
    "NORMS",
    "Attack",
    "AttackInvalid",
    "Batch",
    "Bound",
    "Box",
    "Certificate",
    "Claim",
    "Classifier",
    "ConvResidual",
    "Data",
    "DataMissing",
    "Dataset",
    "GroupSort",
    "Lipschitz",
    "MaxMin",
    "Method",
    "Model",
    "Net",
    "Network",
    "Norm",
    "Normalise",
    "Params",
    "Raw",
    "Refused",
    "Residual",
    "Scalars",
    "Side",
    "Slopes",
    "State",
    "Strength",
    "Summary",
    "Task",
    "Threat",
    "at_least",
    "attack",
    "between",
    "bracket",
    "finite_at_least",
    "finite_positive",
    "numbers",
    "on_rows",
    "optional",
    "plan",
    "positive",
    "require",
    "run",
    "run_cell",
    "run_cells",
    "witness",
]

_HOMES = {
    # running
    "attack": "lipbench.adversarial.attack",
    "bracket": "lipbench.lipschitz.bracket",
    "plan": "lipbench.planning.plan",
    "run": "lipbench.runs.run",
    "run_cell": "lipbench.runs.run",
    "run_cells": "lipbench.runs.run",
    # methods
    "Method": "lipbench.method",
    "Strength": "lipbench.method",
    "Claim": "lipbench.method",
    "Summary": "lipbench.method",
    "State": "lipbench.method",
    "Params": "lipbench.method",
    "Scalars": "lipbench.method",
    "Net": "lipbench.networks.net",
    "Batch": "lipbench.data.splits",
    "Data": "lipbench.data.splits",
    # attacks
    "Attack": "lipbench.adversary",
    "AttackInvalid": "lipbench.adversary",
    "Classifier": "lipbench.adversary",
    "Threat": "lipbench.threat",
    "on_rows": "lipbench.adversarial.queries",
    "numbers": "lipbench.adversarial.queries",
    # bounds and certificates
    "Bound": "lipbench.bound",
    "Lipschitz": "lipbench.bound",
    "Side": "lipbench.bound",
    "Certificate": "lipbench.certificate",
    "Network": "lipbench.networks.network",
    "Refused": "lipbench.refused",
    "Norm": "lipbench.norm",
    "NORMS": "lipbench.norm",
    "Box": "lipbench.threat",
    "witness": "lipbench.lipschitz.lower_bounds.witness",
    # data sets and models
    "Dataset": "lipbench.dataset",
    "Raw": "lipbench.dataset",
    "Task": "lipbench.dataset",
    "DataMissing": "lipbench.dataset",
    "Model": "lipbench.model",
    # layers
    "GroupSort": "lipbench.layers.sorting",
    "MaxMin": "lipbench.layers.sorting",
    "Residual": "lipbench.layers.explanations",
    "ConvResidual": "lipbench.layers.explanations",
    "Slopes": "lipbench.layers.explanations",
    "Normalise": "lipbench.layers.normalise",
    # checks of fields
    "require": "lipbench.ranges",
    "at_least": "lipbench.ranges",
    "positive": "lipbench.ranges",
    "between": "lipbench.ranges",
    "finite_at_least": "lipbench.ranges",
    "finite_positive": "lipbench.ranges",
    "optional": "lipbench.ranges",
}


def __getattr__(name: str) -> Any:
    # Late, so that the command line answers before torch could be imported.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lipbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
