"""Magnitudes for which products of weights neither overflow nor vanish in float64.

Error bounds of float64 are shares of a number, and hold for none below 10⁻³⁰⁸. What multiplies
layers out refuses networks whose numbers are so large or small that this may be seen in a result:
with single numbers of at least 10⁻¹⁵⁰, and a product G of all sums of weights of at most 10¹⁴⁰,
what is lost below 10⁻³⁰⁸ is no more than G·10⁻¹⁵⁰ of any value, even where squares are added. To
that a value is told. Networks whose weights are float32 are in range, up to a hundred layers.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.networks.network import Network
from lipbench.networks.steps import (
    Contraction,
    ConvContraction,
    Linear,
    Sandwich,
    Scale,
    Slope,
    Step,
    Sum,
)
from lipbench.refused import Refused
from lipbench.threat import Box

_LARGEST = 1e140
_SMALLEST = 1e-150
_LEAST_END = 1e-60
_LARGEST_END = 1e60
_LOST = 1e-150
_TOLD = 1e20
"""A value so many times larger is no different for what was lost."""
_VANISHING = 1e-150  # whose square is 0


def refuse_extremes(network: Network) -> None:
    """Refuse a network whose numbers are out of range, by the step that has them.

    Raises:
        Refused: If they are.
    """
    product = 1.0
    for step in network.steps:
        for tensor in _numbers(step):
            _refuse_small(step, tensor)
        product *= max(1.0, _growth(step))
        most = max(product, _offset(step))
        if not most <= _LARGEST:
            raise Refused(
                f"step {step.name!r} ({type(step).__name__}): products of the weights up to here "
                f"are too large for float64: they may reach {most:.3g}, and errors are kept up to "
                f"{_LARGEST:g}. Scale the layers so that they are nearer to 1."
            )


def widened_box(domain: Box) -> Box:
    """Return the least box around another whose ends are 0 or keep their digits in products.

    Raises:
        Refused: If it is too far away.
    """
    lo, hi = domain
    if max(abs(lo), abs(hi)) > _LARGEST_END:
        raise Refused(
            f"the box [{lo}, {hi}] reaches farther than the {_LARGEST_END:g} up to which float64 "
            "keeps errors of products."
        )
    return -_outwards(-lo), _outwards(hi)


def above_underflow(network: Network, value: float) -> float:
    """Return an upper bound in spite of what vanished in its computation.

    A value that is not tiny is as it was, and so is 0 where nothing can have vanished.
    """
    return float(all_above_underflow(network, torch.tensor(value, dtype=torch.float64)))


def all_above_underflow(
    network: Network, values: Float[Tensor, "*values"]
) -> Float[Tensor, "*values"]:
    """Return upper bounds in spite of what vanished in their computation, as `above_underflow`."""
    lost = _LOST * math.prod(max(1.0, _growth(step)) for step in network.steps)
    is_tiny = (values >= 0) & (values < _TOLD * lost)
    if not bool(is_tiny.any()):
        return values
    if not _may_vanish(network):
        is_tiny = is_tiny & (values > 0)
    return torch.where(is_tiny, values + lost, values)


def _outwards(end: float) -> float:
    """Return an upper end as it is, or the next one that is 0 or not tiny."""
    return end if not 0 < abs(end) < _LEAST_END else max(math.copysign(_LEAST_END, end), 0.0)


def _may_vanish(network: Network) -> bool:
    """Return whether some product of one number of each step may be 0 in float64."""
    product = 1.0
    for step in network.steps:
        product *= min([1.0, *map(_smallest, _numbers(step))])
    return product < _VANISHING


def _refuse_small(step: Step, tensor: Tensor) -> None:
    least = _smallest(tensor)
    if least < _SMALLEST:
        raise Refused(
            f"step {step.name!r} ({type(step).__name__}) holds {least:.3g}, whose products are too "
            f"small for float64: errors are kept from {_SMALLEST:g} on. Scale it, or set it to 0."
        )


def _smallest(tensor: Tensor) -> float:
    """Return the least absolute value that is not 0, infinite if there is none."""
    sizes = tensor.detach().abs()
    sizes = torch.where(sizes > 0, sizes, math.inf)
    return float(sizes.min()) if sizes.numel() else math.inf


def _numbers(step: Step) -> Iterator[Tensor]:
    """Return the numbers of a step that are factors of products."""
    if isinstance(step, Linear):
        yield step.weight
    elif isinstance(step, Scale):
        yield step.factor
    elif isinstance(step, Sum):
        yield torch.tensor(step.coefficients, dtype=torch.float64)
    elif isinstance(step, Contraction):
        yield from (step.weight, step.diagonal)
    elif isinstance(step, ConvContraction):
        yield step.operator.weight
    elif isinstance(step, Sandwich):
        yield from (step.outer.weight, step.inner.weight, step.scale)


def _growth(step: Step) -> float:
    """Return how much larger the sums of absolute values become, at most."""
    if isinstance(step, Linear):
        return _sums(step)
    if isinstance(step, Slope):
        return float(step.constant) if math.isfinite(step.constant) else 1.0
    if isinstance(step, Contraction):
        dense = _matrix_sums(step.weight)
        return 1 + 2 * dense**2 / float(step.diagonal.min().clamp_min(1e-300))
    if isinstance(step, ConvContraction):
        return 1 + 2 * _sums(step.operator) ** 2
    if isinstance(step, Sandwich):
        return _sums(step.pull) * _sums(step.push)
    if isinstance(step, Sum):
        return math.fsum(map(abs, step.coefficients))
    return max((float(tensor.detach().abs().max()) for tensor in _numbers(step)), default=1.0)


def _sums(step: Linear) -> float:
    """Return the largest sum of absolute values in a row or a column."""
    absolute, like = step.detach().absolute(), step.weight.new_ones
    rows = absolute.apply(like(1, *step.input_shape))
    columns = absolute.adjoint(like(1, *step.output_shape))
    return float(torch.maximum(rows.max(), columns.max()))


def _matrix_sums(matrix: Tensor) -> float:
    sizes = matrix.detach().abs()
    return float(torch.maximum(sizes.sum(dim=0).max(), sizes.sum(dim=1).max()))


def _offset(step: Step) -> float:
    """Return the largest number that a step adds."""
    tensors = [getattr(step, name, None) for name in ("bias", "offset")]
    sizes = [
        torch.as_tensor(tensor, dtype=torch.float64).detach().abs().max()
        for tensor in tensors
        if tensor is not None
    ]
    return max(map(float, sizes), default=0.0)
