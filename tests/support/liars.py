"""Bounds of strangers that say what is not true, or what is no answer, as the text of a plugin."""

HEAD = """
import math
from dataclasses import dataclass, replace
import numpy as np
import torch
from lipbench.bound import Bound, Lipschitz
from lipbench.norm import Norm, NORMS
from lipbench.refused import Refused

class Speechless(Exception):
    def __str__(self):
        return 1 / 0

def said(norm, domain, value=0.1, side="upper", **more):
    return Lipschitz(value=value, side=side, norm=norm, domain=domain, **more)
"""
_BOUND = """
@dataclass(frozen=True, kw_only=True)
class {name}(Bound):
    side = {side!r}
    norms = NORMS
    def cost(self, network, norm, domain):
        return {cost}
    def refuses(self, network, norm, domain):
        return {refuses}
    def within(self, network, norm, domain, seconds):
        return {within}
    def compute(self, network, norm, domain, known=(), inputs=None):
        return {answer}
"""
_DEFAULTS = {
    "side": "upper",
    "cost": "0.0",
    "refuses": "None",
    "within": "self",
    "answer": 'said(norm, domain, flags=("unverified",))',
}


def liars(bounds):
    """Return the arguments of `publish` for bounds: names, and what differs from the defaults.

    What differs may be `side`, and the expressions that the hooks return.
    """
    code = [
        _BOUND.format(name=f"Bound_{name}", **_DEFAULTS | bound) for name, bound in bounds.items()
    ]
    points = {name: f"liars:Bound_{name}" for name in bounds}
    return "liars", {"lipbench.bounds": points}, {"liars.py": HEAD + "".join(code)}
