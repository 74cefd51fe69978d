"""Black-box networks: a difference quotient by evaluation alone, and its error.

Nothing is proved in this way. Rounding can be bounded only where every operation is known, and what
computes in unknown ways may round to float32 somewhere inside, or to worse. So the error is
measured, by what an output changes for reasons that are none: in float32, in a batch, and at inputs
as good as equal; that counts twice. Numbers that are rounded inside make steps of a size that one
need not know: along the way from one input to the other, what each output jumps by counts, too. All
of it is taken off. So a network that does jump has no constant, and is not found out here.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from lipbench.lipschitz.lower_bounds.pair_steps import move, quotients, turn
from lipbench.lipschitz.lower_bounds.pairs import Function, Pairs
from lipbench.lipschitz.lower_bounds.witness import points_of
from lipbench.norm import Norm
from lipbench.threat import Box

MARGIN = 0.01
"""Share by which a measured quotient must exceed a claim to refute it, beside its own error."""

_POINTS = 128
"""Inputs that pairs are made of."""
_PAIRS = 12
"""Pairs that climb, those of the largest quotients."""
_STEPS = 40
_BATCH = 64
_APART = (0.01, 0.1, 1.0)
"""Distances of a pair, as shares of 1 and the size of its inputs: far more than any rounding."""
_NEAR = 1e-6
"""As such a share, what two inputs differ by that are as good as equal: ten times as much as
float32 resolves."""
_NEIGHBOURS = 8
"""Inputs as good as equal, whose answers an answer is compared with."""
_ROUNDING = 1e-6
"""Share of its length that every answer is taken to be off, beside what was measured."""
_DOUBT = 2.0
"""What the measured errors are multiplied by."""
_BATCHED = 1e-3
"""Share of its size by which an answer may differ in a batch."""
_OUTPUTS = 256
"""As many outputs, those that change most, are looked at."""
_HALVINGS = 17
"""As often the way between two inputs is halved to see what is a jump: to 1e-5 of it."""


class Unmeasurable(Exception):
    """A network's answers are not those of a function in float64; the message says why."""


@dataclass(frozen=True, kw_only=True)
class MeasuredQuotient:
    """A pair of inputs, and the difference quotient of a network for it."""

    u: Float[Tensor, "*shape"]
    """In float64, with entries that float32 can hold."""
    v: Float[Tensor, "*shape"]
    quotient: float
    """(‖f(u) - f(v)‖ - error) / ‖u - v‖, 0 if that is negative."""
    error: float
    """How far ‖f(u) - f(v)‖ is taken to be off: twice what was measured for each, and jumps."""
    seconds: float


def measure(
    model: nn.Module,
    input_shape: tuple[int, ...],
    norm: Norm,
    domain: Box | None,
    inputs: Tensor | None = None,
    seed: int = 0,
) -> MeasuredQuotient:
    """Return the pair of the largest difference quotient that an ascent finds.

    It climbs along gradients, as far as there are any.

    Args:
        model: The network in evaluation mode; what is measured is a copy of it in float64.
        input_shape: Shape of one input, without the batch.
        norm: Norm of inputs and outputs.
        domain: Box that the pairs lie in, None for all of space.
        inputs: Points to begin with, None to sample them.
        seed: Fixes everything random.

    Raises:
        Unmeasurable: If the network cannot be evaluated in float64, gives what are no finite real
            numbers, or answers the same input differently, alone or in a batch.
    """
    begin = time.perf_counter()
    rng = torch.Generator().manual_seed(seed)
    asked = _BlackBox(model, rng)
    data = points_of(input_shape, domain, inputs, _POINTS, rng)
    asked.check(data[:_BATCH])
    pairs = _first_pairs(asked, data, norm, domain, rng)
    if asked.has_gradients(data[:1]):
        pairs = _climbed(asked, pairs, norm, float(norm.length(data).mean()))
    ends = zip(*_candidates(pairs, norm, domain), strict=True)
    candidates = [_measured(asked, u, v, norm) for u, v in ends]
    return replace(_steepest(asked, candidates, norm), seconds=time.perf_counter() - begin)


class _BlackBox:
    """Copies of a network in float64 and float32, and the error of their answers."""

    def __init__(self, model: nn.Module, rng: torch.Generator) -> None:
        try:
            double = copy.deepcopy(model).to("cpu", torch.float64)
            single = copy.deepcopy(model).to("cpu", torch.float32)
        except Exception as error:
            raise Unmeasurable(f"it cannot be copied: {error}") from error
        self._double, self._single = (
            network.eval().requires_grad_(False) for network in (double, single)
        )
        self._model, self._rng = model, rng

    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Shaped[Tensor, "batch outputs"]:
        """Return the answers of the copy in float64."""
        # Copies, which a network may write to.
        outputs = [self._double(batch.clone()).flatten(1) for batch in inputs.split(_BATCH)]
        return torch.cat(outputs)

    def check(self, points: Float[Tensor, "batch *shape"]) -> None:
        """Check that the answers at some points are those of a function, in several ways.

        Raises:
            Unmeasurable: As `measure` does.
        """
        with torch.no_grad():
            try:
                first, again, alone = self(points), self(points), self(points[:1])
            except Exception as error:
                raise Unmeasurable(f"it cannot be evaluated in float64: {error}") from error
            if first.dtype != torch.float64 or not first.isfinite().all():
                raise Unmeasurable(f"it gives {first.dtype}, or numbers that are not finite.")
            if not torch.equal(first, again):
                raise Unmeasurable("it answers the same inputs differently when asked again.")
            apart = float((first[:1] - alone).abs().max())
            if apart > _BATCHED * (1 + float(alone.abs().max())):
                raise Unmeasurable("its answer to an input depends on others in the batch.")
            if not self._is_as_it_was(points[:_PAIRS]):
                raise Unmeasurable("a copy of it answers otherwise than it does itself.")

    def _is_as_it_was(self, points: Tensor) -> bool:
        """Return whether the copy that has the precision of the network answers as it does."""
        like = next((p for p in self._model.parameters() if p.is_floating_point()), points[:0])
        try:
            asked = points.to(like.device, like.dtype).clone()  # which a network may write to
            own = self._model(asked).to("cpu", torch.float64)
        except Exception:  # not in this precision, or not on this device
            return True
        is_double = like.dtype == torch.float64
        copied = self._double(points.clone()) if is_double else self._single(points.float())
        off = max(_BATCHED, 16 * torch.finfo(like.dtype).eps)
        apart = (own - copied.double()).abs().nan_to_num()
        return float(apart.max()) <= off * (1 + float(own.abs().nan_to_num().max()))

    def has_gradients(self, points: Float[Tensor, "batch *shape"]) -> bool:
        """Return whether autograd sees how the outputs depend on the inputs."""
        with torch.enable_grad():
            return bool(self(points.detach().requires_grad_()).requires_grad)

    def answer(self, point: Float[Tensor, "*shape"], norm: Norm) -> tuple[Tensor, float]:
        """Return the answer to an input that float32 can hold, and how far off it may be."""
        near = self._neighbours(point, norm)
        with torch.no_grad():
            alone = self(point.unsqueeze(0))
            batched = self(torch.cat([point.unsqueeze(0), near]))
            single = self._single(point.to(torch.float32).unsqueeze(0)).flatten(1)
        variants = torch.cat([batched, single.to(torch.float64)])
        off = float(norm.length(variants - alone).max().nan_to_num(torch.inf))
        return alone[0], off + _ROUNDING * float(norm.length(alone))

    def _neighbours(self, point: Tensor, norm: Norm) -> Tensor:
        shape = (_NEIGHBOURS, *point.shape)
        noise = torch.randn(shape, generator=self._rng, dtype=torch.float64)
        size = _NEAR * (1 + float(norm.length(point.unsqueeze(0))))
        lengths = norm.length(noise).reshape(-1, *[1] * point.ndim)
        return point + size * noise / lengths


def _first_pairs(
    asked: Function, data: Tensor, norm: Norm, domain: Box | None, rng: torch.Generator
) -> Pairs:
    near = data + 0.1 * torch.randn(data.shape, generator=rng, dtype=torch.float64)
    if domain is not None:
        near = near.clamp(*domain)
    u, v = torch.cat([data, data]), torch.cat([near, data.roll(1, dims=0)])
    ratios = quotients(asked, u, v, norm)
    best = ratios.topk(min(_PAIRS, len(u))).indices
    apart = norm.length(u - v)[best]
    step = 0.1 * (apart / ratios[best].clamp_min(1e-12)) ** 2
    return Pairs.of(u[best], v[best], step, domain)


def _climbed(asked: Function, pairs: Pairs, norm: Norm, size: float) -> Pairs:
    """Return the pairs after gradient ascent, among inputs whose mean length is `size`."""
    nearest = _APART[0] * (1 + size)
    for count in range(_STEPS):
        pairs = move(asked, pairs, norm)
        pairs = turn(asked, pairs, norm, 1.0 if count % 2 else 0.5, nearest)
    return pairs


def _candidates(pairs: Pairs, norm: Norm, domain: Box | None) -> tuple[Tensor, Tensor]:
    """Return the pairs, and others with the same middle and direction, in float32's numbers."""
    u, v = pairs.u, pairs.v
    middle, axes = (u + v) / 2, [1] * (u.ndim - 1)
    run = norm.length(u - v).clamp_min(1e-12)
    direction = (u - v) / run.reshape(-1, *axes)
    candidates: list[tuple[Tensor, Tensor]] = [(u, v)]
    for share in _APART:
        reach = (share / 2 * (1 + norm.length(middle))).reshape(-1, *axes)
        candidates.append((middle + reach * direction, middle - reach * direction))
    first, second = (torch.cat(ends) for ends in zip(*candidates, strict=True))
    return _in_float32(first, domain), _in_float32(second, domain)


def _in_float32(points: Tensor, domain: Box | None) -> Tensor:
    """Return the points, in the domain and rounded to what float32 can hold."""
    if domain is None:
        return points.to(torch.float32).to(torch.float64)
    lo, hi = domain
    rounded = points.clamp(lo, hi).to(torch.float32)
    middle = torch.full_like(rounded, (lo + hi) / 2)
    wide = rounded.to(torch.float64)
    outside = (wide < lo) | (wide > hi)
    return torch.where(outside, rounded.nextafter(middle), rounded).to(torch.float64)


def _measured(asked: _BlackBox, u: Tensor, v: Tensor, norm: Norm) -> MeasuredQuotient:
    """Return a pair with its quotient, from which no jumps are taken off yet."""
    run = float(norm.length((u - v).unsqueeze(0)))
    (f_u, error_u), (f_v, error_v) = (asked.answer(point, norm) for point in (u, v))
    error = _DOUBT * (error_u + error_v)
    # At half the least distance: the ends were rounded, and held by the domain.
    least = _APART[0] / 2 * (1 + float(norm.length(u.unsqueeze(0))))
    quotient = 0.0
    if run >= least:
        rise = (f_u - f_v)[_largest_changes(f_u - f_v)]
        quotient = max(0.0, float(norm.length(rise.unsqueeze(0))) - error) / run
    return MeasuredQuotient(u=u, v=v, quotient=quotient, error=error, seconds=0.0)


def _largest_changes(rise: Float[Tensor, " outputs"]) -> Tensor:
    """Return which outputs are looked at; to leave some out makes no norm larger."""
    return rise.abs().topk(min(_OUTPUTS, len(rise))).indices


def _steepest(
    asked: _BlackBox, candidates: Sequence[MeasuredQuotient], norm: Norm
) -> MeasuredQuotient:
    """Return the pair of the largest quotient, what its outputs jump by taken off."""
    best: MeasuredQuotient | None = None
    for pair in sorted(candidates, key=lambda pair: -pair.quotient):
        if best is not None and pair.quotient <= best.quotient:
            break
        smooth = _without_jumps(asked, pair, norm)
        best = smooth if best is None or smooth.quotient > best.quotient else best
    assert best is not None
    return best


def _without_jumps(asked: _BlackBox, pair: MeasuredQuotient, norm: Norm) -> MeasuredQuotient:
    """Return a pair whose error counts what its outputs jump by on the way between its ends."""
    jumps = float(norm.length(_jumps(asked, pair.u, pair.v).unsqueeze(0)))
    run = float(norm.length((pair.u - pair.v).unsqueeze(0)))
    quotient = max(0.0, pair.quotient - jumps / run)
    return replace(pair, quotient=quotient, error=pair.error + jumps)


@torch.no_grad()
def _jumps(asked: _BlackBox, u: Tensor, v: Tensor) -> Tensor:
    """Return the jump of each output that is looked at, in a tiny part of the way from u to v.

    It is followed to the place where it changes most, by halves.
    """
    f_u, f_v = asked(u.unsqueeze(0))[0], asked(v.unsqueeze(0))[0]
    chosen = _largest_changes(f_u - f_v)
    first, last = f_u[chosen], f_v[chosen]
    lo, hi = torch.zeros(len(chosen)).double(), torch.ones(len(chosen)).double()
    for _ in range(_HALVINGS):
        middle = (lo + hi) / 2
        share = middle.reshape(-1, *[1] * u.ndim)
        values = asked(u + share * (v - u)).gather(1, chosen.unsqueeze(1))[:, 0]
        before = (values - first).abs() > (last - values).abs()
        lo, hi = torch.where(before, lo, middle), torch.where(before, middle, hi)
        first, last = torch.where(before, first, values), torch.where(before, values, last)
    return last - first
