"""Soundness: no lower bound above an upper one, no certified sample broken by an attack."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lipbench.bound import Lipschitz
from lipbench.lipschitz.enclosures.enclosure import enclose
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.threat import Box

TOLERANCE = 1e-9
"""Relative difference in float64 below which two values do not cross."""


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A number that is not true: at least one of those named is wrong."""

    message: str
    is_malformed: bool = False
    """Whether it is a proof that cannot be read, which proves nothing and says nothing."""


def crossings(values: Iterable[Lipschitz]) -> list[Violation]:
    """Return a violation for each lower bound above an upper bound of the same network.

    Compared are values of the same norm where the lower domain lies inside the upper one;
    estimates are not. A value that is no number, or negative, is a violation by itself.
    """
    known = [value for value in values if value.side != "estimate"]
    violations = [
        Violation(message=f"{statement(value)} is no Lipschitz constant.")
        for value in known
        if not value.value >= 0
    ]
    lowers = [value for value in known if value.side in ("lower", "exact")]
    uppers = [value for value in known if value.side in ("upper", "exact")]
    for lower in lowers:
        for upper in uppers:
            comparable = lower.norm == upper.norm and inside(lower.domain, upper.domain)
            if comparable and lower.value > upper.value * (1 + TOLERANCE):
                violations.append(
                    Violation(message=f"{statement(lower)} exceeds {statement(upper)}.")
                )
    return violations


def refutation(value: Lipschitz, proved: Iterable[Lipschitz]) -> str | None:
    """Return what refutes a value without a proof: the first proved one that it crosses."""
    for other in proved:
        for violation in crossings([value, other]):
            return f"refuted: {violation.message.rstrip('.')}"
    return None


def inside(inner: Box | None, outer: Box | None) -> bool:
    """Return whether the domain `inner` lies in `outer`; None is all of space."""
    if outer is None:
        return True
    return inner is not None and outer[0] <= inner[0] and inner[1] <= outer[1]


def broken_certificates(
    network: Network,
    clean: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    attacked: Float[Tensor, "batch *shape"],
    radius: Float[Tensor, " batch"],
    norm: Norm,
) -> list[Violation]:
    """Return a violation for each certified sample that an attack broke within its radius.

    Args:
        network: The network in float64.
        clean: The inputs that were attacked.
        labels: Their classes.
        attacked: What the attack made of them; the actual distance counts, not its budget.
        radius: Certified radii in the same norm, in pixel units.
        norm: Norm of the certificates.
    """
    clean, attacked = clean.to("cpu", torch.float64), attacked.to("cpu", torch.float64)
    distance = norm.length(attacked - clean)
    broken = misclassified(network, attacked, labels.to("cpu")) & (radius.cpu() > distance)
    return [
        Violation(
            message=f"sample {row} is certified within {float(radius[row]):.9g} in norm {norm}, "
            f"but misclassified at distance {float(distance[row]):.9g}."
        )
        for row in map(int, broken.nonzero().flatten())
    ]


def misclassified(
    network: Network, inputs: Float[Tensor, "batch *shape"], labels: Int[Tensor, " batch"]
) -> Bool[Tensor, " batch"]:
    """Return where some wrong class provably has the larger output, in float64 with rounding."""
    logits = enclose(network, inputs)
    index = labels.unsqueeze(1)
    most = (logits.values + logits.radius).take_along_dim(index, dim=1).squeeze(1)
    rivals = (logits.values - logits.radius).scatter(1, index, -torch.inf)
    return rivals.amax(dim=1) > most


def statement(value: Lipschitz) -> str:
    """Return what a value says, for messages."""
    domain = "all of space" if value.domain is None else f"[{value.domain[0]}, {value.domain[1]}]"
    return f"{value.side} {value.value!r} in norm {value.norm} on {domain}"
