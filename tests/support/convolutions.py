"""Convolutions of all kinds, and their norms written out."""

import torch
from hypothesis import strategies as st
from support.matrices import matrix_norm, matrix_of
from torch import nn

from lipbench.networks.network import as_network


def step_of(layer, *input_shape):
    return as_network(layer, input_shape).layers[0]


def exact(step, norm):
    return matrix_norm(matrix_of(step.apply, step.input_shape), norm)


settings_of_convolutions = st.fixed_dictionaries(
    {
        "kernel": st.integers(1, 4),
        "groups": st.integers(1, 2),
        "mode": st.sampled_from(["zeros", "circular", "reflect", "replicate"]),
        "dilation": st.integers(1, 2),
        "size": st.integers(2, 6),
        "padding": st.integers(0, 2),
        "stride": st.integers(1, 3),
        "channels": st.integers(1, 2),
        "seed": st.integers(0, 1000),
    }
)


def random_convolution(*, kernel, groups, mode, dilation, size, padding, stride, channels, seed):
    torch.manual_seed(seed)
    # The kernel fits into the padded image, and a reflection into the image.
    size = max(size, (kernel - 1) * dilation + 1 - 2 * padding, padding + 1)
    layer = nn.Conv2d(
        groups * channels,
        2 * groups,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_mode=mode,
    )
    return step_of(layer, layer.in_channels, size, size)


def filled(layer, weight):
    layer = layer.double()
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(weight, dtype=torch.float64).reshape(layer.weight.shape))
    return layer


settings_of_transposes = st.fixed_dictionaries(
    {
        "kernel_size": st.integers(1, 4),
        "stride": st.integers(1, 3),
        "padding": st.integers(0, 2),
        "dilation": st.integers(1, 3),
        "groups": st.integers(1, 2),
        "output_padding": st.integers(0, 2),
    }
)


def random_transpose(seed, axes, kernel_size, stride, padding, dilation, groups, output_padding):
    torch.manual_seed(seed)
    output_padding = min(output_padding, max(stride, dilation) - 1)
    uncut = 2 * stride + dilation * (kernel_size - 1) + output_padding
    layer = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}[axes](
        2 * groups,
        groups,
        kernel_size,
        stride,
        min(padding, uncut // 2),
        output_padding,
        groups,
        dilation=dilation,
    )
    return layer.double(), step_of(layer, 2 * groups, *(3, 4)[:axes])
