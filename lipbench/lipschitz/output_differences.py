"""Lipschitz constants of margins: certified, of the differences between outputs.

The difference of two outputs of an L-Lipschitz network has the constant 2^(1-1/p)·L at most. What
proves L mostly proves less for single pairs of outputs, at the cost of a few small products.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.bound import Lipschitz
from lipbench.lipschitz.operator_norms.composition import composed
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.lipschitz.operator_norms.unit_scale import widened
from lipbench.lipschitz.relaxations.intervals import derivatives, loop_transformation_on
from lipbench.lipschitz.relaxations.loop_transformation import LoopTransformation
from lipbench.lipschitz.relaxations.magnitudes import all_above_underflow
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlocks, as_neuron_blocks
from lipbench.lipschitz.relaxations.rounding import LEAST, UNIT
from lipbench.lipschitz.semidefinite.certify import certify
from lipbench.networks.network import Network
from lipbench.networks.steps import Dense
from lipbench.norm import Norm

_MOST_PAIRS = 5_000
"""With more pairs of outputs the general bound has to do."""
_LEAST_SHARE = 1e-9
"""Directions of the outputs that move less than this share are taken to move as much."""


def difference_constants(network: Network, value: Lipschitz) -> Float[Tensor, "outputs outputs"]:
    """Return upper bounds of the constants of all y_i - y_j, in the norm and domain of a value.

    They are proved by what proves the value, and at most 2^(1-1/p) times it; 0 on the diagonal.

    Args:
        network: The network, whose outputs form a vector.
        value: An upper bound of its constant.

    Raises:
        ValueError: If the value is no upper bound, negative or NaN.
    """
    if value.side not in ("upper", "exact") or not value.value >= 0:
        raise ValueError(
            f"differences are bounded by an upper bound, got {value.side} {value.value}."
        )
    count = math.prod(network.output_shape)
    general = widened(value.norm.margin_factor() * value.value, 2 * UNIT)
    pairs = list(combinations(range(count), 2))
    bounds = torch.full((len(pairs),), general, dtype=torch.float64)
    kinds = (kind for kind in _KINDS if kind in value.proof)
    kind = next((kind for kind in kinds if kind != "multipliers" or value.norm == 2.0), None)
    if kind is not None and pairs and len(pairs) <= _MOST_PAIRS:
        sharper = _KINDS[kind](network, value, pairs)
        if kind != "constants":  # of layers, none of which vanishes
            sharper = all_above_underflow(network, sharper)
        bounds = torch.where(sharper < bounds, sharper, bounds)  # not NaN
    table = torch.zeros(count, count, dtype=torch.float64)
    for (i, j), bound in zip(pairs, bounds.tolist(), strict=True):
        table[i, j] = table[j, i] = bound
    return table


OutputPairs = list[tuple[int, int]]


def _by_multipliers(network: Network, value: Lipschitz, pairs: OutputPairs) -> Tensor:
    """Return the bound of each pair that multipliers prove.

    With P the matrix of ρ‖x‖² + Σ μ(ψ² - z²) and y = Fv, |c'Δy|² is at most ρ·c'FP⁻¹F'c·‖Δx‖² for
    any c. So for T near the inverse root of FP⁻¹F' one certificate of the outputs Ty, with these
    multipliers, proves all: |c'Δy| is at most ‖w‖·‖TΔy‖ + ‖c - T'w‖·‖Δy‖ for any w.
    """
    blocks = as_neuron_blocks(network)
    loops = loop_transformation_on(blocks, value.domain)
    multipliers, square = value.proof["multipliers"], float(value.proof["square"])
    mixing = _mixing(loops, multipliers, square) if loops.neurons else None
    if mixing is None:
        return _by_blocks(network, value, pairs)
    mixed = replace(blocks, output=blocks.output.each(lambda matrix: matrix.times(mixing)))
    constant_of_mixed = certify(loop_transformation_on(mixed, value.domain), multipliers, square)[0]
    signs = torch.zeros(len(pairs), loops.outputs, dtype=torch.float64)
    for row, (i, j) in enumerate(pairs):
        signs[row, i], signs[row, j] = 1.0, -1.0
    weights: Tensor = torch.linalg.solve(mixing.T, signs.T).T
    rounding = (loops.outputs + 2) * UNIT * (1 + weights.abs() @ mixing.abs())
    rest = (signs - weights @ mixing).abs() + rounding
    length, rest_length = (torch.linalg.vector_norm(rows, dim=1) for rows in (weights, rest))
    total = length * constant_of_mixed + rest_length * value.value
    return total * (1 + 1e-12 * loops.outputs)


def _mixing(loops: LoopTransformation, multipliers: Tensor, square: float) -> Tensor | None:
    """Return an inverse root of FP⁻¹F', None if there is none in float64."""
    if multipliers.shape != (loops.neurons,):
        return None
    values = loops.matrix.values
    rows, outputs = values[: loops.neurons], values[loops.neurons :]
    diagonal = torch.cat([multipliers.new_full((loops.inputs,), square), multipliers])
    factor, info = torch.linalg.cholesky_ex(diagonal.diag() - rows.T * multipliers @ rows)
    if int(info):
        return None
    moves = outputs @ torch.cholesky_solve(outputs.T, factor)
    sizes, directions = torch.linalg.eigh((moves + moves.T) / 2)
    if not bool(sizes.isfinite().all()) or not float(sizes[-1]) > 0:
        return None
    sizes = sizes.clamp_min(_LEAST_SHARE * float(sizes[-1]))
    return sizes.rsqrt().unsqueeze(1) * directions.T


def _by_blocks(network: Network, value: Lipschitz, pairs: OutputPairs) -> Tensor:
    """Return for each pair the sum over blocks of the constant times the weights' dual norm."""
    loops = loop_transformation_on(_of_pairs(network, pairs), value.domain)
    *reach, _ = loops.reach(value.norm)
    blocks = [slice(0, loops.inputs), *(block for _, block in loops.blocks())]
    values, radius = (
        tensor[loops.neurons :] for tensor in (loops.matrix.values, loops.matrix.radius)
    )
    total = values.new_zeros(len(pairs))
    for block, known in zip(blocks, [1.0, *reach], strict=True):
        total = total + known * _dual_length(values[:, block].abs() + radius[:, block], value.norm)
    return total * (1 + 8 * len(blocks) * UNIT)


def _by_derivatives(network: Network, value: Lipschitz, pairs: OutputPairs) -> Tensor:
    """Return the dual norm of the largest derivatives of each difference."""
    largest = derivatives(_of_pairs(network, pairs), value.domain).largest
    return _dual_length(largest, value.norm)


def _by_steps(network: Network, value: Lipschitz, pairs: OutputPairs) -> Tensor:
    """Return the constant before the last layer times the norm of its rows' differences."""
    if not network.steps:
        return torch.full((len(pairs),), math.inf, dtype=torch.float64)
    *before, last = network.steps
    is_last = network.output == len(network.steps) and last.inputs == (len(before),)
    if not (is_last and isinstance(last, Dense)):
        return torch.full((len(pairs),), math.inf, dtype=torch.float64)
    earlier = replace(network, steps=tuple(before), output=len(before))
    constants = [constant(step, value.norm) for step in before]
    known = composed(earlier, constants, value.norm)
    first, second = (torch.tensor(side) for side in zip(*pairs, strict=True))
    weight = last.weight.detach().to("cpu", torch.float64).flatten(1)
    rows = (weight[first] - weight[second]).abs() * (1 + UNIT)
    lengths = _dual_length(rows, value.norm)
    # No product vanishes whose factors do not.
    least = torch.where((lengths > 0) & (known > 0), LEAST, 0.0)
    return torch.maximum(known * lengths * (1 + 4 * UNIT), least)


def _of_pairs(network: Network, pairs: OutputPairs) -> NeuronBlocks:
    return as_neuron_blocks(network).differences(pairs)


def _dual_length(rows: Float[Tensor, "pairs columns"], norm: Norm) -> Float[Tensor, " pairs"]:
    """Return the constants of linear functions: the norm in which gradients are measured."""
    if not rows.shape[1]:
        return rows.new_zeros(len(rows))
    lengths = norm.dual().scaled_length(rows)
    return torch.where(lengths > 0, lengths * (1 + 1e-12 * rows.shape[1]) + LEAST, lengths)


_KINDS: dict[str, Callable[[Network, Lipschitz, OutputPairs], Tensor]] = {
    "constants": _by_steps,
    "reach": _by_blocks,
    "entries": _by_derivatives,
    "multipliers": _by_multipliers,
}
"""By the entry that a kind of proof has."""
