"""Primitive modules: those that the network walker understands, and the steps they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from lipbench.layers.activations import CURVES, Curve, prelu
from lipbench.layers.circular import Circular
from lipbench.layers.explanations import ConvResidual, Residual, Slopes
from lipbench.layers.normalise import Normalise
from lipbench.layers.sandwich import CircularSandwich, SandwichLayer
from lipbench.layers.sorting import GroupSort, MaxMin
from lipbench.layers.splines import Spline, spline_curve
from lipbench.networks import steps
from lipbench.refused import Refused

Tensors = steps.Tensors
Reader = Callable[[Tensors], steps.Step]
"""Makes a step from the network's parameters and buffers by name."""
_LinearReader = Callable[[Tensors], steps.Linear]


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a step stands in the network."""

    name: str
    input_shapes: tuple[steps.Shape, ...]
    output_shape: steps.Shape

    @property
    def fields(self) -> dict[str, Any]:
        """Return the fields that every step has."""
        return {
            "name": self.name,
            "input_shapes": self.input_shapes,
            "output_shape": self.output_shape,
        }

    def key(self, tensor: str) -> str:
        """Return the name in the network of a tensor of this layer."""
        return f"{self.name}.{tensor}" if self.name else tensor


def layer_type(layer: nn.Module) -> type[nn.Module]:
    """Return the class of a layer as it was before any parametrisation."""
    if parametrize.is_parametrized(layer):
        return type(layer).__bases__[0]
    return type(layer)


def is_primitive(layer: nn.Module) -> bool:
    """Return whether the layer has a rule of its own; a subclass of one that has does not."""
    return layer_type(layer) in _RULES


def reader(layer: nn.Module, site: Site) -> Reader:
    """Return the reader of a primitive layer, or refuse its settings by name."""
    return _RULES[layer_type(layer)](layer, site)


def curve_step(curve: Curve, site: Site) -> steps.Slope:
    """Return the step of an elementwise function."""
    return steps.Slope(**site.fields, **curve._asdict())


def refuse(layer: nn.Module, name: str, reason: str) -> Refused:
    """Return the refusal of a layer, which it names by path and class."""
    return Refused(f"layer {name or '(root)'!r} ({type(layer).__name__}): {reason}")


def _dense(layer: nn.Linear, site: Site) -> _LinearReader:
    bias = None if layer.bias is None else site.key("bias")
    weight = site.key("weight")
    return lambda tensors: steps.Dense(
        **site.fields,
        weight=tensors[weight],
        bias=None if bias is None else tensors[bias],
        weight_name=weight,
        bias_name=bias,
    )


def _convolution(layer: Any, site: Site) -> Reader:
    bias = None if layer.bias is None else site.key("bias")
    weight = site.key("weight")
    # torch keeps what it adds before and after each axis, from the last axis to the first.
    widths = layer._reversed_padding_repeated_twice
    padding = tuple((widths[i], widths[i + 1]) for i in range(len(widths) - 2, -1, -2))
    return lambda tensors: steps.Convolution(
        **site.fields,
        weight=tensors[weight],
        bias=None if bias is None else tensors[bias],
        weight_name=weight,
        bias_name=bias,
        stride=tuple(layer.stride),
        padding=padding,
        padding_mode=layer.padding_mode,
        dilation=tuple(layer.dilation),
        groups=layer.groups,
    )


def _circular(layer: Circular, site: Site) -> _LinearReader:
    bias = None if layer.bias is None else site.key("bias")
    weight = site.key("weight")
    height, width = layer.size
    return lambda tensors: steps.Convolution(
        **site.fields,
        weight=tensors[weight],
        bias=None if bias is None else tensors[bias],
        weight_name=weight,
        bias_name=bias,
        stride=(layer.stride, layer.stride),
        padding=((0, height - 1), (0, width - 1)),
        padding_mode="circular",
        dilation=(1, 1),
        groups=1,
    )


def _transposed_convolution(layer: Any, site: Site) -> Reader:
    bias = None if layer.bias is None else site.key("bias")
    weight = site.key("weight")
    # What is added to the output on its far side is not cut off there.
    padding = tuple(
        (cut, cut - added) for cut, added in zip(layer.padding, layer.output_padding, strict=True)
    )
    return lambda tensors: steps.TransposedConvolution(
        **site.fields,
        weight=tensors[weight],
        bias=None if bias is None else tensors[bias],
        weight_name=weight,
        bias_name=bias,
        stride=tuple(layer.stride),
        padding=padding,
        dilation=tuple(layer.dilation),
        groups=layer.groups,
    )


def _batch_norm(layer: Any, site: Site) -> Reader:
    if layer.training or layer.running_var is None:
        raise refuse(
            layer, site.name, "in train mode it is no fixed function; call model.eval() first."
        )
    axes = [1] * (len(site.output_shape) - 1)
    weight = site.key("weight") if layer.affine else None

    def read(tensors: Tensors) -> steps.Step:
        factor = (tensors[site.key("running_var")] + layer.eps).rsqrt()
        offset = -tensors[site.key("running_mean")] * factor
        if weight is not None:
            factor = factor * tensors[weight]
            offset = offset * tensors[weight] + tensors[site.key("bias")]
        return steps.Scale(
            **site.fields,
            factor=factor.reshape(-1, *axes),
            offset=offset.reshape(-1, *axes),
            weight_name=weight,
            normalisation=steps.Normalisation(
                spread=tensors[site.key("running_var")],
                mean=tensors[site.key("running_mean")],
                eps=layer.eps,
                weight=None if weight is None else tensors[weight],
                bias=None if weight is None else tensors[site.key("bias")],
            ),
        )

    return read


def _normalise(layer: Normalise, site: Site) -> Reader:
    axes = [1] * (len(site.output_shape) - 1)

    def read(tensors: Tensors) -> steps.Step:
        spread, mean = tensors[site.key("std")], tensors[site.key("mean")]
        factor = 1 / spread
        offset = -mean * factor
        return steps.Scale(
            **site.fields,
            factor=factor.reshape(-1, *axes),
            offset=offset.reshape(-1, *axes),
            normalisation=steps.Normalisation(spread=spread, mean=mean),
        )

    return read


def _curve(layer: nn.Module, site: Site) -> Reader:
    step = curve_step(CURVES[layer_type(layer)](layer), site)
    return lambda tensors: step


def _prelu(layer: nn.PReLU, site: Site) -> Reader:
    axes = len(site.output_shape) - 1
    return lambda tensors: curve_step(prelu(tensors[site.key("weight")], axes), site)


def _spline(layer: Spline, site: Site) -> Reader:
    axes = len(site.output_shape) - 1

    def read(tensors: Tensors) -> steps.Step:
        heights, knots = tensors[site.key("heights")], tensors[site.key("knots")]
        return curve_step(spline_curve(heights, knots, axes), site)

    return read


def _slopes(layer: Slopes, site: Site) -> Reader:
    step = steps.Slope(
        **site.fields, function=layer.function, lo=layer.lo, hi=layer.hi, claimed=True
    )
    return lambda tensors: step


def _residual(layer: Residual, site: Site) -> Reader:
    return lambda tensors: steps.Contraction(
        **site.fields,
        weight=tensors[site.key("weight")],
        diagonal=tensors[site.key("diagonal")],
        bias=tensors[site.key("bias")],
        function=layer.function,
    )


def _conv_residual(layer: ConvResidual, site: Site) -> Reader:
    weight, bias = site.key("weight"), site.key("bias")
    return lambda tensors: steps.ConvContraction(
        **site.fields,
        operator=steps.Convolution(
            name=site.name,
            input_shapes=site.input_shapes,
            output_shape=(len(tensors[bias]), *site.output_shape[1:]),
            weight=tensors[weight].transpose(0, 1),
            bias=tensors[bias],
            weight_name=weight,
            bias_name=bias,
            stride=(1, 1),
            padding=tuple((side, side) for side in layer.padding),
            padding_mode=layer.padding_mode,
            dilation=(1, 1),
            groups=1,
        ),
        function=layer.function,
    )


def _sandwich(layer: SandwichLayer, site: Site) -> Reader:
    return _sandwiched(layer, site, _dense, 0)


def _circular_sandwich(layer: CircularSandwich, site: Site) -> Reader:
    return _sandwiched(layer, site, _circular, 2)


def _sandwiched(
    layer: Any, site: Site, read: Callable[[Any, Site], _LinearReader], axes: int
) -> Reader:
    hidden = (len(layer.bias), *site.input_shapes[0][1:])

    def linear_reader(name: str, linear: nn.Module, shape: steps.Shape) -> _LinearReader:
        return read(linear, Site(name=site.key(name), input_shapes=(shape,), output_shape=hidden))

    inner = linear_reader("inner", layer.inner, site.input_shapes[0])
    outer = linear_reader("outer", layer.outer, site.output_shape)
    channels = [-1] + [1] * axes
    return lambda tensors: steps.Sandwich(
        **site.fields,
        outer=outer(tensors),
        inner=inner(tensors),
        scale=tensors[site.key("psi")].exp().reshape(channels),
        bias=tensors[site.key("bias")].reshape(channels),
        function=layer.function,
    )


def _rearrange(layer: nn.Module, site: Site) -> Reader:
    step = steps.Rearrange(**site.fields)
    return lambda tensors: step


def _dropout(layer: Any, site: Site) -> Reader:
    if layer.training and layer.p > 0:
        raise refuse(layer, site.name, "active dropout is random; call model.eval() first.")
    return _rearrange(layer, site)


def _max_pool(layer: Any, site: Site) -> Reader:
    if layer.return_indices:
        raise refuse(layer, site.name, "return_indices has no rule.")
    axes = len(site.output_shape) - 1

    def each(setting: int | tuple[int, ...]) -> steps.Shape:
        return (setting,) * axes if isinstance(setting, int) else tuple(setting)

    step = steps.MaxPool(
        **site.fields,
        pool=layer.forward,
        window=each(layer.kernel_size),
        stride=each(layer.stride),
        padding=each(layer.padding),
        dilation=each(layer.dilation),
    )
    return lambda tensors: step


def _average_pool(layer: nn.Module, site: Site) -> Reader:
    if (getattr(layer, "divisor_override", None) or 1) < 0:
        raise refuse(layer, site.name, "a negative divisor has no rule.")
    step = steps.AveragePool(**site.fields, pool=layer.forward)
    return lambda tensors: step


def _padding(layer: nn.Module, site: Site) -> Reader:
    step = steps.Copy(**site.fields, copy=layer.forward)
    return lambda tensors: step


def _group_sort(layer: GroupSort, site: Site) -> Reader:
    step = steps.GroupSort(**site.fields, group=layer.group)
    return lambda tensors: step


def _max_min(layer: MaxMin, site: Site) -> Reader:
    step = steps.GroupSort(**site.fields, group=2)
    return lambda tensors: step


def _softmax(layer: Any, site: Site) -> Reader:
    if layer.dim is None:
        raise refuse(layer, site.name, "torch guesses its axis; give it as dim.")
    axis = layer.dim % (len(site.output_shape) + 1)
    if axis == 0:
        raise refuse(layer, site.name, "it mixes samples of a batch.")
    step = steps.Softmax(**site.fields, axis=axis, is_log=isinstance(layer, nn.LogSoftmax))
    return lambda tensors: step


_PADDINGS = (
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
    nn.ReflectionPad1d,
    nn.ReflectionPad2d,
    nn.ReflectionPad3d,
    nn.ReplicationPad1d,
    nn.ReplicationPad2d,
    nn.ReplicationPad3d,
    nn.CircularPad1d,
    nn.CircularPad2d,
    nn.CircularPad3d,
)
_RULES: dict[type[nn.Module], Callable[[Any, Site], Reader]] = {
    nn.Linear: _dense,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    Circular: _circular,
    nn.ConvTranspose1d: _transposed_convolution,
    nn.ConvTranspose2d: _transposed_convolution,
    nn.ConvTranspose3d: _transposed_convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Normalise: _normalise,
    nn.PReLU: _prelu,
    Spline: _spline,
    nn.Flatten: _rearrange,
    nn.Unflatten: _rearrange,
    nn.Identity: _rearrange,
    nn.Dropout: _dropout,
    nn.Dropout1d: _dropout,
    nn.Dropout2d: _dropout,
    nn.MaxPool1d: _max_pool,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool1d: _average_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool1d: _average_pool,
    nn.AdaptiveAvgPool2d: _average_pool,
    **dict.fromkeys(_PADDINGS, _padding),
    GroupSort: _group_sort,
    MaxMin: _max_min,
    nn.Softmax: _softmax,
    nn.LogSoftmax: _softmax,
    Residual: _residual,
    ConvResidual: _conv_residual,
    SandwichLayer: _sandwich,
    CircularSandwich: _circular_sandwich,
    Slopes: _slopes,
    **dict.fromkeys(CURVES, _curve),
}
