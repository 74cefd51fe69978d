"""Claimed Lipschitz constants, held against the bounds that were measured."""

import copy
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

import torch
from torch import nn

from lipbench.bound import Lipschitz
from lipbench.evaluation.subject import flag
from lipbench.failure import pass_signals, wording
from lipbench.guards.guard import Tampered, guarded
from lipbench.lipschitz.soundness import inside
from lipbench.method import Claim
from lipbench.networks.net import Net, Skeleton
from lipbench.norm import Norm
from lipbench.planning.cell import Cell
from lipbench.refused import Refused
from lipbench.seeds import stream
from lipbench.storage.rows import Row, box_text

CLAIMED = "claimed_lipschitz"
"""Metric of the row that says what a method claims."""
_TOLERANCE = "tolerance="


def claim_of(cell: Cell, module: nn.Module, strength: float | None) -> Claim | Refused | None:
    """Return the constant that the cell's method guarantees for a finished network.

    Args:
        cell: The cell that trained it.
        module: The finished network.
        strength: The value that the method's strength field had, if it has one.

    Returns:
        Its claim, None if it makes none; a refusal, if what it says is no claim.

    Raises:
        MemoryError: If there is not enough memory, as torch.OutOfMemoryError on a device.
        OutOfMemoryError: Likewise.
        Tampered: If the method changed the network.
    """
    try:
        claim = _claim(cell, module, strength)
        return None if claim is None else _read(claim)
    except (MemoryError, torch.OutOfMemoryError, Tampered):
        raise
    except BaseException as error:  # a claim that cannot be had costs no other number
        pass_signals(error)
        return Refused(f"its claim is none: {wording(error)}")


def _claim(cell: Cell, module: nn.Module, strength: float | None) -> object:
    method = cell.entry.method
    if method.strength is not None and strength is not None:
        method = replace(method, **{method.strength.field: strength})
    module = copy.deepcopy(module)
    params = {name: value.detach() for name, value in module.named_parameters()}
    skeleton = Skeleton(module, cell.benchmark.dataset.input_shape)
    net = Net(skeleton, params, dict(module.named_buffers()))
    seed = stream(cell.seed, "global", cell.entry.name, "claims").initial_seed()
    with guarded(f"method {cell.entry.name!r}", "claims", seed, network=(params, net.buffers)):
        return method.claims(net)


def _read(claim: object) -> Claim:
    """Return a claim whose numbers are plain ones, whatever class a stranger's is of.

    Raises:
        TypeError: If it is none.
        ValueError: If it says nothing.
    """
    if not isinstance(claim, Claim):
        raise TypeError(f"claims() gives a {type(claim).__name__}, and neither a Claim nor None.")
    domain = None if claim.domain is None else (float(claim.domain[0]), float(claim.domain[1]))
    read = Claim(
        norm=Norm(claim.norm), constant=claim.constant, domain=domain, tolerance=claim.tolerance
    )
    return replace(read, constant=float(read.constant), tolerance=float(read.tolerance))


def claim_row(claim: Claim | Refused, blank: Row) -> Row:
    """Return the row that says what is claimed, or why there is no claim."""
    row = replace(blank, metric=CLAIMED, estimator=blank.method, side="upper")
    if isinstance(claim, Refused):
        return replace(row, status="refused", flags=(*row.flags, flag(str(claim))))
    return replace(
        row,
        norm=float(claim.norm),
        domain=box_text(claim.domain),
        value=claim.constant,
        flags=(*blank.flags, f"{_TOLERANCE}{claim.tolerance!r}"),
    )


def claim_in(row: Row) -> Claim | None:
    """Return the claim that `claim_row` wrote, None if it says nothing."""
    if row.status != "done" or row.norm is None or row.value is None:
        return None
    slack = [text.removeprefix(_TOLERANCE) for text in row.flags if text.startswith(_TOLERANCE)]
    with suppress(ValueError):
        norm, tolerance = Norm(row.norm), float(slack[-1] if slack else 0.0)
        return Claim(norm=norm, constant=row.value, domain=row.box, tolerance=tolerance)
    return None


def refutations(claim: Claim, values: Iterable[Lipschitz]) -> list[str]:
    """Return each proven lower bound that exceeds the claim by more than its tolerance."""
    return [
        f"the claimed constant {claim.constant:.9g} in norm {claim.norm} is refuted: "
        f"two points of the domain expand by {value.least:.9g}{_marks(value)}"
        for value in values
        if value.norm == claim.norm
        and inside(value.domain, claim.domain)
        and value.least > claim.allowed
    ]


def _marks(value: Lipschitz) -> str:
    """Return what a value is marked with, behind its number: what was tested and not proved."""
    return f" ({', '.join(value.flags)})" if value.flags else ""
