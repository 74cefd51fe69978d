"""Claimed Lipschitz constants, held against the bounds that were measured."""

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from lipbench.bound import Lipschitz
from lipbench.lipschitz.soundness import inside
from lipbench.method import Claim
from lipbench.networks.net import Net, Skeleton
from lipbench.norm import Norm
from lipbench.planning.cell import Cell
from lipbench.storage.rows import Row, box_text

CLAIMED = "claimed_lipschitz"
"""Metric of the row that says what a method claims."""
_TOLERANCE = "tolerance="


def claim_of(cell: Cell, module: nn.Module, strength: float | None) -> Claim | None:
    """Return the constant that the cell's method guarantees for a finished network.

    Args:
        cell: The cell that trained it.
        module: The finished network.
        strength: The value that the method's strength field had, if it has one.
    """
    method = cell.entry.method
    if method.strength is not None and strength is not None:
        method = replace(method, **{method.strength.field: strength})
    params = {name: value.detach() for name, value in module.named_parameters()}
    skeleton = Skeleton(module, cell.benchmark.dataset.input_shape)
    return method.claims(Net(skeleton, params, dict(module.named_buffers())))


def claim_row(claim: Claim, blank: Row) -> Row:
    """Return the row that says what is claimed."""
    return replace(
        blank,
        metric=CLAIMED,
        norm=float(claim.norm),
        domain=box_text(claim.domain),
        estimator=blank.method,
        side="upper",
        value=claim.constant,
        flags=(*blank.flags, f"{_TOLERANCE}{claim.tolerance!r}"),
    )


def claim_in(row: Row) -> Claim:
    """Return the claim that `claim_row` wrote."""
    assert row.norm is not None
    assert row.value is not None
    slack = [flag.removeprefix(_TOLERANCE) for flag in row.flags if flag.startswith(_TOLERANCE)]
    return Claim(
        norm=Norm(row.norm), constant=row.value, domain=row.box, tolerance=float(slack[-1])
    )


def refutations(claim: Claim, values: Iterable[Lipschitz]) -> list[str]:
    """Return each proven lower bound that exceeds the claim by more than its tolerance."""
    return [
        f"the claimed constant {claim.constant:.9g} in norm {claim.norm} is refuted: "
        f"two points of the domain expand by {value.least:.9g}"
        for value in values
        if value.norm == claim.norm
        and inside(value.domain, claim.domain)
        and value.least > claim.constant * (1 + claim.tolerance)
    ]
