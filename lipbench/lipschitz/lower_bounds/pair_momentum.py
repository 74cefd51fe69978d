"""Pair ascent with momentum: Nesterov's, and Adam.

Pure tensor code, like `lipbench.lipschitz.lower_bounds.pairs`.
"""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import grad_and_value

from lipbench.lipschitz.lower_bounds.pairs import Function, Pairs, climb, squared_quotients

MomentumRule = Literal["nesterov", "adam"]
Memory = dict[str, Tensor]
"""One row for each pair: averages for both of its ends, and for Adam how many steps are in them."""

_SQUARES = 0.999
"""How much of the average of squares Adam keeps from step to step."""
_EPSILON = 1e-8
_LONGEST = 1.0
"""Pixels to which the accept test may lengthen a step of Adam."""


def nothing(rule: MomentumRule, pairs: Pairs) -> Memory:
    """Return the memory of pairs that have taken no step."""
    ends = torch.zeros_like(torch.stack([pairs.total, pairs.difference], dim=1))
    if rule == "nesterov":
        return {"mean": ends}
    return {"mean": ends, "square": ends.clone(), "steps": torch.zeros_like(pairs.step)}


def ascend_with_memory(
    function: Function,
    pairs: Pairs,
    memory: Memory,
    *,
    rule: MomentumRule,
    decay: float | Float[Tensor, ""],
    accept: bool,
    factor: float | Float[Tensor, ""] = 1.3,
) -> tuple[Pairs, Memory, Float[Tensor, " pairs"]]:
    """Move every pair one step up its quotient L, along a direction made of this and past slopes.

    With g = L·∇L at the ends of a pair, Nesterov's step is m ← decay·m + g and x ← x + step·(g +
    decay·m), where x is the point that looks ahead. Adam's is x ← x + step·m/√s with the averages
    m of g and s of g², corrected for their start at 0: there a step is in pixels.

    Args:
        function: The network; its parameters should be detached.
        pairs: The pairs to move.
        memory: What earlier calls returned for them, or `nothing`.
        rule: Which direction.
        decay: How much of m is kept from step to step.
        accept: Keep a move only where it raised L, and then multiply the pair's step by `factor`,
            Adam's up to 1; else divide it, and forget what led there.
        factor: Growth and decay of the step, more than 1.

    Returns:
        The pairs, their memory, and the quotient of each, as `ascend` of `pairs` returns it.

    Source:
        Nesterov (1983), as rewritten by Sutskever, Martens, Dahl, Hinton, On the Importance of
        Initialization and Momentum in Deep Learning (2013). Kingma, Ba, Adam: A Method for
        Stochastic Optimization (2015), Algorithm 1. Forgetting after a step that fails:
        O'Donoghue, Candès, Adaptive Restart for Accelerated Gradient Schemes (2015).
    """

    def total(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        squares = squared_quotients(function, Pairs.of(u, v, pairs.step))
        return squares.sum(), squares

    slopes, (_, before) = grad_and_value(total, argnums=(0, 1), has_aux=True)(pairs.u, pairs.v)
    direction, fresh = _directed(rule, torch.stack(slopes, dim=1) / 2, memory, decay)
    u, v = direction.unbind(dim=1)
    moved = climb(pairs, u + v, u - v)
    if not accept:
        return moved, fresh, before.sqrt()
    after = squared_quotients(function, moved)
    better = (after > before) & after.isfinite()  # where it overflows nothing is known
    grown = pairs.step * factor
    if rule == "adam":
        # Its direction has the same length where the slope is only rounding, as far outside.
        grown = torch.where(pairs.step < _LONGEST, grown.clamp_max(_LONGEST), pairs.step)
    longer = replace(moved, step=grown)
    kept = longer.where(better, replace(pairs, step=pairs.step / factor))
    remembered = {name: _where(better, value) for name, value in fresh.items()}
    return kept, remembered, torch.where(better, after, before).sqrt()


def _directed(
    rule: MomentumRule, slope: Tensor, memory: Memory, decay: float | Float[Tensor, ""]
) -> tuple[Tensor, Memory]:
    if rule == "nesterov":
        mean = decay * memory["mean"] + slope
        return slope + decay * mean, {"mean": mean}
    mean = decay * memory["mean"] + (1 - decay) * slope
    square = _SQUARES * memory["square"] + (1 - _SQUARES) * slope.square()
    steps = memory["steps"] + 1
    rows = steps.view(-1, *[1] * (slope.ndim - 1))
    root = (square / (1 - _SQUARES**rows)).sqrt() + _EPSILON
    return mean / (1 - decay**rows) / root, {"mean": mean, "square": square, "steps": steps}


def _where(rows: Bool[Tensor, " pairs"], values: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (values.ndim - 1)), values, 0.0)
