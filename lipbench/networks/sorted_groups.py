"""Sorted groups: the larger and smaller entries that plain code computes apart, as one GroupSort.

Where a value holds numbers of certain ranks in groups of earlier entries, it is sorted groups in
another order, however it was written: as maxima beside minima, by ReLUs of differences, by pooling.
Apart, each of these could grow by as much as all of them together; as one sorting none does. In
the same way parts of one value side by side are copies of its entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from lipbench.networks.order_statistics import Entries, Ranked, entries_of
from lipbench.networks.steps import (
    Concatenation,
    Copy,
    GroupSort,
    Rearrange,
    Scale,
    Shape,
    Slope,
    Step,
    Sum,
)

_MOST = 2**32
"""Entries that a value may have at most: the next value's are numbered from there."""


def with_sorted_groups(
    input_shape: Shape, steps: tuple[Step, ...], output: int
) -> tuple[tuple[Step, ...], int]:
    """Return the same function, with what is sorted, or copied, in several steps in one instead.

    Args:
        input_shape: Shape of the input, value 0.
        steps: The steps, of which each reads the input or results of earlier ones.
        output: Which value is returned.

    Returns:
        The steps, as they were if there is nothing of that kind, and the output among them.
    """
    if not any(len(step.inputs) > 1 for step in steps):
        return steps, output
    origins = _origins(input_shape, steps)
    taken = _taken(origins, steps, output)
    if not any(origins[value].is_roundabout for value in taken):
        return steps, output
    written = _Written(origins)
    for value in taken:
        written.add(value, steps[value - 1])
    return tuple(written.steps), written.places[output]


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """How the entries of a value come from those of earlier ones."""

    shape: Shape
    entries: Entries
    is_new: bool = False
    """Whether they are numbers of their own, by which later entries are told."""
    joins: bool = False
    """Whether values were put side by side."""
    mixes: bool = False
    """Whether values were added, or bent."""

    @cached_property
    def sources(self) -> list[int]:
        """Return the values whose entries these are."""
        if not isinstance(self.entries, Ranked):
            return []
        return [int(source) for source in (self.entries.groups // _MOST).unique()]

    @cached_property
    def is_roundabout(self) -> bool:
        """Return whether these are sorted groups, or copies of one value, made in several ways."""
        if self.is_new or not isinstance(self.entries, Ranked):
            return False
        if self.entries.size == 1:
            return self.joins and len(self.sources) == 1 and self.entries.is_injective
        return (self.joins or self.mixes) and (self.entries.is_uniform or self.entries.is_injective)


def _origins(input_shape: Shape, steps: tuple[Step, ...]) -> list[_Origin]:
    origins = [_new(0, input_shape)]
    for value, step in enumerate(steps, 1):
        before = [origins[read] for read in step.inputs]
        entries = entries_of(step, [origin.entries for origin in before])
        if entries is None:
            origins.append(_new(value, step.output_shape))
            continue
        mixes = isinstance(step, Slope) or (isinstance(step, Sum) and len(before) > 1)
        origins.append(
            _Origin(
                shape=step.output_shape,
                entries=entries,
                joins=isinstance(step, Concatenation) or any(origin.joins for origin in before),
                mixes=mixes or any(origin.mixes for origin in before),
            )
        )
    return origins


def _new(value: int, shape: Shape) -> _Origin:
    numbers = torch.arange(torch.Size(shape).numel())
    return _Origin(shape=shape, entries=Ranked.of(value * _MOST + numbers), is_new=True)


def _taken(origins: Sequence[_Origin], steps: tuple[Step, ...], output: int) -> list[int]:
    """Return the values that the output takes, once roundabouts read their sources alone."""
    taken = {output}
    for value in range(len(steps), 0, -1):
        if value in taken:
            origin = origins[value]
            taken |= set(origin.sources if origin.is_roundabout else steps[value - 1].inputs)
    return sorted(taken - {0})


class _Written:
    """A network that is written anew, value by value."""

    def __init__(self, origins: Sequence[_Origin]) -> None:
        self.steps: list[Step] = []
        self.places = {0: 0}
        """Where the values are that were written already."""
        self._origins = origins

    def add(self, value: int, step: Step) -> None:
        """Write a value, which was the result of a step."""
        origin = self._origins[value]
        if origin.is_roundabout and isinstance(origin.entries, Ranked):
            self._sort(step, origin, origin.entries)
        else:
            self.steps.append(
                replace(step, inputs=tuple(self.places[read] for read in step.inputs))
            )
        self.places[value] = len(self.steps)

    def _sort(self, step: Step, origin: _Origin, entries: Ranked) -> None:
        shapes = [self._origins[source].shape for source in origin.sources]
        chain = _Chain(self.steps, step.name)
        starts = chain.join([self.places[source] for source in origin.sources], shapes)
        groups, numbers = entries.groups.unique(dim=0, return_inverse=True)
        number = torch.searchsorted(torch.tensor(origin.sources), groups // _MOST)
        places = (starts[number] + groups % _MOST).flatten()
        if entries.size == 1:
            chain.copy(places[numbers], origin.shape)
        else:
            chain.copy(places, (len(places),))
            chain.add(GroupSort, (len(places),), group=entries.size)
            chain.copy(numbers * entries.size + entries.ranks, origin.shape)
        if entries.is_plain:
            return
        if entries.is_uniform:
            chain.add(Sum, origin.shape, coefficients=(float(entries.factors[0]),))
        else:
            factors = entries.factors.view(origin.shape)
            chain.add(Scale, origin.shape, factor=factors, offset=torch.zeros_like(factors))


class _Chain:
    """Steps that are appended to others, each reading the one before."""

    def __init__(self, steps: list[Step], name: str) -> None:
        self._steps, self._name = steps, name
        self._inputs: tuple[int, ...] = ()
        self._shapes: tuple[Shape, ...] = ()

    def join(self, values: Sequence[int], shapes: Sequence[Shape]) -> Int[Tensor, " values"]:
        """Put values side by side, as one vector if there are several.

        Returns:
            Where each begins.
        """
        sizes = [torch.Size(shape).numel() for shape in shapes]
        flat = []
        for value, shape, size in zip(values, shapes, sizes, strict=True):
            self._inputs, self._shapes = (value,), (shape,)
            if len(values) > 1 and len(shape) > 1:
                self.add(Rearrange, (size,))
            flat.append(self._inputs[0])
        if len(values) > 1:
            self._inputs, self._shapes = tuple(flat), tuple((size,) for size in sizes)
            self.add(Concatenation, (sum(sizes),), axis=1)
        return torch.tensor([0, *sizes]).cumsum(0)[:-1]

    def add(self, kind: type[Step], shape: Shape, **settings: object) -> None:
        fields = {"name": self._name, "inputs": self._inputs, "input_shapes": self._shapes}
        self._steps.append(kind(**fields, output_shape=shape, **settings))  # type: ignore[arg-type]
        self._inputs, self._shapes = (len(self._steps),), (shape,)

    def copy(self, places: Int[Tensor, " places"], shape: Shape) -> None:
        self.add(Copy, shape, copy=lambda values: values.flatten(1)[:, places])
