"""The incumbent of an exact search: the lower bound that lies in the proof of an upper one."""

from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.bound import Lipschitz
from lipbench.lipschitz.exact.regions import Regions
from lipbench.lipschitz.lower_bounds.chords import chords
from lipbench.lipschitz.lower_bounds.expansion import (
    CLOSER,
    most_expanded,
    operator_norms,
    pairs_along,
)
from lipbench.lipschitz.lower_bounds.witness import witness
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.networks.network import Network
from lipbench.refused import Refused

_LOSS = 1e-3
"""Share of the slope at a point that no pair proves, for closer ones to be tried."""
INCUMBENT = "incumbent"
"""Name of such a bound, behind that of the bound that it comes from."""


def incumbent(network: Network, value: Lipschitz) -> Lipschitz | None:
    """Return the lower bound that the point of an exact value or upper bound gives, if any.

    A search for the constant knows the steepest point that it has met, and stores it as rows whose
    sum it is, under `point` in its proof. Around it lies a pair of inputs that proves nearly its
    slope, all rounding accounted for: that of an exact constant to about 1e-10 of it, unless the
    region of that slope is very thin. A bisection stores the `centre` of its steepest part.
    """
    point = value.proof.get("point")
    near = value.proof.get("centre") if point is None else point.sum(dim=0)
    if near is None or value.side not in ("upper", "exact"):
        return None
    near = near.reshape(1, *network.input_shape)
    if value.domain is not None:
        near = near.clamp(*value.domain)
    steepness, directions = most_expanded(network, near, value.norm)
    u, v = pairs_along(near, directions, value.domain)
    inside = None if point is None else _in_region(network, value, point)
    if inside is not None:
        shape = (-1, *network.input_shape)
        u, v = torch.cat([u, inside[0].reshape(shape)]), torch.cat([v, inside[1].reshape(shape)])
    try:
        bound = witness(network, u, v, value.norm, value.domain)
        if point is None and bound.value < (1 - _LOSS) * float(steepness[0]):
            ends = pairs_along(near, directions, value.domain, CLOSER)
            closer = witness(network, *ends, value.norm, value.domain)
            bound = max(bound, closer, key=lambda each: each.value)
    except Refused:  # a step without an analysis of its rounding has no witness
        return None
    return bound if bound.value > 0 else None


def _in_region(
    network: Network, value: Lipschitz, point: Float[Tensor, "rows inputs"]
) -> tuple[Tensor, Tensor] | None:
    """Return pairs in the linear region around a point, which may be too thin for floats to see."""
    exact = [sum(map(Fraction, entry), Fraction(0)) for entry in zip(*point.tolist(), strict=True)]
    try:
        regions = Regions(as_neuron_blocks(network), value.norm, value.domain)
    except Refused:
        return None
    region = regions.region_at(exact)
    if region is None:
        return None
    _, directions = operator_norms(regions.matrix(region).unsqueeze(0), value.norm)
    units = [face.unit[:-1].tolist() for face in region.inequalities]
    slack = [float(face.slack(exact)) for face in region.inequalities]
    return chords(
        torch.tensor(units, dtype=torch.float64).reshape(len(units), len(exact)),
        torch.tensor(slack, dtype=torch.float64),
        point.sum(dim=0),
        directions[0],
        value.domain,
    )
