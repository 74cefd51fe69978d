"""A softmax at the end of a network: bounds of what stands before it, times its constant."""

from dataclasses import dataclass, replace
from functools import reduce

import torch

from lipbench.bound import Lipschitz
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.lipschitz.operator_norms.rounding_up import times
from lipbench.networks.network import Network
from lipbench.networks.steps import Softmax, Step
from lipbench.norm import Norm

_PREFIX = "before:"
_VALUE = f"{_PREFIX}value"


@dataclass(frozen=True, kw_only=True, eq=False)
class Ending:
    """A network in two parts: the second reads nothing but the result of the first."""

    before: Network
    steps: tuple[Step, ...]
    """The softmax and what comes behind it, in a chain."""

    def behind(self, value: Lipschitz) -> Lipschitz:
        """Return the upper bound of the whole network that one of the first part proves.

        It is the value times the constants of the steps, rounded upwards, and keeps its proof.
        """
        return replace(
            value,
            value=self._whole(value.value, value.norm),
            side="upper",
            proof={
                _VALUE: torch.tensor(value.value, dtype=torch.float64),
                **{f"{_PREFIX}{name}": tensor for name, tensor in value.proof.items()},
            },
        )

    def proved(self, value: Lipschitz) -> tuple[Lipschitz, float]:
        """Return the bound of the first part that is in a proof, and what it proves of the whole.

        The bound has a proof of its own, which is not checked here.
        """
        least = float(value.proof[_VALUE])
        proof = {
            name.removeprefix(_PREFIX): tensor
            for name, tensor in value.proof.items()
            if name.startswith(_PREFIX) and name != _VALUE
        }
        return replace(value, value=least, proof=proof), self._whole(least, value.norm)

    def _whole(self, value: float, norm: Norm) -> float:
        return reduce(times, (constant(step, norm) for step in self.steps), value)


def is_behind(value: Lipschitz) -> bool:
    """Return whether a proof is one of a first part."""
    return _VALUE in value.proof


def ending(network: Network) -> Ending | None:
    """Return the network in two parts, None if it does not end in a softmax."""
    steps = network.steps
    first = next((i for i, step in enumerate(steps) if isinstance(step, Softmax)), None)
    if first is None or network.output != len(steps) or len(steps[first].inputs) != 1:
        return None
    tail = steps[first:]
    if any(step.inputs != (first + number,) for number, step in enumerate(tail[1:], start=1)):
        return None
    (source,) = steps[first].inputs
    return Ending(before=replace(network, steps=steps[:first], output=source), steps=tail)
