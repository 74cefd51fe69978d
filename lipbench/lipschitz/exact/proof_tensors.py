"""Proofs as tensors: lists of numbers, and points in rational numbers."""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor


def packed(
    name: str, lists: Iterable[Sequence[int | float]], dtype: torch.dtype = torch.int64
) -> dict[str, Tensor]:
    """Return lists of numbers as one tensor, and one of their lengths."""
    rows = [list(row) for row in lists]
    return {
        name: torch.tensor([number for row in rows for number in row], dtype=dtype),
        f"{name}_lengths": torch.tensor([len(row) for row in rows], dtype=torch.int64),
    }


def unpacked(proof: Mapping[str, Tensor], name: str) -> tuple[Tensor, ...]:
    """Return the lists that `packed` made tensors of."""
    lengths = proof[f"{name}_lengths"].tolist()
    return proof[name].split(lengths) if lengths else ()


def split(point: Sequence[Fraction]) -> Float[Tensor, "2 coordinates"]:
    """Return a rational point as the sum of two rows of floats, as near as these come."""
    first = [float(x) for x in point]
    rest = [float(x - Fraction(near)) for x, near in zip(point, first, strict=True)]
    return torch.tensor([first, rest], dtype=torch.float64)


def joined(rows: Float[Tensor, "2 coordinates"]) -> list[Fraction]:
    """Return the point that two rows of floats are the sum of."""
    return [Fraction(x) + Fraction(rest) for x, rest in zip(*rows.tolist(), strict=True)]
