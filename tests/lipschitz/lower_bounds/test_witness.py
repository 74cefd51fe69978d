"""Lower bounds by witness, behind few layers and many."""

import math
from fractions import Fraction

import pytest
import torch
from support.bounds import bound
from support.exact_outputs import exactly
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

import lipbench
from lipbench.lipschitz.lower_bounds.witness import proved_quotient, proved_quotients, witness
from lipbench.lipschitz.proof_check import recheck
from lipbench.networks.network import as_network
from lipbench.norm import Norm

L2 = Norm(2)


def deep(kind, depth, gain, width=64):
    """Return layers of normal weights with a gain, by which lengths grow in a linear layer."""
    rng = torch.Generator().manual_seed(0)
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), kind()]
        nn.init.normal_(layers[-2].weight, 0, gain / math.sqrt(width), generator=rng)
        nn.init.normal_(layers[-2].bias, 0, 0.1, generator=rng)
    return nn.Sequential(*layers, nn.Linear(width, 10)).double()


def orthogonal_layers(depth):
    torch.manual_seed(0)
    pairs = [(orthogonal(nn.Linear(64, 64)), lipbench.MaxMin()) for _ in range(depth)]
    return nn.Sequential(*[part for pair in pairs for part in pair]).eval()


def residual(depth):
    """Return x + a layer's relu, again and again."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x):
            return x + self.layer(x).relu()

    torch.manual_seed(0)
    return nn.Sequential(*[Block() for _ in range(depth)], nn.Linear(64, 10))


def convolutions(depth):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-3].weight)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 64, 10)).eval()


DEEP = {
    "orthogonal": (lambda: orthogonal_layers(30), (64,)),
    "relu": (lambda: deep(nn.ReLU, 30, 2**0.5), (64,)),
    "relu, dying": (lambda: deep(nn.ReLU, 30, 0.9), (64,)),
    "tanh": (lambda: deep(nn.Tanh, 30, 1.5), (64,)),
    "gelu": (lambda: deep(nn.GELU, 20, 1.5), (64,)),
    "residual": (lambda: residual(20), (64,)),
    "convolutions": (lambda: convolutions(12), (1, 8, 8)),
}


@pytest.mark.parametrize(
    ("name", "norm"),
    [*((name, L2) for name in DEEP), ("relu", Norm(1)), ("tanh", Norm(math.inf))],
    ids=str,
)
def test_a_deep_network_has_the_lower_bound_that_is_measured(name, norm):
    make, shape = DEEP[name]
    network = as_network(make(), shape)
    rng = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 4, *shape, generator=rng, dtype=torch.float64)
    rise = norm.length((network(u) - network(v)).flatten(1))
    measured = float((rise / norm.length((u - v).flatten(1))).max())
    found = witness(network, u, v, norm, None)
    assert 0.99 * measured <= found.value <= measured * (1 + 1e-9)
    assert recheck(network, found) == []


def test_thirty_orthogonal_layers_refute_a_claim():
    """The constant is 1 up to float32, so that a claim of .5 is refuted and not open."""
    network = as_network(orthogonal_layers(30), (64,))
    found = bound("jacobian", points=4).compute(network, L2, None)
    assert 0.999 < found.value < 1.001
    assert recheck(network, found) == []


def test_what_is_proved_is_true_in_fractions():
    """Float64 proves nothing here; digits prove a quotient, and not more than there is."""
    network = as_network(deep(nn.ReLU, 25, 2**0.5, width=24), (24,))
    rng = torch.Generator().manual_seed(1)
    for _ in range(3):
        u, v = torch.randn(2, 24, generator=rng, dtype=torch.float64)
        ends = [(Fraction(a), Fraction(b)) for a, b in zip(u.tolist(), v.tolist(), strict=True)]
        exact = [[Fraction(n) for n in exactly(network, x)] for x in (u, v)]
        rise = sum((a - b) ** 2 for a, b in zip(*exact, strict=True))
        run = sum((a - b) ** 2 for a, b in ends)
        proved = proved_quotient(network, u, v, L2)
        assert Fraction(proved) ** 2 <= rise / run <= Fraction(proved) ** 2 * Fraction(1001, 1000)
        assert (
            float(proved_quotients(network, *(x.unsqueeze(0) for x in (u, v)), L2)) < 0.99 * proved
        )


def test_pairs_that_rounding_makes_steep_prove_nothing():
    """Two inputs in the last digit: what float64 measures there is noise."""
    network = as_network(deep(nn.ReLU, 30, 2**0.5), (64,))
    u = torch.full((64,), 0.3, dtype=torch.float64)
    v = u.clone()
    v[0] = math.nextafter(0.3, 1)
    truth = float((network(u + 1e-3 * (v != u)) - network(u)).norm()) / 1e-3
    proved = proved_quotient(network, u, v, L2)
    assert 0 < proved <= 1.01 * truth
