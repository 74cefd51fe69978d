"""Indexing, permutation, padding and repetition in a forward pass, as steps."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from lipbench.layers.elementwise import Elementwise
from lipbench.networks import steps
from lipbench.networks.call import Argument, Call, CallRule, Constant, NoRule, refuse_values, source
from lipbench.networks.primitives import Reader, Site
from lipbench.networks.steps import Shape, Tensors
from lipbench.refused import Refused

Parts = tuple[Tensor, ...]

_METHODS = (
    "diagonal",
    "flip",
    "moveaxis",
    "movedim",
    "narrow",
    "permute",
    "repeat",
    "repeat_interleave",
    "roll",
    "rot90",
    "select",
    "squeeze",
    "swapaxes",
    "swapdims",
    "tile",
    "transpose",
    "tril",
    "triu",
    "unfold",
    "unsqueeze",
)
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "pad": F.pad,
    "pixel_shuffle": F.pixel_shuffle,
    "pixel_unshuffle": F.pixel_unshuffle,
    "channel_shuffle": F.channel_shuffle,
}
_PARTITIONS = ("chunk", "split", "tensor_split", "unbind")


def copying(function: Callable[..., Tensor]) -> CallRule:
    """Return the rule of a function that copies entries of its first argument."""

    def rule(input: Argument, *args: Argument, **kwargs: Argument) -> Call:
        refuse_values(*args, *kwargs.values())
        return _call(input, lambda values: function(values, *args, **kwargs))

    return rule


def item(target: Any, arguments: tuple[Any, ...], settings: dict[str, Any], index: Any) -> Call:
    """Return one item of what a partition such as `chunk` makes of a value.

    Raises:
        NoRule: If the function is none.
    """
    refuse_values(index)
    return _of_parts(target, arguments, settings, lambda parts: parts[index])


def together(parts: fx.Node, join: Callable[[Parts], Tensor]) -> Call:
    """Return what becomes of all parts of a value, or of a slice of them, put together again.

    Raises:
        NoRule: If they are not what a partition such as `chunk` gives.
    """
    if parts.target is not operator.getitem:
        return _of_parts(parts.target, parts.args, dict(parts.kwargs), join)
    inner, index = parts.args
    if not isinstance(inner, fx.Node) or not isinstance(index, slice):
        raise NoRule
    refuse_values(index)
    return together(inner, lambda all_parts: join(all_parts[index]))


def _of_parts(
    target: Any,
    arguments: tuple[Any, ...],
    settings: dict[str, Any],
    select: Callable[[Parts], Tensor],
) -> Call:
    if target not in PARTITIONS:
        raise NoRule
    function = getattr(torch, target) if isinstance(target, str) else target
    input, *args = arguments or (settings.get("input", settings.get("tensor")),)
    rest = {name: value for name, value in settings.items() if name not in ("input", "tensor")}
    refuse_values(*args, *rest.values())
    return _call(input, lambda values: select(function(values, *args, **rest)))


def each_sample(copy: Elementwise, shape: Shape) -> bool:
    """Return whether a function copies entries of each sample within this sample, alike for all."""
    size = math.prod(shape)
    numbers = torch.arange(1.0, 2 * size + 1, dtype=torch.float64).reshape(2, *shape)
    try:
        copies = copy(numbers)
    except (RuntimeError, IndexError, TypeError, ValueError):
        return False
    if copies.shape[:1] != (2,) or not copies.numel():
        return False
    first, second = copies
    are_entries = (first == first.round()) & (first >= 0) & (first <= size)
    return bool((are_entries & (second == torch.where(first > 0, first + size, 0.0))).all())


def step(copy: Elementwise, site: Site) -> Reader:
    """Return the step of a function that copies entries, at its site.

    Raises:
        NoRule: If it does anything else.
    """
    if not each_sample(copy, site.input_shapes[0]):
        raise NoRule("it does more than to copy entries of a sample")
    made = steps.Copy(**site.fields, copy=copy)
    return lambda tensors: made


def _call(input: Argument, copy: Elementwise) -> Call:
    return Call((source(input),), lambda site: step(copy, site))


def _expand(input: Argument, *sizes: Argument) -> Call:
    wanted = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    refuse_values(wanted)

    def readers_at(site: Site) -> Reader:
        if len(wanted) != len(site.input_shapes[0]) + 1:
            raise NoRule("only axes of one sample have one")
        return step(lambda values: values.expand(-1, *wanted[1:]), site)

    return Call((source(input),), readers_at)


def _indexed(input: Argument, index: Argument) -> Call:
    entries = index if isinstance(index, tuple) else (index,)
    refuse_values(*[entry for entry in entries if not isinstance(entry, Constant)])

    def readers_at(site: Site) -> Reader:
        def read(tensors: Tensors) -> steps.Step:
            indices = tuple(
                tensors[entry.name] if isinstance(entry, Constant) else entry for entry in entries
            )
            if not each_sample(lambda values: values[indices], site.input_shapes[0]):
                raise Refused(f"step {site.name!r} does more than to copy entries of a sample.")
            return steps.Copy(**site.fields, copy=lambda values: values[indices])

        return read

    return Call((source(input),), readers_at)


def _interpolated(
    input: Argument,
    size: Argument = None,
    scale_factor: Argument = None,
    mode: Argument = "nearest",
    align_corners: Argument = None,
    recompute_scale_factor: Argument = None,
    antialias: Argument = False,
) -> Call:
    refuse_values(size, scale_factor)
    if mode not in ("nearest", "nearest-exact"):
        raise NoRule(f"mode {mode!r} has none; 'nearest' has")
    return _call(
        input, lambda values: F.interpolate(values, size, scale_factor, mode, align_corners)
    )


def _homes(name: str) -> set[Any]:
    return {name} | ({getattr(torch, name)} if hasattr(torch, name) else set())


PARTITIONS = {target for name in _PARTITIONS for target in _homes(name)}
"""Functions that give several parts of a value at once."""
RULES: dict[Any, CallRule] = {
    operator.getitem: _indexed,
    "expand": _expand,
    F.interpolate: _interpolated,
    **{function: copying(function) for function in _FUNCTIONS.values()},
    **{
        target: copying(getattr(torch.Tensor, name)) for name in _METHODS for target in _homes(name)
    },
}
