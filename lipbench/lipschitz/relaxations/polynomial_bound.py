"""LiPopt: Lipschitz constants from Krivine's certificates, proposed, certified, checked again.

In the norm infinity a constant is the largest sum of absolute derivatives of one output, in the
norm 1 that of one input. In l2 both are taken, with weights p > 0 for outputs and q > 0 for inputs:
‖J‖² is at most max_j Σ_i |J_ji|·q_i/p_j times max_i Σ_j |J_ji|·p_j/q_i.

Source:
    Latorre, Rolland, Cevher, Lipschitz constant estimation of Neural Networks via sparse polynomial
    optimization (ICLR 2020), https://arxiv.org/abs/2004.08688, for the norm infinity and one
    output. The way to l2 is Schur's test, and this project's.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lipbench.bound import Lipschitz
from lipbench.lipschitz.relaxations.entrywise import interval_norm
from lipbench.lipschitz.relaxations.intervals import loop_transformation_on
from lipbench.lipschitz.relaxations.krivine import (
    Family,
    Numbers,
    Products,
    ProductWeights,
    families,
    plain_bound,
)
from lipbench.lipschitz.relaxations.magnitudes import above_underflow
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.lipschitz.relaxations.polynomials import Polynomial, derivative_polynomials, levels
from lipbench.lipschitz.relaxations.rounding import UNIT
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.threat import Box

T = TypeVar("T")

_LARGEST = 2**22
"""Entries of a network's matrices: with more it is not small, however few of its neurons bend."""
_CLOSE = 1 + 1e-6
_STARTS = 16
_LEAST = 1e-3
"""The least weight in l2, as a share of the largest."""


def lipopt_bound(
    network: Network, norm: Norm, domain: Box | None, degree: int | None, most_terms: int
) -> Lipschitz:
    """Return the bound of the best certificates, never worse than that of intervals.

    Args:
        network: The network.
        norm: Norm of inputs and outputs.
        domain: Box that the pairs lie in, None for all of space.
        degree: Factors of the products, moved into the range that makes sense. None raises it from
            the least as long as the polynomials are not known to be as large as their bounds.
            Families of products that are larger are tried while there is room.
        most_terms: Most terms of all products that are tried.

    Raises:
        Refused: If a step cannot be read neuron by neuron, slopes are not bounded, or there are
            more terms.
    """
    problem = _Problem(network, norm, domain)
    plans = _plans(problem.programs, degree, most_terms)
    scales = problem.scales()
    sides = problem.sides(scales)
    certificates = [_search(side, plan) for side, plan in zip(sides, plans, strict=True)]
    value = problem.value([[certificate.bound for certificate in side] for side in certificates])
    return Lipschitz.upper(
        network,
        above_underflow(network, value),
        norm,
        domain,
        **_packed([certificate for side in certificates for certificate in side]),
        **scales,
    )


def proved_by_products(network: Network, value: Lipschitz) -> float:
    """Return the constant that the stored weights of products prove, from the network anew."""
    problem = _Problem(network, value.norm, value.domain)
    scales = {name: value.proof[name] for name in _SCALES if name in value.proof}
    if not problem.has(scales):
        return math.inf
    sides = problem.sides(scales)
    stored = _unpacked(value.proof, sum(map(len, sides)))
    if stored is None:
        return math.inf
    return problem.value([[_proved(total, *next(stored)) for total in side] for side in sides])


def planned_terms(
    network: Network, norm: Norm, domain: Box | None, degree: int | None, most_terms: int
) -> int:
    """Return how many terms of products `lipopt_bound` looks at if it does not end before.

    Raises:
        Refused: If it refuses the network.
    """
    programs = _Problem(network, norm, domain).programs
    plans = _plans(programs, degree, most_terms)
    return sum(
        program.terms(family)
        for program, plan in zip(programs, plans, strict=True)
        for family in plan
    )


@dataclass(frozen=True, kw_only=True)
class _Sum:
    """A sum of absolute derivatives with weights, as the maximum of a polynomial."""

    polynomial: Polynomial
    interval: float
    """The bound of it by interval arithmetic."""


@dataclass(frozen=True, kw_only=True)
class _Programs:
    """Polynomials in the same groups of variables: their number, and the sizes of the groups."""

    count: int
    sizes: tuple[int, ...]

    def terms(self, family: Family) -> int:
        return self.count * family.terms(self.sizes)


@dataclass(frozen=True, kw_only=True)
class _Certificate:
    """Weights of products of a family, and the bound that they prove."""

    bound: float
    family: Family | None
    """None where there are no products."""
    numbers: Numbers
    weights: ProductWeights


class _Problem:
    """Sums of absolute derivatives to be bounded: of rows or of columns, in l2 of both."""

    def __init__(self, network: Network, norm: Norm, domain: Box | None) -> None:
        """Read a network.

        Raises:
            Refused: If a step cannot be read neuron by neuron, or slopes are not bounded.
        """
        blocks = as_neuron_blocks(network, _LARGEST)
        self.norm = norm
        self.loops = loop_transformation_on(blocks, domain)
        self.by_intervals, self.entries = interval_norm(blocks, norm, domain)

    @property
    def programs(self) -> list[_Programs]:
        """Return the groups of variables of each side."""
        outputs, inputs = self.entries.shape
        others = [len(level) for level in levels(self.loops)]
        rows = _Programs(count=outputs, sizes=(inputs, *others))
        columns = _Programs(count=inputs, sizes=(outputs, *others))
        return self._of_norm(rows, columns)

    def scales(self) -> dict[str, Tensor]:
        """Return weights in l2: with them the interval bounds of both sides are those of l2."""
        if self.norm != 2.0:
            return {}
        left, right = (torch.ones(size, dtype=torch.float64) for size in self.entries.shape)
        if self.entries.numel() and bool(self.entries.isfinite().all()):
            vectors = torch.linalg.svd(self.entries, full_matrices=False)
            left, right = vectors.U[:, 0].abs(), vectors.Vh[0].abs()
        return {
            name: scale.clamp_min(_LEAST * float(scale.max()))
            for name, scale in zip(_SCALES, (left, right), strict=True)
        }

    def has(self, scales: Mapping[str, Tensor]) -> bool:
        """Return whether these are weights for the norm."""
        if self.norm != 2.0:
            return not scales
        sizes = dict(zip(_SCALES, self.entries.shape, strict=True))
        return scales.keys() == sizes.keys() and all(
            scale.shape == (sizes[name],) and bool(((scale > 0) & scale.isfinite()).all())
            for name, scale in scales.items()
        )

    def sides(self, scales: Mapping[str, Tensor]) -> list[list[_Sum]]:
        """Return the sums whose largest are wanted."""
        known = derivative_polynomials(self.loops)
        outputs, inputs = (
            scales.get(name, torch.ones(size, dtype=torch.float64))
            for name, size in zip(_SCALES, self.entries.shape, strict=True)
        )
        rows = [
            _sum(known.row(number, inputs / weight), self.entries[number], inputs / weight)
            for number, weight in enumerate(outputs)
        ]
        columns = [
            _sum(known.column(number, outputs / weight), self.entries[:, number], outputs / weight)
            for number, weight in enumerate(inputs)
        ]
        return self._of_norm(rows, columns)

    def value(self, bounds: Sequence[Sequence[float]]) -> float:
        """Return the constant that bounds of the sums prove, or intervals if that is less."""
        largest = [max(side, default=0.0) for side in bounds]
        if self.norm == 2.0:
            rows, columns = map(math.sqrt, largest)
            return _least(rows * columns * (1 + 4 * UNIT), self.by_intervals)
        return _least(largest[0], self.by_intervals)

    def _of_norm(self, rows: T, columns: T) -> list[T]:
        if self.norm == 2.0:
            return [rows, columns]
        return [columns] if self.norm == 1.0 else [rows]


_SCALES = ("output_scales", "input_scales")


def _sum(polynomial: Polynomial, entries: Tensor, weights: Tensor) -> _Sum:
    interval = float(entries @ weights) * (1 + 1e-12 * (len(weights) + 1))
    return _Sum(polynomial=polynomial, interval=interval)


def _plans(
    programs: Sequence[_Programs], degree: int | None, most_terms: int
) -> list[list[Family]]:
    """Return the families to try for each of the programs, in this order.

    Raises:
        Refused: If not even the first ones have few enough terms.
    """
    plans: list[list[Family]] = [[] for _ in programs]
    total = 0
    for step in zip_longest(*(families(program.sizes, degree) for program in programs)):
        current = [(number, family) for number, family in enumerate(step) if family is not None]
        total += sum(programs[number].terms(family) for number, family in current)
        if total > most_terms:
            if plans[current[0][0]]:
                break
            raise Refused(
                f"products of degree {current[0][1].degree} of its {sum(programs[0].sizes)} inputs "
                f"and neurons have {total} terms, more than the {most_terms} of most_terms."
            )
        for number, family in current:
            plans[number].append(family)
    return plans


def _search(side: Sequence[_Sum], plan: Sequence[Family]) -> list[_Certificate]:
    """Return the best certificate of each sum, as far as the largest of them needs it."""
    nothing = np.zeros(0, dtype=np.int64), np.zeros(0)
    known = [_certificate(total, None, *nothing) for total in side]
    largest = max((total.polynomial.vertex(_STARTS) for total in side), default=0.0)
    for family in plan:
        enough = largest * _CLOSE
        for number in sorted(range(len(side)), key=lambda number: -known[number].bound):
            total, before = side[number], known[number]
            if not before.bound > enough:
                break
            weights = _products(total.polynomial.sizes, family).propose(total.polynomial)
            certificate = _certificate(total, family, *weights)
            known[number] = certificate if certificate.bound < before.bound else before
            # Smaller ones need no better certificates than they have.
            enough = max(enough, known[number].bound)
    return known


def _certificate(
    total: _Sum, family: Family | None, numbers: Numbers, weights: ProductWeights
) -> _Certificate:
    bound = _proved(total, family, numbers, weights)
    return _Certificate(bound=bound, family=family, numbers=numbers, weights=weights)


def _proved(total: _Sum, family: Family | None, numbers: Numbers, weights: ProductWeights) -> float:
    """Return the bound that weights of products prove, or that of intervals if it is less."""
    if family is None:
        return _least(total.interval, plain_bound(total.polynomial))
    sizes = total.polynomial.sizes
    if family not in families(sizes, family.degree):
        return math.inf
    return _least(
        total.interval, _products(sizes, family).bound(total.polynomial, numbers, weights)
    )


@lru_cache(maxsize=1)
def _products(sizes: tuple[int, ...], family: Family) -> Products:
    """Return products, kept from one polynomial to the next of the same groups."""
    return Products.of(sizes, family)


def _packed(certificates: Sequence[_Certificate]) -> dict[str, Tensor]:
    numbers = [number for certificate in certificates for number in certificate.numbers.tolist()]
    weights = [weight for certificate in certificates for weight in certificate.weights.tolist()]
    families = [certificate.family or (0, 0) for certificate in certificates]
    return {
        "products": torch.tensor(numbers, dtype=torch.int64),
        "weights": torch.tensor(weights, dtype=torch.float64),
        "families": torch.tensor(families, dtype=torch.int64).reshape(-1, 2),
        "lengths": torch.tensor(
            [len(certificate.numbers) for certificate in certificates], dtype=torch.int64
        ),
    }


def _unpacked(
    proof: Mapping[str, Tensor], count: int
) -> Iterator[tuple[Family | None, Numbers, ProductWeights]] | None:
    """Return family, products and weights of each certificate, or None if they do not fit."""
    products, weights, families = (proof[name] for name in ("products", "weights", "families"))
    lengths = proof["lengths"].tolist()
    fits = len(products) == len(weights) == sum(lengths) and min(lengths, default=0) >= 0
    if not (fits and len(lengths) == count and families.shape == (count, 2)):
        return None
    split = (column.split(lengths) if lengths else () for column in (products, weights))
    return (
        (Family(degree, bool(is_sparse)) if degree else None, numbers.numpy(), values.numpy())
        for (degree, is_sparse), numbers, values in zip(families.tolist(), *split, strict=True)
    )


def _least(*values: float) -> float:
    """Return the least of the values that are numbers, infinity if there is none."""
    return min((value for value in values if math.isfinite(value)), default=math.inf)
