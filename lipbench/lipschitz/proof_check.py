"""Proof check: the proof or certificate of every kind of Lipschitz bound, computed anew."""

import math
from collections.abc import Callable

import torch

from lipbench.bound import Lipschitz, Side
from lipbench.lipschitz.exact.gate_search import lipmip_problem
from lipbench.lipschitz.exact.region_search import lipbab_problem
from lipbench.lipschitz.lower_bounds.witness import proved_quotient
from lipbench.lipschitz.operator_norms.composition import composed
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.lipschitz.operator_norms.tight import proved_by_claims
from lipbench.lipschitz.relaxations.bisection import proved_by_subboxes
from lipbench.lipschitz.relaxations.entrywise import interval_norm
from lipbench.lipschitz.relaxations.intervals import loop_transformation_on
from lipbench.lipschitz.relaxations.jacobian_cases import proved_by_cases
from lipbench.lipschitz.relaxations.magnitudes import above_underflow
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.lipschitz.relaxations.polynomial_bound import proved_by_products
from lipbench.lipschitz.relaxations.recursive_derivatives import recursive_norm
from lipbench.lipschitz.relaxations.varying_neurons import varying_reach
from lipbench.lipschitz.semidefinite.lipsdp import proved_by_multipliers
from lipbench.lipschitz.semidefinite.singular_factors import proved_by_factors
from lipbench.lipschitz.softmax_end import ending, is_behind
from lipbench.lipschitz.soundness import TOLERANCE, Violation, inside, statement
from lipbench.networks.network import Network


def recheck(network: Network, value: Lipschitz) -> list[Violation]:
    """Return what is wrong with a value's own proof, computed anew; empty if it holds.

    A lower bound is rechecked by its witness, a product by the constant of each step. A value
    without a proof, or with one of another kind, is a violation unless flagged `unverified`.
    """
    if is_behind(value):
        return _recheck_behind(network, value)
    for kind, (sides, check) in _CHECKS.items():
        if kind in value.proof and value.side in sides:
            return check(network, value)
    if value.side == "estimate" or "unverified" in value.flags:
        return []
    return [Violation(message=f"{statement(value)} has no proof that can be rechecked.")]


def _recheck_behind(network: Network, value: Lipschitz) -> list[Violation]:
    end = ending(network)
    if end is None or value.side != "upper":
        return [Violation(message=f"{statement(value)}, but it has no such ending.")]
    before, proved = end.proved(value)
    violations = recheck(end.before, before)
    if not proved <= value.value * (1 + TOLERANCE):
        violations.append(
            Violation(message=f"{statement(value)}, but what is before proves {proved:.9g}.")
        )
    return violations


def _recheck_witness(network: Network, value: Lipschitz) -> list[Violation]:
    u, v = value.proof["u"], value.proof["v"]
    proved = proved_quotient(network, u, v, value.norm)
    violations = []
    if not value.value <= proved * (1 + TOLERANCE):
        violations.append(
            Violation(message=f"{statement(value)}, but its witness proves {proved:.9g}.")
        )
    reach = (float(torch.minimum(u, v).min()), float(torch.maximum(u, v).max()))
    if not inside(reach, value.domain):
        violations.append(
            Violation(message=f"{statement(value)}, but its witness reaches {reach}.")
        )
    return violations


def _proved_by_steps(network: Network, value: Lipschitz) -> float:
    constants = [constant(step, value.norm) for step in network.steps]
    return composed(network, constants, value.norm)


def _recheck_regions(network: Network, value: Lipschitz) -> list[Violation]:
    problem = lipbab_problem(network, value)
    return [Violation(message=f"{statement(value)}, but {problem}.")] if problem else []


def _recheck_nodes(network: Network, value: Lipschitz) -> list[Violation]:
    problem = lipmip_problem(network, value)
    return [Violation(message=f"{statement(value)}, but {problem}.")] if problem else []


def _proved_by_blocks(network: Network, value: Lipschitz) -> float:
    return loop_transformation_on(as_neuron_blocks(network), value.domain).reach(value.norm)[-1]


def _proved_by_derivatives(network: Network, value: Lipschitz) -> float:
    return interval_norm(as_neuron_blocks(network), value.norm, value.domain)[0]


def _proved_by_recursion(network: Network, value: Lipschitz) -> float:
    return recursive_norm(as_neuron_blocks(network), value.norm, value.domain)[0]


def _proved_by_varying_blocks(network: Network, value: Lipschitz) -> float:
    return varying_reach(as_neuron_blocks(network), value.domain)[-1]


def _proved(
    what: str, prove: Callable[[Network, Lipschitz], float], *, by_layers: bool = False
) -> "Check":
    """Return the check that what is proved anew is no more than the value.

    Args:
        what: What proves it.
        prove: The proof.
        by_layers: Whether norms of layers are multiplied, of which none vanishes.
    """

    def check(network: Network, value: Lipschitz) -> list[Violation]:
        proved = prove(network, value)
        proved = proved if by_layers else above_underflow(network, proved)
        if proved <= value.value * (1 + TOLERANCE) and math.isfinite(proved):
            return []
        return [Violation(message=f"{statement(value)}, but {what} prove {proved:.9g}.")]

    return check


Check = Callable[[Network, Lipschitz], list[Violation]]
_CHECKS: dict[str, tuple[tuple[Side, ...], Check]] = {
    "u": (("lower",), _recheck_witness),
    "closed": (("upper", "exact"), _recheck_regions),
    "parts": (("upper", "exact"), _recheck_nodes),
    "constants": (
        ("upper",),
        _proved("the constants of its steps", _proved_by_steps, by_layers=True),
    ),
    "claims": (
        ("upper",),
        _proved("the norms claimed of its layers", proved_by_claims, by_layers=True),
    ),
    "reach": (("upper",), _proved("its blocks", _proved_by_blocks)),
    "entries": (("upper",), _proved("bounds of its derivatives", _proved_by_derivatives)),
    "factors": (("upper",), _proved("the norms of its factors", proved_by_factors)),
    "recursive_entries": (("upper",), _proved("bounds of its derivatives", _proved_by_recursion)),
    "varying_reach": (("upper",), _proved("its neurons that vary", _proved_by_varying_blocks)),
    "multipliers": (("upper",), _proved("its multipliers", proved_by_multipliers)),
    "cases": (("upper",), _proved("cases of its derivatives", proved_by_cases)),
    "halvings": (("upper",), _proved("the parts of its domain", proved_by_subboxes)),
    "products": (("upper",), _proved("its weights of products", proved_by_products)),
}
"""By an entry of the proof: the sides that it can prove, and how that is checked."""
