"""Agreement: whether a module itself answers as the network that was read of it.

`as_network` compares with a copy in float64. What somebody uses is the module: in its own
precision, and on its own device. A module may be another function there.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.lipschitz.enclosures.enclosure import enclose
from lipbench.lipschitz.relaxations.rounding import UNIT
from lipbench.networks.network import Network, as_network
from lipbench.refused import Refused

_SAMPLES = 4
_ROOM = 16
"""How much more than the analysis of rounding allows an answer may be off."""
_DEVICE = 2.0**-10
"""Unit of rounding of products on devices other than the CPU, which may be in TF32."""
_RANGE = (1e-30, 1e30)
"""Weights that are smaller or larger than this may underflow or overflow in less than float64."""


def read_network(
    module: nn.Module, input_shape: tuple[int, ...], inputs: Tensor | None = None
) -> Network:
    """Return a module as a network, as `as_network` does, and hold it against the module itself.

    Args:
        module: The module, in the mode in which it is to be judged.
        input_shape: Shape of one input.
        inputs: Inputs to try, None to draw them.

    Raises:
        Refused: If it cannot be read, or answers otherwise than was read.
    """
    network = as_network(module, input_shape)
    reason = disagreement(network, module, inputs)
    if reason is not None:
        raise Refused(f"{type(module).__name__}: {reason}")
    return network


def disagreement(network: Network, module: nn.Module, inputs: Tensor | None = None) -> str | None:
    """Return where a module answers otherwise than what was read of it, None if nowhere.

    A few inputs are tried. An answer may be off by what rounding makes of it in the module's own
    precision; one that is not finite there, and a module that cannot be evaluated there, say
    nothing.

    Args:
        network: What was read of the module, in float64.
        module: The module, in the mode in which it is to be judged.
        inputs: Inputs to try, None to draw them.
    """
    points = _points(network, module, inputs)
    if points.dtype != torch.float64 and not _is_in_range(network):
        return None
    try:
        with torch.no_grad():
            answers = module(points.clone()).to("cpu", torch.float64)
        read = enclose(network, points.to("cpu", torch.float64))
    except (Refused, RuntimeError, TypeError, ValueError, IndexError):
        return None
    unit = torch.finfo(points.dtype).eps
    unit = unit if points.device.type == "cpu" else max(unit, _DEVICE)
    allowed = _ROOM * (read.radius * (unit / UNIT) + unit * (1 + read.values.abs()))
    if answers.shape != read.values.shape:
        return f"it answers in the shape {tuple(answers.shape)}, and not as its layers were read."
    off = ((answers - read.values).abs() - allowed).nan_to_num(nan=-math.inf)
    if not bool((answers.isfinite() & (off > 0)).any()):
        return None
    worst = int(off.flatten().argmax())
    given, layers = float(answers.flatten()[worst]), float(read.values.flatten()[worst])
    return (
        "it does not answer as its layers were read: at an input that was tried it gives "
        f"{given:.6g}, and they {layers:.6g}."
    )


def _points(
    network: Network, module: nn.Module, inputs: Tensor | None
) -> Float[Tensor, "batch *shape"]:
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    if isinstance(inputs, Tensor) and len(inputs):
        return inputs[:_SAMPLES].detach().to(like.device, like.dtype)
    rng = torch.Generator().manual_seed(1)
    noise = torch.randn(_SAMPLES, *network.input_shape, generator=rng, dtype=torch.float64)
    return noise.to(like.device, like.dtype)


def _is_in_range(network: Network) -> bool:
    least, most = _RANGE
    sizes = [layer.weight.detach().abs() for layer in network.layers]
    return all(bool(((size == 0) | ((size > least) & (size < most))).all()) for size in sizes)
