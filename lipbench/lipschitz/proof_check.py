"""Proof check: the proof or certificate of every kind of Lipschitz bound, computed anew."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipbench.bound import UNVERIFIED, Lipschitz, Side
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
from lipbench.norm import NORMS, Norm
from lipbench.refused import Refused

_DTYPES = frozenset(
    {torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
)


def recheck(network: Network, value: Lipschitz) -> list[Violation]:
    """Return what is wrong with a value's own proof, computed anew; empty if it holds.

    A lower bound is rechecked by its witness, a product by the constant of each step. A value
    without a proof, or with one of another kind, is a violation unless flagged `unverified`; so is
    one whose proof is of another side or norm, or cannot be read. Nothing of the proof is taken on
    faith: it proves the value for this network, in its norm and on its domain, or it does not.

    Raises:
        MemoryError: If there is not enough memory, as torch.OutOfMemoryError on a device.
        OutOfMemoryError: Likewise.
    """
    lack = _lack(value)
    if lack:
        return [Violation(message=f"{statement(value)}, but {lack}.")]
    try:
        return _recheck(network, value)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Refused as error:
        return [Violation(message=f"{statement(value)}, but its proof is of none here: {error}")]
    except Exception as error:  # a proof may have any names, shapes and numbers
        problem = f"{type(error).__name__}: {error}".partition("\n")[0]
        message = f"{statement(value)}, but its proof is malformed: {problem}"
        return [Violation(message=message, is_malformed=True)]


def _lack(value: Lipschitz) -> str:
    """Return what a value and its proof lack to be checked, empty if nothing."""
    if not math.isfinite(value.value) or value.value < 0:
        return f"{value.value} is no Lipschitz constant"
    domain = value.domain
    if domain is not None and not -math.inf < domain[0] < domain[1] < math.inf:
        return f"[{domain[0]}, {domain[1]}] is no box"
    for name, tensor in value.proof.items():
        if not isinstance(tensor, Tensor) or tensor.device.type != "cpu" or tensor.is_sparse:
            return f"{name!r} in its proof is no plain tensor on the CPU"
        if tensor.dtype not in _DTYPES:
            return f"{name!r} in its proof is of {tensor.dtype}, not of float64 or whole numbers"
    return ""


def _recheck(network: Network, value: Lipschitz) -> list[Violation]:
    if is_behind(value):
        return _recheck_behind(network, value)
    for name, kind in _KINDS.items():
        if name in value.proof and value.side in kind.sides:
            if value.norm not in kind.norms:
                return [
                    Violation(message=f"{statement(value)}, but its proof holds in another norm.")
                ]
            return kind.check(network, value)
    if value.side == "estimate" or UNVERIFIED in value.flags:
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


@dataclass(frozen=True)
class _Kind:
    """A kind of proof."""

    sides: tuple[Side, ...]
    check: Check
    norms: frozenset[Norm] = NORMS
    """Those in which such a proof proves anything."""


_UPPER: tuple[Side, ...] = ("upper",)
_SEARCH: tuple[Side, ...] = ("upper", "exact")
_L2 = frozenset({Norm(2)})
_KINDS: dict[str, _Kind] = {
    "u": _Kind(("lower",), _recheck_witness),
    "closed": _Kind(_SEARCH, _recheck_regions),
    "parts": _Kind(_SEARCH, _recheck_nodes, frozenset({Norm(1), Norm(math.inf)})),
    "constants": _Kind(
        _UPPER, _proved("the constants of its steps", _proved_by_steps, by_layers=True)
    ),
    "claims": _Kind(
        _UPPER, _proved("the norms claimed of its layers", proved_by_claims, by_layers=True), _L2
    ),
    "reach": _Kind(_UPPER, _proved("its blocks", _proved_by_blocks)),
    "entries": _Kind(_UPPER, _proved("bounds of its derivatives", _proved_by_derivatives)),
    "factors": _Kind(_UPPER, _proved("the norms of its factors", proved_by_factors), _L2),
    "recursive_entries": _Kind(_UPPER, _proved("bounds of its derivatives", _proved_by_recursion)),
    "varying_reach": _Kind(
        _UPPER, _proved("its neurons that vary", _proved_by_varying_blocks), _L2
    ),
    "multipliers": _Kind(_UPPER, _proved("its multipliers", proved_by_multipliers), _L2),
    "cases": _Kind(_UPPER, _proved("cases of its derivatives", proved_by_cases)),
    "halvings": _Kind(_UPPER, _proved("the parts of its domain", proved_by_subboxes)),
    "products": _Kind(_UPPER, _proved("its weights of products", proved_by_products)),
}
"""By an entry of the proof that no other kind has."""
