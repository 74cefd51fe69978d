"""Candidates of a bracket: the installed bounds that take part, and how each of them is asked.

A bound may be anybody's code. Whatever goes wrong in it is its own failure, and the others count.
"""

import reprlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from lipbench import registry
from lipbench.bound import Bound, Lipschitz, Side
from lipbench.failure import pass_signals
from lipbench.guards.guard import Tampered, guarded
from lipbench.lipschitz.answers import (
    Malformed,
    finite,
    message,
    mismatches,
    read_answer,
    refuse_if_said,
    said,
)
from lipbench.lipschitz.softmax_end import Ending, ending
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.threat import Box

_GROUP = "lipbench.bounds"
_FIRST = ("upper", "lower")
"""Exit code of a process that was told to end, and not of a plugin that ends it."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """What bounds are asked for."""

    network: Network
    norm: Norm
    """Norm of inputs and outputs."""
    domain: Box | None
    """Box of the inputs, None for all of space."""
    inputs: Tensor | None
    """Data near which lower bounds search, None if there are none."""
    time_limit: float
    """Seconds for all bounds together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """An installed bound that covers a network."""

    name: str
    bound: Bound
    side: Side
    """That of its class."""
    cost: float
    """The seconds that it estimates for itself."""
    end: Ending | None
    """The network's ending, if the bound is to be one of what stands before it."""

    def answer(self, request: Request, known: tuple[Lipschitz, ...], seconds: float) -> Lipschitz:
        """Return the value of the network that the bound gives; its proof is not checked yet.

        Args:
            request: What it is asked for.
            known: Proved values of the network, from which a search may start.
            seconds: The time that is left.

        Raises:
            Refused: If the bound refuses, has no time, or gives what is not finite.
            Malformed: If what it gives is no value, or one of something else than was asked.
            Tampered: If it changed what it was given.
            Exception: Whatever the bound raises.
        """
        known = known if self.end is None else ()
        own = None if request.inputs is None else request.inputs.clone()
        with _guarded(self.name, "compute", request, self.end, known=known, inputs=own):
            return self._answer(request, known, own, seconds)

    def _answer(
        self,
        request: Request,
        known: tuple[Lipschitz, ...],
        inputs: Tensor | None,
        seconds: float,
    ) -> Lipschitz:
        norm, domain = request.norm, request.domain
        network = request.network if self.end is None else self.end.before
        fitting = self.bound.within(network, norm, domain, seconds)
        if fitting is None:
            raise Refused(f"it would pass the time limit of {request.time_limit} s.")
        if not isinstance(fitting, Bound):
            raise Malformed(
                f"its within() gives {reprlib.repr(fitting)}, and neither a bound nor None."
            )
        value = read_answer(fitting.compute(network, norm, domain, known, inputs))
        wrong = mismatches(value, self.side, norm, domain)
        if wrong:
            raise Malformed(f"{'; '.join(wrong)}.")
        return value if self.end is None else finite(self.end.behind(value))


def candidates(request: Request, refused: dict[str, str]) -> list[Candidate]:
    """Return the installed bounds that cover a network, in the order in which they are asked.

    The cheapest from each side comes first, since no slow bound must leave a network without a
    bracket; all others come in the order of their estimated cost.

    Args:
        request: What they are to be asked for.
        refused: What receives the reasons of those that do not cover it.
    """
    found: list[Candidate] = []
    end = ending(request.network)
    for name in registry.names(_GROUP):
        candidate = reason_or(partial(_candidate, name, request, end))
        if isinstance(candidate, Candidate):
            found.append(candidate)
        else:
            refused[name] = candidate
    found.sort(key=lambda candidate: candidate.cost)
    sides = (next((c for c in found if c.side == side), None) for side in _FIRST)
    first = [candidate for candidate in sides if candidate is not None]
    return first + [candidate for candidate in found if candidate not in first]


def reason_or(ask: Callable[[], T]) -> T | str:
    """Return what a call of a bound gives, or why it gives nothing; it may raise anything.

    Raises:
        KeyboardInterrupt: If a person interrupted it.
        Terminated: If the process is told to end, and not by the bound.
    """
    try:
        return ask()
    except (Refused, Malformed, Tampered, registry.PluginError) as error:
        return message(error) or "it gives no reason."
    except BaseException as error:  # a plugin may raise anything
        pass_signals(error)
        return f"it failed with {said(error)}"


def _candidate(name: str, request: Request, end: Ending | None) -> Candidate:
    """Return a bound that covers the network.

    Raises:
        Refused: If it does not.
        Malformed: If what it says of itself is not what a bound says.
        Exception: Whatever its code raises.
    """
    bound = registry.load(_GROUP, name, Bound)()
    norm, domain, side = request.norm, request.domain, bound.side
    if side not in ("upper", "lower", "exact", "estimate"):
        raise Malformed(f"the side of its class is {reprlib.repr(side)}, and none that there is.")
    if side == "estimate":
        raise Refused("it is an estimate, and bounds nothing.")
    if norm not in bound.norms:
        raise Refused(f"it has no rule for norm {norm}.")
    end = None if side == "lower" else end
    network = request.network if end is None else end.before
    with _guarded(name, "refuses", request, end):
        refuse_if_said(bound.refuses(network, norm, domain))
    with _guarded(name, "cost", request, end):
        cost = bound.cost(network, norm, domain)
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not cost >= 0:
        raise Malformed(f"its cost() gives {reprlib.repr(cost)}, and no seconds.")
    return Candidate(name=name, bound=bound, side=side, cost=float(cost), end=end)


def _guarded(
    name: str, hook: str, request: Request, end: Ending | None, **given: Any
) -> AbstractContextManager[None]:
    """Return the guard of a call of a bound, which names it by what it is installed as."""
    return guarded(f"bound {name!r}", hook, 0, network=request.network, ending=end, **given)
