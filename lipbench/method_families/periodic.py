"""Periodic convolutions in place of a model's own."""

import torch
from torch import nn

from lipbench.layers.circular import Circular
from lipbench.networks.sequential import LayerSite


def periodic(site: LayerSite, rng: torch.Generator) -> Circular:
    """Return the circular convolution for a plain one, with its bias and random taps.

    A kernel that is larger than the image is cut to its size: further taps would meet others.
    """
    layer = site.layer
    assert isinstance(layer, nn.Conv2d)
    height, width = site.input_shape[1:]
    circular = Circular(
        (layer.out_channels, layer.in_channels),
        (height, width),
        (min(layer.kernel_size[0], height), min(layer.kernel_size[1], width)),
        stride=layer.stride[0],
        bias=layer.bias is not None,
    )
    with torch.no_grad():
        taps = circular.middle()
        deviation = (taps.shape[1] * taps[0, 0].numel()) ** -0.5
        taps.copy_(deviation * torch.randn(taps.shape, generator=rng))
        if layer.bias is not None and circular.bias is not None:
            circular.bias.copy_(layer.bias)
    return circular


def misfit(site: LayerSite) -> str | None:
    """Return why a layer is a convolution that `periodic` cannot stand for, or None."""
    layer = site.layer
    if not isinstance(layer, nn.Conv2d):
        return None
    if layer.dilation != (1, 1):
        return f"dilations have no version, got {layer.dilation}"
    stride = layer.stride[0]
    if layer.stride != (stride, stride):
        return f"the stride must be the same along both axes, got {layer.stride}"
    size = site.input_shape[1:]
    if tuple(n * stride for n in site.output_shape[1:]) != size:
        return (
            f"an image around whose edges the kernel reads on, of size {size}, has 1/{stride} of "
            f"it behind the layer, not {site.output_shape[1:]}; change padding or stride"
        )
    return None
