"""The report of an audit, as text for people and as JSON for programs."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lipbench.audit.audit import Accuracy, Audit
from lipbench.audit.blackbox import MARGIN, MeasuredQuotient

_NORMS = {1.0: "l1", 2.0: "l2", math.inf: "l-infinity"}


def text(audit: Audit, subject: str) -> str:
    """Return the findings about `subject`, the number of each side named."""
    from tabulate import tabulate

    bracket = audit.bracket
    rows = [
        (
            bound.name,
            bound.side,
            f"{bound.value:.6g}",
            f"{bound.seconds:.2f}",
            ", ".join(bound.flags),
        )
        for bound in sorted(bracket.bounds, key=lambda bound: bound.value)
    ]
    heads = ("bound", "side", "value", "seconds", "remarks")
    sections = [
        f"{subject}\n{_bracket(audit)}",
        "\n".join(f"remark: {remark}" for remark in audit.remarks),
        tabulate(rows, headers=heads, disable_numparse=True) if rows else "",
        "\n".join(f"{name} refused: {reason}" for name, reason in bracket.refused.items()),
        _claim(audit),
        "" if audit.accuracy is None else _accuracy(audit.accuracy, _NORMS[audit.norm]),
    ]
    return "\n\n".join(section for section in sections if section)


def report(audit: Audit, network: Mapping[str, Any]) -> dict[str, Any]:
    """Return the findings as values for JSON; infinite bounds and missing numbers are None.

    Args:
        audit: What was found.
        network: Where the network comes from, taken over as it is.
    """
    bracket = audit.bracket
    return {
        "network": dict(network),
        "norm": str(audit.norm),
        "domain": None if audit.domain is None else list(audit.domain),
        "marks": list(audit.marks),
        "remarks": list(audit.remarks),
        "lipschitz_lower": bracket.lower,
        "lipschitz_upper": _finite(bracket.upper),
        "bounds": [
            {
                "name": bound.name,
                "side": bound.side,
                "value": _finite(bound.value),
                "seconds": bound.seconds,
                "flags": list(bound.flags),
                "verified": bound.is_verified,
            }
            for bound in bracket.bounds
        ],
        "refused": dict(bracket.refused),
        "measured": _measured_report(audit),
        "claim": _claim_report(audit),
        "accuracy": None if audit.accuracy is None else _accuracy_report(audit.accuracy),
    }


def proofs(audit: Audit) -> dict[str, Tensor]:
    """Return the witnesses and certificates of all bounds, named bound/key."""
    return {
        f"{bound.name}/{key}": tensor
        for bound in audit.bracket.bounds
        for key, tensor in bound.proof.items()
    }


def _bracket(audit: Audit) -> str:
    bracket = audit.bracket
    where = "all of space" if audit.domain is None else "[{:g}, {:g}]".format(*audit.domain)
    line = (
        f"Lipschitz constant in norm {audit.norm} on {where}: "
        f"at least {bracket.lower:.6g}, at most {bracket.upper:.6g}"
    )
    if audit.measured is not None:
        return f"{line}\n{_how(audit.measured)}"
    tight = bracket.lower > 0 and math.isfinite(bracket.upper)
    return f"{line} (ratio {bracket.upper / bracket.lower:.3g})" if tight else line


def _claim(audit: Audit) -> str:
    claim = audit.claim
    if claim is None:
        return ""
    slack = f" with a tolerance of {claim.tolerance:g}" if claim.tolerance else ""
    head = f"claim: at most {claim.constant:.9g}{slack}: {audit.verdict}"
    marks = f" ({'; '.join(audit.marks)})" if audit.marks else ""
    if audit.verdict == "proved":
        return f"{head}, by an upper bound of {audit.bracket.upper:.9g}{marks}"
    if audit.verdict == "open" and audit.remarks:
        return f"{head}: the network is no function of its input, and nothing is proved of it"
    if audit.verdict == "open":
        return f"{head}: the constant lies between the bounds, and the claim does, too"
    if audit.witness is None:
        return f"{head}, by a search that proves {audit.bracket.lower:.9g}{marks}"
    distance = audit.norm.length((audit.witness.u - audit.witness.v).unsqueeze(0))
    if audit.measured is not None:
        return (
            f"{head}, as measured and not proved: by two inputs {float(distance):.4g} apart whose "
            f"outputs are {audit.witness.quotient:.9g} times as far apart, which is more than the "
            f"claim and {MARGIN:.0%} of it"
        )
    return (
        f"{head}, by two inputs {float(distance):.4g} apart whose outputs are at least "
        f"{audit.witness.quotient:.9g} times as far apart ({audit.witness.found_by}){marks}"
    )


def _how(measured: MeasuredQuotient) -> str:
    return (
        "The lower bound is measured and not proved: the network was evaluated in float64, and\n"
        f"{measured.error:.2g} taken off the distance of two outputs: twice what they change by in "
        "float32, in a\nbatch, and at inputs a millionth away, and what they jump by in between."
    )


def _measured_report(audit: Audit) -> dict[str, Any] | None:
    if audit.measured is None:
        return None
    return {"verified": False, "error": audit.measured.error, "margin_of_refutation": MARGIN}


def _accuracy(accuracy: Accuracy, norm: str) -> str:
    from tabulate import tabulate

    def percent(share: float | None) -> str:
        return "" if share is None else f"{100 * share:.2f}"

    rows = [
        (f"{robustness.epsilon:g}", percent(robustness.certified), percent(robustness.attacked))
        for robustness in accuracy.at
    ]
    heads = (f"{norm} radius", "certified %", "attacked %")
    lines = [
        f"accuracy on {accuracy.samples} test samples of {accuracy.data}: "
        f"clean {percent(accuracy.clean)} %",
        *([tabulate(rows, headers=heads, disable_numparse=True)] if rows else []),
        *accuracy.remarks,
    ]
    return "\n".join(lines)


def _claim_report(audit: Audit) -> dict[str, Any] | None:
    claim, witness = audit.claim, audit.witness
    if claim is None:
        return None
    values: dict[str, Any] = {
        "constant": claim.constant,
        "tolerance": claim.tolerance,
        "verdict": audit.verdict,
        "marks": list(audit.marks),
        "witness": None,
    }
    if witness is not None:
        values["witness"] = {
            "found_by": witness.found_by,
            "quotient": witness.quotient,
            "u": witness.u.tolist(),
            "v": witness.v.tolist(),
        }
    return values


def _accuracy_report(accuracy: Accuracy) -> dict[str, Any]:
    return {
        "data": accuracy.data,
        "samples": accuracy.samples,
        "clean_accuracy": accuracy.clean,
        "at": [
            {
                "epsilon": robustness.epsilon,
                "robust_accuracy": robustness.attacked,
                "certified_accuracy": robustness.certified,
            }
            for robustness in accuracy.at
        ],
        "remarks": list(accuracy.remarks),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
