"""Learnt splines in place of the activations of a network."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.layers.activations import CURVES
from lipbench.layers.splines import Spline
from lipbench.networks.modes import evaluation_mode


def with_splines(
    model: nn.Module,
    input_shape: tuple[int, ...],
    knots: Float[Tensor, " knots"],
    *,
    shared: bool,
) -> nn.Module:
    """Put a spline in place of each activation layer of a model, equal to it at the knots.

    Args:
        model: A network, which is changed.
        input_shape: Shape of one input.
        knots: Where the splines may bend.
        shared: One function for a whole layer, instead of one for each channel.

    Returns:
        The model.
    """
    splines = {
        layer: Spline.near(layer, 1 if shared else widths[0], knots)
        for layer, widths in activation_widths(model, input_shape).items()
    }
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child in splines:
                setattr(parent, name, splines[child])
    return model


def activation_widths(
    model: nn.Module, input_shape: tuple[int, ...]
) -> dict[nn.Module, tuple[int, ...]]:
    """Return the activation layers that splines can replace, and the channels of what each reads.

    More than one number where a layer is used in several places.
    """
    widths: dict[nn.Module, list[int]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        widths.setdefault(layer, []).append(inputs[0].shape[1])

    layers = [layer for layer in model.modules() if type(layer) in CURVES]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    like = next(iter(model.parameters()))
    try:
        with evaluation_mode(model), torch.no_grad():
            model(like.new_zeros(1, *input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: tuple(counts) for layer, counts in widths.items()}
