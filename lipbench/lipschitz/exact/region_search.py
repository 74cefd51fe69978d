"""Region search: exact constants by branch and bound, stored as tensors, checked again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.bound import Lipschitz
from lipbench.lipschitz.exact.branching import SAME, Explored, explore, regions_prove
from lipbench.lipschitz.exact.exact_matrix import ExactMatrix
from lipbench.lipschitz.exact.patterns import explore_patterns, fits, patterns_prove
from lipbench.lipschitz.exact.polyhedra import Empty
from lipbench.lipschitz.exact.proof_tensors import joined, packed, split, unpacked
from lipbench.lipschitz.exact.regions import Regions
from lipbench.lipschitz.lower_bounds.expansion import most_expanded
from lipbench.lipschitz.lower_bounds.linear_regions import LinearRegions
from lipbench.lipschitz.relaxations.decisions import Decision
from lipbench.lipschitz.relaxations.magnitudes import above_underflow
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlocks, as_neuron_blocks
from lipbench.networks.network import Network
from lipbench.networks.steps import (
    AveragePool,
    Concatenation,
    Contraction,
    ConvContraction,
    Copy,
    GroupSort,
    Linear,
    MaxPool,
    Rearrange,
    Sandwich,
    Scale,
    Slope,
    Softmax,
    Step,
    Sum,
    refuse_kind,
)
from lipbench.norm import Norm
from lipbench.threat import Box

HELD = "scales as they are in float64"
"""Flag of a value of a network whose scales are quotients or roots of what layers store.

It is that of the network with these scales as float64 rounds them.
"""
_SLACK = 1 + 1e-12
_BEST = 4
_PATIENCE = 250
"""Regions to look at before what takes seconds is worth it: the norms of all choices of signs."""


def lipbab_bound(
    network: Network,
    norm: Norm,
    domain: Box | None,
    nodes: int,
    programs: int = 0,
    starts: Float[Tensor, "starts *shape"] | None = None,
) -> Lipschitz:
    """Return the exact constant, or an upper bound if it is not known after so many nodes.

    The point in the proof is the steepest that was found, where not even that is proved.

    Args:
        network: The network.
        norm: Norm of inputs and outputs.
        domain: Box that the pairs lie in, None for all of space.
        nodes: Most regions that are looked at.
        programs: Most linear programs that a search which does not end spends on a better point.
        starts: Points in the domain where the network is known to be steep.

    Raises:
        Refused: If the network is not piecewise linear, or cannot be read exactly.
    """
    regions = _regions(network, norm, domain)
    blocks = regions.network
    known = [] if starts is None else _exactly(starts.flatten(1))
    explored = _explored(regions, nodes, known)
    if not explored.is_exact:
        points = _rounded((*known, *explored.inside), blocks.inputs)
        steep = _climbed(network, blocks, norm, domain, points, programs)
        explored = _raised(explored, regions, steep)
    point = split(explored.point or [Fraction(0)] * blocks.inputs)
    is_exact = explored.is_exact
    if is_exact and explored.upper > 0:
        # What is stored of the point must do.
        region = regions.region_at(joined(point))
        is_exact = region is not None
    value = above_underflow(network, explored.upper)
    return Lipschitz(
        value=value,
        side="exact" if is_exact and value == explored.upper else "upper",
        norm=norm,
        domain=domain,
        proof={"point": point, **_packed(explored)},
        flags=(*network.flags, *([HELD] if _has_scales(network) else [])),
    )


def lipbab_problem(network: Network, value: Lipschitz) -> str:
    """Return what is wrong with the stored regions of a value, empty if they prove it."""
    proof = value.proof
    if not value.value >= 0:
        return "it is no number that is at least 0"
    if value.value < above_underflow(network, 0.0):
        return "products in float64 do not tell it from 0"
    regions = _regions(network, value.norm, value.domain)
    closed, empty = _unpacked(proof)
    limit = value.value * _SLACK
    if closed:
        is_proved = regions_prove(regions, limit, closed, empty)
    else:
        is_proved = patterns_prove(regions, limit, empty)
    if not is_proved:
        return "its regions do not prove that no slope is larger"
    if value.side == "exact" and value.value > 0:
        region = regions.region_at(joined(proof["point"]))
        if region is None or regions.least(region) * (1 + 2 * SAME) < value.value:
            return "the slope at its point is smaller"
    return ""


def _regions(network: Network, norm: Norm, domain: Box | None) -> Regions:
    return Regions(as_neuron_blocks(network, kind=ExactMatrix), norm, domain)


def _explored(regions: Regions, nodes: int, starts: list[tuple[Fraction, ...]]) -> Explored:
    if not fits(regions) or nodes <= _PATIENCE:
        return explore(regions, nodes, starts)
    by_regions = explore(regions, _PATIENCE, starts)
    if by_regions.is_exact:
        return by_regions
    known = starts if by_regions.point is None else [*starts, by_regions.point]
    by_patterns = explore_patterns(regions, nodes - _PATIENCE, known)
    best = min(by_patterns, by_regions, key=lambda explored: explored.upper)
    inside = (*by_regions.inside, *by_patterns.inside)
    return replace(best, lower=by_patterns.lower, point=by_patterns.point, inside=inside)


def _climbed(
    network: Network,
    blocks: NeuronBlocks,
    norm: Norm,
    domain: Box | None,
    points: Float[Tensor, "points inputs"],
    programs: int,
) -> Float[Tensor, "ends inputs"]:
    """Return points of steep regions near the given ones."""
    if not len(points):
        return points
    steepness, _ = most_expanded(network, points.reshape(-1, *network.input_shape), norm)
    order = steepness.argsort(descending=True)
    ends = LinearRegions(blocks, norm, domain).climb(points[order], programs)
    return torch.stack([end.point for end in ends[:_BEST]])


def _raised(explored: Explored, regions: Regions, points: Tensor) -> Explored:
    """Return what a search found with a steeper point, if one of these is."""
    for point in _exactly(points):
        region = regions.region_at(point)
        if region is not None and regions.least(region) > explored.lower:
            explored = replace(explored, lower=regions.least(region), point=point)
    return explored


def _has_scales(network: Network) -> bool:
    """Return whether a step holds factors that may be rounded: any but 1, 2, 1/2 and so on."""
    return any(map(_has_scale, network.steps))


def _has_scale(step: Step) -> bool:
    if isinstance(step, Sum):
        return any(abs(math.frexp(factor)[0]) != 0.5 for factor in step.coefficients)
    if isinstance(step, (*_PLAIN, Scale)):
        return isinstance(step, Scale)
    refuse_kind(step, "holds factors that may be rounded", __name__)


_PLAIN = (
    *(Linear, Slope, Rearrange, MaxPool, AveragePool, Copy, Concatenation, GroupSort, Softmax),
    *(Contraction, ConvContraction, Sandwich),
)


def _rounded(
    points: Sequence[Sequence[Fraction]], dimension: int
) -> Float[Tensor, "points inputs"]:
    rows = [[float(x) for x in point] for point in points]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(points), dimension)


def _exactly(points: Float[Tensor, "points inputs"]) -> list[tuple[Fraction, ...]]:
    return [tuple(map(Fraction, point)) for point in points.tolist()]


def _packed(explored: Explored) -> dict[str, Tensor]:
    paths, proofs = zip(*explored.empty, strict=True) if explored.empty else ((), ())
    weights = [weight for proof in proofs for weight in proof.weights]
    return {
        **packed("closed", map(_codes, explored.closed)),
        **packed("empty", map(_codes, paths)),
        **packed("support", [proof.support for proof in proofs]),
        "weights": torch.tensor(weights, dtype=torch.float64),
    }


def _unpacked(
    proof: Mapping[str, Tensor],
) -> tuple[list[tuple[Decision, ...]], list[tuple[tuple[Decision, ...], Empty]]]:
    support = unpacked(proof, "support")
    weights = proof["weights"].split([len(numbers) for numbers in support]) if support else ()
    empty = [
        (_path(codes), Empty(tuple(numbers.tolist()), tuple(factors.tolist())))
        for codes, numbers, factors in zip(unpacked(proof, "empty"), support, weights, strict=True)
    ]
    return [_path(codes) for codes in unpacked(proof, "closed")], empty


def _codes(path: Sequence[Decision]) -> list[int]:
    return [2 * neuron + right for neuron, right in path]


def _path(codes: Tensor) -> tuple[Decision, ...]:
    return tuple((code // 2, code % 2 == 1) for code in codes.tolist())
