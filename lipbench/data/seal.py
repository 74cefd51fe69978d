"""Seals of data sets: sums over all their bytes, by which a change is noticed."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lipbench.data.splits import Data, Split

_SPLITS = ("train", "pairs", "validation", "test")
_ROW = 4096
"""Words that are summed up together."""


@dataclass(frozen=True)
class Seal:
    """Sums of every tensor of a data set, by its name.

    They find what happens to data: scaling, noise, other samples, another order. They are no
    cryptographic hash, which would take a hundred times as long.
    """

    sums: dict[str, tuple[object, ...]]

    @classmethod
    def of(cls, data: Data) -> "Seal":
        """Return the seal of a data set as it is now."""
        return cls({name: _sums(tensor) for name, tensor in _tensors(data)})

    def differences(self, other: "Seal") -> list[str]:
        """Return the names of the tensors whose sums are others."""
        return [name for name, sums in other.sums.items() if self.sums[name] != sums]


def copy_into(data: Data, fresh: Data) -> None:
    """Give the tensors of a data set the content of those of another reading of it."""
    content = dict(_tensors(fresh))
    for name, tensor in _tensors(data):
        if tensor.shape == content[name].shape and tensor.dtype == content[name].dtype:
            tensor.copy_(content[name])
        else:
            tensor.data = content[name].clone()


def _tensors(data: Data) -> Iterator[tuple[str, Tensor]]:
    for name in _SPLITS:
        split: Split = getattr(data, name)
        yield f"data.{name}.inputs", split.inputs
        yield f"data.{name}.targets", split.targets
        yield f"data.{name}.index", torch.from_numpy(split.index)
        if name == "train" and split._bytes is not None:  # what training reads instead
            yield f"data.{name}.inputs (as bytes)", split._bytes


def _sums(tensor: Tensor) -> tuple[object, ...]:
    shape, kind = tuple(tensor.shape), tensor.dtype
    words = _words(tensor.detach())
    whole = words[: len(words) // _ROW * _ROW].view(-1, _ROW)
    rest = words[len(whole) * _ROW :]
    # Wraparound is meant. Weights tell apart what is merely in another order.
    by_row, by_column = whole.sum(dim=1), whole.sum(dim=0)
    sums = [(part * _weights(part)).sum() for part in (by_row, by_column, rest)]
    return shape, kind, tensor.requires_grad, *torch.stack(sums).tolist()


def _words(tensor: Tensor) -> Tensor:
    if not tensor.numel():  # whose strides may be anything
        return torch.zeros(0, dtype=torch.int64, device=tensor.device)
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    padding = -len(flat) % 8
    if padding or flat.data_ptr() % 8:
        flat = torch.cat([flat, flat.new_zeros(padding)])
    return flat.view(torch.int64)


def _weights(part: Tensor) -> Tensor:
    # Odd, and of all bits: a product with an even number would lose the highest.
    numbers = torch.arange(len(part), device=part.device)
    return (numbers * 0x1E3779B97F4A7C15) | 1
