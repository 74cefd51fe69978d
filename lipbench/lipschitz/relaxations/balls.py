"""Local Lipschitz constants: certified on the ball around each sample.

On a small ball a network is nearly linear: its derivatives hardly move, and what they can be there
is far less than what they can be anywhere. A margin is certified by the constants of its own
ball, as long as the ball is not left.

Derivatives are followed as intervals, one ball at a time for many samples at once. How far a neuron
moves in its ball is what its own derivatives allow, so that each layer is bounded by those before.
Behind a first dense layer, derivatives are taken with respect to what that layer gives: W'c is as
long as √(c'WW'c), and no interval of the width of the input is ever made.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.lipschitz.relaxations.affine import Matrix
from lipbench.lipschitz.relaxations.intervals import (
    Interval,
    combined,
    local_slopes,
    values_between,
)
from lipbench.lipschitz.relaxations.magnitudes import all_above_underflow, refuse_extremes
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks, widths
from lipbench.lipschitz.relaxations.rounding import LEAST, UNIT
from lipbench.networks.network import Network
from lipbench.networks.steps import Dense, Rearrange, Scale
from lipbench.norm import Norm
from lipbench.refused import Refused

_MOST = 2**21
"""Most derivatives of a layer."""
_AT_ONCE = 2**18
"""Numbers in one tensor of as many samples as are taken together: what a cache holds."""


class Balls:
    """Bounds of a network on balls around samples, from the lengths of its derivatives."""

    def __init__(self, network: Network, norm: Norm) -> None:
        """Read a network as blocks of neurons.

        Args:
            network: The network, in float64, whose outputs form a vector.
            norm: The norm of the balls.

        Raises:
            Refused: If it has a step without a rule, or too many neurons.
        """
        refuse_extremes(network)
        stem, rest = _cut(network)
        self._stem, self._norm = _Stem.of(stem, norm), norm
        first, *neurons, _ = widths(rest)
        self._widest = max(neurons, default=1)
        self._derivatives = first * self._widest
        if self._derivatives > _MOST:
            raise Refused(
                f"a layer of {self._widest} neurons has derivatives in {first} numbers each, more "
                f"than {_MOST:,} together."
            )
        self._network = as_neuron_blocks(rest)

    def constants(
        self,
        inputs: Float[Tensor, "samples *shape"],
        labels: Int[Tensor, " samples"],
        radius: float,
    ) -> Float[Tensor, "samples outputs"]:
        """Return upper bounds of the constants of y_label - y_j for each j, on each sample's ball.

        They are in the norm of the balls, hold between all points of a ball, and are 0 at the
        label itself.

        Args:
            inputs: The centres, taken as exact.
            labels: Whose output the others are subtracted from.
            radius: That of the balls, in the units of the inputs.
        """
        count = max(1, _AT_ONCE // max(self._derivatives, self._stem.width * self._widest))
        # Samples of few labels at a time: each label takes its own products.
        order = labels.argsort()
        chunks = zip(inputs[order].split(count), labels[order].split(count), strict=True)
        with torch.no_grad():
            constants = torch.cat(
                [self._constants(points, classes, radius) for points, classes in chunks]
            )
        return constants[order.argsort()]

    def _constants(self, inputs: Tensor, labels: Tensor, radius: float) -> Tensor:
        network = self._network
        values = [self._stem.values(inputs.to("cpu", torch.float64).flatten(1))]
        unit = torch.eye(network.inputs, dtype=torch.float64)
        known = [Interval(unit, unit)]
        for block in network.blocks:
            at = combined(block.reads.matrices, values, block.reads.offset)
            slopes = combined(block.reads.matrices, known)
            reach = radius * _columns(self._stem.lengths(slopes)) * (1 + 4 * UNIT)
            lo, hi = at.lo - reach, at.hi + reach
            slack = UNIT * (lo.abs() + hi.abs())
            least, most = local_slopes(block, Interval(lo - slack, hi + slack))
            if not bool((least.isfinite() & most.isfinite()).all()):
                raise Refused(f"step {block.name!r} has slopes that are not bounded.")
            values.append(values_between(block, at))
            known.append(slopes.times(Interval(_rows(least), _rows(most))))
        return self._of_differences(known, labels.cpu())

    def _of_differences(self, known: list[Interval], labels: Tensor) -> Tensor:
        output = self._network.output
        outputs = len(output.offset.values)
        constants = torch.zeros(len(labels), outputs, dtype=torch.float64)
        for label in labels.unique().tolist():
            rows = (labels == label).nonzero().squeeze(1)
            derivatives = [_of(entries, rows) for entries in known]
            others = [j for j in range(outputs) if j != label]
            pairs = [(label, j) for j in others]
            matrices = self._network.differences(pairs).output.matrices if pairs else {}
            if matrices:
                lengths = self._stem.lengths(combined(matrices, derivatives))
                constants[rows.unsqueeze(1), torch.tensor(others)] = lengths.expand(len(rows), -1)
        return constants


def local_radius(
    network: Network,
    norm: Norm,
    inputs: Float[Tensor, "samples *shape"],
    labels: Int[Tensor, " samples"],
    gaps: Float[Tensor, "samples outputs"],
    epsilons: Sequence[float],
) -> Float[Tensor, " samples"]:
    """Return a distance within which the class of each sample provably does not change.

    For each epsilon, ascending, a ball just larger than it is tried: within it the class stays up
    to the smallest quotient of a gap and its constant there. Samples that fail in one ball are not
    tried in larger ones, where no constant is smaller. The distance is 0 where nothing is proved,
    and never much more than the largest epsilon.

    Args:
        network: The network, in float64.
        norm: The norm of distances.
        inputs: The samples.
        labels: Their classes.
        gaps: Those of `lipbench.lipschitz.certified_radius.gaps`.
        epsilons: Radii of interest, in pixel units.

    Raises:
        Refused: If the network has a step without a rule, or too many neurons.
    """
    key = _key(network, norm, inputs, labels, gaps, epsilons)
    if key not in _LAST:
        radii = _local_radius(network, norm, inputs, labels, gaps, epsilons)
        _LAST.clear()
        _LAST[key] = radii
    return _LAST[key].clone()


_LAST: dict[bytes, Tensor] = {}
"""The last answer: a certificate asks for it, and whoever checks the certificate asks again."""


def _key(network: Network, norm: Norm, *asked: Tensor | Sequence[float]) -> bytes:
    """Return a digest of all that an answer depends on, to the last bit of each weight."""
    digest = hashlib.blake2b(repr((network.input_shape, network.output, norm)).encode())
    for step in network.steps:
        digest.update(f"{type(step).__name__} {id(step)}".encode())
        for name, value in vars(step).items():
            digest.update(name.encode())
            _add(digest, value)
    for value in asked:
        _add(digest, value)
    return digest.digest()


def _add(digest: hashlib.blake2b, value: object) -> None:
    if isinstance(value, Tensor):
        digest.update(repr((value.shape, value.dtype)).encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    elif isinstance(value, tuple | list):
        digest.update(repr(len(value)).encode())
        for entry in value:
            _add(digest, entry)
    else:
        digest.update(repr(value).encode())


def _local_radius(
    network: Network,
    norm: Norm,
    inputs: Tensor,
    labels: Tensor,
    gaps: Tensor,
    epsilons: Sequence[float],
) -> Tensor:
    balls = Balls(network, norm)
    radii = torch.zeros(len(inputs), dtype=torch.float64)
    alive = (gaps.amin(dim=1) > 0).nonzero().squeeze(1)
    for epsilon in sorted(epsilons):
        if not len(alive):
            break
        radius = epsilon * _LARGER
        constants = balls.constants(inputs[alive], labels[alive], radius)
        constants = all_above_underflow(network, constants)
        quotient = gaps[alive] / constants * (1 - 4 * UNIT) - LEAST
        # Of no gap and no change: nothing is certified.
        least = torch.where(quotient.isnan(), 0.0, quotient).amin(dim=1)
        radii[alive] = torch.maximum(radii[alive], least.clamp_max(radius))
        alive = alive[least > epsilon]
    return radii


_LARGER = 1 + 1e-9
"""A ball must be a little larger than the epsilon it is to prove, which counts inside."""


@dataclass(frozen=True, kw_only=True)
class _Stem:
    """The linear map that a network begins with, and how long derivatives are before it."""

    norm: Norm
    matrix: Matrix | None = None
    offset: Matrix | None = None

    @classmethod
    def of(cls, network: Network | None, norm: Norm) -> "_Stem":
        if network is None:
            return cls(norm=norm)
        output = as_neuron_blocks(network).output
        return cls(norm=norm, matrix=output.matrices[0], offset=output.offset)

    @property
    def width(self) -> int:
        """Return the entries of a row whose norm is taken; 0 if a quadratic form gives the norm."""
        if self.matrix is None or self.norm == Norm(2):
            return 0
        return self.matrix.values.shape[1]

    def values(self, inputs: Float[Tensor, "samples inputs"]) -> Interval:
        """Return the values of the map at inputs, width × samples."""
        points = Interval(inputs.T, inputs.T)
        return points if self.matrix is None else combined({0: self.matrix}, [points], self.offset)

    def lengths(self, rows: Interval) -> Float[Tensor, "*samples rows"]:
        """Return upper bounds of the dual norms of derivatives, taken through the map."""
        centre = rows.lo + (rows.hi - rows.lo) / 2
        half = torch.maximum(rows.hi - centre, centre - rows.lo) * (1 + UNIT)
        if self.matrix is not None and self.norm == Norm(2):
            return _lengths_by_gram(self.matrix, centre, half)
        if self.matrix is not None:
            spread = (rows.largest @ self.matrix.radius) + half @ self.matrix.values.abs()
            centre, size = centre @ self.matrix.values, centre.abs() @ self.matrix.values.abs()
            half = spread + (self.matrix.values.shape[0] + 4) * UNIT * (size + spread)
        entries = centre.abs() + half
        lengths = self.norm.dual().length(entries.flatten(0, -2)).view(entries.shape[:-1])
        return lengths * (1 + 2 * (entries.shape[-1] + 4) * UNIT)


def _lengths_by_gram(matrix: Matrix, centre: Tensor, half: Tensor) -> Tensor:
    """Return |cW| + |dW|, at most, for c the centre and any d with entries up to `half`.

    |cW|² = c'WW'c, of which rounding takes no more than a share of |c|'|W||W|'|c|; and |dW|² is at
    most half'|WW'|half.
    """
    weight = matrix.values
    rounding = (sum(weight.shape) + 16) * UNIT
    most = weight.abs() @ weight.abs().T
    gram = weight @ weight.T
    of_centre = _form(gram, centre).clamp_min(0) + rounding * _form(most, centre.abs())
    of_half = _form(gram.abs() + rounding * most, half)
    apart = (centre.abs() + half) @ torch.linalg.vector_norm(matrix.radius, dim=1)
    return (of_centre.sqrt() + of_half.sqrt() + apart) * (1 + rounding)


def _form(gram: Tensor, rows: Tensor) -> Tensor:
    return ((rows @ gram) * rows).sum(dim=-1)


def _cut(network: Network) -> tuple[Network | None, Network]:
    """Return the linear steps up to a first dense layer, if all else reads these, and the rest."""
    for start, step in enumerate(network.steps, 1):
        if step.inputs != (start - 1,) or not isinstance(step, Dense | Rearrange | Scale):
            break
        if isinstance(step, Dense) and len(step.output_shape) == 1:
            behind = network.steps[start:]
            read = [network.output, *(i for later in behind for i in later.inputs)]
            if min(read) < start:
                break
            first = replace(network, steps=network.steps[:start], output=start)
            moved = tuple(replace(s, inputs=tuple(i - start for i in s.inputs)) for s in behind)
            rest = replace(
                network,
                input_shape=step.output_shape,
                steps=moved,
                output=network.output - start,
            )
            return first, rest
    return None, network


def _columns(lengths: Float[Tensor, "*samples rows"]) -> Float[Tensor, "rows samples"]:
    """Return numbers of each row, in one column where all samples have the same."""
    return lengths.unsqueeze(1) if lengths.ndim == 1 else lengths.T


def _rows(slopes: Float[Tensor, "neurons samples"]) -> Float[Tensor, "samples neurons 1"]:
    return slopes.T.unsqueeze(2)


def _of(known: Interval, rows: Tensor) -> Interval:
    """Return the intervals of some samples; those that are the same for all stay so."""
    return known if known.lo.ndim == 2 else Interval(known.lo[rows], known.hi[rows])
