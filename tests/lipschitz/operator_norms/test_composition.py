"""The product in networks that branch."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.written import Written
from torch import nn

import lipbench
from lipbench.bound import Bound
from lipbench.lipschitz.proof_check import recheck
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load

L1, L2, INF = NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]


def scaling(*factors):
    layer = nn.Linear(len(factors), len(factors), bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor(factors, dtype=torch.float64)))
    return layer


def product(network, norm):
    return load("lipbench.bounds", "product", Bound)().compute(network, norm, None)


def value(forward, norm, *shape, **layers):
    return product(as_network(Written(forward, **layers), shape), norm).value


TWO, THREE = scaling(2.0, -1.0), scaling(3.0, 0.5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda self, x: x + self.f(x), 1 + 2),
        (lambda self, x: x - self.f(x), 1 + 2),
        (lambda self, x: 0.5 * x + self.f(x) / 4, 0.5 + 2 / 4),
        (lambda self, x: self.g(x + self.f(x)), 3 * (1 + 2)),
        (lambda self, x: self.g(self.f(x)) + x, 2 * 3 + 1),
        (lambda self, x: self.g(x) + self.f(x) + x, 3 + 2 + 1),
        (lambda self, x: torch.add(x, self.f(x), alpha=-5), 1 + 5 * 2),
        (lambda self, x: 1 - 2 * x, 2),
        (lambda self, x: x, 1),
    ],
)
def test_constants_of_branches_are_added(forward, expected, norm):
    assert value(forward, norm, 2, f=TWO, g=THREE) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(("norm", "expected"), [(L1, 5.0), (L2, math.sqrt(13)), (INF, 3.0)])
def test_constants_of_parts_are_one_vector(norm, expected):
    upper = value(lambda self, x: torch.cat([self.f(x), self.g(x)], 1), norm, 2, f=TWO, g=THREE)
    assert expected <= upper <= expected * (1 + 1e-11)


@pytest.mark.parametrize("norm", NORMS)
def test_the_sum_is_attained_where_all_branches_expand_one_direction(norm):
    """x + 2x + 3x along the first axis: a rule that took a mean or a maximum would be below."""
    network = as_network(Written(lambda self, x: x + self.f(x) + self.g(x), f=TWO, g=THREE), (2,))
    lower = load("lipbench.bounds", "jacobian", Bound)().compute(network, norm, None)
    assert lower.value == pytest.approx(6)
    assert lower.value <= product(network, norm).value <= 6 * (1 + 1e-11)


@pytest.mark.parametrize("norm", NORMS)
def test_a_concatenation_that_repeats_its_input_is_attained(norm):
    """u ↦ (u, u, u) stretches by 3^(1/p)."""
    network = as_network(Written(lambda self, x: torch.cat([x, x, x], 1)), (2,))
    lower = load("lipbench.bounds", "jacobian", Bound)().compute(network, norm, None)
    assert lower.value == pytest.approx(3 ** (1 / norm))
    assert lower.value <= product(network, norm).value <= 3 ** (1 / norm) * (1 + 1e-11)


def test_rounding_goes_upwards():
    """0.1 + 0.2, and a third, in fractions."""
    upper = value(lambda self, x: 0.1 * x + 0.2 * x, L2, 2)
    assert Fraction(upper) >= Fraction(0.1) + Fraction(0.2)
    third = value(lambda self, x: x / 3, L2, 2)
    assert Fraction(1, 3) <= Fraction(third) <= Fraction(1, 3) * (1 + Fraction(1, 10**15))


def test_a_chain_of_steps_with_constant_one_stays_at_one():
    model = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Tanh(), lipbench.MaxMin())
    assert product(as_network(model, (2, 3)), L2).value == 1.0


def test_a_branch_that_ends_at_zero_adds_nothing():
    network = as_network(
        Written(lambda self, x: x + self.f(self.g(x)), f=scaling(0.0), g=nn.CELU(-1.0)), (1,)
    )
    assert product(network, L2).value == 1.0


def test_the_certificate_of_a_branching_network_is_rechecked():
    network = as_network(Written(lambda self, x: x + self.f(x), f=TWO), (2,))
    upper = product(network, L2)
    assert upper.proof["constants"].tolist() == pytest.approx([2, 2])
    assert recheck(network, upper) == []
    # What a plain product of the steps' constants would be for a sum that counted as 1.
    (violation,) = recheck(network, replace(upper, value=2.0))
    assert "the constants of its steps prove 3" in violation.message


CURVES = [nn.ReLU(), nn.Tanh(), nn.GELU(), nn.LeakyReLU(2.0)]


class Branching(nn.Module):
    """A random network on 4 features whose steps merge earlier values in all ways there are."""

    def __init__(self, kinds, rng):
        super().__init__()
        self.plan = []
        self.layers = nn.ModuleList()
        self.curves = nn.ModuleList([*CURVES, lipbench.MaxMin()])
        known = [4]
        for kind in kinds:
            first, second = (int(torch.randint(len(known), (), generator=rng)) for _ in range(2))
            if kind == "layer":
                layer = nn.Linear(known[first], 4)
                for tensor in layer.parameters():
                    nn.init.normal_(tensor, generator=rng)
                self.layers.append(layer)
                known.append(4)
            elif kind == "join":
                known.append(known[first] + known[second])
            else:
                second = second if known[first] == known[second] else first
                known.append(known[first])
            factor = float(torch.randn((), generator=rng))
            self.plan.append((kind, first, second, factor))
        self.last = nn.Linear(known[-1], 3)

    def forward(self, x):
        values, layers = [x], iter(self.layers)
        for kind, first, second, factor in self.plan:
            if kind == "layer":
                values.append(next(layers)(values[first]))
            elif kind == "join":
                values.append(torch.cat([values[first], values[second]], dim=1))
            elif kind == "add":
                values.append(values[first] - factor * values[second])
            else:
                values.append(self.curves[int(abs(factor) * 10) % 5](values[first]))
        return self.last(values[-1])


@settings(max_examples=15)
@given(
    st.lists(st.sampled_from(["layer", "join", "add", "curve"]), min_size=1, max_size=7),
    st.integers(0, 10_000),
    st.sampled_from(NORMS),
)
def test_no_quotient_exceeds_the_product_of_a_random_branching_network(kinds, seed, norm):
    rng = torch.Generator().manual_seed(seed)
    model = Branching(kinds, rng)
    network = as_network(model, (4,))
    upper = product(network, norm)
    assert recheck(network, upper) == []
    u, v = torch.randn(2, 200, 4, generator=rng, dtype=torch.float64)
    quotient = norm.length(network(u) - network(v)) / norm.length(u - v)
    assert float(quotient.max()) <= upper.value
    lower = load("lipbench.bounds", "jacobian", Bound)(points=8).compute(network, norm, None)
    assert lower.value <= upper.value


@settings(max_examples=4)
@given(
    st.lists(st.sampled_from(["layer", "join", "add"]), min_size=1, max_size=4), st.integers(0, 99)
)
def test_a_random_branching_network_is_bracketed(kinds, seed):
    bracket = lipbench.bracket(Branching(kinds, torch.Generator().manual_seed(seed)), (4,))
    assert bracket.lower <= bracket.upper < math.inf


@pytest.mark.parametrize("norm", NORMS)
def test_a_residual_block_of_convolutions_is_bracketed(norm):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect")
            self.second = nn.ConvTranspose2d(4, 2, 3, padding=1)
            self.norm, self.relu = nn.BatchNorm2d(2), nn.ReLU(inplace=True)

        def forward(self, x):
            y = self.relu(self.first(x))
            y = self.norm(self.second(y))
            y += x
            return torch.cat([self.relu(y), x], dim=1).mean((2, 3))

    torch.manual_seed(0)
    model = nn.Sequential(Block(), nn.Linear(4, 3)).eval()
    bracket = lipbench.bracket(model, (2, 4, 4), norm, time_limit=2)
    assert 0 < bracket.lower <= bracket.upper < math.inf
