"""Training with an enforced Lipschitz constant, by ADMM (Pauli et al. 2020), in miniature.

The semidefinite program is replaced by a projection that is certified but not optimal: all
singular values of both layers are clipped at the largest level at which the constant, from the
certificate with fixed multipliers, is what was asked for.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from lipbench.method import Claim, Method
from lipbench.norm import Norm
from lipbench.steps import Linear, Rearrange, Slope


@dataclass(frozen=True, kw_only=True)
class Enforced(Method):
    stackable: ClassVar[bool] = False

    constant: float = 5.0
    rho: float = 0.5
    every: int = 1

    def refuses(self, model, data):
        from lipbench.network import walk

        steps = walk(model, data.dataset.input_shape).bind(
            dict(model.named_parameters()), dict(model.named_buffers())
        )
        kinds = [type(s) for s in steps.steps if not isinstance(s, Rearrange)]
        fits = len(kinds) == 3 and issubclass(kinds[0], Linear) and kinds[1] is Slope
        return None if fits else "it trains networks of one hidden layer"

    def start(self, net, data, rng):
        dual = {layer.weight_name: torch.zeros_like(layer.weight) for layer in net.layers}
        return {"bar": self._projected(net, dual), "dual": dual}

    def loss(self, net, batch, state, draw, h):
        outputs, buffers = net.train(batch.inputs)
        value = batch.loss(outputs)
        for name, bar in state["bar"].items():
            gap = net.params[name] - bar
            value = value + h["rho"] / 2 * gap.square().sum() + (state["dual"][name] * gap).sum()
        return value, {**state, "buffers": buffers}

    def end_epoch(self, net, summary, state, h):
        if summary.epoch % self.every:
            return state
        bar = self._projected(net, state["dual"])
        dual = {
            name: value + h["rho"] * (net.params[name] - bar[name])
            for name, value in state["dual"].items()
        }
        return {**state, "bar": bar, "dual": dual}

    def effective(self, net, state, h):
        return {**net.params, **state["bar"]}

    def claims(self, net):
        return Claim(norm=Norm(2), constant=self.constant, tolerance=1e-5)

    def _projected(self, net, dual):
        slope = next(float(s.constant) for s in net.steps.steps if isinstance(s, Slope))
        names = [layer.weight_name for layer in net.layers]
        target = [(net.params[n] + dual[n] / self.rho).detach().double().numpy() for n in names]
        bars = project(*target, slope=slope, constant=self.constant)
        return {
            name: torch.from_numpy(bar).to(net.params[name])
            for name, bar in zip(names, bars, strict=True)
        }


def certificate(first, last, slope):
    """Return a certified l2 constant of x -> last·s(first·x), s with slopes in [0, slope]."""
    gram = first @ first.T
    norm = max(np.linalg.norm(gram, 2), 1e-12)
    best = np.inf
    for share in (0.5, 1.0, 1.5, 1.9):
        # M = diag(l) - diag(l·m)·W·Wᵀ·diag(l·m), m = slope/2, must be positive definite.
        l = share * 2 / (slope**2 * norm)  # noqa: E741
        centre = l * np.eye(len(gram)) - (l * slope / 2) ** 2 * gram
        if np.linalg.eigvalsh(centre)[0] > 0:
            squared = np.linalg.norm(last @ np.linalg.solve(centre, last.T), 2)
            best = min(best, float(np.sqrt(squared)))
    return best


def project(first, last, slope, constant):
    """Return both matrices, clipped until their certificate is at most `constant`."""
    parts = [np.linalg.svd(matrix, full_matrices=False) for matrix in (first, last)]

    def clipped(level):
        return [(u * np.minimum(s, level)) @ v for u, s, v in parts]

    low, high = 0.0, float(max(s[0] for _, s, _ in parts))
    if certificate(first, last, slope) <= constant:
        return [first, last]
    for _ in range(40):
        middle = (low + high) / 2
        if certificate(*clipped(middle), slope) <= constant:
            low = middle
        else:
            high = middle
    return clipped(low)
