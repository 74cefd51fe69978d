"""Differentiable local constant: l2 bounds in a ball around each sample, for training.

While x' lies in the ball, a neuron whose function has slopes of absolute value c at most, on all
that it can read there, is √c·ψ(√c·z), where ψ changes by no more than its argument. So what the
neurons of layer l say changes by at most √c_l·R_l with R_l = ‖C_l W_l C_{l-1}‖·R_{l-1}, C the
diagonal of √c and R_0 the radius. For ReLUs c is 0 or 1: a neuron that is off on the whole ball
drops out. Where neurons can be is known from intervals, and from R and the lengths of rows.

Norms are followed by power iteration on one vector for each sample and layer, and lie a little
below the true ones: nothing is certified here. The slopes count as constants where gradients are
taken.

Source:
    Huang, Zhang, Shi, Kolter, Anandkumar, Training Certifiably Robust Neural Networks with
    Efficient Local Lipschitz Bounds (NeurIPS 2021), https://arxiv.org/abs/2111.01395, section 3.
    Slopes other than 0 and 1 are this project's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.method_families.differentiable_constant import Vectors
from lipbench.method_families.margins import of_rows
from lipbench.networks.network import Network
from lipbench.networks.steps import (
    Convolution,
    Dense,
    Linear,
    MaxPool,
    Rearrange,
    Scale,
    Shape,
    Slope,
    Step,
    refuse_kind,
)
from lipbench.norm import Norm

_KICK = 0.01
"""Length of what is added to a vector, which would never leave neurons that were all there was."""


@dataclass(frozen=True, kw_only=True)
class LocalConstant:
    """Local constant: how far what a layer reads can move, each value alone and all together."""

    values: Float[Tensor, "batch features"]
    """What they are at the samples."""
    lo: Float[Tensor, "batch features"]
    """The least that each can be in the ball, and the most."""
    hi: Float[Tensor, "batch features"]
    roots: Float[Tensor, "batch features"]
    """√c: the values, divided by these, move by no more than `reach`; those with 0 do not move."""
    reach: Float[Tensor, " batch"]

    def rises(self, last: Dense, classes: Int[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
        """Return by how much each logit can gain on the class's, by the ball or by intervals."""
        rows = last.weight - of_rows(last.weight, classes).unsqueeze(1)
        by_ball = self.reach.unsqueeze(1) * _length(rows * self.roots.unsqueeze(1), dims=(2,))
        up, down = (self.hi - self.values).clamp_min(0), (self.values - self.lo).clamp_min(0)
        gains = rows.clamp_min(0) * up.unsqueeze(1) - rows.clamp_max(0) * down.unsqueeze(1)
        return torch.minimum(by_ball, gains.sum(dim=2))


def why_not(network: Network) -> str | None:
    """Return which step of a network, up to its last layer, has no rule here, or None."""
    if not network.is_chain:
        return "the network is no chain of layers"
    for number, step in enumerate(network.steps):
        reason = _why_not(step, first=number == 0)
        if reason is not None:
            return f"step {step.name!r} ({type(step).__name__}) {reason}"
    return None


def start(network: Network, samples: int, rng: torch.Generator) -> Vectors:
    """Return random vectors of all samples, on that side of each layer where they are shorter."""
    return {
        _vector(number): torch.randn(samples, *_side(step), generator=rng).to(step.weight)
        for number, step in enumerate(network.steps)
        if isinstance(step, Linear)
    }


def entries(network: Network) -> int:
    """Return how many numbers the vectors of one sample are."""
    return sum(math.prod(_side(step)) for step in network.layers)


def read(state: Mapping[str, Any], network: Network, index: Int[Tensor, " batch"]) -> Vectors:
    """Return the vectors of some samples."""
    # Not values[index], which vmap refuses.
    return {
        name: state[name].take_along_dim(_as_rows(index, state[name]), dim=0)
        for name in _names(network)
    }


def replaced(state: Mapping[str, Any], vectors: Vectors, index: Int[Tensor, " batch"]) -> Vectors:
    """Return the vectors of all samples with those of some replaced."""
    return {
        name: state[name].scatter(0, _as_rows(index, value).expand_as(value), value)
        for name, value in vectors.items()
    }


def local_constant(
    network: Network,
    inputs: Float[Tensor, "batch *shape"],
    radius: float | Float[Tensor, ""],
    vectors: Vectors,
    iterations: int = 1,
) -> tuple[LocalConstant, Vectors]:
    """Return how far the outputs of a chain can move in a ball around each sample.

    This is pure tensor code for use inside `torch.func.vmap`.

    Args:
        network: A chain that `why_not` has no reason against; its outputs are vectors.
        inputs: The centres of the balls.
        radius: In pixel units, l2 norm.
        vectors: Those of the samples.
        iterations: Steps of power iteration before a norm is taken.

    Returns:
        The local constant, and the vectors moved on.
    """
    ball = _Ball.of(inputs, radius * torch.ones_like(inputs.flatten(1)[:, 0]), vectors, iterations)
    for number, step in enumerate(network.steps):
        ball = ball.behind(step, _vector(number))
    ball = ball.closed(None)
    found = LocalConstant(
        values=ball.values, lo=ball.lo, hi=ball.hi, roots=ball.roots, reach=ball.reach
    )
    return found, ball.moved


@dataclass(frozen=True, kw_only=True)
class _Ball:
    """Bounds of the values behind the steps so far, in a ball around each sample."""

    values: Tensor
    lo: Tensor
    hi: Tensor
    roots: Tensor
    reach: Float[Tensor, " batch"]
    vectors: Vectors
    iterations: int
    moved: Vectors
    is_even: bool
    """Whether the balls differ in their centres only, as they do up to the first layer."""
    open: tuple[Linear, str] | None
    """A linear step whose values have no slopes yet, so that its norm is not known."""

    @classmethod
    def of(
        cls, inputs: Tensor, radius: Float[Tensor, " batch"], vectors: Vectors, iterations: int
    ) -> "_Ball":
        return cls(
            values=inputs,
            lo=inputs - _as_rows(radius, inputs),
            hi=inputs + _as_rows(radius, inputs),
            roots=torch.ones_like(inputs),
            reach=radius,
            vectors=vectors,
            iterations=iterations,
            moved={},
            is_even=True,
            open=None,
        )

    def behind(self, step: Step, name: str) -> "_Ball":
        """Return the bounds behind one more step."""
        if isinstance(step, Linear):
            return replace(self.closed(None)._read(step), open=(step, name))
        if isinstance(step, Slope):
            return self._bent(step)
        if isinstance(step, MaxPool):
            return self.closed(None)._pooled(step)
        if isinstance(step, Scale):
            return self._scaled(step)
        if isinstance(step, Rearrange):
            return self._reshaped(step)
        refuse_kind(step, "has no local rule", __name__)

    def closed(self, roots: Tensor | None) -> "_Ball":
        """Return it with the norm of the linear step that waits for the slopes behind it."""
        if self.open is None:
            return self
        step, name = self.open
        behind = torch.ones_like(self.values) if roots is None else roots
        outside = behind.reshape(behind.shape[0], *step.output_shape)
        start = self.vectors[name]
        if self.is_even and isinstance(step, Dense) and _side(step) != step.input_shape:
            norms, moved = _norms_by_rows(step, outside, start, self.iterations)
        else:
            norms, moved = _norms(step, self.roots, outside, start, self.iterations)
        known = {**self.moved, name: moved}
        reach = self.reach * norms
        return replace(self, moved=known, is_even=False, reach=reach, roots=behind, open=None)

    def _read(self, step: Linear) -> "_Ball":
        half, roots = (self.hi - self.lo) / 2, self.roots
        if self.is_even:
            half, roots = half[:1], roots[:1]  # those of all
        spread = step.absolute().apply(half)
        squares = replace(step, weight=step.weight.square(), bias=None).apply(roots.square())
        centres = step(self.values)
        middle = centres if self.is_even else step((self.lo + self.hi) / 2)
        ball = _as_rows(self.reach, centres) * _root(squares)
        lo = torch.maximum(middle - spread, centres - ball)
        hi = torch.minimum(middle + spread, centres + ball)
        return replace(self, values=centres, lo=lo, hi=hi)

    def _bent(self, step: Slope) -> "_Ball":
        slopes = _steepest(step, self.lo.detach(), self.hi.detach())
        ball = self
        if self.open is None:
            ball = replace(self, roots=self.roots * slopes, is_even=False)
        ball = ball.closed(slopes.sqrt())
        return replace(ball, values=step(ball.values), lo=step(ball.lo), hi=step(ball.hi))

    def _pooled(self, step: MaxPool) -> "_Ball":
        # A maximum moves by no more than its window does, and reads at most the largest root.
        return replace(
            self,
            reach=self.reach * constant(step, Norm(2)),
            is_even=False,
            values=step(self.values),
            lo=step(self.lo),
            hi=step(self.hi),
            roots=step(self.roots),
        )

    def _scaled(self, step: Scale) -> "_Ball":
        factor = step.factor.abs()
        half = factor * (self.hi - self.lo) / 2
        values, reach = step(self.values), self.reach * factor.amax()
        return replace(self, values=values, reach=reach, lo=values - half, hi=values + half)

    def _reshaped(self, step: Step) -> "_Ball":
        shape = self.values.shape[0], *step.output_shape
        return replace(
            self,
            values=self.values.reshape(shape),
            lo=self.lo.reshape(shape),
            hi=self.hi.reshape(shape),
            # Those of a step that is still open are the roots of what it reads.
            roots=self.roots.reshape(shape) if self.open is None else self.roots,
        )


def _why_not(step: Step, first: bool) -> str | None:
    if isinstance(step, Convolution) and step.padding_mode != "zeros":
        return f"pads with {step.padding_mode!r} entries, and only zeros have a rule"
    if isinstance(step, Linear | Rearrange | MaxPool):
        return None
    if isinstance(step, Scale):
        is_ours = first and step.weight_name is None
        return None if is_ours else "has a rule only as a first step without weights"
    if not isinstance(step, Slope):
        return "has no local rule; layers, activations and maxima have"
    if isinstance(step.lo, Tensor) or step.lo < 0:
        return "has no rule, for it is no fixed function that rises everywhere"
    if step.sides is None and step.derivative is None:
        return "has no rule, for nothing is known of its slopes in an interval"
    return None


def _steepest(step: Slope, lo: Tensor, hi: Tensor) -> Tensor:
    """Return the largest slopes between two ends, of a function that rises."""
    if step.sides is not None:
        left, right = (torch.ones_like(lo) * side for side in step.sides)
        crossing = torch.maximum(left, right)
        return torch.where(lo >= 0, right, torch.where(hi <= 0, left, crossing))
    assert step.derivative is not None
    _, most = step.derivative.between(lo.flatten(), hi.flatten())
    return most.reshape(lo.shape).clamp(0, float(step.constant))


def _norms(
    step: Linear, inside: Tensor, outside: Tensor, start: Tensor, iterations: int
) -> tuple[Float[Tensor, " batch"], Tensor]:
    """Return ‖diag(outside) W diag(inside)‖ for each sample, and the vectors moved on."""

    def forth(layer: Linear, vectors: Tensor) -> Tensor:
        return outside * layer.apply(inside * vectors)

    def back(layer: Linear, vectors: Tensor) -> Tensor:
        return inside * layer.adjoint(outside * vectors)

    there, home = (forth, back) if _side(step) == step.input_shape else (back, forth)
    fixed = step.detach()
    vector = _kicked(start)
    for _ in range(iterations):
        vector = _unit(home(fixed, there(fixed, vector)), vector)
    images = there(step, vector)
    return _length(images, dims=tuple(range(1, images.ndim))), vector.detach()


def _norms_by_rows(
    step: Dense, outside: Tensor, start: Tensor, iterations: int
) -> tuple[Float[Tensor, " batch"], Tensor]:
    """Return the same where all values that are read have root 1, from WWᵀ, which is smaller."""
    gram = step.weight @ step.weight.T
    fixed = gram.detach()
    vector = _kicked(start)
    for _ in range(iterations):
        vector = _unit(outside * ((outside * vector) @ fixed), vector)
    left = outside * vector
    return _root((left * (left @ gram)).sum(dim=1)), vector.detach()


def _kicked(start: Tensor) -> Tensor:
    return _unit(start + _KICK / math.sqrt(start[0].numel()), start)


def _side(step: Linear) -> Shape:
    inside, outside = step.input_shape, step.output_shape
    return outside if math.prod(outside) < math.prod(inside) else inside


def _unit(vectors: Tensor, fallback: Tensor) -> Tensor:
    lengths = _as_rows(torch.linalg.vector_norm(vectors.flatten(1), dim=1), vectors)
    return torch.where(lengths > 0, vectors / torch.where(lengths > 0, lengths, 1.0), fallback)


def _length(vectors: Tensor, dims: tuple[int, ...]) -> Tensor:
    return _root(vectors.square().sum(dim=dims))


def _root(squares: Tensor) -> Tensor:
    """Return the root, with gradient 0 where it is 0."""
    some = squares > 0
    return torch.where(some, torch.where(some, squares, 1.0).sqrt(), 0.0)


def _as_rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def _names(network: Network) -> list[str]:
    return [_vector(n) for n, step in enumerate(network.steps) if isinstance(step, Linear)]


def _vector(number: int) -> str:
    return f"local_{number}"
