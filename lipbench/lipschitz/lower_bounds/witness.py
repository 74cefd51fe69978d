"""Lower bounds by witness: two inputs whose images are far apart, re-evaluated in float64."""

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.bound import Lipschitz
from lipbench.lipschitz.relaxations.rounding import UNIT, enclose
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.threat import Box


def proved_quotients(
    network: Network,
    u: Float[Tensor, "pairs *shape"],
    v: Float[Tensor, "pairs *shape"],
    norm: Norm,
) -> Float[Tensor, " pairs"]:
    """Return ‖f(u) - f(v)‖ / ‖u - v‖ less all that rounding may have added.

    The true quotient of the exact network is at least this. Pairs of equal points give 0.
    """
    images = enclose(network, torch.cat([u, v]))
    rise = norm.length(images.values[: len(u)] - images.values[len(u) :])
    blur = norm.length(images.radius[: len(u)] + images.radius[len(u) :])
    run = norm.length(u - v)
    dimension = u[0].numel() + images.values[0].numel()
    quotient = (rise - blur * (1 + dimension * UNIT)) / run
    quotient = quotient * (1 - (dimension + 8) * UNIT)
    return torch.where(run > 0, quotient.nan_to_num(nan=0.0, posinf=0.0), 0.0).clamp_min(0)


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
    best = int(proved_quotients(network, u, v, norm).argmax())
    # Alone, as whoever checks the witness will compute it: in a batch, products round otherwise,
    # which shows where the function hardly varies.
    alone = proved_quotients(network, u[best : best + 1], v[best : best + 1], norm)
    return Lipschitz(
        value=float(alone[0]),
        side="lower",
        norm=norm,
        domain=domain,
        proof={"u": u[best].clone(), "v": v[best].clone()},
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

    Without data and domain the points are standard normal.
    """
    return points_of(network.input_shape, domain, inputs, count, rng)


def points_of(
    input_shape: tuple[int, ...],
    domain: Box | None,
    inputs: Tensor | None,
    count: int,
    rng: torch.Generator,
) -> Float[Tensor, "points *shape"]:
    """Return what `starting_points` does, for inputs of this shape."""
    if inputs is not None and len(inputs):
        chosen = torch.randperm(len(inputs), generator=rng)[:count].to(inputs.device)
        points = inputs[chosen].detach().to("cpu", torch.float64)
        return points if domain is None else points.clamp(*domain)
    shape = (count, *input_shape)
    if domain is None:
        return torch.randn(shape, generator=rng, dtype=torch.float64)
    lo, hi = domain
    return lo + (hi - lo) * torch.rand(shape, generator=rng, dtype=torch.float64)
