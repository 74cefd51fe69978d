"""Local product bound: layer norms without the neurons that cannot vary on a domain.

A neuron with slopes of absolute value c at most is √c·ψ(√c·z), where ψ changes by no more than its
argument. So a network without branches has at most the constant ‖W_{l+1}C_l‖·…·‖C_1W_1‖, where C_k
on both sides of a block is the diagonal of its √c: neurons that are constant drop out. For ReLUs,
whose c is 0 or 1, these are the masks of the source.

Source:
    Huang, Zhang, Shi, Kolter, Anandkumar, Training Certifiably Robust Neural Networks with
    Efficient Local Lipschitz Bounds (NeurIPS 2021), https://arxiv.org/abs/2111.01395, section 3.
    Slopes other than 0 and 1, and networks that branch, are this project's.
"""

from dataclasses import replace

import torch

from lipbench.lipschitz.relaxations.intervals import slopes
from lipbench.lipschitz.relaxations.loop_transformation import loop_transformation
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlocks
from lipbench.norm import Norm
from lipbench.threat import Box


def varying_reach(network: NeuronBlocks, domain: Box | None) -> tuple[float, ...]:
    """Return certified l2 constants of each block of neurons over its √c, and of the outputs.

    Where a block reads several earlier ones, their terms are added.

    Raises:
        Refused: If slopes are not bounded.
    """
    steepest = [torch.maximum(lo.abs(), hi.abs()) for lo, hi in slopes(network, domain)]
    whole = loop_transformation(network, [(-most, most) for most in steepest])
    kept = whole.bent
    ones = torch.ones(max(kept.inputs, kept.outputs), dtype=torch.float64)
    roots = torch.cat([ones[:0], *steepest])[whole.is_read].sqrt()
    rows = torch.cat([roots, ones[: kept.outputs]]).unsqueeze(1)
    columns = torch.cat([ones[: kept.inputs], 1 / roots]).unsqueeze(1)
    matrix = kept.matrix.scaled(rows).transposed.scaled(columns).transposed
    return replace(kept, matrix=matrix).reach(Norm(2))
