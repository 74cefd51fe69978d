"""Order statistics: which entries of a value are the larger and smaller of which earlier entries.

Entries of earlier values have numbers, in rising order of values. What is said here is exact: it
follows from what steps compute, and never from numbers that happen to agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.networks.steps import (
    Concatenation,
    Copy,
    GroupSort,
    MaxPool,
    Rearrange,
    Slope,
    Step,
    Sum,
)

_NOBODY = torch.iinfo(torch.int64).max
"""The second of a pair that is one entry alone."""
_FINEST = 2.0**10
"""Weights are multiples of its inverse, and no larger than it: their products are exact."""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Entries c·x, with x the number of a certain rank in a group of earlier entries."""

    groups: Int[Tensor, "entries group"]
    """The earlier entries, which differ, in rising order."""
    ranks: Int[Tensor, " entries"]
    """From 0, the largest."""
    factors: Float[Tensor, " entries"]

    @classmethod
    def of(cls, numbers: Int[Tensor, " entries"]) -> "Ranked":
        """Return earlier entries as they are."""
        return cls(
            groups=numbers.unsqueeze(1),
            ranks=torch.zeros_like(numbers),
            factors=torch.ones(len(numbers), dtype=torch.float64),
        )

    @property
    def size(self) -> int:
        """Return how many entries a group has."""
        return self.groups.shape[1]

    @property
    def is_plain(self) -> bool:
        """Return whether all factors are 1."""
        return bool((self.factors == 1).all())

    @property
    def is_uniform(self) -> bool:
        """Return whether all factors are one number."""
        return bool((self.factors == self.factors[:1]).all())

    @property
    def is_injective(self) -> bool:
        """Return whether no earlier entry is in two groups, and no rank of a group taken twice."""
        groups, numbers = self.groups.unique(dim=0, return_inverse=True)
        taken = numbers * self.size + self.ranks
        return all(len(each.unique()) == each.numel() for each in (groups, taken))

    def rows(self, chosen: Int[Tensor, " chosen"]) -> "Ranked":
        """Return some of the entries."""
        return Ranked(
            groups=self.groups[chosen], ranks=self.ranks[chosen], factors=self.factors[chosen]
        )


@dataclass(frozen=True, kw_only=True)
class PairSums:
    """Entries a·x + b·y + c·max(x, y) of pairs of earlier entries x and y, or a·x of one."""

    pairs: Int[Tensor, "entries 2"]
    """In rising order."""
    weights: Float[Tensor, "entries 3"]

    def rows(self, chosen: Int[Tensor, " chosen"]) -> "PairSums":
        """Return some of the entries."""
        return PairSums(pairs=self.pairs[chosen], weights=self.weights[chosen])

    @property
    def ranked(self) -> Ranked | None:
        """Return the same as numbers of ranks, None if they are more than that."""
        first, second, larger = self.weights.unbind(1)
        is_copy = (larger == 0) & ((first == 0) != (second == 0))
        is_larger = (first == 0) & (second == 0) & (larger != 0)
        is_smaller = (first == second) & (first == -larger) & (larger != 0)
        if bool(is_copy.all()):
            numbers = torch.where(first != 0, self.pairs[:, 0], self.pairs[:, 1])
            return replace(Ranked.of(numbers), factors=first + second)
        if bool((is_larger | is_smaller).all()):
            ranks = is_smaller.to(torch.int64)
            return Ranked(
                groups=self.pairs, ranks=ranks, factors=torch.where(is_smaller, first, larger)
            )
        return None


Entries = Ranked | PairSums


def entries_of(step: Step, reads: Sequence[Entries]) -> Entries | None:
    """Return the entries of a step's result, None if they are no such numbers.

    Args:
        step: The step.
        reads: The entries of what it reads.
    """
    entries = _entries(step, *reads)
    if isinstance(entries, Ranked):
        return entries if _are_exact(entries.factors) else None
    if entries is None or not _are_exact(entries.weights):
        return None
    return entries.ranked or entries


@singledispatch
def _entries(step: Step, *reads: Entries) -> Entries | None:
    return None


@_entries.register(Rearrange)
def _(step: Rearrange, read: Entries) -> Entries:
    return read


@_entries.register(Copy)
def _(step: Copy, read: Entries) -> Entries | None:
    numbers = _numbers(step).to(torch.float64) + 1
    copied = step.copy(numbers.unsqueeze(0)).flatten().long()
    return None if bool((copied == 0).any()) else read.rows(copied - 1)


@_entries.register(Concatenation)
def _(step: Concatenation, *reads: Entries) -> Entries | None:
    numbers = torch.arange(sum(len(_scales(read)) for read in reads))
    parts = numbers.split([len(_scales(read)) for read in reads])
    placed = [part.view(1, *shape) for part, shape in zip(parts, step.input_shapes, strict=True)]
    joined = _joined(reads)
    return joined and joined.rows(torch.cat(placed, dim=step.axis).flatten())


@_entries.register(GroupSort)
def _(step: GroupSort, read: Entries) -> Entries | None:
    channels, *rest = step.input_shape
    groups = _numbers(step).view(channels // step.group, step.group, *rest).movedim(1, -1)
    ranked = _sorted(read, groups.reshape(-1, step.group))
    if ranked is None:
        return None
    numbers = torch.arange(len(ranked.ranks)).view(channels // step.group, *rest, step.group)
    return ranked.rows(numbers.movedim(-1, 1).flatten())


@_entries.register(MaxPool)
def _(step: MaxPool, read: Entries) -> Entries | None:
    # Of more than two, a tournament finds the largest sooner than a sort.
    if any(step.padding) or set(step.dilation) != {1} or torch.Size(step.window).numel() != 2:
        return None
    windows = _numbers(step)
    for axis, (width, stride) in enumerate(zip(step.window, step.stride, strict=True), 1):
        windows = windows.unfold(axis, width, stride)
    if windows.shape[: len(step.output_shape)] != step.output_shape:
        return None
    windows = windows.flatten(len(step.output_shape)).flatten(0, -2)
    ranked = _sorted(read, windows)
    return ranked and ranked.rows(torch.arange(len(windows)) * windows.shape[1])


@_entries.register(Sum)
def _(step: Sum, *reads: Entries) -> Entries | None:
    coefficients = torch.tensor(step.coefficients, dtype=torch.float64)
    if step.offset != 0 or not _are_exact(coefficients):
        return None
    first, *others = reads
    if not others:
        return _scaled(first, step.coefficients[0])
    total = _as_sums(first)
    total = total and _weighted(total, step.coefficients[0])
    for coefficient, read in zip(step.coefficients[1:], others, strict=True):
        term = _as_sums(read)
        if total is None or term is None:
            return None
        total = _plus(total, _weighted(term, coefficient))
    return total


@_entries.register(Slope)
def _(step: Slope, read: Entries) -> Entries | None:
    """Return l·d + (r - l)·max(d, 0) of differences d = c·(x - y), where slopes are l and r."""
    if step.sides is None or isinstance(read, Ranked):
        return None
    left, right = step.sides
    first, second, larger = read.weights.unbind(1)
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return None
    if not bool(((first == -second) & (first != 0) & (larger == 0)).all()):
        return None
    size = first.abs()
    up, down = (right - left) * size, -right * size
    ahead = torch.where(first > 0, left * size, down)
    behind = torch.where(first > 0, down, left * size)
    weights = torch.stack([ahead, behind, up], dim=1)
    exact = torch.tensor([left, right], dtype=torch.float64)
    return PairSums(pairs=read.pairs, weights=weights) if _are_exact(exact) else None


def _sorted(read: Entries, groups: Int[Tensor, "groups size"]) -> Ranked | None:
    """Return the entries of each group from the largest to the smallest, group by group."""
    if not isinstance(read, Ranked) or read.size != 1:
        return None
    factors = read.factors[groups]
    numbers = read.groups[:, 0][groups].sort(dim=1).values
    # A factor of all numbers of a group changes their order, or turns it round.
    if bool((factors != factors[:, :1]).any() | (factors == 0).any()):
        return None
    if bool((numbers[:, 1:] == numbers[:, :-1]).any()):
        return None
    size = groups.shape[1]
    ranks = torch.arange(size).expand(len(groups), -1)
    return Ranked(
        groups=numbers.repeat_interleave(size, dim=0),
        ranks=torch.where(factors > 0, ranks, size - 1 - ranks).flatten(),
        factors=factors.flatten(),
    )


def _joined(reads: Sequence[Entries]) -> Entries | None:
    ranked = [read for read in reads if isinstance(read, Ranked)]
    if len(ranked) == len(reads) and len({read.size for read in ranked}) == 1:
        return Ranked(
            groups=torch.cat([read.groups for read in ranked]),
            ranks=torch.cat([read.ranks for read in ranked]),
            factors=torch.cat([read.factors for read in ranked]),
        )
    sums = [total for read in reads if (total := _as_sums(read)) is not None]
    if len(sums) < len(reads):
        return None
    return PairSums(
        pairs=torch.cat([total.pairs for total in sums]),
        weights=torch.cat([total.weights for total in sums]),
    )


def _as_sums(read: Entries) -> PairSums | None:
    if isinstance(read, PairSums) or read.size > 2:
        return read if isinstance(read, PairSums) else None
    factors, zero = read.factors, torch.zeros_like(read.factors)
    if read.size == 1:
        pairs = torch.cat([read.groups, torch.full_like(read.groups, _NOBODY)], dim=1)
        return PairSums(pairs=pairs, weights=torch.stack([factors, zero, zero], dim=1))
    # The smaller is both less the larger.
    larger = torch.stack([zero, zero, factors], dim=1)
    smaller = torch.stack([factors, factors, -factors], dim=1)
    weights = torch.where(read.ranks.unsqueeze(1) == 0, larger, smaller)
    return PairSums(pairs=read.groups, weights=weights)


def _plus(one: PairSums, other: PairSums) -> PairSums | None:
    """Return the sum, None where it is of more than two earlier entries."""
    known = torch.cat([one.pairs, other.pairs], dim=1).sort(dim=1).values
    first = known[:, :1]
    second = torch.where(known == first, _NOBODY, known).amin(dim=1, keepdim=True)
    if bool(((known != first) & (known != second) & (known != _NOBODY)).any()):
        return None
    pairs = torch.cat([first, second], dim=1)
    weights = sum(_weights_at(pairs, part) for part in (one, other))
    return PairSums(pairs=pairs, weights=torch.as_tensor(weights))


def _weights_at(pairs: Int[Tensor, "entries 2"], part: PairSums) -> Float[Tensor, "entries 3"]:
    copies = [
        torch.where(part.pairs == pairs[:, index : index + 1], part.weights[:, :2], 0.0).sum(dim=1)
        for index in range(2)
    ]
    return torch.stack([*copies, part.weights[:, 2]], dim=1)


def _scaled(read: Entries, coefficient: float) -> Entries:
    if isinstance(read, Ranked):
        return replace(read, factors=coefficient * read.factors)
    return _weighted(read, coefficient)


def _weighted(total: PairSums, coefficient: float) -> PairSums:
    return replace(total, weights=coefficient * total.weights)


def _are_exact(weights: Tensor) -> bool:
    fine = weights * _FINEST
    return bool((fine == fine.round()).all() and (weights.abs() <= _FINEST).all())


def _scales(read: Entries) -> Tensor:
    return read.factors if isinstance(read, Ranked) else read.weights


def _numbers(step: Step) -> Int[Tensor, "*shape"]:
    """Return the places of the entries that a step reads, in its shape."""
    return torch.arange(torch.Size(step.input_shape).numel()).view(step.input_shape)
