"""Input gradients and Jacobian products, sample by sample, as terms of an objective.

All functions are pure tensor code, so they run inside `torch.func.vmap`, and their values can be
differentiated in the weights. They see the network in evaluation mode, where no sample feels the
others, and in full precision.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vjp, vmap

from lipbench.networks.net import Net
from lipbench.networks.stem import Stem

Scalars = Callable[[Float[Tensor, "batch outputs"]], Float[Tensor, " batch"]]
"""One number for each sample that depends on its outputs alone."""


def squared_slopes(
    net: Net, inputs: Float[Tensor, "batch *shape"], scalars: Scalars
) -> Float[Tensor, " batch"]:
    """Return ‖∇ₓ g(f(x))‖₂² for each sample."""
    net.meter.gradients += len(inputs)
    stem = _stem(net, inputs, 1)
    if stem is None:
        exact = net.exact
        slopes = grad(lambda points: scalars(exact(points)).sum())(inputs)
        return slopes.square().flatten(1).sum(dim=1)
    rest = stem.rest
    slopes = grad(lambda values: scalars(rest(values)).sum())(stem.shifted(stem.first(inputs)))
    return _squares_behind(stem, slopes)


def pulled_squares(
    net: Net,
    inputs: Float[Tensor, "batch *shape"],
    directions: Float[Tensor, "directions batch outputs"],
) -> Float[Tensor, "directions batch"]:
    """Return ‖vᵀJ(x)‖₂² for the Jacobian J of the outputs at each sample, and each v for it."""
    net.meter.gradients += directions.shape[0] * len(inputs)
    stem = _stem(net, inputs, directions.shape[0])
    if stem is None:
        (rows,) = vmap(vjp(net.exact, inputs)[1])(directions)
        return rows.square().flatten(2).sum(dim=2)
    (rows,) = vmap(vjp(stem.rest, stem.shifted(stem.first(inputs)))[1])(directions)
    return _squares_behind(stem, rows)


def lengths(squares: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return the square roots, with gradient 0 where they are 0."""
    # Not `squares > 0`, which would turn NaN into 0.
    some = squares != 0
    return torch.where(some, torch.where(some, squares, 1.0).sqrt(), 0.0)


def _stem(net: Net, inputs: Tensor, passes: int) -> Stem | None:
    # The network behind a first dense layer W, if products with WWᵀ are cheaper than those with W.
    stem = net.exact.stem
    if stem is None:
        return None
    width, size = stem.weight.shape
    rows = passes * len(inputs)
    return stem if width * (size + rows) < rows * size else None


def _squares_behind(stem: Stem, slopes: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows"]:
    # ‖Wᵀg‖² = gᵀ(WWᵀ)g, of which rounding may leave less than nothing.
    gram = stem.weight @ stem.weight.T
    return ((slopes @ gram) * slopes).sum(dim=-1).clamp_min(0)
