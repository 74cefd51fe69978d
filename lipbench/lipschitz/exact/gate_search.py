"""LipMIP: the largest derivatives on a box, by branch and bound over gates and signs.

Every node of the search is closed by multipliers of its linear program, or by a proof that it has
no interior. They are what a value proves: the solver's word counts for nothing, and the lower side
is a region's own matrix.

Source:
    Jordan, Dimakis, Exactly Computing the Local Lipschitz Constant of ReLU Networks (NeurIPS
    2020), https://arxiv.org/abs/2003.01219, which leaves the search, and its bound, to a solver,
    and counts faces between regions, on which gates may be open and closed at once.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import count

import torch
from torch import Tensor

from lipbench.bound import Lipschitz
from lipbench.lipschitz.exact.branching import SAME
from lipbench.lipschitz.exact.gates import Gates
from lipbench.lipschitz.exact.mixed_integer import MixedIntegerProgram
from lipbench.lipschitz.exact.polyhedra import Empty, Interior
from lipbench.lipschitz.exact.proof_tensors import joined, packed, split, unpacked
from lipbench.lipschitz.exact.regions import Region, Regions
from lipbench.lipschitz.lower_bounds.witness import known_pairs, starting_points
from lipbench.lipschitz.relaxations.decisions import Decision, cover
from lipbench.lipschitz.relaxations.entrywise import interval_norm
from lipbench.lipschitz.relaxations.magnitudes import above_underflow
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlocks, as_neuron_blocks
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.threat import Box

_SLACK = 1 + 1e-12
_SAMPLES = 256
"""Points whose Jacobians are looked at before the search."""
_ENTRIES = 2**22
"""Entries of Jacobians that are computed at once."""


def lipmip_bound(
    network: Network,
    norm: Norm,
    domain: Box,
    nodes: int,
    known: tuple[Lipschitz, ...] = (),
    inputs: Tensor | None = None,
) -> Lipschitz:
    """Return the exact constant, or an upper bound if the two sides do not meet.

    They may not for want of nodes, or where the network is known up to rounding only.

    Raises:
        Refused: If the network is not piecewise linear.
    """
    blocks = as_neuron_blocks(network)
    search = _Search(blocks, norm, domain)
    u, v = known_pairs(known, network, domain)
    rng = torch.Generator().manual_seed(0)
    samples = starting_points(network, domain, inputs, _SAMPLES, rng)
    search.look(torch.cat([(u + v) / 2, samples]).flatten(1))
    search.run(nodes)
    value, is_exact, proof = search.upper, search.is_exact, search.proof()
    simple, entries = interval_norm(blocks, norm, domain)
    if simple < value and not is_exact:
        value, proof = simple, {"entries": entries}
    safe = above_underflow(network, value)
    return Lipschitz(
        value=safe,
        side="exact" if is_exact and safe == value else "upper",
        norm=norm,
        domain=domain,
        proof=proof,
        flags=network.flags,
    )


def lipmip_problem(network: Network, value: Lipschitz) -> str:
    """Return what is wrong with the stored nodes of a value, empty if they prove it."""
    if value.domain is None:
        return "its parts are those of a box"
    if value.value < above_underflow(network, 0.0):
        return "products in float64 do not tell it from 0"
    blocks = as_neuron_blocks(network)
    gates = Gates(blocks, value.norm, value.domain)
    nodes = _unpacked(value.proof)
    paths: dict[int, list[tuple[Decision, ...]]] = {number: [] for number in range(gates.sums)}
    for node in nodes:
        paths.setdefault(node.number, []).append(node.path)
    if len(paths) > gates.sums or not all(cover(tree, gates.decisions) for tree in paths.values()):
        return "its parts are not all there is"
    exact = any(node.empty for node in nodes) or (value.side == "exact" and value.value > 0)
    regions = Regions(blocks, value.norm, value.domain) if exact else None
    if not all(node.proved(gates, regions) <= value.value * _SLACK for node in nodes):
        return "its parts do not prove that no sum is larger"
    if regions is not None and value.side == "exact" and value.value > 0:
        region = regions.region_at(joined(value.proof["point"]))
        if region is None or regions.least(region) * (1 + 2 * SAME) < value.value:
            return "the slope at its point is smaller"
    return ""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Node:
    """A node of the search: a column or row of the Jacobian after decisions, and its bound."""

    number: int
    path: tuple[Decision, ...] = ()
    duals: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    """Multipliers of its program; without any its bound is that of intervals."""
    empty: Empty | None = None
    """A proof that its region has no interior, all gates decided."""

    def program(self, gates: Gates) -> MixedIntegerProgram:
        """Return the program of the sum that is to be bounded."""
        return MixedIntegerProgram(gates, self.number, self.path)

    def half(self, variable: int, right: bool) -> "_Node":
        """Return the child node with one more decision."""
        return _Node(number=self.number, path=(*self.path, (variable, right)))

    def proved(self, gates: Gates, regions: Regions | None) -> float:
        """Return an upper bound of the sum, from what is stored."""
        program = self.program(gates)
        if self.empty is not None:
            assert regions is not None
            region = (
                None
                if len(program.undecided)
                else regions.region_of_sides(program.sides(None).tolist())
            )
            if region is not None and regions.excludes(region, self.empty):
                return 0.0
        return program.relaxation().bound(self.duals) if len(self.duals) else program.bounds.total


def _packed(nodes: Sequence[_Node]) -> dict[str, Tensor]:
    codes = [
        [node.number, *(2 * variable + right for variable, right in node.path)] for node in nodes
    ]
    proofs = [node.empty or Empty((), ()) for node in nodes]
    return {
        **packed("parts", codes),
        **packed("duals", [node.duals.tolist() for node in nodes], torch.float64),
        **packed("support", [proof.support for proof in proofs]),
        **packed("weights", [proof.weights for proof in proofs], torch.float64),
    }


def _unpacked(proof: Mapping[str, Tensor]) -> list[_Node]:
    lists = (unpacked(proof, name) for name in ("parts", "duals", "support", "weights"))
    nodes = []
    for codes, duals, support, weights in zip(*lists, strict=True):
        number, *path = codes.tolist()
        empty = Empty(tuple(support.tolist()), tuple(weights.tolist())) if len(support) else None
        decisions = tuple((code // 2, code % 2 == 1) for code in path)
        nodes.append(_Node(number=number, path=decisions, duals=duals, empty=empty))
    return nodes


class _Search:
    """The nodes that are left, the one with the largest bound first."""

    def __init__(self, network: NeuronBlocks, norm: Norm, domain: Box) -> None:
        self.norm, self.gates = norm, Gates(network, norm, domain)
        try:
            self.regions: Regions | None = Regions(network, norm, domain)
        except Refused:  # known up to rounding: sound, and never exact
            self.regions = None
        self.lower, self.settled = 0.0, 0.0
        self.point: Sequence[Fraction] = [Fraction(0)] * network.inputs
        self.closed: list[_Node] = []
        self.queue: list[tuple[float, int, _Node, int | None]] = []
        """With what to decide next; None if the node has no program yet."""
        self._order = count()
        self._seen: dict[tuple[bool, ...], Region] = {}
        for number in range(self.gates.sums):
            node = _Node(number=number)
            self._put(node.program(self.gates).bounds.total, node, None)

    @property
    def upper(self) -> float:
        """Return the largest bound of what is left, and of what was closed."""
        return max(self.settled, -self.queue[0][0] if self.queue else 0.0)

    @property
    def is_exact(self) -> bool:
        """Return whether a region has the same norm, and its point can be stored."""
        if self.regions is None or self.upper > self.lower * (1 + SAME):
            return False
        return self.upper == 0 or self.regions.region_at(joined(split(self.point))) is not None

    def proof(self) -> dict[str, Tensor]:
        """Return all nodes, which cover the box."""
        left = [node for _, _, node, _ in self.queue]
        return {"point": split(self.point), **_packed(self.closed + left)}

    def look(self, points: Tensor) -> None:
        """Raise the lower side to the largest norm at one of these points."""
        width = points.shape[1] + self.gates.neurons
        for chunk in points.split(max(1, _ENTRIES // (width * points.shape[1]))):
            sides = self.gates.sides(chunk)
            norms = torch.linalg.matrix_norm(self.gates.matrices(sides), float(self.norm))
            for number in norms.argsort(descending=True).tolist():
                if float(norms[number]) <= self.lower * (1 + SAME / 4):
                    break
                self._raise(sides[number])

    def run(self, nodes: int) -> None:
        """Bound or split nodes, the worst first, until the two sides meet.

        Args:
            nodes: Most linear programs.
        """
        while self.queue and -self.queue[0][0] > self._enough:
            _, _, worst, then = self.queue[0]
            chosen = (
                [worst] if then is None else [worst.half(then, right) for right in (True, False)]
            )
            sums = [node.program(self.gates) for node in chosen]
            # A half without a program of its own would be bounded worse than the whole.
            nodes -= sum(program.bounds.total > self._enough for program in sums)
            if nodes < 0:
                break
            heapq.heappop(self.queue)
            for node, program in zip(chosen, sums, strict=True):
                self._bound(node, program)

    @property
    def _enough(self) -> float:
        """Return the bound with which a node needs no more work."""
        return max(self.settled, self.lower * (1 + SAME / 2))

    def _put(self, bound: float, node: _Node, then: int | None) -> None:
        heapq.heappush(self.queue, (-bound, next(self._order), node, then))

    def _bound(self, node: _Node, program: MixedIntegerProgram) -> None:
        """Bound a node, and find out what to decide next."""
        bound = program.bounds.total
        if bound > self._enough and not len(program.undecided):
            region = self._raise(program.sides(None))
            if region is not None and isinstance(region.proof, Empty):
                node, bound = replace(node, empty=region.proof), 0.0
        if bound <= self._enough:
            self._close(node, bound)
            return
        relaxation = program.relaxation()
        proposal = relaxation.propose()
        point = None if proposal is None else proposal.point
        if proposal is not None and (proved := relaxation.bound(proposal.duals)) < bound:
            bound, node = proved, replace(node, duals=proposal.duals)
        following = program.next(point)
        if following is None:
            self._close(node, bound)
            return
        if point is not None:
            self._raise(program.sides(point))
        self._put(bound, node, following)

    def _close(self, node: _Node, bound: float) -> None:
        self.closed.append(node)
        self.settled = max(self.settled, bound)

    def _raise(self, sides: Tensor) -> Region | None:
        """Raise the lower side to the norm of the region with these sides, if it has an interior.

        Returns:
            The region; None if it could not raise it, or no region is known exactly.
        """
        matrix = self.gates.matrices(sides.unsqueeze(0))[0]
        least = float(torch.linalg.matrix_norm(matrix, float(self.norm)))
        if least <= self.lower * (1 + SAME / 4):
            return None
        if self.regions is None:
            self.lower = least
            return None
        key = tuple(sides.tolist())
        if key not in self._seen:
            self._seen[key] = self.regions.with_proof(self.regions.region_of_sides(key))
        region = self._seen[key]
        if (
            isinstance(region.proof, Interior)
            and (least := self.regions.least(region)) > self.lower
        ):
            self.lower, self.point = least, region.proof.point
        return region
