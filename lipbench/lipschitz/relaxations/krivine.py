"""Krivine's certificate: a bound of a polynomial on a cube.

Products of factors 1 + x and 1 - x of different variables are non-negative on the cube. So if
P + Σ c·product = Q with weights c ≥ 0, then P ≤ Q there, and Q is at most its constant plus the
absolute values of its other coefficients: any weights prove a bound. A linear program proposes
those for which all other coefficients are 0 and the constant is least.

Powers of factors, which Krivine has too, are of no use for a polynomial that is linear in each
variable: x² = 1 leaves it as it is, and turns every product into one without powers or into 0.
Products of fewer factors are sums of longer ones.

Source:
    Latorre, Rolland, Cevher, Lipschitz constant estimation of Neural Networks via sparse polynomial
    optimization (ICLR 2020), https://arxiv.org/abs/2004.08688. The paper's variables are in [0, 1],
    and it leaves out products where weights are 0; what is left out here is said at `Products`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import hadamard
from scipy.optimize import linprog
from scipy.sparse import csc_array

from lipbench.lipschitz.relaxations.polynomials import Polynomial
from lipbench.lipschitz.relaxations.rounding import UNIT

ProductWeights = Float[np.ndarray, " _"]
Numbers = Int[np.ndarray, " _"]


class Family(NamedTuple):
    """Products of some factors, no two of which are of the largest group of variables.

    Those with two were of no use at the same degree on any network tried.
    """

    degree: int
    """The number of factors: as many as there are groups, or more."""
    is_sparse: bool
    """Whether a product has a factor of every group. Of these there are fewer; others are of use
    on some networks."""

    def terms(self, sizes: Sequence[int]) -> int:
        """Return how many monomials all products for groups of variables have together."""
        cliques = [1] + [0] * self.degree
        for size, counts in zip(sizes, self.counts(sizes), strict=True):
            cliques = [
                sum(
                    cliques[total - count] * math.comb(size, count)
                    for count in counts
                    if count <= total
                )
                for total in range(self.degree + 1)
            ]
        return cliques[self.degree] * 4**self.degree

    def counts(self, sizes: Sequence[int]) -> list[range]:
        """Return how many factors a product may have of each group."""
        largest, least = int(np.argmax(sizes)), int(self.is_sparse)
        most = self.degree - least * (len(sizes) - 1)
        return [
            range(least, (1 if group == largest else min(most, size)) + 1)
            for group, size in enumerate(sizes)
        ]


def families(sizes: Sequence[int], degree: int | None = None) -> Iterator[Family]:
    """Yield the families of all degrees that make sense, or of the one that is next to `degree`.

    They begin with a factor of each group. At the last the best bound is the maximum itself: when
    all variables but those of the largest group are known, these meet in no product.
    """
    first, last = len(sizes), sum(sizes) - max(sizes) + 1
    degrees = range(first, last + 1) if degree is None else [min(max(degree, first), last)]
    for factors in degrees:
        yield Family(factors, True)
        if factors < last:
            yield Family(factors, False)


@dataclass(frozen=True, eq=False)
class Products:
    """The products of a family, as the columns of a matrix whose rows are monomials."""

    matrix: csc_array
    """Entries are 1 and -1; the first row is that of the constant."""
    rows: Int[np.ndarray, " coefficients"]
    """The row of each coefficient of a polynomial."""

    @classmethod
    def of(cls, sizes: Sequence[int], family: Family) -> "Products":
        """Return the products for groups of so many variables."""
        degree = family.degree
        cliques = np.concatenate(list(_cliques(sizes, family)))
        chosen = (np.arange(2**degree)[:, None] >> np.arange(degree)) & 1
        subsets = np.where(chosen, cliques[:, None, :], -1).reshape(-1, degree)
        paths = np.full((math.prod(_shape(sizes)), degree), -1)
        paths[:, : len(sizes)] = _paths(sizes)
        monomials = np.sort(np.concatenate([paths, subsets]), axis=1)
        distinct, rows = np.unique(monomials, axis=0, return_inverse=True)
        rows = rows.reshape(-1)
        indices = rows[len(paths) :].reshape(len(cliques), 1, -1).repeat(2**degree, axis=1)
        data = np.tile(hadamard(2**degree, dtype=np.float64).reshape(-1), len(cliques))
        ends = np.arange(0, data.size + 1, 2**degree)
        shape = len(distinct), len(cliques) * 2**degree
        return cls(csc_array((data, indices.reshape(-1), ends), shape=shape), rows[: len(paths)])

    def propose(self, polynomial: Polynomial) -> tuple[Numbers, ProductWeights]:
        """Return the products that prove the best bound, and their weights; none if that fails."""
        known, weights = self._known(polynomial), np.zeros(0)
        if np.isfinite(known).all():
            unit = math.ldexp(1.0, math.frexp(float(np.abs(known).max()))[1] - 1)
            costs, wanted = np.ones(self.matrix.shape[1]), -known[1:] / unit
            rows: Any = self.matrix[1:]  # the types of scipy know no sparse ones here
            solution = linprog(costs, A_eq=rows, b_eq=wanted, method="highs-ipm")
            if solution.x is not None:
                weights = np.maximum(solution.x, 0) * unit
        numbers = np.flatnonzero(weights)
        return numbers, weights[numbers]

    def bound(self, polynomial: Polynomial, numbers: Numbers, weights: ProductWeights) -> float:
        """Return the bound that weights of some products prove, infinity if they are no weights."""
        is_product = (numbers >= 0) & (numbers < self.matrix.shape[1])
        if not (is_product.all() and (weights >= 0).all() and np.isfinite(weights).all()):
            return math.inf
        known, columns = self._known(polynomial), self.matrix[:, numbers]
        left = known + columns @ weights
        left[1:] = np.abs(left[1:])
        # Of sums of as many numbers as there are in a row.
        sizes = np.abs(known) + abs(columns) @ weights
        rounding = (len(numbers) + 2) * UNIT * sizes
        return _total([*left.tolist(), *rounding.tolist(), *_spread(polynomial)])

    def _known(self, polynomial: Polynomial) -> ProductWeights:
        known = np.zeros(self.matrix.shape[0])
        known[self.rows] = polynomial.values.flatten().numpy()
        return known


def plain_bound(polynomial: Polynomial) -> float:
    """Return the bound without products: the sum of absolute coefficients."""
    known = polynomial.values.abs().flatten().tolist()
    return _total([*known, *_spread(polynomial)])


def _total(terms: Sequence[float]) -> float:
    """Return a sum that is not negative, rounded up."""
    try:
        return math.fsum(terms) * (1 + 4 * UNIT)
    except OverflowError:  # a sum that float64 does not hold
        return math.inf


def _spread(polynomial: Polynomial) -> list[float]:
    return polynomial.radius.flatten().tolist()


def _cliques(sizes: Sequence[int], family: Family) -> Iterator[Int[np.ndarray, "cliques degree"]]:
    """Yield the variables of products, numbered through all groups."""
    starts = np.cumsum([0, *sizes])[:-1]
    for counts in product(*family.counts(sizes)):
        if sum(counts) != family.degree:
            continue
        chosen = [
            start + np.array(list(combinations(range(size), count)), dtype=np.int64)
            for start, size, count in zip(starts, sizes, counts, strict=True)
        ]
        choices = np.indices([len(subsets) for subsets in chosen]).reshape(len(sizes), -1)
        columns = [subsets[choice] for subsets, choice in zip(chosen, choices, strict=True)]
        yield np.concatenate(columns, axis=1)


def _shape(sizes: Sequence[int]) -> tuple[int, ...]:
    first, *others = sizes
    return first, *(1 + size for size in others)


def _paths(sizes: Sequence[int]) -> Int[np.ndarray, "coefficients groups"]:
    """Return the variables of each coefficient, -1 where it has none of a group."""
    starts = np.cumsum([0, *sizes])[:-1]
    indices = np.indices(_shape(sizes)).reshape(len(sizes), -1).T
    indices[:, 1:] -= 1
    return np.where(indices < 0, -1, indices + starts)
