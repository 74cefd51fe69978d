"""LipSDP: certified l2 bounds from multipliers, proposed, certified, and checked again."""

import math

import torch
from torch import Tensor

from lipbench.bound import Lipschitz
from lipbench.lipschitz.relaxations.intervals import loop_transformation_on
from lipbench.lipschitz.relaxations.loop_transformation import LoopTransformation
from lipbench.lipschitz.relaxations.magnitudes import above_underflow
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks, neurons
from lipbench.lipschitz.semidefinite.certify import certify
from lipbench.lipschitz.semidefinite.interior_point import propose
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.threat import Box

_SECONDS_PER_CUBE = 3e-8


def lipsdp_bound(
    network: Network, domain: Box | None, *, tolerance: float, iterations: int, by_block: bool
) -> Lipschitz:
    """Return the bound of the best multipliers, one for each neuron or for each block.

    Raises:
        Refused: If a step cannot be read neuron by neuron.
    """
    loops = loop_transformation_on(as_neuron_blocks(network), domain)
    groups = _blocks(loops) if by_block else None
    if not loops.neurons:
        return certified(network, domain, loops, torch.empty(0, dtype=torch.float64), 0.0)
    proposal = propose(loops, groups, tolerance, iterations)
    return certified(network, domain, loops, proposal.multipliers, proposal.square)


def certified(
    network: Network,
    domain: Box | None,
    loops: LoopTransformation,
    multipliers: Tensor,
    square: float,
) -> Lipschitz:
    """Return the bound that multipliers prove, with what it takes to prove it again."""
    value, proved = _proved(loops, multipliers, square)
    return Lipschitz.upper(
        network,
        above_underflow(network, value),
        Norm(2),
        domain,
        multipliers=multipliers,
        square=torch.tensor(proved, dtype=torch.float64),
    )


def proved_by_multipliers(network: Network, value: Lipschitz) -> float:
    """Return the constant that the stored multipliers prove, computed from the network anew."""
    multipliers, square = value.proof["multipliers"], float(value.proof["square"])
    loops = loop_transformation_on(as_neuron_blocks(network), value.domain)
    if multipliers.shape != (loops.neurons,):
        return math.inf
    return _proved(loops, multipliers, square)[0]


def lipsdp_cost(network: Network) -> float:
    """Return roughly the seconds that the best multipliers take one core."""
    count = neurons(network)
    inputs = network.input_size
    return 5e-3 + _SECONDS_PER_CUBE * (2 * count) ** 3 + 1e-8 * count * inputs * count


def _proved(loops: LoopTransformation, multipliers: Tensor, square: float) -> tuple[float, float]:
    if not loops.neurons:  # a linear map
        return loops.reach(Norm(2.0))[-1], square
    return certify(loops, multipliers, square)


def _blocks(loops: LoopTransformation) -> Tensor:
    sizes = torch.tensor(loops.sizes, dtype=torch.int64)
    return torch.arange(len(sizes)).repeat_interleave(sizes)
