"""Branch and bound of Jacobian norms: case by case, stored as a tensor, checked again.

A sum of absolute derivatives is convex in the slope of any one neuron, so that no slope makes it
larger than one of its ends does. Where the inputs lie in a box, each end also says on which side of
0 the neuron is, and what follows from that for others. Only neurons that are linear on both sides
of 0 are decided so.
"""

import heapq
import math
from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lipbench.bound import Lipschitz
from lipbench.lipschitz.relaxations.decisions import Decision, cover
from lipbench.lipschitz.relaxations.jacobians import Case, Jacobians
from lipbench.lipschitz.relaxations.magnitudes import above_underflow
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.threat import Box

_SPLITS = 16
"""Cases that are split at once."""


def jacobian_bound(network: Network, norm: Norm, domain: Box | None, nodes: int) -> Lipschitz:
    """Return the bound that the cases of a search prove.

    Args:
        network: The network.
        norm: Norm of inputs and outputs.
        domain: Box that the pairs lie in, None for all of space.
        nodes: Most cases that are looked at beside whole rows or columns. In the norm 2 there are
            no others.

    Raises:
        Refused: If a step cannot be read neuron by neuron, or its slopes or derivatives are not
            bounded.
    """
    jacobians = Jacobians(as_neuron_blocks(network), norm, domain)
    if norm == 2.0:
        cases = jacobians.whole
        value = jacobians.spectral()
    else:
        cases, value = _searched(jacobians, nodes)
    if not math.isfinite(value):
        raise Refused("its derivatives are too large for float64.")
    value = above_underflow(network, value)
    return Lipschitz.upper(network, value, norm, domain, cases=_packed(cases))


def proved_by_cases(network: Network, value: Lipschitz) -> float:
    """Return the constant that the stored cases prove, infinite if they leave anything out."""
    jacobians = Jacobians(as_neuron_blocks(network), value.norm, value.domain)
    cases = _unpacked(value.proof["cases"])
    if value.norm == 2.0:
        return jacobians.spectral()
    return float(jacobians.bounds(cases).sums.max()) if _make_up_all(cases, jacobians) else math.inf


def _searched(jacobians: Jacobians, nodes: int) -> tuple[list[Case], float]:
    """Return cases that make up all, and the largest of their bounds; the largest are split."""
    queue, order = list[tuple[float, int, Case, int]](), count()
    ahead, best, value = jacobians.whole, list[Case](), math.inf
    while ahead:
        bounds, splits = jacobians.bounds(ahead)
        for bound, case, split in zip(bounds.tolist(), ahead, splits.tolist(), strict=True):
            heapq.heappush(queue, (-bound, next(order), case, split))
        # A half may have a larger bound than the whole, as other lines are drawn.
        if not best or -queue[0][0] < value:
            best, value = [case for _, _, case, _ in queue], -queue[0][0]
        ahead = []
        while queue and queue[0][3] >= 0 and len(ahead) < min(2 * _SPLITS, nodes - 1):
            _, _, case, neuron = heapq.heappop(queue)
            ahead += [Case(case.start, (*case.path, (neuron, side))) for side in (False, True)]
        nodes -= len(ahead)
    return sorted(best), value


def _make_up_all(cases: Sequence[Case], jacobians: Jacobians) -> bool:
    """Return whether each row or column is there, with both sides of all that is decided."""
    paths: dict[int, list[tuple[Decision, ...]]] = {}
    for case in cases:
        paths.setdefault(case.start, []).append(case.path)
    if sorted(paths) != [case.start for case in jacobians.whole]:
        return False
    decidable = set(jacobians.is_decidable.nonzero().flatten().tolist())
    if not {neuron for case in cases for neuron, _ in case.path} <= decidable:
        return False
    return all(cover(leaves, len(jacobians.is_decidable)) for leaves in paths.values())


def _packed(cases: Sequence[Case]) -> Tensor:
    """Return one row for each case: its start, and 2·neuron + side for each decision, then -1."""
    rows = [
        torch.tensor([case.start, *(2 * neuron + is_right for neuron, is_right in case.path)])
        for case in cases
    ]
    return pad_sequence(rows, batch_first=True, padding_value=-1)


def _unpacked(rows: Tensor) -> list[Case]:
    return [
        Case(start, tuple((code // 2, code % 2 == 1) for code in codes if code >= 0))
        for start, *codes in rows.tolist()
    ]
