"""Answers of bounds: what one returned, read, compared with the request, and its proof checked.

A bound may be anybody's code. Nothing of what it says is taken on its word: not that it returned a
value, not that the value is of the norm and the box that were asked for, and not that it is proved.
"""

import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from numbers import Real

import torch
from torch import Tensor, nn

from lipbench.bound import UNVERIFIED, Lipschitz, Side
from lipbench.failure import class_name, text_of
from lipbench.lipschitz.proof_check import recheck
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.threat import Box

_SIDES: dict[Side, tuple[Side, ...]] = {
    "upper": ("upper",),
    "lower": ("lower",),
    # A search that did not end knows what the constant is at most.
    "exact": ("exact", "upper"),
    "estimate": ("estimate",),
}
"""By the side of a bound's class: the sides of its values."""
_DTYPES = (
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
_LONGEST = 500
"""Letters of what a stranger's code may say."""
_MOST = 2**27
"""Numbers in a proof: a GiB of them."""


class Malformed(Exception):
    """What a bound returned is no value, or its proof none that can be checked; it says why."""


def refuse_if_said(reason: object) -> None:
    """Take what `refuses` of a bound or certificate gives: a reason, or None.

    Raises:
        Refused: If there is a reason.
        Malformed: If it is neither.
    """
    if reason is not None and not isinstance(reason, str):
        raise Malformed(f"its refuses() gives {_named(reason)}, and neither a reason nor None.")
    if reason is not None:
        raise Refused(one_line(reason) or "it gives no reason.")


def read_answer(returned: object) -> Lipschitz:
    """Return what a bound returned as a value of the core's own: plain numbers, and copies.

    Raises:
        Malformed: If it is no `Lipschitz`, or has a field that is not what `Lipschitz` says.
        Refused: If its number is infinite or NaN: then it says nothing.
    """
    if not isinstance(returned, Lipschitz):
        raise Malformed(f"it returned {_named(returned)}, and no Lipschitz.")
    try:
        value = Lipschitz(
            value=_number(returned.value),
            side=_side(returned.side),
            norm=Norm(returned.norm),
            domain=_box(returned.domain),
            proof=_proof(returned.proof),
            flags=_flags(returned.flags),
        )
    except Malformed:
        raise
    except Exception as error:  # whatever a field may be
        raise Malformed(f"what it returned cannot be read: {said(error)}") from error
    return finite(value)


def finite(value: Lipschitz) -> Lipschitz:
    """Return a value whose number says something.

    Raises:
        Refused: If it is infinite or NaN.
        Malformed: If it is negative.
    """
    if not math.isfinite(value.value):
        raise Refused("what it proves is not finite.")
    if value.value < 0:
        raise Malformed(f"{value.value} is no Lipschitz constant, which is at least 0.")
    return value


def mismatches(value: Lipschitz, side: Side, norm: Norm, domain: Box | None) -> list[str]:
    """Return in what a value is not what a bound of this side was asked for; mostly nothing."""
    found = []
    if (value.norm, value.domain) != (norm, domain):
        found.append(
            f"it speaks of norm {value.norm} on {_where(value.domain)}, and was asked for norm "
            f"{norm} on {_where(domain)}"
        )
    if value.side not in _SIDES[side]:
        wanted = " or ".join(_SIDES[side])
        found.append(f"the side of its value is {value.side}, and that of its class {wanted}")
    return found


def checked(network: Network, value: Lipschitz) -> tuple[Lipschitz, list[str]]:
    """Check the proof of a value.

    What tested and not proved the network rests on marks the value, whoever made it. That it is
    `unverified` marks it only if nothing proves it: a bound may say so of a value whose proof
    holds, and the proof counts.

    Returns:
        The value with its marks, and what is wrong with its proof: nothing if it holds, or if the
        value is an estimate or unverified, and claims none.

    Raises:
        Malformed: If the proof cannot be read.
    """
    value = replace(value, flags=tuple(dict.fromkeys((*network.flags, *value.flags))))
    problems = _problems(network, value)
    if UNVERIFIED in value.flags and not problems and value.side != "estimate":
        rest = tuple(flag for flag in value.flags if flag != UNVERIFIED)
        bare = replace(value, flags=rest)
        value = value if _problems(network, bare) else bare
    return value, problems


def is_verified(value: Lipschitz) -> bool:
    """Return whether a value that was checked, and no problem found, is proved."""
    return value.side != "estimate" and UNVERIFIED not in value.flags


def copies(values: Iterable[Lipschitz]) -> tuple[Lipschitz, ...]:
    """Return values with proofs of their own: a bound may do as it likes with what it is given."""
    return tuple(
        replace(value, proof={name: tensor.clone() for name, tensor in value.proof.items()})
        for value in values
    )


def said(error: BaseException) -> str:
    """Return what an exception says, with the name of its class."""
    return ": ".join(filter(None, (class_name(error), message(error))))


def message(error: BaseException) -> str:
    """Return what an exception says on one line; that it cannot be had, if so."""
    return one_line(text_of(error))


def one_line(text: str) -> str:
    """Return a text, or its beginning, on one line that can be printed and stored."""
    line = " ".join(text[: 2 * _LONGEST].split())
    printable = "".join(letter if letter.isprintable() else "?" for letter in line)
    return printable if len(printable) <= _LONGEST else f"{printable[:_LONGEST]}..."


def _problems(network: Network, value: Lipschitz) -> list[str]:
    violations = recheck(network, value)
    if any(violation.is_malformed for violation in violations):
        raise Malformed(" ".join(violation.message for violation in violations))
    return [violation.message for violation in violations]


def _number(number: object) -> float:
    if not isinstance(number, Real) or isinstance(number, bool):
        raise Malformed(f"its value is {_named(number)}, and no number.")
    return float(number)


def _side(side: object) -> Side:
    if not isinstance(side, str) or side not in _SIDES:
        raise Malformed(f"its side is one of {', '.join(_SIDES)}, got {reprlib.repr(side)}.")
    return side


def _box(domain: object) -> Box | None:
    if domain is None:
        return None
    if not isinstance(domain, tuple | list) or len(domain) != 2:
        raise Malformed(f"its domain is a pair lo, hi or None, got {_named(domain)}.")
    return _number(domain[0]), _number(domain[1])


def _proof(proof: object) -> dict[str, Tensor]:
    if not isinstance(proof, Mapping):
        raise Malformed(f"its proof is {_named(proof)}, and no mapping of names to tensors.")
    if not all(isinstance(name, str) and name.isprintable() for name in proof):
        raise Malformed("the entries of its proof are named by texts that can be printed.")
    entries = {str(name): _plain(name, entry) for name, entry in proof.items()}
    if sum(tensor.numel() for tensor in entries.values()) > _MOST:
        raise Malformed(f"its proof has more than {_MOST:,} numbers.")
    # Copies: what is checked is what is kept, whatever becomes of the bound's own.
    return {
        name: tensor.detach().to("cpu").clone().contiguous() for name, tensor in entries.items()
    }


def _plain(name: str, entry: object) -> Tensor:
    """Return an entry of a proof that is a tensor and no more than that.

    Raises:
        Malformed: If it is anything else: a class of its own could answer as it likes.
    """
    if not isinstance(entry, Tensor) or type(entry) not in (Tensor, nn.Parameter):
        raise Malformed(f"its proof {name!r} is {_named(entry)}, and no plain tensor.")
    if entry.layout != torch.strided:
        raise Malformed(f"its proof {name!r} is no dense tensor.")
    if entry.dtype not in _DTYPES:
        raise Malformed(
            f"its proof {name!r} is in {entry.dtype}; proofs are in float64, or whole numbers."
        )
    return entry


def _flags(flags: object) -> tuple[str, ...]:
    if not isinstance(flags, tuple | list) or not all(isinstance(flag, str) for flag in flags):
        raise Malformed(f"its flags are a tuple of texts, got {reprlib.repr(flags)}.")
    cleaned = (one_line(flag.replace(";", ",")) for flag in flags)
    return tuple(flag for flag in dict.fromkeys(cleaned) if flag)


def _where(domain: Box | None) -> str:
    return "all of space" if domain is None else "[{:g}, {:g}]".format(*domain)


def _named(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
