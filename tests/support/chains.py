"""Chains of dense layers, and what the literature says of them, written out."""

from itertools import pairwise, product

import torch
from support.bounds import L2, rechecked
from torch import nn

GELU = 1.1289041451847
SLOPED = [  # activations, and the ends of their slopes
    (nn.ReLU, 0.0, 1.0),
    (nn.Sigmoid, 0.0, 0.25),
    (nn.GELU, 1 - GELU, GELU),
    (lambda: nn.LeakyReLU(0.3), 0.3, 1.0),
    (lambda: nn.LeakyReLU(-2.0), -2.0, 1.0),
    (lambda: nn.PReLU(init=-0.5), -0.5, 1.0),
]

BY_HAND = {  # the constants that slopes between their ends allow
    "absolute value": 1,
    "identity": 2,
    "step": 1,
    "zero": 1,
    "hat": 2,
    "maximum": 2,
    "shifted": 2,
    "sigmoid": 1,
    "gelu": GELU,
    "linear": 5,
}


def l2_bound(model, features, domain=None, *, name, **options):
    """Return what a bound says of a module in l2, after its proof was checked."""
    return rechecked(name, model, features, L2, domain, **options)


def chain_bound(weights, activation=nn.ReLU, **options):
    """Return the number that a bound gives for a chain with these weights."""
    return l2_bound(chained(weights, activation), weights[0].shape[1], **options).value


def chained(weights, activation=nn.ReLU):
    modules = []
    for weight in weights:
        layer = nn.Linear(*weight.T.shape, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(weight)
        modules += [layer, activation().double()]
    return nn.Sequential(*modules[:-1])


def random_weights(seed, widths, rank=None):
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    shapes = [(after, before) for before, after in pairwise(widths)]
    if rank is None:
        return [normal(*shape) for shape in shapes]
    return [normal(after, rank) @ normal(rank, before) for after, before in shapes]


def norm(matrix):
    return float(torch.linalg.matrix_norm(matrix, 2))


def corners(count, lo, hi):
    return torch.tensor(list(product([lo, hi], repeat=count)), dtype=torch.float64)


def steepest(weights, lo=0.0, hi=1.0):
    # Over all slopes at their ends of all layers at once: no bound that knows slopes alone is less.
    whole = weights[0].unsqueeze(0)
    for weight in weights[1:]:
        ends = corners(weight.shape[1], lo, hi)
        whole = weight @ (ends[:, None, :, None] * whole[None]).flatten(0, 1)
    return float(torch.linalg.matrix_norm(whole, 2).max())


def seqlip(weights, lo=0.0, hi=1.0, transposed=True):
    # Scaman and Virmaux (2018), Theorem 3. What the published code did is not transposed.
    value, last = 1.0, len(weights) - 1
    parts = [torch.linalg.svd(weight, full_matrices=False) for weight in weights]
    for place in range(last):
        left, values, _ = parts[place]
        _, after, right = parts[place + 1]
        values = values if place == 0 else values.sqrt()
        after = after if place + 1 == last else after.sqrt()
        right = right if transposed else right.T
        value *= max(
            norm(after.diag() @ right @ slopes.diag() @ left @ values.diag())
            for slopes in corners(len(weights[place]), lo, hi)
        )
    return value


def eclipse(weights, multipliers, lo=0.0, hi=1.0):
    # The chain X of Xu and Sivaranjani (2024), with the product of slopes: 1/c of each stage.
    mean, both = (lo + hi) / 2, lo * hi
    found, before = [], torch.eye(weights[0].shape[1], dtype=torch.float64)
    for weight, after, own in zip(weights[:-1], weights[1:], multipliers, strict=True):
        before = before + both * weight.T @ own.diag() @ weight
        drop = mean * own.diag() @ weight
        before = own.diag() - drop @ torch.linalg.solve(before, drop.T)
        assert torch.linalg.eigvalsh(before)[0] > 0
        found.append(float(torch.linalg.eigvalsh(after @ torch.linalg.solve(before, after.T))[-1]))
    return found
