"""Exact constants: found by branch and bound, stored as tensors, and checked again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.bound import Lipschitz
from lipbench.branching import SAME, Explored, covered, explore
from lipbench.expansion import most_expanded
from lipbench.network import Network
from lipbench.norm import Norm
from lipbench.pieces import Pieces
from lipbench.polyhedra import Empty
from lipbench.regions import Decision, Regions
from lipbench.threat import Box
from lipbench.unrolled import Unrolled, unroll

_SLACK = 1 + 1e-12
_BEST = 4


def enumerated_bound(
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
    unrolled = unroll(network)
    regions = Regions(unrolled, norm, domain)
    known = [] if starts is None else _exactly(starts.flatten(1))
    found = explore(regions, nodes, known)
    if not found.is_exact:
        points = _rounded((*known, *found.inside), unrolled.inputs)
        steep = _climbed(network, unrolled, norm, domain, points, programs)
        found = _raised(found, regions, steep)
    point = _split(found.point, unrolled.inputs)
    is_exact = found.is_exact
    if is_exact and found.upper > 0:
        # What is stored of the point must do.
        region = regions.around(_joined(point))
        is_exact = region is not None
    return Lipschitz(
        value=found.upper,
        side="exact" if is_exact else "upper",
        norm=norm,
        domain=domain,
        proof={"point": point, **_packed(found)},
        flags=network.flags,
    )


def enumerated_problem(network: Network, value: Lipschitz) -> str:
    """Return what is wrong with the stored regions of a value, empty if they prove it."""
    proof = value.proof
    regions = Regions(unroll(network), value.norm, value.domain)
    if not covered(regions, value.value * _SLACK, *_unpacked(proof)):
        return "its regions do not prove that no slope is larger"
    if value.side == "exact" and value.value > 0:
        region = regions.around(_joined(proof["point"]))
        if region is None or regions.least(region) * (1 + 2 * SAME) < value.value:
            return "the slope at its point is smaller"
    return ""


def _climbed(
    network: Network,
    unrolled: Unrolled,
    norm: Norm,
    domain: Box | None,
    points: Float[Tensor, "points inputs"],
    programs: int,
) -> Float[Tensor, "found inputs"]:
    """Return points of steep pieces near the given ones."""
    if not len(points):
        return points
    steepness, _ = most_expanded(network, points.reshape(-1, *network.input_shape), norm)
    order = steepness.argsort(descending=True)
    ends = Pieces(unrolled, norm, domain).climb(points[order], programs)
    return torch.stack([end.point for end in ends[:_BEST]])


def _raised(found: Explored, regions: Regions, points: Tensor) -> Explored:
    """Return what a search found with a steeper point, if one of these is."""
    for point in _exactly(points):
        region = regions.around(point)
        if region is not None and regions.least(region) > found.lower:
            found = replace(found, lower=regions.least(region), point=point)
    return found


def _rounded(
    points: Sequence[Sequence[Fraction]], dimension: int
) -> Float[Tensor, "points inputs"]:
    found = [[float(x) for x in point] for point in points]
    return torch.tensor(found, dtype=torch.float64).reshape(len(points), dimension)


def _exactly(points: Float[Tensor, "points inputs"]) -> list[tuple[Fraction, ...]]:
    return [tuple(map(Fraction, point)) for point in points.tolist()]


def _split(point: Sequence[Fraction] | None, dimension: int) -> Tensor:
    """Return a rational point as the sum of two rows of floats, as near as these come."""
    point = [Fraction(0)] * dimension if point is None else point
    first = [float(x) for x in point]
    rest = [float(x - Fraction(near)) for x, near in zip(point, first, strict=True)]
    return torch.tensor([first, rest], dtype=torch.float64)


def _joined(point: Tensor) -> list[Fraction]:
    return [Fraction(x) + Fraction(rest) for x, rest in zip(*point.tolist(), strict=True)]


def _packed(found: Explored) -> dict[str, Tensor]:
    paths, proofs = zip(*found.empty, strict=True) if found.empty else ((), ())
    weights = [weight for proof in proofs for weight in proof.weights]
    return {
        **_lists("closed", map(_codes, found.closed)),
        **_lists("empty", map(_codes, paths)),
        **_lists("support", [proof.support for proof in proofs]),
        "weights": torch.tensor(weights, dtype=torch.float64),
    }


def _unpacked(
    proof: Mapping[str, Tensor],
) -> tuple[list[tuple[Decision, ...]], list[tuple[tuple[Decision, ...], Empty]]]:
    support = _parts(proof, "support")
    weights = proof["weights"].split([len(part) for part in support]) if support else ()
    empty = [
        (_path(codes), Empty(tuple(numbers), tuple(own.tolist())))
        for codes, numbers, own in zip(_parts(proof, "empty"), support, weights, strict=True)
    ]
    return [_path(codes) for codes in _parts(proof, "closed")], empty


def _codes(path: Sequence[Decision]) -> list[int]:
    return [2 * neuron + right for neuron, right in path]


def _path(codes: Sequence[int]) -> tuple[Decision, ...]:
    return tuple((code // 2, code % 2 == 1) for code in codes)


def _lists(name: str, lists: Iterable[Sequence[int]]) -> dict[str, Tensor]:
    """Return lists of numbers as one tensor, and one of their lengths."""
    parts = [list(part) for part in lists]
    return {
        name: torch.tensor([number for part in parts for number in part], dtype=torch.int64),
        f"{name}_lengths": torch.tensor([len(part) for part in parts], dtype=torch.int64),
    }


def _parts(proof: Mapping[str, Tensor], name: str) -> list[list[int]]:
    lengths = proof[f"{name}_lengths"].tolist()
    return [part.tolist() for part in proof[name].split(lengths)] if lengths else []
