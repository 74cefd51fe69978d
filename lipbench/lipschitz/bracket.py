"""Bracket the Lipschitz constant of a network between a lower and an upper bound."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from lipbench import registry
from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.exact.incumbent import INCUMBENT, incumbent
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.softmax_end import Ending, ending
from lipbench.lipschitz.soundness import crossings
from lipbench.networks.network import Network, as_network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.threat import Box

_GROUP = "lipbench.bounds"
_SIDES = ("upper", "lower")
_FOREVER = 1e9
"""Seconds that count as no limit: bounds count how much they can do in them."""


class Unsound(Exception):
    """Two values of one network cross, or a proof does not hold: something is wrong in a bound."""


@dataclass(frozen=True, kw_only=True)
class Computed:
    """The value of one bound."""

    name: str
    value: float
    side: Side
    norm: Norm
    domain: Box | None
    seconds: float
    flags: tuple[str, ...]
    proof: Mapping[str, Tensor] = field(repr=False)

    @property
    def lipschitz(self) -> Lipschitz:
        """Return the value as the bound gave it."""
        return Lipschitz(
            value=self.value,
            side=self.side,
            norm=self.norm,
            domain=self.domain,
            proof=self.proof,
            flags=self.flags,
        )


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """lower ≤ L ≤ upper, in pixel units if normalisation is a layer of the network."""

    lower: float
    """The largest lower bound; 0 if there is none."""
    upper: float
    """The smallest upper bound; infinite if there is none."""
    bounds: tuple[Computed, ...]
    """The values of all bounds, in the order computed; a search for an upper bound may prove a
    lower one beside it, which is called `name:incumbent`."""
    refused: Mapping[str, str]
    """Why each other installed bound has no value."""


def bracket(
    model: nn.Module,
    input_shape: tuple[int, ...],
    norm: float | int = 2,
    domain: tuple[float | int, float | int] | None = None,
    time_limit: float | int = 60,
    inputs: Tensor | None = None,
) -> Bracket:
    """Return lower and upper bounds of a network's Lipschitz constant by all installed bounds.

    A network with a layer that no rule covers, or with a weight that is NaN or infinite, is
    `Refused` as a whole; what single bounds refuse is listed in the result, and so is a bound that
    fails, or that proves nothing finite.

    Args:
        model: The network, in the mode in which it is to be judged.
        input_shape: Shape of one input, without the batch.
        norm: 1, 2 or infinity, for inputs and outputs alike.
        domain: Smallest and largest entry of the inputs that count; None is all of space.
        time_limit: Seconds after which no further bound is begun, infinite for no limit. The
            cheapest bound from each side comes first, all others in order of their estimated cost;
            one that would pass the limit by its own estimate searches less, or is not begun.
        inputs: Data near which lower bounds search; None lets them sample.

    Raises:
        Unsound: If a lower bound exceeds an upper bound or a proof fails its recheck.
        ValueError: If the network, its input shape, the norm, the domain or the time limit is none.
    """
    if domain is not None and not (domain[0] < domain[1] and math.isfinite(domain[1] - domain[0])):
        raise ValueError(
            f"a domain is a finite pair lo < hi, or None for all of space, got {domain}."
        )
    if not isinstance(model, nn.Module):
        raise ValueError(f"a network is a torch.nn.Module, got {model!r}.")
    shape = tuple(input_shape) if isinstance(input_shape, Sequence) else ()
    if not shape or not all(isinstance(length, int) and length > 0 for length in shape):
        raise ValueError(f"an input shape is a tuple such as (1, 28, 28), got {input_shape!r}.")
    if not isinstance(time_limit, float | int) or not time_limit >= 0:
        raise ValueError(f"a time limit is a number of at least 0 seconds, got {time_limit!r}.")
    network, measure = as_network(model, shape), Norm(norm)
    box = None if domain is None else (float(domain[0]), float(domain[1]))
    refused: dict[str, str] = {}
    values: list[Lipschitz] = []
    bounds: list[Computed] = []
    begin = time.perf_counter()
    for name, bound, end in _installed(network, measure, box, refused):
        start = time.perf_counter()
        subject = network if end is None else end.before
        fitting = bound.within(subject, measure, box, min(time_limit, _FOREVER) - (start - begin))
        if fitting is None:
            refused[name] = f"it would pass the time limit of {time_limit} s."
            continue
        try:
            if end is None:
                value = fitting.compute(network, measure, box, tuple(values), inputs)
            else:
                value = end.behind(fitting.compute(subject, measure, box, (), inputs))
        except Refused as error:
            refused[name] = str(error)
            continue
        except Exception as error:  # whatever goes wrong in a bound, the others are as good
            refused[name] = f"it failed with {type(error).__name__}: {error}"
            continue
        if value.value == math.inf:
            refused[name] = "what it proves is not finite."
            continue
        values.append(value)
        bounds.append(_computed(name, value, time.perf_counter() - start))
        start = time.perf_counter()
        beside = incumbent(network, value)
        if beside is not None:
            values.append(beside)
            seconds = time.perf_counter() - start
            bounds.append(_computed(f"{name}:{INCUMBENT}", beside, seconds))
    violations = [*crossings(values), *(v for value in values for v in recheck(network, value))]
    if violations:
        raise Unsound(" ".join(violation.message for violation in violations))
    return Bracket(
        lower=max((value.least for value in values), default=0.0),
        upper=min((v.value for v in values if v.side in ("upper", "exact")), default=math.inf),
        bounds=tuple(bounds),
        refused=refused,
    )


def _installed(
    network: Network, norm: Norm, domain: Box | None, refused: dict[str, str]
) -> list[tuple[str, Bound, Ending | None]]:
    """Load the installed bounds, and add to `refused` the reasons of those that refuse.

    Returns:
        The others, in order; beside each is the network's ending if the bound is to be one of what
        stands before it.
    """
    candidates = []
    softmax_end = ending(network)
    for name in registry.names(_GROUP):
        try:
            bound = registry.load(_GROUP, name, Bound)()
        except registry.PluginError as error:
            refused[name] = str(error)
            continue
        end = softmax_end if bound.side in ("upper", "exact") else None
        subject = network if end is None else end.before
        reason = bound.refuses(subject, norm, domain)
        if norm not in bound.norms:
            reason = f"it has no rule for norm {norm}."
        if bound.side == "estimate":
            reason = "it is an estimate, and bounds nothing."
        if reason is None:
            candidates.append((bound.cost(subject, norm, domain), name, bound, end))
        else:
            refused[name] = reason
    candidates.sort(key=lambda candidate: candidate[0])
    # The cheapest from each side first: no slow bound must leave a network without a bracket.
    sides = (next((c for c in candidates if c[2].side == side), None) for side in _SIDES)
    first = [candidate for candidate in sides if candidate is not None]
    return [c[1:] for c in first + [c for c in candidates if c not in first]]


def _computed(name: str, value: Lipschitz, seconds: float) -> Computed:
    return Computed(
        name=name,
        value=value.value,
        side=value.side,
        norm=value.norm,
        domain=value.domain,
        seconds=seconds,
        flags=value.flags,
        proof=value.proof,
    )
