"""In-place row updates as a torch operation: the step of a pair ascent, where some rows stay."""

import itertools
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, fx

_LARGE = 100_000
"""Numbers in the rows of one network from which on it pays to leave those alone that stay."""


def updated_rows(
    values: Float[Tensor, "rows *shape"],
    moves: Bool[Tensor, " rows"],
    along: Float[Tensor, "rows width"],
    directions: Float[Tensor, "width inputs"],
    scale: Float[Tensor, " rows"] | None = None,
) -> Float[Tensor, "rows *shape"]:
    """Return scale·values + along @ directions in the rows that move, and values in the others.

    An operation of its own, through which no gradient goes, because how many rows move depends on
    numbers: on a CPU large rows that stay are not touched.
    """
    return _moved(values, moves, along, directions, scale)


def overwrite(program: fx.GraphModule) -> list[int]:
    """Let a program move rows of its arguments in place where nobody reads these afterwards.

    Returns:
        The numbers of the arguments that it overwrites.
    """
    order = {node: number for number, node in enumerate(program.graph.nodes)}
    inputs = [node for node in order if node.op == "placeholder"]
    overwritten = []
    for node in order:
        if node.target is torch.ops.lipbench.moved.default:
            values = node.args[0]
            if values in inputs and max(order[user] for user in _readers(values)) == order[node]:
                node.target = _move
                overwritten.append(inputs.index(values))
    program.recompile()
    return overwritten


def _readers(values: fx.Node) -> set[fx.Node]:
    # Who reads the memory of a value: its users, and those of what may be a view of it.
    readers: set[fx.Node] = set()
    views = [values]
    while views:
        users = set(views.pop().users)
        views += [user for user in users - readers if _may_be_view(user)]
        readers |= users
    return readers


def _may_be_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(value.alias_info is not None for value in schema.returns)


@torch.library.custom_op("lipbench::moved", mutates_args=())
def _moved(
    values: Tensor, moves: Tensor, along: Tensor, directions: Tensor, scale: Tensor | None
) -> Tensor:
    if _leaves_rows(values, directions):
        copy = values.clone(memory_format=torch.contiguous_format)
        return _move(copy, moves, along, directions, scale)
    rows = torch.where(moves.unsqueeze(-1), along, 0.0)
    product = (rows @ directions).view_as(values)
    if scale is None:
        return product.add_(values)
    # Not a choice between moved and old values, which would read all of them once more.
    factor = torch.where(moves, scale, 1.0)
    return torch.addcmul(product, factor.view(*factor.shape, *_unit_axes(values, factor)), values)


@_moved.register_fake
def _(
    values: Tensor, moves: Tensor, along: Tensor, directions: Tensor, scale: Tensor | None
) -> Tensor:
    return torch.empty_like(values)


@_moved.register_vmap
def _(info: Any, axes: tuple[int | None, ...], *arguments: Tensor | None) -> tuple[Tensor, int]:
    def stacked(value: Tensor | None, axis: int | None) -> Tensor | None:
        if value is None or axis == 0:
            return value
        if axis is None:
            return value.expand(info.batch_size, *value.shape)
        return value.movedim(axis, 0)

    return _moved(*itertools.starmap(stacked, zip(arguments, axes, strict=True))), 0


def _leaves_rows(values: Tensor, directions: Tensor) -> bool:
    networks = directions[..., 0, 0].numel()
    return values.device.type == "cpu" and values.numel() >= _LARGE * networks


def _move(
    values: Tensor, moves: Tensor, along: Tensor, directions: Tensor, scale: Tensor | None
) -> Tensor:
    """Return the same as the operation; `values` may be overwritten."""
    if not (values.is_contiguous() and _leaves_rows(values, directions)):
        return _moved(values, moves, along, directions, scale)
    width, inputs = directions.shape[-2:]
    count = moves.shape[-1]
    networks = zip(
        values.view(-1, count, inputs),
        moves.reshape(-1, count),
        along.reshape(-1, count, width),
        directions.reshape(-1, width, inputs),
        itertools.repeat(None) if scale is None else scale.reshape(-1, count),
        strict=False,
    )
    for value, mask, row, direction, factor in networks:
        chosen = mask.nonzero().squeeze(1)
        block = value.index_select(0, chosen)
        if factor is not None:
            block.mul_(factor[chosen].unsqueeze(1))
        value.index_copy_(0, chosen, block.addmm_(row.index_select(0, chosen), direction))
    return values


def _unit_axes(values: Tensor, rows: Tensor) -> tuple[int, ...]:
    return (1,) * (values.ndim - rows.ndim)
