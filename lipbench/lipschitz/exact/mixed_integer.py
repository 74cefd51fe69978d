"""Mixed-integer program of the sum of absolute derivatives on a box, and its relaxation.

Gates and signs are its integers. Those that are not decided may be anything between 0 and 1.

Source:
    Jordan, Dimakis, Exactly Computing the Local Lipschitz Constant of ReLU Networks (NeurIPS
    2020), https://arxiv.org/abs/2003.01219, for rows of the Jacobian. Columns, slopes
    other than those of ReLU, all four inequalities of each product, and a chord for each sign, to
    which its relaxed variable comes down, are this project's.
"""

from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lipbench.lipschitz.exact.gates import Gates, columns, joined, transposed
from lipbench.lipschitz.exact.linear_programs import LinearProgram
from lipbench.lipschitz.relaxations.affine import Matrix
from lipbench.lipschitz.relaxations.decisions import Decision
from lipbench.lipschitz.relaxations.intervals import Interval
from lipbench.lipschitz.relaxations.rounding import UNIT

_SIGNS_FIRST = 4.0
"""How much more than a gate a sign counts that is off by as much; so there are fewer nodes."""


class MixedIntegerProgram:
    """The program of the sum of one column or row of the Jacobian, after decisions.

    Its variables are the inputs x; each neuron's pre-activation z, and the derivative d that
    arrives at its gate; the entries that are summed; and for each gate that is not decided,
    relu(z), the product of d with the gate, and the gate.
    """

    def __init__(self, gates: Gates, number: int, path: Iterable[Decision] = ()) -> None:
        """Bound the variables by intervals."""
        self.gates, self.bounds = gates, gates.bounds(number, path)
        self.undecided = (self.bounds.sides == 0).nonzero().squeeze(1)
        names = ("input", "read", "arrives", "entry", "bend", "product", "gate")
        neurons, free = gates.neurons, len(self.undecided)
        sizes = (gates.inputs, neurons, neurons, len(self.bounds.entries.lo), free, free, free)
        ends = torch.tensor([0, *sizes]).cumsum(dim=0).tolist()
        self._variables = {
            name: slice(*limits) for name, limits in zip(names, pairwise(ends), strict=True)
        }
        self._width = ends[-1]

    def relaxation(self) -> LinearProgram:
        """Return the linear relaxation: no point that the decisions allow has a larger sum."""
        slopes, offsets = self._chords
        objective = torch.zeros(self._width, dtype=torch.float64)
        objective[self._variables["entry"]] = slopes
        below, right = self._inequalities()
        passage = self.bounds.passage
        return LinearProgram(
            objective=objective,
            constant=float(offsets.sum()) * (1 + 1e-12 * len(offsets)),
            equal=self._equations(),
            equal_right=joined([self.gates.offset, passage.starts, passage.ends], 1),
            below=below,
            below_right=right,
            box=self._box,
        )

    def sides(self, point: Float[Tensor, " variables"] | None) -> Bool[Tensor, " neurons"]:
        """Return sides of all gates: of those not decided, as they are at a point's inputs."""
        decided = self.bounds.sides > 0
        if point is None or not len(self.undecided):
            return decided
        at_point = self.gates.sides(point[self._variables["input"]].unsqueeze(0))[0]
        return torch.where(self.bounds.sides == 0, at_point, decided)

    def next(self, point: Float[Tensor, " variables"] | None) -> int | None:
        """Return what to decide next, the likeliest to matter; None if all gates are decided.

        Args:
            point: Where the program has its optimum, None if that is not known.
        """
        if not len(self.undecided):
            return None
        rise = (self.gates.right - self.gates.left)[self.undecided].abs()
        matters = self.bounds.arrives.largest[self.undecided, 0] * rise
        if point is None:
            return int(self.undecided[matters.argmax()])
        share, entries = point[self._variables["gate"]], point[self._variables["entry"]]
        slopes, offsets = self._chords
        excess = slopes * entries + offsets - entries.abs()
        # Where no gate is between, any may do: the point can lie where gates are both.
        doubt = (torch.minimum(share, 1 - share) + 1e-9) * matters
        if len(excess) and float(excess.max()) * _SIGNS_FIRST > float(doubt.max()):
            return self.gates.neurons + int(excess.argmax())
        return int(self.undecided[doubt.argmax()])

    @cached_property
    def _chords(self) -> tuple[Float[Tensor, " entries"], Float[Tensor, " entries"]]:
        """Return slopes and offsets of lines that are nowhere below the absolute values."""
        lo, hi = (end.squeeze(1) for end in self.bounds.entries)
        crosses = (lo < 0) & (hi > 0)
        side = torch.where(lo >= 0, 1.0, -1.0).double()
        slopes = torch.where(crosses, (hi + lo) / (hi - lo), side)
        offsets = torch.maximum(-lo - slopes * lo, hi - slopes * hi)
        offsets = offsets + 4 * UNIT * torch.maximum(-lo, hi)
        return slopes, torch.where(crosses, offsets, 0.0)

    @property
    def _box(self) -> Interval:
        """Return interval bounds of the variables."""
        bounds, free = self.bounds, self.undecided
        high = bounds.reads.hi[free]
        ends = [
            torch.full((self.gates.inputs, 1), end, dtype=torch.float64)
            for end in self.gates.domain
        ]
        intervals = (
            Interval(*ends),
            bounds.reads,
            bounds.arrives,
            bounds.entries,
            Interval(torch.zeros_like(high), high),
            Interval(bounds.arrives.lo[free].clamp_max(0), bounds.arrives.hi[free].clamp_min(0)),
            Interval(torch.zeros_like(high), torch.ones_like(high)),
        )
        return Interval(*(torch.cat(ends) for ends in zip(*intervals, strict=True)))

    def _equations(self) -> Matrix:
        """Return the equations that define z, d and the entries, each on the diagonal."""
        gates, passage = self.gates, self.bounds.passage
        neurons = slice(gates.inputs, gates.inputs + gates.neurons)
        return joined(
            [
                self._rows("read", columns(gates.weights, neurons), "read", "bend"),
                self._rows("arrives", passage.passes, "arrives", "product"),
                self._rows("entry", passage.collects, "arrives", "product"),
            ],
            self._width,
        )

    def _rows(self, name: str, weights: Matrix, straight: str, bent: str) -> Matrix:
        """Return v - Σ weights·s = ..., with s of what is left of a gate and what is bent by it."""
        gates, free = self.gates, self.undecided
        slopes = torch.where(self.bounds.sides > 0, gates.right, gates.left).unsqueeze(1)
        rise = (gates.right - gates.left)[free].unsqueeze(1)
        blur = torch.where(gates.left[free] == 0, 0.0, UNIT)
        plain = transposed(transposed(weights).scaled(slopes))
        turned = transposed(transposed(columns(weights, free)).scaled(rise))
        shape = len(weights.values), self._width
        values, radius = torch.zeros(2, *shape, dtype=torch.float64)
        if name == "read":
            first = columns(gates.weights, slice(0, gates.inputs))
            values[:, self._variables["input"]] = -first.values
            radius[:, self._variables["input"]] = first.radius
        values[:, self._variables[straight]] = -plain.values
        radius[:, self._variables[straight]] = plain.radius
        values[:, self._variables[bent]] = -turned.values
        radius[:, self._variables[bent]] = turned.radius + blur * turned.values.abs()
        values[:, self._variables[name]] += torch.eye(shape[0], dtype=torch.float64)
        return Matrix(values=values, radius=radius)

    def _inequalities(self) -> tuple[Tensor, Tensor]:
        """Return the inequalities between relu(z) and z, products and d, for gates from 0 to 1."""
        count = len(self.undecided)
        numbers, zero = torch.arange(count), torch.zeros(count, dtype=torch.float64)
        bend, product, gate = (
            numbers + self._variables[name].start for name in ("bend", "product", "gate")
        )
        read, arrives = (
            self.undecided + self._variables[name].start for name in ("read", "arrives")
        )
        low, high, least, most = (
            end[self.undecided, 0]
            for interval in (self.bounds.reads, self.bounds.arrives)
            for end in interval
        )
        one = zero + 1
        rows, right = [], []
        for terms, end in (
            ([(read, one), (bend, -one)], zero),
            ([(bend, one), (gate, -high)], zero),
            ([(bend, one), (read, -one), (gate, -low)], -low),
            ([(gate, least), (product, -one)], zero),
            ([(product, one), (gate, -most)], zero),
            ([(product, one), (arrives, -one), (gate, -least)], -least),
            ([(arrives, one), (product, -one), (gate, most)], most),
        ):
            block = torch.zeros(count, self._width, dtype=torch.float64)
            for variables, factors in terms:
                block[numbers, variables] = factors
            rows.append(block)
            right.append(end)
        return torch.cat(rows), torch.cat(right)
