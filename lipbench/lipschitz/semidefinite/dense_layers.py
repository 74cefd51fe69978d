"""Dense chain for LipSDP training: the dense layers of a network, as its inequality takes them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.lipschitz.relaxations.loop_transformation import (
    LoopTransformation,
    loop_transformation,
)
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.lipschitz.semidefinite.certify import certify
from lipbench.lipschitz.semidefinite.interior_point import propose
from lipbench.networks.network import Network
from lipbench.networks.steps import Dense, Linear, Rearrange, Scale, Slope, Step
from lipbench.norm import Norm
from lipbench.refused import Refused

Weights = tuple[Tensor, ...]
"""The matrices of a chain in order, in float64."""
Multipliers = tuple[Tensor, ...]
"""The T of each layer of neurons in order, in float64."""


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The dense layers of a network, and what stands between and around them."""

    names: tuple[str, ...]
    """Names of the weights among the network's parameters."""
    weights: Weights
    slopes: tuple[tuple[Tensor, Tensor], ...]
    """Least and largest slope of the neurons behind each layer but the last, 0 between them."""
    factor: float
    """The constant of what stands before the first layer times that of what follows the last."""
    core: Network
    """The network from the first layer to the last."""

    @classmethod
    def of(cls, network: Network) -> "Layers":
        """Return the layers of a float64 network.

        Raises:
            Refused: If it is no chain of dense layers on vectors, with neurons between them.
        """
        positions = [n for n, step in enumerate(network.steps) if isinstance(step, Dense)]
        if not network.is_chain or len(positions) < 2:
            raise Refused("it needs a chain of two dense layers or more.")
        slopes = tuple(_between(network.steps[n : m + 1]) for n, m in pairwise(positions))
        for position in positions:
            if len(network.steps[position].input_shape) != 1:
                raise Refused(f"layer {network.steps[position].name!r} does not read a vector.")
        factor = _factor(network.steps[: positions[0]] + network.steps[positions[-1] + 1 :])
        core = _core(network.steps[positions[0] : positions[-1] + 1])
        return cls(
            names=tuple(layer.weight_name for layer in core.layers),
            weights=tuple(layer.weight for layer in core.layers),
            slopes=slopes,
            factor=factor,
            core=core,
        )

    @property
    def size(self) -> int:
        """Return the number of constrained weights, in the coordinates that count."""
        return sum(map(torch.numel, reduced(self.weights)[0]))

    def best(self) -> tuple[Multipliers, float]:
        """Return the multipliers that prove the least constant, and its square.

        Where the network is constant, all multipliers are 1.
        """
        loops = self._loops(self.weights)
        ones = tuple(torch.ones_like(hi) for _, hi in self.slopes)
        if not 0 < loops.reach(Norm(2))[-1] < math.inf:
            return ones, 0.0
        proposal = propose(loops)
        if not bool((proposal.multipliers > 0).all()):
            return ones, proposal.square
        by_layer = proposal.multipliers.split(list(loops.sizes))
        halves = [(hi - lo) / 2 for lo, hi in self.slopes]
        pairs = zip(by_layer, halves, strict=True)
        return tuple(layer / (2 * half**2) for layer, half in pairs), proposal.square

    def proved(self, weights: Weights, multipliers: Multipliers, square: float) -> float:
        """Return the certified constant of the core with other weights, from these multipliers."""
        halves = [(hi - lo) / 2 for lo, hi in self.slopes]
        pairs = zip(multipliers, halves, strict=True)
        scaled = torch.cat([2 * layer * half**2 for layer, half in pairs])
        return certify(self._loops(weights), scaled, square)[0]

    def _loops(self, weights: Weights) -> LoopTransformation:
        left = iter(weights)
        steps: tuple[Step, ...] = tuple(
            replace(step, weight=next(left)) if isinstance(step, Dense) else step
            for step in self.core.steps
        )
        return loop_transformation(as_neuron_blocks(replace(self.core, steps=steps)), self.slopes)


def reduced(
    weights: Sequence[Tensor],
) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Weights]]:
    """Return smaller matrices instead of the first and the last, and the way back.

    What the first layer does not read, and the last one does not write, stays 0 in the nearest
    weights, so that only coordinates in the span of its rows, or columns, count.
    """
    first, *middle, last = weights
    wide, tall = first.shape[1] > first.shape[0], last.shape[0] > last.shape[1]
    right = left = None
    if wide:
        right, corner = torch.linalg.qr(first.T)
        first = corner.T
    if tall:
        left, last = torch.linalg.qr(last)

    def restore(cores: Sequence[Tensor]) -> Weights:
        head, *inner, tail = cores
        head = head if right is None else head @ right.T
        return head, *inner, tail if left is None else left @ tail

    return [first, *middle, last], restore


def _between(steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
    """Return the slopes of the neurons between two layers, which are the first and last step.

    Raises:
        Refused: If there is anything but one layer of them.
    """
    before, *inside, after = steps
    neurons = [step for step in inside if not isinstance(step, Rearrange)]
    if len(neurons) != 1 or not isinstance(neurons[0], Slope):
        raise Refused(
            "it needs one layer of neurons, and nothing else, between "
            f"{before.name!r} and {after.name!r}."
        )
    return _slopes(neurons[0])


def _slopes(step: Slope) -> tuple[Tensor, Tensor]:
    ends = (torch.as_tensor(end, dtype=torch.float64) for end in (step.lo, step.hi))
    lo, hi = (end.expand(step.input_shape).flatten() for end in ends)
    if not bool((lo.isfinite() & hi.isfinite() & (lo < hi)).all()):
        raise Refused(f"step {step.name!r} has slopes that are not bounded, or are one number.")
    return lo.clamp_max(0), hi.clamp_min(0)


def _factor(around: Sequence[Step]) -> float:
    """Return the constant of what stands around the layers, rounded up.

    Raises:
        Refused: If it is trained, too, or has no constant that is positive and finite.
    """
    for step in around:
        if isinstance(step, Linear) or (isinstance(step, Scale) and step.weight_name):
            raise Refused(f"step {step.name!r} is trained, too, and is no dense layer.")
    factor = math.prod(constant(step, Norm(2)) for step in around) * (1 + 1e-12)
    if not 0 < factor < math.inf:
        raise Refused(f"what stands around its dense layers has the constant {factor}.")
    return factor


def _core(inside: Sequence[Step]) -> Network:
    return Network(
        input_shape=inside[0].input_shape,
        steps=tuple(replace(step, inputs=(index,)) for index, step in enumerate(inside)),
        output=len(inside),
    )
