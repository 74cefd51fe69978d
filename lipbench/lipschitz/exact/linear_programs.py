"""Linear programs, bounded by weak duality from any multipliers, rounding accounted for.

A solver only proposes multipliers. For any of them, of the right signs, an objective c·w is at most
y·b plus the largest value of (c - A'y)·w in the box of the variables: all that is computed here.

Source:
    Neumaier, Shcherbina, Safe bounds in linear and mixed-integer linear programming (Mathematical
    Programming 99, 2004): finite bounds of all variables make an approximate dual solution a
    rigorous bound.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linprog
from torch import Tensor

from lipbench.lipschitz.relaxations.affine import Matrix
from lipbench.lipschitz.relaxations.intervals import Interval
from lipbench.lipschitz.relaxations.rounding import UNIT

_TOLERANCE = 1e-9
"""Of the solver, for its constraints; its default leaves bounds off in the eighth digit."""


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What a solver says about a program."""

    duals: Float[Tensor, " rows"]
    point: Float[Tensor, " variables"] | None
    """Where it takes the optimum to be; None if it says that no point satisfies all rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearProgram:
    """The largest c·w + constant, where rows·w = right or rows·w ≤ right, in a box."""

    objective: Float[Tensor, " variables"]
    constant: float
    equal: Matrix
    """Rows of equations, which may be known up to rounding only."""
    equal_right: Matrix
    below: Float[Tensor, "inequalities variables"]
    """Rows of inequalities."""
    below_right: Float[Tensor, " inequalities"]
    box: Interval
    """Interval bounds of the variables, as columns."""

    def __len__(self) -> int:
        return len(self.equal_right.values) + len(self.below_right)

    def bound(self, duals: Float[Tensor, " rows"]) -> float:
        """Return what multipliers prove, those of the equations first: no optimum is larger.

        Negative multipliers of inequalities count as 0. It is infinite if the multipliers are not
        as many as there are rows, or not finite.
        """
        if duals.shape != (len(self),) or not bool(duals.isfinite().all()):
            return math.inf
        free, signed = duals.split([len(self.equal_right.values), len(self.below_right)])
        signed = signed.clamp_min(0)
        rest = self.objective - free @ self.equal.values - signed @ self.below
        terms = len(self) + len(rest) + 4
        sizes = free.abs() @ self.equal.values.abs() + signed @ self.below.abs()
        doubt = free.abs() @ self.equal.radius + terms * UNIT * (sizes + self.objective.abs())
        lo, hi = (end.squeeze(1) for end in self.box)
        corner = torch.where(rest > 0, rest * hi, rest * lo)
        products = torch.cat(
            [corner, free * self.equal_right.values[:, 0], signed * self.below_right]
        )
        error = float(
            doubt @ self.box.largest.squeeze(1)
            + free.abs() @ self.equal_right.radius[:, 0]
            + terms * UNIT * (products.abs().sum() + abs(self.constant))
        )
        bound = float(products.sum()) + self.constant + error * (1 + 4 * terms * UNIT)
        return bound if math.isfinite(bound) else math.inf

    def propose(self) -> Solution | None:
        """Return a solver's multipliers, or those that refute all points; None if it has none."""
        solution = _solved(
            self.objective,
            (self.equal.values, self.equal_right.values),
            (self.below, self.below_right),
            self.box,
        )
        if solution.status == 2:
            return self._refutation()
        if solution.status != 0:
            return None
        duals = torch.from_numpy(-np.append(solution.eqlin.marginals, solution.ineqlin.marginals))
        return Solution(duals=duals, point=torch.from_numpy(solution.x))

    def _refutation(self) -> Solution | None:
        """Return multipliers with which the bound falls below 0, as no point satisfies all rows.

        With those of the least violation, y·b is negative by more than the box can make up for;
        times a large factor they outweigh any objective.
        """
        equal, right = self.equal.values, self.equal_right.values[:, 0]
        rows = torch.cat([equal, -equal, self.below])
        violation = -torch.ones(len(rows), 1, dtype=torch.float64)
        none = torch.zeros(1, 1, dtype=torch.float64)
        solution = _solved(
            torch.cat([0 * self.objective, violation[0]]),
            (torch.zeros(0, rows.shape[1] + 1), torch.zeros(0)),
            (torch.cat([rows, violation], dim=1), torch.cat([right, -right, self.below_right])),
            Interval(torch.cat([self.box.lo, none]), torch.cat([self.box.hi, none + torch.inf])),
        )
        if solution.status != 0:
            return None
        weights = torch.from_numpy(-solution.ineqlin.marginals)
        above, under, signed = weights.split([len(right), len(right), len(self.below_right)])
        duals = torch.cat([above - under, signed])
        margin = replace(self, objective=0 * self.objective, constant=0.0).bound(duals)
        if not margin < 0:
            return None
        factor = 2 * max(self.bound(torch.zeros_like(duals)), 0.0) / -margin
        return Solution(duals=duals * factor, point=None)


def _solved(
    objective: Tensor, equal: tuple[Tensor, Tensor], below: tuple[Tensor, Tensor], box: Interval
) -> Any:
    return linprog(
        -objective.numpy(),
        A_ub=below[0].numpy(),
        b_ub=below[1].flatten().numpy(),
        A_eq=equal[0].numpy(),
        b_eq=equal[1].flatten().numpy(),
        bounds=torch.cat(tuple(box), dim=1).tolist(),
        method="highs",
        options={
            "primal_feasibility_tolerance": _TOLERANCE,
            "dual_feasibility_tolerance": _TOLERANCE,
        },
    )
