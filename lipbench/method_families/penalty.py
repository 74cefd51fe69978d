"""Parameter norms as a penalty (weight decay)."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


def parameter_penalty(
    params: Mapping[str, Tensor], *, power: int, biases: bool
) -> Float[Tensor, ""]:
    """Return ‖θ‖₂ of all parameters together, or ½‖θ‖₂².

    The half makes the gradient of the square θ itself. The gradient of the norm at θ = 0 is 0.

    Args:
        params: The parameters, by name.
        power: 1 for the norm, 2 for half its square.
        biases: Whether parameters called `bias` count.
    """
    counted = [value for name, value in params.items() if biases or not name.endswith("bias")]
    square = torch.stack([value.square().sum() for value in counted]).sum()
    if power == 2:
        return square / 2
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
