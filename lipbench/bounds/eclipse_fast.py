"""ECLipsE-Fast: LipSDP layer by layer, with multipliers in closed form."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.relaxations.intervals import slopes
from lipbench.lipschitz.relaxations.loop_transformation import loop_transformation
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlocks, as_neuron_blocks
from lipbench.lipschitz.semidefinite.lipsdp import certified
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.threat import Box

_SMALLEST = 1e-100


@dataclass(frozen=True, kw_only=True)
class ECLipsEFast(Bound):
    """A point of LipSDP that takes one decomposition for each layer, certified by the core.

    For slopes in [0, 1] it is never above the product of the layers' norms.

    Source:
        Xu, Sivaranjani, ECLipsE: Efficient Compositional Lipschitz Constant Estimation for Deep
        Neural Networks (NeurIPS 2024), https://arxiv.org/abs/2404.04375, ECLipsE-Fast, whose
        published code began with a wrong matrix before version 0.1.7.
    """

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2)})

    def refuses(self, network: Network, norm: Norm, domain: Box | None) -> str | None:
        """Return why there is no closed form: the steps must form a chain."""
        return None if network.is_chain else "the network branches; the closed form needs a chain."

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the decompositions take."""
        return 4e-3 + 2e-7 * network.weights

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the bound; its certificate is the multipliers."""
        blocks = as_neuron_blocks(network)
        if domain is None:
            multipliers, square = _closed_form(blocks)
            return certified(network, domain, loop_transformation(blocks), multipliers, square)
        local = slopes(blocks, domain)
        pairs = zip(blocks.blocks, local, strict=True)
        narrow = tuple(replace(block, lo=lo, hi=hi) for block, (lo, hi) in pairs)
        multipliers, square = _closed_form(replace(blocks, blocks=narrow))
        loops = loop_transformation(blocks, local)
        return certified(network, domain, loops.bent, multipliers[loops.is_read], square)


def _closed_form(network: NeuronBlocks) -> tuple[Tensor, float]:
    """Return multipliers of the loop transformation, and the square of the bound.

    With X of the layer before (the identity at first), A = D(m) W and h half the width of the
    slopes, layer i gets l = 1/(2·λ_max(A X⁻¹ A')), and X = l·1 - l²·A X⁻¹ A'.

    Raises:
        Refused: If a layer reads another than the one before, or a slope may be negative.
    """
    before: Tensor | None = None
    multipliers = []
    for number, block in enumerate(network.blocks):
        if set(block.reads.matrices) != {number}:
            raise Refused(f"step {block.name!r} reads more than the neurons before it.")
        if bool((block.lo * block.hi < 0).any()):
            raise Refused(f"step {block.name!r} has slopes of both signs.")
        middle, half = (block.lo + block.hi) / 2, (block.hi - block.lo) / 2
        gram = _gram(middle.unsqueeze(1) * block.reads.matrices[number].values, before)
        top = float(torch.linalg.eigvalsh(gram)[-1])
        if not top > 0:
            raise Refused(f"step {block.name!r} reads nothing: the network is constant.")
        if not _SMALLEST < top < 1 / _SMALLEST:
            raise Refused(f"step {block.name!r} has weights whose powers float64 does not hold.")
        weight = 1 / (2 * top)
        before = weight * torch.eye(len(block), dtype=gram.dtype) - weight**2 * gram
        multipliers.append(weight * half.square())
    if set(network.output.matrices) != {len(network.blocks)}:
        raise Refused("the output reads more than the neurons of the last layer.")
    last = _gram(network.output.matrices[len(network.blocks)].values, before)
    square = float(torch.linalg.eigvalsh(last)[-1])
    empty = last.new_empty(0)
    return torch.cat([empty, *(square * layer for layer in multipliers)]), square


def _gram(weight: Tensor, before: Tensor | None) -> Tensor:
    """Return W X⁻¹ W', X the identity if it is None."""
    solved = weight.T if before is None else torch.linalg.solve(before, weight.T)
    return weight @ solved
