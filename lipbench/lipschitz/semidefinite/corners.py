"""Norm maximisation: the largest norm of A·diag(s)·B over a box of slopes s, by corners.

The norm is convex in s, so that it is largest at a corner: each slope at one of its ends. The
corners are searched neuron by neuron. What all corners below a node have at most is known from
multipliers, as in `certify`: with slopes m ± h of the neurons that are free, y = Mv + Ahψ, M
the matrix whose free slopes are m, and |ψ_j| ≤ |(Bv)_j|. For weights μ > 0 for which
E = 1 - Ahμ⁻¹hA' is positive definite,

    ‖y‖² ≤ (Mv)'E⁻¹(Mv) + Σ μ_j ψ_j² ≤ v'(M'E⁻¹M + B'μB)v,

so that one largest eigenvalue bounds a node. E and B'μB depend on how many are free alone.

Source:
    Scaman, Virmaux, Lipschitz regularity of deep neural networks: analysis and efficient
    estimation (NeurIPS 2018), https://arxiv.org/abs/1805.10965, for the problem, which it solves
    by trying all corners, or greedily and then without a guarantee. Branch and bound with
    multipliers is this project's.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.bound import EXACT_WITHIN
from lipbench.lipschitz.relaxations.affine import Matrix
from lipbench.lipschitz.relaxations.loop_transformation import LoopTransformation
from lipbench.lipschitz.relaxations.rounding import UNIT
from lipbench.lipschitz.semidefinite.interior_point import propose

_BATCH = 32
"""Nodes that are split at once, those with the largest bounds first."""
_FEW = 8
"""Neurons of which all corners are looked at: multipliers would take longer."""
_UNDERFLOW = 1e-140
"""More than squares that are no normal numbers can hide, where A and B have norm 1."""
_SAME = EXACT_WITHIN / 2
_TOLERANCE = 1e-6
"""How close to the best the multipliers come."""


def norm_by_search(
    left: Float[Tensor, "outputs neurons"],
    right: Float[Tensor, "neurons inputs"],
    slopes: tuple[Float[Tensor, " neurons"], Float[Tensor, " neurons"]],
    nodes: int,
    least: float = 0.0,
) -> float:
    """Return the largest l2 norm of A·diag(s)·B over lo ≤ s ≤ hi: never less, rounding included.

    It is exact but for a share of `EXACT_WITHIN` if the search ends. If it does not, what is left
    counts with its bounds: the value is larger then, never smaller.

    Args:
        left: A, in float64.
        right: B, in float64.
        slopes: lo and hi.
        nodes: Most nodes that are looked at.
        least: What is returned if nothing exceeds it; only what does is searched.
    """
    lo, hi = slopes
    sizes = [
        float(torch.linalg.matrix_norm(matrix, 2)) if matrix.numel() else 0.0
        for matrix in (left, right)
    ]
    scale = sizes[0] * sizes[1]
    if not scale > 0:
        return least
    problem = _Problem.of(left / sizes[0], right / sizes[1], lo, hi)
    most = settled = least / scale
    stack, seen = [problem.root()], 1
    while stack and seen < nodes:
        depth, chosen, upper = stack.pop()
        near = upper <= most * (1 + _SAME)
        settled = max(settled, _largest(upper[near]))
        order = upper.argsort(descending=True)[: int((~near).sum())]
        best, rest = order[:_BATCH], order[_BATCH:]
        if len(rest):
            stack.append(_Nodes(depth, chosen[rest], upper[rest]))
        if not len(best):
            continue
        if depth == problem.free:
            most = max(most, _largest(upper[best]))
        else:
            stack.append(problem.split(_Nodes(depth, chosen[best], upper[best])))
            seen += 2 * len(best)
    left_over = max((_largest(node.upper) for node in stack), default=0.0)
    return max(most, settled, left_over) * scale * (1 + 4 * UNIT)


class _Nodes(NamedTuple):
    """Nodes of one depth: the slopes of so many neurons are chosen, and the others free."""

    depth: int
    slopes: Float[Tensor, "nodes neurons"]
    upper: Float[Tensor, " nodes"]
    """Bounds of the norms of all corners below."""


class _Level(NamedTuple):
    """Matrices that the nodes of one depth share."""

    read: Float[Tensor, "inputs inputs"]
    """B'μB of the free neurons."""
    root: Float[Tensor, "outputs outputs"]
    """A matrix R for which R'R is at least E⁻¹."""
    slack: float
    """Rounding error of a norm; infinite if E is not certainly positive definite."""


@dataclass(frozen=True, kw_only=True)
class _Problem:
    left: Float[Tensor, "outputs neurons"]
    """A, of norm 1, its columns in the order in which slopes are chosen."""
    right: Float[Tensor, "neurons inputs"]
    middle: Float[Tensor, " neurons"]
    half: Float[Tensor, " neurons"]
    free: int
    """Number of slopes to choose: those of the first neurons."""
    levels: tuple[_Level, ...]

    @classmethod
    def of(cls, left: Tensor, right: Tensor, lo: Tensor, hi: Tensor) -> "_Problem":
        if left.shape[0] < right.shape[1]:  # the smaller side is that of the eigenvalues
            left, right = right.T, left.T
        middle = (lo + hi) / 2
        # Rounded so that no slope is left out.
        half = torch.maximum(hi - middle, middle - lo) * (1 + UNIT)
        weight = (
            half * torch.linalg.vector_norm(left, dim=0) * torch.linalg.vector_norm(right, dim=1)
        )
        order = weight.argsort(descending=True)
        left, right, middle, half = left[:, order], right[order], middle[order], half[order]
        free = int((weight > 0).sum())
        return cls(
            left=left,
            right=right,
            middle=middle,
            half=half,
            free=free,
            levels=tuple(_levels(left, right, middle, half, free)),
        )

    def root(self) -> _Nodes:
        """Return the node with no slope chosen; it has at most the product of norms."""
        steepest = float((self.middle.abs() + self.half).max())
        upper = torch.full((1,), steepest * (1 + 1e-12 * len(self.middle)), dtype=torch.float64)
        return self._bounded(_Nodes(0, self.middle.unsqueeze(0), upper))

    def split(self, nodes: _Nodes) -> _Nodes:
        """Return the nodes with one more slope chosen."""
        high, low = nodes.slopes.clone(), nodes.slopes.clone()
        high[:, nodes.depth] += self.half[nodes.depth]
        low[:, nodes.depth] -= self.half[nodes.depth]
        both = torch.cat([high, low])
        return self._bounded(_Nodes(nodes.depth + 1, both, nodes.upper.repeat(2)))

    def _bounded(self, nodes: _Nodes) -> _Nodes:
        level = self.levels[nodes.depth]
        image = level.root @ ((self.left * nodes.slopes.unsqueeze(1)) @ self.right)
        squares = torch.linalg.eigvalsh(level.read + image.mT @ image)[:, -1].clamp_min(0)
        upper = squares.sqrt() * (1 + 1e-12 * sum(self.left.shape)) + level.slack
        return nodes._replace(upper=torch.fmin(nodes.upper, upper))


def _levels(left: Tensor, right: Tensor, middle: Tensor, half: Tensor, free: int) -> list[_Level]:
    """Return the matrices of each depth, from 0 to that of corners."""
    outputs, count = left.shape
    spread = left.abs() @ ((middle.abs() + half).unsqueeze(1) * right.abs())
    # Of the products that make up M and R·M, for R of norm 1.
    terms = 4 * (count + outputs + 8) * outputs**0.5
    rounding = terms * UNIT * float(torch.linalg.matrix_norm(spread)) + _UNDERFLOW
    corner = _Level(
        read=torch.zeros(right.shape[1], right.shape[1], dtype=torch.float64),
        root=torch.eye(outputs, dtype=torch.float64),
        slack=rounding,
    )
    if free <= _FEW:
        return [corner._replace(slack=torch.inf)] * free + [corner]
    tiny = 1e-12 * (count + outputs)
    weights = _weights(left, right, middle, half, free)
    levels = []
    for depth in range(free):
        bent, multipliers = left[:, depth:free] * half[depth:free], weights[depth:]
        eigenvalues, vectors = torch.linalg.eigh(
            torch.eye(outputs, dtype=torch.float64) - (bent / multipliers) @ bent.T
        )
        least = float(eigenvalues[0]) - tiny
        root = (eigenvalues - tiny).clamp_min(tiny).rsqrt().unsqueeze(1) * vectors.T
        slack = rounding * least**-0.5 if least > tiny else torch.inf
        read = right[depth:free]
        levels.append(_Level(read.T @ (multipliers.unsqueeze(1) * read), root, slack))
    return [*levels, corner]


def _weights(
    left: Tensor, right: Tensor, middle: Tensor, half: Tensor, free: int
) -> Float[Tensor, " free"]:
    """Return multipliers of the free neurons that are the best at the root; any are valid."""
    first = torch.cat([right[:free], right.new_zeros(free, free)], dim=1)
    whole = torch.cat([(left * middle) @ right, left[:, :free] * half[:free]], dim=1)
    network = LoopTransformation(
        matrix=Matrix.exact(torch.cat([first, whole])), inputs=right.shape[1], sizes=(free,)
    )
    return propose(network, tolerance=_TOLERANCE).multipliers


def _largest(upper: Tensor) -> float:
    return float(upper.max()) if len(upper) else 0.0
