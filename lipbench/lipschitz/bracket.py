"""Bracket the Lipschitz constant of a network between a lower and an upper bound."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor, nn

from lipbench.bound import UNVERIFIED, Lipschitz, Side
from lipbench.lipschitz.agreement import read_network
from lipbench.lipschitz.answers import Malformed, checked, copies, is_verified
from lipbench.lipschitz.candidates import Request, candidates, reason_or
from lipbench.lipschitz.exact.incumbent import INCUMBENT, incumbent
from lipbench.lipschitz.soundness import crossings, refutation
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.threat import Box

_UPPER = ("upper", "exact")
_FOREVER = 1e9
"""Seconds that count as no limit: bounds count how much they can do in them."""


class Unsound(Exception):
    """Two proved values of one network cross: something is wrong in a bound, or in its proof."""


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
    """Remarks: `unverified` is a value that nothing proves, and `refuted: ...` one of these that a
    proved value contradicts."""
    proof: Mapping[str, Tensor] = field(repr=False)

    @property
    def is_verified(self) -> bool:
        """Return whether its proof was checked anew, and holds."""
        return UNVERIFIED not in self.flags

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
    """The largest verified lower bound; 0 if there is none."""
    upper: float
    """The smallest verified upper bound; infinite if there is none."""
    bounds: tuple[Computed, ...]
    """The values of all bounds, in the order computed; a search for an upper bound may prove a
    lower one beside it, which is called `name:incumbent`. Those that are flagged `unverified` count
    for nothing."""
    refused: Mapping[str, str]
    """Why each other installed bound has no value: it refuses, fails, answers another question, or
    gives a proof that does not hold."""

    @property
    def verified(self) -> tuple[Computed, ...]:
        """Return the values that `lower` and `upper` are made of."""
        return tuple(bound for bound in self.bounds if bound.is_verified)


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
    `Refused` as a whole, and so is one that does not answer an input in one way. What single bounds
    refuse is listed in the result, and so is a bound that fails, that proves nothing finite, or
    whose answer or proof is not what it says. Only values whose proof was checked anew count.

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
        Unsound: If a proved lower bound exceeds a proved upper bound.
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
    network, measure = read_network(model, shape, inputs), Norm(norm)
    box = None if domain is None else (float(domain[0]), float(domain[1]))
    request = Request(
        network=network, norm=measure, domain=box, inputs=inputs, time_limit=time_limit
    )
    search = _Search(network)
    begin = time.perf_counter()
    for candidate in candidates(request, search.refused):
        spent = time.perf_counter() - begin - search.checking
        left = min(time_limit, _FOREVER) - spent
        known = copies(search.proved)
        value = search.take(candidate.name, partial(candidate.answer, request, known, left))
        if value is not None:
            search.take(f"{candidate.name}:{INCUMBENT}", partial(incumbent, network, value))
    violations = crossings(search.proved)
    if violations:
        raise Unsound(" ".join(violation.message for violation in violations))
    return Bracket(
        lower=max((value.least for value in search.proved), default=0.0),
        upper=min((v.value for v in search.proved if v.side in _UPPER), default=math.inf),
        bounds=tuple(_judged(bound, search.proved) for bound in search.bounds),
        refused=search.refused,
    )


class _Search:
    """What the bounds of a network give, one after the other."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.proved: list[Lipschitz] = []
        """The values whose proof holds, from which later bounds may start."""
        self.bounds: list[Computed] = []
        """These, and those that their bounds themselves call unverified."""
        self.refused: dict[str, str] = {}
        self.checking = 0.0
        """Seconds that checks of proofs took, which are none of the bounds' time."""

    def take(self, name: str, ask: Callable[[], Lipschitz | None]) -> Lipschitz | None:
        """Ask for a value, check its proof, and note the value, or why there is none.

        Returns:
            It, if it is proved.
        """
        start = time.perf_counter()
        value = reason_or(ask)
        computed = time.perf_counter()
        if isinstance(value, Lipschitz):
            value = reason_or(partial(_checked, self._network, value))
            self.checking += time.perf_counter() - computed
        if isinstance(value, str):
            self.refused[name] = value
        if not isinstance(value, Lipschitz):
            return None
        self.bounds.append(_computed(name, value, computed - start))
        if not is_verified(value):
            return None
        self.proved.append(value)
        return value


def _checked(network: Network, value: Lipschitz) -> Lipschitz:
    """Return a value with its marks.

    Raises:
        Malformed: If its proof does not hold.
    """
    value, problems = checked(network, value)
    if problems:
        raise Malformed(" ".join(problems))
    return value


def _judged(bound: Computed, proved: Sequence[Lipschitz]) -> Computed:
    """Return a bound; one that is unverified and that a proved value refutes says so."""
    if bound.is_verified:
        return bound
    reason = refutation(bound.lipschitz, proved)
    return bound if reason is None else replace(bound, flags=(*bound.flags, reason))


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
