"""Explanations: layers that say which layers they are made of, and the test of that.

A layer that the network walker has no rule for may define `explain() -> nn.Module`, the same
function built from layers that it knows. The core bounds the explanation. That both functions
are equal is tested, on random inputs and on inputs that an ascent drives towards the largest
difference; it is not proved, and values that rest on it say so.
"""

import torch
from torch import nn

from lipbench.networks.steps import Shape, Slope
from lipbench.refused import Refused

TESTED = "explained: tested, not proved"
_TOLERANCE = 1e-8


@torch.enable_grad()
def check_explanation(name: str, layer: nn.Module, input_shape: Shape) -> None:
    """Compare a float64 layer with its explanation where they may differ most.

    Raises:
        Refused: If they differ by more than rounding at any input that was tried.
    """
    explanation = layer.explain()  # type: ignore[operator]
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(24, *input_shape, generator=rng, dtype=torch.float64)
    scales = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64).repeat(8)
    points = noise * scales.reshape(-1, *[1] * len(input_shape))
    for _ in range(20):
        points = points.detach().requires_grad_()
        explained, expected = explanation(points), layer(points)
        gap = (explained - expected).flatten(1).norm(dim=1)
        scale = 1 + expected.flatten(1).norm(dim=1)
        worst = float((gap / scale).detach().max().nan_to_num(torch.inf))
        if worst > _TOLERANCE:
            raise Refused(
                f"layer {name!r} ({type(layer).__name__}): its explanation is another function: "
                f"at an input that was tried they differ by {worst:.3g} of the output's size."
            )
        if not gap.requires_grad:
            return
        slope = torch.autograd.grad(gap.sum(), points)[0].nan_to_num()
        length = slope.flatten(1).norm(dim=1).clamp_min(torch.finfo(slope.dtype).tiny)
        points = points + 0.3 * slope / length.reshape(-1, *[1] * len(input_shape))


def check_slopes(step: Slope) -> None:
    """Compare the difference quotients of a function on a grid with the slopes it claims.

    Raises:
        Refused: If a quotient on the grid lies outside [lo, hi], or the function of an entry
            depends on others.
    """
    coarse = torch.linspace(-50, 50, 2001, dtype=torch.float64)
    for grid in (coarse, torch.linspace(-4, 4, 8001, dtype=torch.float64)):
        values, half = step.function(grid), len(grid) // 2
        alone = step.function(grid[:half].flip(0)).flip(0)
        if not torch.allclose(alone, values[:half], rtol=1e-9, atol=1e-9, equal_nan=True):
            raise Refused(
                f"layer {step.name!r} (Slopes): its function is not elementwise: what it makes of "
                "an entry depends on others."
            )
        quotients = values.diff() / grid.diff()
        least, most = float(quotients.min()), float(quotients.max())
        if not (step.lo - 1e-9 <= least and most <= step.hi + 1e-9):
            raise Refused(
                f"layer {step.name!r} (Slopes): claims slopes in [{step.lo}, {step.hi}], but its "
                f"difference quotients reach from {least:.6g} to {most:.6g}."
            )
