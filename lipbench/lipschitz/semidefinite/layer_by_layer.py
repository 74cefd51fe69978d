"""ECLipsE: multipliers layer by layer, each layer's the best for what the next one reads.

Multipliers of earlier layers prove that what a layer reads, of inputs no longer than 1, lies in an
ellipsoid: it is R·v for a ‖v‖ ≤ 1. With W the next layer, and slopes m ± h of the neurons between
them, the next layer reads W(D(m)Rv + D(h)ψ), where |ψ_j| ≤ |(Rv)_j|. A stage finds the least ρ with

    ρ‖v‖² + Σ μ_j(ψ_j² - (Rv)_j²) ≥ ‖W(D(m)Rv + D(h)ψ)‖²    for all v and ψ,

which is LipSDP for the network v ↦ W s(Rv), that has one layer of neurons. With ν = μ/ρ and
S = 1 - R'D(ν)R the next R is W·(D(m)RS^-½, D(h)D(ν)^-½). The last R has the norm that is proved.

For slopes in [0, k] this is the paper's stage for d = ν/h² and c = 1/ρ, the largest c with

    [[D(d) - c·W'W, D(d)·K^½], [K^½·D(d), 1]] ≥ 0,    K = D(m)RR'D(m).

Slopes of both signs, and neurons that are linear on a domain (h = 0), need nothing else here.

Source:
    Xu, Sivaranjani, ECLipsE: Efficient Compositional Lipschitz Constant Estimation for Deep Neural
    Networks (NeurIPS 2024), https://arxiv.org/abs/2404.04375. That a stage is LipSDP for one layer
    of neurons, and its form for other slopes, are this project's.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.bound import Lipschitz
from lipbench.lipschitz.relaxations.affine import Matrix
from lipbench.lipschitz.relaxations.chain import Chain
from lipbench.lipschitz.relaxations.loop_transformation import (
    LoopTransformation,
    loop_transformation,
)
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks, widths
from lipbench.lipschitz.semidefinite.interior_point import propose
from lipbench.lipschitz.semidefinite.lipsdp import certified
from lipbench.networks.network import Network
from lipbench.refused import Refused
from lipbench.threat import Box

_SECONDS_PER_CUBE = 4e-8
_STEPS = 40
"""Newton steps that most stages take."""
_LEAST = 1e-12
"""Eigenvalues of S are taken to be no less: what is proposed here proves nothing by itself."""
_EARLY = 0.3
"""Gap, as a share of ρ, at which a stage stops while its multipliers are still central."""


class Stage(NamedTuple):
    """One layer of neurons, between what it reads and the layer after it."""

    root: Float[Tensor, "neurons rank"]
    """R: the neurons read R·v for a ‖v‖ ≤ 1."""
    after: Float[Tensor, "outputs neurons"]
    """W."""
    middle: Float[Tensor, " neurons"]
    half: Float[Tensor, " neurons"]

    @property
    def passes(self) -> bool:
        """Return whether any neuron passes on any of what it reads."""
        slopes = torch.maximum(self.middle.abs(), self.half).unsqueeze(1)
        return bool((slopes * self.root).any())

    def next(self, multipliers: Float[Tensor, " neurons"]) -> Float[Tensor, "outputs rank2"]:
        """Return the R of the next layer, from the ν of this one; only where h > 0 they count.

        Raises:
            Refused: If the ν are no numbers in float64, or too large ones.
        """
        bent = self.half > 0
        rows, weights = self.root[bent], multipliers[bent]
        unit = torch.eye(self.root.shape[1], dtype=torch.float64)
        matrix = unit - rows.T @ (weights.unsqueeze(1) * rows)
        if not bool(matrix.isfinite().all()):
            raise Refused("a square of its stages is no number in float64.")
        values, vectors = torch.linalg.eigh(matrix)
        linear = self.middle.unsqueeze(1) * (self.root @ vectors) * values.clamp_min(_LEAST).rsqrt()
        free = self.half.diag()[:, bent] * weights.rsqrt()
        return _compressed(self.after @ torch.cat([linear, free], dim=1))


MultiplierChoice = Callable[[Stage], Float[Tensor, " neurons"]]
"""How to choose the ν of a layer."""


def eclipse_bound(
    network: Network, domain: Box | None, *, tolerance: float, iterations: int
) -> Lipschitz:
    """Return the least of three bounds: of `closed`, of the best of each stage, and in between.

    A stage does not know the layers after the next. So the third choice stops all but the last one
    early, where the multipliers are still central, and better for most directions.

    Args:
        network: The network.
        domain: Box that the pairs lie in, None for all of space.
        tolerance: How close to the optimum each stage is brought, as a share of ρ.
        iterations: Most Newton steps of each stage.

    Raises:
        Refused: If the network is no chain, is constant, or has a square beyond float64.
    """
    blocks = as_neuron_blocks(network)
    chain = Chain.of(blocks, domain)
    loops = loop_transformation(blocks, chain.slopes)
    kept = torch.ones(loops.neurons, dtype=torch.bool)
    if domain is not None:
        kept, loops = loops.is_read, loops.bent
    if not loops.neurons:
        return certified(network, domain, loops, torch.empty(0, dtype=torch.float64), 0.0)
    best: MultiplierChoice = partial(solve, tolerance=tolerance, iterations=iterations)
    early: MultiplierChoice = partial(
        solve, tolerance=max(tolerance, _EARLY), iterations=iterations
    )
    last = len(chain.slopes) - 1
    choices: list[list[MultiplierChoice]] = [[closed] * (last + 1), [best] * (last + 1)]
    if last:
        choices.append([early] * last + [best])
    proposals = sorted(
        (solve_stages(chain, choice) for choice in choices), key=lambda proposal: proposal[1]
    )
    bounds: list[Lipschitz] = []
    for multipliers, square in proposals:
        # No value is below the root of its square.
        if not bounds or square < bounds[0].value ** 2:
            bounds.append(certified(network, domain, loops, multipliers[kept], square))
    return min(bounds, key=lambda value: value.value)


def solve_stages(
    chain: Chain, choices: Sequence[MultiplierChoice]
) -> tuple[Float[Tensor, " neurons"], float]:
    """Return multipliers, in the order of `certify`, and the square of the bound.

    Args:
        chain: The network.
        choices: How each layer's are chosen.

    Raises:
        Refused: If the network is constant, or the square is no number in float64.
    """
    root, multipliers = _compressed(chain.weights[0].values), []
    for after, (lo, hi), choose in zip(chain.weights[1:], chain.slopes, choices, strict=True):
        stage = Stage(root, after.values, (lo + hi) / 2, (hi - lo) / 2)
        if not stage.passes:
            break
        multipliers.append(choose(stage))
        root = stage.next(multipliers[-1])
    size = torch.linalg.matrix_norm(root, 2)
    if len(multipliers) < len(choices) or not size > 0:
        raise Refused("the outputs do not depend on the inputs: the network is constant.")
    square = float(size.square())
    if not 0 < square < math.inf:
        raise Refused(
            f"the square of its constant, about {float(size):.1e}, is no number in float64."
        )
    return square * torch.cat(multipliers), square


def closed(stage: Stage) -> Float[Tensor, " neurons"]:
    """Return h²/(2·λ), λ the largest eigenvalue of D(max(|m|, h))·R·R'·D(max(|m|, h)).

    S is at least 1/2 then. For slopes of one sign these are the multipliers of ECLipsE-Fast.
    """
    steep = torch.maximum(stage.middle.abs(), stage.half).unsqueeze(1)
    return stage.half.square() / (2 * torch.linalg.matrix_norm(steep * stage.root, 2).square())


def solve(stage: Stage, tolerance: float, iterations: int) -> Float[Tensor, " neurons"]:
    """Return the best multipliers of a stage, 0 where h = 0."""
    bent = stage.half > 0
    sizes = [torch.linalg.matrix_norm(matrix, 2) for matrix in (stage.root, stage.after)]
    if not bool(bent.any()) or not sizes[1] > 0:
        return closed(stage)
    root, after = stage.root / sizes[0], stage.after / sizes[1]
    count = int(bent.sum())
    reads = torch.cat([root[bent], root.new_zeros(count, count)], dim=1)
    free = (after * stage.half)[:, bent]
    outputs = torch.cat([(after * stage.middle) @ root, free], dim=1)
    network = LoopTransformation(
        matrix=Matrix.exact(torch.cat([reads, outputs])), inputs=root.shape[1], sizes=(count,)
    )
    proposal = propose(network, tolerance=tolerance, iterations=iterations)
    multipliers = torch.zeros_like(stage.half)
    multipliers[bent] = proposal.multipliers / (proposal.square * sizes[0].square())
    return multipliers


def eclipse_cost(network: Network, iterations: int) -> float:
    """Return roughly the seconds that the stages take one core."""
    counts = widths(network)[1:-1]
    stages = min(iterations, _STEPS) / _STEPS * sum((2 * count) ** 3 for count in counts)
    seconds = 5e-3 + _SECONDS_PER_CUBE * (stages + sum(counts) ** 3 / 4)
    return seconds + 1e-7 * network.weights


def _compressed(root: Tensor) -> Float[Tensor, "rows rank"]:
    """Return a matrix with the same R·R' and no more columns than rows."""
    return root if root.shape[1] <= root.shape[0] else torch.linalg.qr(root.T).R.T
