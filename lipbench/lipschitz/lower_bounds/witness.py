"""Lower bounds by witness: two inputs whose images are far apart, re-evaluated in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lipbench.bound import Lipschitz
from lipbench.lipschitz.enclosures.digit_evaluation import evaluate_in_digits, products_of
from lipbench.lipschitz.enclosures.enclosure import enclose
from lipbench.lipschitz.lower_bounds.unsaturated_points import mixed
from lipbench.lipschitz.relaxations.rounding import UNIT, Enclosed
from lipbench.lipschitz.relaxations.rounding import enclose as enclose_entries
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.threat import Box

_LOSS = 1e-4
"""Share of a quotient that rounding may cost before more digits are taken."""
_DIGITS = (8, 16, 32)
"""How many digits of 16 bits are tried."""
_FEW_PRODUCTS, _MOST_PRODUCTS = 5 * 10**7, 3 * 10**8
"""Of one pass in one digit: a network with more is first, or only, looked at in float64."""
_MOST_CANDIDATES = 3


def proved_quotients(
    network: Network,
    u: Float[Tensor, "pairs *shape"],
    v: Float[Tensor, "pairs *shape"],
    norm: Norm,
) -> Float[Tensor, " pairs"]:
    """Return ‖f(u) - f(v)‖ / ‖u - v‖ less all that rounding may have added in float64.

    The true quotient of the exact network is at least this. Pairs of equal points give 0.
    """
    return _quotients(network, u, v, norm).proved


def proved_quotient(
    network: Network, u: Float[Tensor, "*shape"], v: Float[Tensor, "*shape"], norm: Norm
) -> float:
    """Return ‖f(u) - f(v)‖ / ‖u - v‖ of one pair, rounded down.

    Where float64 cannot tell the images apart they are computed in as many digits as it takes. In
    large networks the error of float64 is followed by certified norms, before that or instead.
    """
    ends = u.unsqueeze(0), v.unsqueeze(0)
    pair = _quotients(network, *ends, norm)
    best = float(pair.proved[0])
    if not pair.is_blurred[0]:
        return best
    products = products_of(network)
    if products > _FEW_PRODUCTS:
        pair = _quotients(network, *ends, norm, enclose)
        best = max(best, float(pair.proved[0]))
    if not pair.is_blurred[0] or products > _MOST_PRODUCTS:
        return best
    for most in _DIGITS:
        quotients = _quotients_in_digits(network, u, v, norm, most)
        best = max(best, float(quotients.proved[0]))
        if not quotients.is_blurred[0]:
            break
    return best


@dataclass(frozen=True, kw_only=True)
class _Quotients:
    """What is known of ‖f(u) - f(v)‖ / ‖u - v‖ for pairs."""

    measured: Float[Tensor, " pairs"]
    """As computed; not a number where u = v."""
    proved: Float[Tensor, " pairs"]
    """Rounded down."""

    @property
    def is_blurred(self) -> Bool[Tensor, " pairs"]:
        """Return where more digits would prove more."""
        return ~(self.proved >= (1 - _LOSS) * self.measured) & ~self.measured.isnan()

    @classmethod
    def of(cls, rise: Tensor, blur: Tensor, run: Tensor, dimension: int) -> "_Quotients":
        """Return them for lengths of f(u) - f(v), of its possible error, and of u - v."""
        quotient = (rise - blur * (1 + dimension * UNIT)) / run
        quotient = quotient * (1 - (dimension + 8) * UNIT)
        proved = torch.where(run > 0, quotient.nan_to_num(nan=0.0, posinf=0.0), 0.0).clamp_min(0)
        return cls(measured=rise / run, proved=proved)


def _quotients(
    network: Network,
    u: Tensor,
    v: Tensor,
    norm: Norm,
    enclosure: Callable[[Network, Tensor], Enclosed] = enclose_entries,
) -> _Quotients:
    images = enclosure(network, torch.cat([u, v]))
    rise = norm.scaled_length(images.values[: len(u)] - images.values[len(u) :])
    blur = norm.scaled_length(images.radius[: len(u)] + images.radius[len(u) :])
    return _Quotients.of(rise, blur, norm.scaled_length(u - v), _dimension(u, images.values))


def _quotients_in_digits(
    network: Network, u: Tensor, v: Tensor, norm: Norm, most: int
) -> _Quotients:
    first, second = evaluate_in_digits(network, torch.stack([u, v]), most).halves()
    # Subtracted first: what is rounded is the difference.
    rise, blur = first.minus(second).rounded()
    run = norm.scaled_length((u - v).unsqueeze(0))
    lengths = norm.scaled_length(rise), norm.scaled_length(blur)
    return _Quotients.of(*lengths, run, _dimension(u.unsqueeze(0), rise))


def _dimension(inputs: Tensor, outputs: Tensor) -> int:
    return inputs[0].numel() + outputs[0].numel()


def witness(
    network: Network,
    u: Float[Tensor, "pairs *shape"],
    v: Float[Tensor, "pairs *shape"],
    norm: Norm,
    domain: Box | None,
) -> Lipschitz:
    """Return the lower bound that the best of the pairs proves, with the pair as its proof.

    Raises:
        ValueError: If a point lies outside the domain.
    """
    if domain is not None:
        lo, hi = domain
        least, most = float(torch.minimum(u, v).min()), float(torch.maximum(u, v).max())
        if not (lo <= least and most <= hi):
            raise ValueError(f"a witness reaches [{least}, {most}], outside the domain {domain}.")
    # Alone, as whoever checks the witness will compute it: in a batch, products round otherwise,
    # which shows where the function hardly varies.
    values = {
        pair: proved_quotient(network, u[pair], v[pair], norm)
        for pair in _candidates(_quotients(network, u, v, norm))
    }
    best = max(values, key=lambda pair: values[pair])
    return Lipschitz(
        value=values[best],
        side="lower",
        norm=norm,
        domain=domain,
        proof={"u": u[best].clone(), "v": v[best].clone()},
    )


def _candidates(quotients: _Quotients) -> list[int]:
    """Return the pair that proves most, and those that more digits may prove more of."""
    best = int(quotients.proved.argmax())
    measured = quotients.measured.nan_to_num(nan=0.0, posinf=0.0)
    if float(quotients.proved[best]) >= (1 - _LOSS) * float(measured.max()):
        return [best]
    return list(
        dict.fromkeys([best, *measured.topk(min(_MOST_CANDIDATES, len(measured))).indices.tolist()])
    )


def known_pairs(
    known: tuple[Lipschitz, ...], network: Network, domain: Box | None
) -> tuple[Tensor, Tensor]:
    """Return the witnesses among earlier results, moved into the domain, as two stacks."""
    proofs = [value.proof for value in known if {"u", "v"} <= set(value.proof)]
    empty = torch.empty(0, *network.input_shape, dtype=torch.float64)
    u = torch.stack([proof["u"] for proof in proofs]) if proofs else empty
    v = torch.stack([proof["v"] for proof in proofs]) if proofs else empty
    return (u, v) if domain is None else (u.clamp(*domain), v.clamp(*domain))


def starting_points(
    network: Network,
    domain: Box | None,
    inputs: Tensor | None,
    count: int,
    rng: torch.Generator,
) -> Float[Tensor, "points *shape"]:
    """Return float64 points to search from: data in the domain, else samples of it.

    Without data and domain half of the points are standard normal, and half are what `mixed` puts
    in their place.
    """
    points = points_of(network.input_shape, domain, inputs, count, rng)
    if domain is not None or (inputs is not None and len(inputs)):
        return points
    return mixed(network, points, rng)


def points_of(
    input_shape: tuple[int, ...],
    domain: Box | None,
    inputs: Tensor | None,
    count: int,
    rng: torch.Generator,
) -> Float[Tensor, "points *shape"]:
    """Return such points for inputs of this shape, unmixed."""
    if inputs is not None and len(inputs):
        chosen = torch.randperm(len(inputs), generator=rng)[:count].to(inputs.device)
        points = inputs[chosen].detach().to("cpu", torch.float64)
        return points if domain is None else points.clamp(*domain)
    shape = (count, *input_shape)
    if domain is None:
        return torch.randn(shape, generator=rng, dtype=torch.float64)
    lo, hi = domain
    return lo + (hi - lo) * torch.rand(shape, generator=rng, dtype=torch.float64)
