"""Maximum, minimum and sort in a forward pass, as steps."""

import operator
from typing import Any

import torch
from torch import Tensor, fx

from lipbench.layers.elementwise import Elementwise
from lipbench.networks import copies, steps
from lipbench.networks.call import Argument, Call, CallRule, NoRule, refuse_values, source
from lipbench.networks.primitives import Reader, Site
from lipbench.networks.steps import Shape

_LARGER = {torch.max: True, torch.maximum: True, "max": True, "maximum": True}
_SMALLER = {torch.min: False, torch.minimum: False, "min": False, "minimum": False}
_EXTREMES: dict[Any, bool] = _LARGER | _SMALLER
_SORTS = (torch.sort, "sort")
_TOPS = (torch.topk, "topk")
_BOTH_ENDS = (torch.aminmax, "aminmax")
_ENDS: dict[Any, bool] = {0: False, "min": False, 1: True, "max": True}
_VALUES = (0, "values")


def item(node: fx.Node, index: Any) -> Call:
    """Return the item of a sort, or of an extreme along an axis, that holds the values.

    Raises:
        NoRule: If `node` is neither, or `index` asks for the indices.
    """
    if node.target in _BOTH_ENDS and index in _ENDS:
        return _along(_ENDS[index], *node.args, **node.kwargs)
    if node.target in _SORTS:
        call = _sorted(*node.args, **node.kwargs)
    elif node.target in _TOPS:
        call = _top(*node.args, **node.kwargs)
    elif node.target in _EXTREMES:
        call = _along(_EXTREMES[node.target], *node.args, **node.kwargs)
    else:
        raise NoRule
    if index not in _VALUES:
        raise NoRule("the places of the sorted numbers are no continuous function")
    return call


def sorted_pair(tensors: Argument, axis: Argument) -> Call | None:
    """Return the sort that puts the larger of two values before the smaller, or None for others.

    As one sorting, which keeps lengths; of a larger and a smaller value alone each could grow.
    """
    if not isinstance(tensors, tuple | list) or len(tensors) != 2:
        return None
    (is_larger, values), (is_next_larger, others) = [_pair(node) for node in tensors]
    if is_larger is None or is_next_larger is None or is_larger == is_next_larger:
        return None
    if set(values) != set(others):
        return None
    order = 1 if is_larger else -1
    return _compared(values[0], values[1], axis, lambda pairs: pairs.unbind(-1)[::order])


def _pair(node: Argument) -> tuple[bool | None, tuple[fx.Node, ...]]:
    """Return whether a node is the larger (True) or the smaller of two values, and these."""
    if isinstance(node, fx.Node) and node.target in _EXTREMES and not node.kwargs:
        values = tuple(value for value in node.args if isinstance(value, fx.Node))
        if len(values) == len(node.args) == 2:
            return _EXTREMES[node.target], values
    return None, ()


def _extreme(is_larger: bool) -> CallRule:
    def rule(input: Argument, other: Argument = None, **settings: Argument) -> Call:
        if settings or not isinstance(other, fx.Node):
            raise NoRule("only the larger or smaller of two values has one, or that of an axis")
        return _compared(source(input), other, 1, lambda pairs: [pairs[..., 0 if is_larger else 1]])

    return rule


def _extreme_of_axis(is_larger: bool) -> CallRule:
    def rule(input: Argument, dim: Argument = None, keepdim: Argument = False) -> Call:
        return _along(is_larger, input, dim, keepdim)

    return rule


def _compared(first: fx.Node, second: fx.Node, axis: Argument, select: Any) -> Call:
    """Return what `select` takes of sorted pairs, the larger first, side by side along an axis."""
    refuse_values(axis)
    # The order of two values does not matter to the larger and the smaller.
    whole = _halved(first, second, axis) or _halved(second, first, axis)

    def readers_at(site: Site) -> list[Reader]:
        shape = tuple(site.input_shapes[0])
        ndim = len(shape) + 1
        if not shape or axis % ndim == 0 or len(set(site.input_shapes)) > 1:
            raise NoRule("only values of one shape, side by side along an axis of it, have one")
        at = axis % ndim
        if whole is None:
            joined = (*shape[: at - 1], 2 * shape[at - 1], *shape[at:])
        else:
            joined = shape
            shape = (*shape[: at - 1], shape[at - 1] // 2, *shape[at:])
        chain = _Chain(site, site.input_shapes)
        if whole is None:
            chain.add(steps.Concatenation, joined, axis=at)
        count = 2 * torch.Size(shape).numel()
        chain.copy((count,), lambda values: torch.stack(values.chunk(2, at), -1).flatten(1))
        chain.add(steps.GroupSort, (count,), group=2)
        chain.copy(
            site.output_shape,
            lambda values: torch.cat(list(select(values.unflatten(1, (*shape, 2)))), at),
        )
        return chain.readers

    return Call((first, second) if whole is None else (whole,), readers_at)


def _halved(first: fx.Node, second: fx.Node, axis: int) -> fx.Node | None:
    """Return the value that a partition halves along an axis into these two, in order, or None."""
    origins = []
    for number, node in enumerate((first, second)):
        if node.target is not operator.getitem or node.args[1] != number:
            return None
        origins.append(node.args[0])
    halves = origins[0]
    if origins[1] is not halves or not isinstance(halves, fx.Node):
        return None
    if halves.target not in copies.PARTITIONS or halves.target in (torch.unbind, "unbind"):
        return None
    whole = halves.args[0] if halves.args else None
    shapes = [node.meta["shape"] for node in (first, second)]
    if not isinstance(whole, fx.Node) or "shape" not in whole.meta or shapes[0] != shapes[1]:
        return None
    full, half = whole.meta["shape"], shapes[0]
    at = axis % len(full)
    doubled = (*half[:at], 2 * half[at], *half[at + 1 :])
    is_halved = at > 0 and doubled == full and half != full
    return whole if is_halved else None


def _sorted(
    input: Argument, dim: Argument = -1, descending: Argument = False, stable: Argument = False
) -> Call:
    refuse_values(dim, descending)
    return _ordered(input, dim, lambda values: values if descending else values.flip(-1))


def _top(
    input: Argument,
    k: Argument,
    dim: Argument = -1,
    largest: Argument = True,
    sorted: Argument = True,
) -> Call:
    refuse_values(k, dim, largest, sorted)
    if not sorted:
        raise NoRule("in no certain order it has none")
    return _ordered(input, dim, lambda values: (values if largest else values.flip(-1))[..., :k])


def _along(
    is_larger: bool, input: Argument, dim: Argument = None, keepdim: Argument = False
) -> Call:
    if isinstance(dim, list | tuple) and len(dim) == 1:
        (dim,) = dim
    if not isinstance(dim, int):
        raise NoRule("only an extreme along one axis of a sample has one")
    refuse_values(keepdim)
    rank = 0 if is_larger else -1
    kept = [None] if keepdim else []

    def extreme(values: Tensor) -> Tensor:
        return values[(..., rank, *kept)]

    return _ordered(input, dim, extreme, keeps_axis=bool(keepdim))


def _ordered(input: Argument, dim: int, select: Elementwise, *, keeps_axis: bool = True) -> Call:
    """Return what `select` takes of a sort along an axis, the largest first."""

    def readers_at(site: Site) -> list[Reader]:
        (shape,) = site.input_shapes
        at = dim % (len(shape) + 1)
        if at == 0:
            raise NoRule("it compares samples of a batch")
        rest = (*shape[: at - 1], *shape[at:])
        size = torch.Size(shape).numel()
        chain = _Chain(site, site.input_shapes)
        chain.copy((size,), lambda values: values.movedim(at, -1).flatten(1))
        chain.add(steps.GroupSort, (size,), group=shape[at - 1])

        def back(values: Tensor) -> Tensor:
            ordered = select(values.unflatten(1, (*rest, shape[at - 1])))
            return ordered.movedim(-1, at) if keeps_axis else ordered

        chain.copy(site.output_shape, back)
        return chain.readers

    return Call((source(input),), readers_at)


class _Chain:
    """Steps at one site, each reading the one before."""

    def __init__(self, site: Site, shapes: tuple[Shape, ...]) -> None:
        self._site, self._shapes = site, shapes
        self.readers: list[Reader] = []

    def add(self, kind: type[steps.Step], shape: Shape, **settings: Any) -> None:
        site = Site(name=self._site.name, input_shapes=self._shapes, output_shape=shape)
        step = kind(**site.fields, **settings)
        self.readers.append(lambda tensors: step)
        self._shapes = (shape,)

    def copy(self, shape: Shape, copy: Elementwise) -> None:
        self.add(steps.Copy, shape, copy=copy)


RULES: dict[Any, CallRule] = {
    **{target: _extreme(is_larger) for target, is_larger in _EXTREMES.items()},
    torch.amax: _extreme_of_axis(True),
    "amax": _extreme_of_axis(True),
    torch.amin: _extreme_of_axis(False),
    "amin": _extreme_of_axis(False),
}
