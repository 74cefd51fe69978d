"""SeqLip: a chain of layers as a product of factors, each around the neurons of one layer.

Write each W = L·R, as its singular value decomposition U·S·V' allows: L = U·S^½ and R = S^½·V', for
the first layer L = U·S and R = V', for the last L = U and R = S·V'. Then

    W_m D_m-1 W_m-1 ... D_1 W_1 = L_m (R_m D_m-1 L_m-1) ... (R_2 D_1 L_1) R_1,

whatever the ranks and shapes of the layers are, since only W = L·R was used; the two ends have norm
1, and the norm of the whole is at most the product of those of the factors. Slopes of different
layers are chosen apart, so that each factor has its own largest norm.

Source:
    Scaman, Virmaux, Lipschitz regularity of deep neural networks: analysis and efficient
    estimation (NeurIPS 2018), https://arxiv.org/abs/1805.10965, Theorem 3, for slopes in [0, 1];
    other slopes need no more than other ends.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.bound import Lipschitz
from lipbench.lipschitz.relaxations.affine import Matrix
from lipbench.lipschitz.relaxations.chain import Chain
from lipbench.lipschitz.relaxations.magnitudes import above_underflow
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks, widths
from lipbench.lipschitz.relaxations.rounding import UNIT
from lipbench.lipschitz.semidefinite.corners import norm_by_search
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.threat import Box


def seqlip_bound(network: Network, domain: Box | None, nodes: int) -> Lipschitz:
    """Return the product of the largest norms of the factors; they are the proof.

    Args:
        network: The network.
        domain: Box that the pairs lie in, None for all of space.
        nodes: Most nodes of the search for the largest norm of one factor.

    Raises:
        Refused: If the network is no chain.
    """
    chain = Chain.of(as_neuron_blocks(network), domain).merged
    factors = _largest(chain, nodes, torch.zeros(len(chain.slopes), dtype=torch.float64))
    return Lipschitz.upper(
        network,
        above_underflow(network, _product(chain, factors)),
        Norm(2),
        domain,
        factors=factors,
        nodes=torch.tensor(nodes, dtype=torch.int64),
    )


def proved_by_factors(network: Network, value: Lipschitz) -> float:
    """Return the constant that the stored norms of factors prove.

    Each factor is searched for a corner with a larger norm, in as many nodes as were allowed when
    its norm was computed; what does not hold comes out larger.
    """
    stored, nodes = value.proof["factors"], int(value.proof["nodes"])
    chain = Chain.of(as_neuron_blocks(network), value.domain).merged
    if stored.shape != (len(chain.slopes),) or not bool((stored >= 0).all()):
        return math.inf
    return _product(chain, _largest(chain, nodes, stored))


def seqlip_cost(network: Network, nodes: int) -> float:
    """Return roughly the seconds that the factors take one core, if no search ends before."""
    seconds = 5e-3 + 1e-7 * network.weights
    for count in widths(network)[1:-1]:
        seen = min(nodes, 2 ** min(count + 1, 60))
        seconds += 2e-2 + 3e-8 * (2 * count) ** 3 + seen * (1e-5 + 4e-10 * count**3)
    return seconds


def _largest(chain: Chain, nodes: int, least: Tensor) -> Float[Tensor, " factors"]:
    """Return upper bounds of the norms of all factors, none below its own of `least`."""
    pairs = pairwise(_splits(chain))
    norms = [
        norm_by_search(after.right, before.left, slopes, nodes, float(known))
        for (before, after), slopes, known in zip(pairs, chain.slopes, least, strict=True)
    ]
    return torch.tensor(norms, dtype=torch.float64)


def _product(chain: Chain, factors: Tensor) -> float:
    """Return the bound, with what the computed decompositions leave out of the layers."""
    splits = _splits(chain)
    norms = [split.norm for split in splits]
    if not len(factors):
        return norms[0]
    ends = (1 + 1e-12 * len(splits[0].right.T)) * (1 + 1e-12 * len(splits[-1].left))
    steepest = math.prod(float(torch.stack([lo.abs(), hi.abs()]).max()) for lo, hi in chain.slopes)
    missing = math.fsum(
        split.error * math.prod(norms[:index] + norms[index + 1 :])
        for index, split in enumerate(splits)
    )
    rounding = 1 + 8 * (len(splits) + 1) * UNIT
    return (math.prod(factors.tolist()) * ends + missing * steepest) * rounding


@dataclass(frozen=True, kw_only=True)
class _Split:
    """A layer W = L·R + E."""

    left: Float[Tensor, "outputs rank"]
    right: Float[Tensor, "rank inputs"]
    error: float
    """An upper bound of ‖E‖."""
    norm: float
    """An upper bound of ‖W‖ and of ‖L·R‖."""

    @classmethod
    def of(cls, weight: Matrix, share: float) -> "_Split":
        """Return L = U·S^share, R = S^(1 - share)·V'."""
        left, values, right = torch.linalg.svd(weight.values, full_matrices=False)
        left, right = left * values**share, (values ** (1 - share)).unsqueeze(1) * right
        rest = (weight.values - left @ right).abs() + weight.radius
        rest = rest + (len(values) + 2) * UNIT * (left.abs() @ right.abs())
        error = float(torch.linalg.matrix_norm(rest)) * (1 + 1e-12 * max(rest.shape))
        largest = float(values.max()) * (1 + 1e-12 * max(rest.shape))
        return cls(left=left, right=right, error=error, norm=largest + 2 * error)


def _splits(chain: Chain) -> list[_Split]:
    last = len(chain.weights) - 1
    return [
        _Split.of(weight, 1.0 if index == 0 else 0.0 if index == last else 0.5)
        for index, weight in enumerate(chain.weights)
    ]
