"""The pair ascent: pairs of inputs climb towards the Lipschitz constant from below.

Shared by every method that penalises the quotient at pairs, and by the lower bound. All functions
are pure tensor code, so they run inside `torch.func.vmap`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.func import grad_and_value, vjp

from lipbench.lipschitz.lower_bounds.row_updates import updated_rows
from lipbench.networks.stem import Stem
from lipbench.threat import Box

Function = Callable[[Float[Tensor, "batch *shape"]], Float[Tensor, "batch outputs"]]

LEAST_DISTANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Closer pairs are not used: rounding of f would be a visible part of their quotient.

In float32 the quotient of an untrained 784-64-64-10 sigmoid network, whose outputs hardly vary, was
up to 1.02 times too large at a distance of 1e-2, 1.3 times at 1e-3, and 3.2 times at 1e-4; of 1,000
random pairs. Lower bounds are therefore computed in float64.
"""

_CANCELLATION = {dtype: 1e4 * torch.finfo(dtype).eps for dtype in LEAST_DISTANCE}
"""A sum this much smaller than its terms is mostly rounding."""


@dataclass(frozen=True)
class Pairs:
    """Pairs (u, v) as sum u + v and difference u - v, with the step size that each has reached."""

    total: Float[Tensor, "pairs *shape"]
    difference: Float[Tensor, "pairs *shape"]
    step: Float[Tensor, " pairs"]
    box: Box | None = None
    """What holds u and v; None leaves them free, as the paper does."""

    @classmethod
    def of(
        cls,
        u: Float[Tensor, "pairs *shape"],
        v: Float[Tensor, "pairs *shape"],
        step: Float[Tensor, " pairs"],
        box: Box | None = None,
    ) -> "Pairs":
        """Return the pairs with these ends."""
        return cls(u + v, u - v, step, box)

    @property
    def u(self) -> Float[Tensor, "pairs *shape"]:
        """Return the first end of each pair."""
        return self._held((self.total + self.difference) / 2)

    @property
    def v(self) -> Float[Tensor, "pairs *shape"]:
        """Return the second end of each pair."""
        return self._held((self.total - self.difference) / 2)

    @property
    def run(self) -> Float[Tensor, " pairs"]:
        """Return ‖u - v‖²."""
        return _squared_length(self.difference)

    def top(self, values: Float[Tensor, " pairs"], count: int) -> "Pairs":
        """Return the `count` pairs with the largest values."""
        rows = values.topk(count).indices
        total, difference = _rows(self.total, rows), _rows(self.difference, rows)
        return Pairs(total, difference, _rows(self.step, rows), self.box)

    def where(self, rows: Bool[Tensor, " pairs"], other: "Pairs") -> "Pairs":
        """Return these pairs where `rows` is true, and those of `other` elsewhere."""
        return Pairs(
            torch.where(_as_rows(rows, self.total), self.total, other.total),
            torch.where(_as_rows(rows, self.total), self.difference, other.difference),
            torch.where(rows, self.step, other.step),
            self.box,
        )

    def _held(self, ends: Tensor) -> Tensor:
        return ends if self.box is None else ends.clamp(*self.box)


def squared_quotients(function: Function, pairs: Pairs) -> Float[Tensor, " pairs"]:
    """Return ‖f(u) - f(v)‖² / ‖u - v‖² in Euclidean norms, from one forward pass.

    Pairs closer than `LEAST_DISTANCE` are measured as if they were that far apart, which can
    only make the quotient smaller; at u = v it is 0 up to rounding.
    """
    if isinstance(function, Stem) and pairs.box is None:
        # One product, whose slope in the weights is one too.
        halves = function.first(torch.cat([pairs.total, pairs.difference])) / 2
        middle, offset = halves.chunk(2)
        return _squares(function.rest(_ends(function.shifted(middle), offset)), pairs.run)
    return _squares(function(torch.cat([pairs.u, pairs.v])), pairs.run)


def quotients(function: Function, pairs: Pairs) -> Float[Tensor, " pairs"]:
    """Return ‖f(u) - f(v)‖ / ‖u - v‖ in Euclidean norms, with gradient 0 where it is 0."""
    squares = squared_quotients(function, pairs)
    # Not `squares > 0`, which would turn NaN into 0.
    nonzero = squares != 0
    return torch.where(nonzero, torch.where(nonzero, squares, 1.0).sqrt(), 0.0)


def ascend(
    function: Function,
    pairs: Pairs,
    *,
    accept: bool,
    factor: float | Float[Tensor, ""] = 1.3,
) -> tuple[Pairs, Float[Tensor, " pairs"]]:
    """Move every pair one step up its quotient L: x ← x + step·L·∇L, that is step/2·∇(L²).

    Args:
        function: The network; its parameters should be detached. For a `Stem` whose first layer
            is narrow, and pairs without a box, the same step is computed in that layer's width.
        pairs: The pairs to move.
        accept: Keep a move only where it raised L, and then multiply the pair's step by `factor`,
            else divide it. Without it every pair moves and keeps its step.
        factor: Growth and decay of the step, more than 1.

    Returns:
        The pairs, and the quotient of each: the new one with `accept`, which it takes a second
        forward pass to know; else that before the move.

    Source:
        Bungert, Raab, Roith, Schwinn, Tenbrinck, CLIP: Cheap Lipschitz Training of Neural
        Networks (2021), Algorithm 1. The accept test and the growing steps are those of the
        authors' code, except that the steps are kept from call to call.
    """
    if isinstance(function, Stem) and _pays(function, pairs):
        return _ascend_behind(function, pairs, accept, factor)

    def total(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        squares = _squares(function(torch.cat([u, v])), _squared_length(u - v))
        return squares.sum(), squares

    slopes, (_, before) = grad_and_value(total, argnums=(0, 1), has_aux=True)(pairs.u, pairs.v)
    moved = climb(pairs, (slopes[0] + slopes[1]) / 2, (slopes[0] - slopes[1]) / 2)
    if not accept:
        return moved, before.sqrt()
    after = squared_quotients(function, moved)
    better = (after > before) & after.isfinite()  # where it overflows nothing is known
    longer = replace(moved, step=pairs.step * factor)
    kept = longer.where(better, replace(pairs, step=pairs.step / factor))
    return kept, torch.where(better, after, before).sqrt()


def climb(
    pairs: Pairs,
    towards_total: Float[Tensor, "pairs *shape"],
    towards_difference: Float[Tensor, "pairs *shape"],
) -> Pairs:
    """Return the pairs moved along the gradients of their squared quotients, step times.

    In sum and difference that is the same as a move of u and v by step/2 along theirs. A pair that
    would come closer than `LEAST_DISTANCE` stays where it is.
    """
    step = _as_rows(pairs.step, pairs.total)
    moved = replace(
        pairs,
        total=pairs.total + step * towards_total,
        difference=pairs.difference + step * towards_difference,
    )
    if pairs.box is not None:
        moved = Pairs.of(moved.u, moved.v, pairs.step, pairs.box)
    apart = moved.run >= LEAST_DISTANCE[moved.run.dtype] ** 2
    return moved.where(apart, pairs)


def _pays(stem: Stem, pairs: Pairs) -> bool:
    # Whether WWᵀ and the products with it are cheaper than W times the moved ends.
    width, inputs = stem.weight.shape
    ends = 2 * len(pairs.step)
    return pairs.box is None and width * (inputs + ends) < ends * inputs


def _ascend_behind(
    stem: Stem, pairs: Pairs, accept: bool, factor: float | Float[Tensor, ""]
) -> tuple[Pairs, Float[Tensor, " pairs"]]:
    # With p = (Ws)/2 + b for the sum s and q = (Wd)/2 for the difference d, the ends are p ± q, and
    # the gradients of L² in s and d are Wᵀ times those in p and q, halved, less 2L²/‖d‖²·d from the
    # distance. So a step is s ← s + Wᵀa and d ← beta·d + Wᵀb, and what it does to L is known before
    # the inputs are touched.
    halved = replace(stem, weight=stem.weight / 2)
    p, q = stem.shifted(halved.first(pairs.total)), halved.first(pairs.difference)
    run = pairs.run
    a, b, before = _moves(stem, p, q, run, pairs.step)
    apart = run >= LEAST_DISTANCE[run.dtype] ** 2
    beta = 1 - torch.where(apart, 2 * pairs.step * before / run, 0.0)
    p, q, run = _shifted(stem.weight @ halved.weight.T, p, q, run, a, b, beta)
    moves, values, lengths = run >= LEAST_DISTANCE[run.dtype] ** 2, before, pairs.step
    if accept:
        after = _squares(stem.rest(_ends(p, q)), run)
        moves = moves & (after > before)
        values = torch.where(moves, after, before)
        lengths = torch.where(moves, lengths * factor, lengths / factor)
    total = updated_rows(pairs.total, moves, a, stem.weight)
    difference = updated_rows(pairs.difference, moves, b, stem.weight, beta)
    return Pairs(total, difference, lengths), values.sqrt()


def _moves(
    stem: Stem, p: Tensor, q: Tensor, run: Tensor, step: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    # The gradients of the squared quotients at a fixed distance, times step, and their values.
    outputs, pull = vjp(stem.rest, _ends(p, q))[:2]
    scale = step / run.clamp_min(LEAST_DISTANCE[run.dtype] ** 2)
    rise = _as_rows(scale, p) * (outputs[: len(p)] - outputs[len(p) :])
    (slopes,) = pull(torch.cat([rise, -rise]))
    u, v = slopes.chunk(2)
    return u + v, u - v, _squares(outputs, run)


def _shifted(
    half_gram: Tensor, p: Tensor, q: Tensor, run: Tensor, a: Tensor, b: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    # p, q and ‖d‖² after the step, from WWᵀ/2.
    b_gram = b @ half_gram
    shrunk, added = beta.square() * run, 2 * (b * b_gram).sum(dim=1)
    moved = shrunk + 4 * beta * (q * b).sum(dim=1) + added
    # What two much larger numbers leave of each other is no distance.
    certain = moved >= _CANCELLATION[run.dtype] * (shrunk + added)
    p, q = torch.addmm(p, a, half_gram), torch.addcmul(b_gram, _as_rows(beta, q), q)
    return p, q, torch.where(certain, moved, 0.0)


def _ends(middle: Tensor, offset: Tensor) -> Tensor:
    # middle + offset and middle - offset, in one pass over memory.
    signs = torch.arange(1, -2, -2, dtype=offset.dtype, device=offset.device)
    return torch.addcmul(middle, signs.view(2, 1, 1), offset).flatten(0, 1)


def _squares(
    outputs: Float[Tensor, "ends outputs"], run: Float[Tensor, " pairs"]
) -> Float[Tensor, " pairs"]:
    rise = (outputs[: len(run)] - outputs[len(run) :]).square().sum(dim=1)
    return rise / run.clamp_min(LEAST_DISTANCE[run.dtype] ** 2)


def _squared_length(offset: Tensor) -> Tensor:
    # Not the sum of squares: it is twice as slow.
    return torch.linalg.vector_norm(offset.flatten(1), dim=1).square()


def _as_rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def _rows(values: Tensor, rows: Int[Tensor, " chosen"]) -> Tensor:
    # Not values[rows], which vmap refuses.
    return values.take_along_dim(_as_rows(rows, values), dim=0)
