"""Constants around samples, against points of their balls and against the recursion in numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.nets import ABSOLUTE, dense, random_network
from torch import nn

from lipbench.bound import Bound
from lipbench.certificate import Certificate
from lipbench.layers.normalise import Normalise
from lipbench.layers.sorting import GroupSort
from lipbench.lipschitz.certified_radius import certified_radius, gaps
from lipbench.lipschitz.relaxations.balls import Balls, local_radius
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.registry import load, names

NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]
L2 = Norm(2.0)
CERTIFICATES = names("lipbench.certificates")
IN_NORMS = [
    (name, norm)
    for name in CERTIFICATES
    for norm in sorted(load("lipbench.certificates", name, Certificate).norms)
]
ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.GELU, nn.LeakyReLU, nn.Hardswish, nn.Sigmoid]


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.inner, self.last = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x):
        x = self.first(x)
        return self.last(x + torch.tanh(self.inner(x)))


def networks(draw):
    """Return a network that takes 4 numbers and returns 4, of one of several kinds."""
    seed = draw(st.integers(0, 99))
    kind = draw(st.sampled_from(["chain", "residual", "sorted", "conv", "normalised"]))
    activation = draw(st.sampled_from(ACTIVATIONS))
    torch.manual_seed(seed)
    if kind == "residual":
        return Residual(4)
    if kind == "sorted":
        return nn.Sequential(nn.Linear(4, 6), GroupSort(2), nn.Linear(6, 4))
    if kind == "conv":
        shaped = nn.Unflatten(1, (1, 2, 2))
        return nn.Sequential(shaped, nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3, 4))
    chain = random_network(seed, (4, 7, 6, 4), activation)
    return chain if kind == "chain" else nn.Sequential(Normalise([0.3], [0.2]), chain)


def moves(count, size, norm, radius, rng):
    """Return moves from the ball, of which half lie on its sphere."""
    directions = torch.randn(count, size, generator=rng, dtype=torch.float64)
    unit = directions / norm.length(directions).unsqueeze(1)
    return radius * unit * torch.rand(count, 1, generator=rng).double().mul(2).clamp_max(1)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_difference_grows_faster_in_its_ball(data):
    model = networks(data.draw)
    norm = data.draw(st.sampled_from(NORMS))
    radius = data.draw(st.sampled_from([0.01, 0.3, 2.0]))
    network = as_network(model, (4,))
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 4, generator=rng, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 1])
    computed = Balls(network, norm).constants(inputs, labels, radius)
    for centre, label, constants in zip(inputs, labels.tolist(), computed, strict=True):
        u, v = (centre + moves(60, 4, norm, radius, rng) for _ in range(2))
        change = network(u) - network(v)
        differences = change[:, [label]] - change
        quotients = differences.abs() / norm.length(u - v).unsqueeze(1)
        assert bool((quotients <= constants * (1 + 1e-9) + 1e-12).all())
        assert float(constants[label]) == 0


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_network_has_its_constants(norm):
    torch.manual_seed(0)
    layer = nn.Linear(5, 3).double()
    computed = Balls(as_network(layer, (5,)), norm).constants(
        torch.zeros(1, 5), torch.tensor([1]), 9.0
    )
    rows = layer.weight[1] - layer.weight
    expected = torch.linalg.vector_norm(rows, ord=float(norm.dual()), dim=1)
    torch.testing.assert_close(computed[0], expected.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("at", "constant"), [(0.9, 0), (1.1, 1), (-1.1, 1), (5.0, 0)])
def test_a_kink_counts_only_in_balls_that_reach_it(at, constant):
    """|x| - x is 0 on the right and has slope -2 on the left."""
    model = dense(([[1], [-1]], [0, 0]), ([[1, 1], [1, -1]], [0, 0]))
    network = as_network(model, (1,))
    radius = 1.0 if abs(at) > 1 else 0.5
    computed = Balls(network, L2).constants(torch.tensor([[at]]), torch.tensor([0]), radius)
    assert float(computed[0, 1]) == pytest.approx(2 * constant if at < 0 else 0, abs=1e-9)
    wide = Balls(network, L2).constants(torch.tensor([[at]]), torch.tensor([0]), 6.0)
    assert float(wide[0, 1]) >= 2


def twin(weights, biases, x, label, radius, dual):
    """Return the constants of one sample around a ReLU chain, entry by entry."""
    lo = hi = weights[0]
    value = weights[0] @ x + biases[0]
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        reach = radius * np.linalg.norm(np.maximum(abs(lo), abs(hi)), ord=dual, axis=1)
        low = np.where(value - reach >= 0, 1.0, 0.0)
        high = np.where(value + reach > 0, 1.0, 0.0)
        ends = [lo * low[:, None], lo * high[:, None], hi * low[:, None], hi * high[:, None]]
        lo, hi = np.minimum.reduce(ends), np.maximum.reduce(ends)
        value = weight @ np.maximum(value, 0) + bias
        if weight is weights[-1]:
            weight = weight[label] - weight
        more, less = np.maximum(weight, 0), np.minimum(weight, 0)
        lo, hi = more @ lo + less @ hi, more @ hi + less @ lo
    return np.linalg.norm(np.maximum(abs(lo), abs(hi)), ord=dual, axis=1)


@pytest.mark.parametrize("norm", NORMS)
def test_derivatives_of_the_input_are_those_of_the_recursion(norm):
    """Without a first dense layer to stop at: a first skip reads the input."""
    torch.manual_seed(1)
    chain = random_network(1, (6, 8, 7, 3), nn.ReLU).double()
    linear = [layer for layer in chain if isinstance(layer, nn.Linear)]
    weights = [layer.weight.detach().numpy() for layer in linear]
    biases = [layer.bias.detach().numpy() for layer in linear]

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.chain, self.zero = chain, nn.Linear(6, 3, bias=False).double()
            nn.init.zeros_(self.zero.weight)

        def forward(self, x):
            return self.chain(x) + self.zero(x)

    inputs = torch.randn(6, 6, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    for radius in (0.05, 0.4):
        computed = Balls(as_network(Skip(), (6,)), norm).constants(inputs, labels, radius)
        for x, label, constants in zip(inputs.numpy(), labels.tolist(), computed, strict=True):
            expected = twin(weights, biases, x, label, radius, float(norm.dual()))
            np.testing.assert_allclose(constants.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_a_first_dense_layer_makes_balls_tighter_and_small_ones_nearly_exact():
    torch.manual_seed(2)
    model = random_network(2, (20, 16, 16, 4), nn.Sigmoid).double()
    network = as_network(model, (20,))
    inputs, labels = torch.rand(10, 20).double(), torch.arange(10) % 4
    slopes = torch.func.vmap(torch.func.jacrev(network.__call__))(inputs.unsqueeze(1)).squeeze()
    differences = slopes.gather(1, labels.view(-1, 1, 1).expand(-1, 1, 20)) - slopes
    exact = differences.norm(dim=2)
    near, far = (Balls(network, L2).constants(inputs, labels, r) for r in (1e-6, 0.3))
    torch.testing.assert_close(near, exact, rtol=1e-4, atol=1e-9)
    assert bool((far >= near).all())
    assert bool((far[far > 0] > near[near > 0]).all())


def test_rows_of_derivatives_that_are_uncertain_are_longer_by_what_is_unknown():
    """One entry uncertain: |c'W| + |d'W| and no less than the worst row."""
    model = dense(([[3, 4], [0, 2]], [0, 0]), ([[1, 1], [0, 0]], [0, 0]))
    network = as_network(model, (2,))
    # At (1, 0.1) with radius 0.2 the first neuron is on, the second may be on or off.
    computed = Balls(network, L2).constants(torch.tensor([[1.0, 0.1]]), torch.tensor([0]), 0.2)
    worst, bound = math.hypot(3, 6), math.hypot(3, 5) + 1
    assert worst <= float(computed[0, 1]) == pytest.approx(bound, rel=1e-9)


def test_a_network_with_too_many_derivatives_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten())
    with pytest.raises(Refused, match="derivatives"):
        Balls(as_network(model, (1, 28, 28)), L2)


# Radii.


def test_a_radius_is_the_larger_of_what_balls_prove_and_stays_in_them():
    network = as_network(dense(([[1], [-1]], [0, 0]), ([[1, 1], [0, 0]], [0, 1])), (1,))
    # Logits |x| and 1: class 0 beyond ±1.
    inputs, labels = torch.tensor([[3.0], [1.25], [0.5], [3.0]]), torch.tensor([0, 0, 0, 1])
    margins = gaps(network, inputs, labels)
    radii = local_radius(network, L2, inputs, labels, margins, [1.0, 0.5])
    assert radii.tolist() == pytest.approx([1.0, 0.25, 0, 0], abs=1e-8)
    assert float(radii[0]) > 1.0
    assert float(local_radius(network, L2, inputs, labels, margins, [10.0])[0]) == pytest.approx(2)
    assert local_radius(network, L2, inputs, labels, margins, []).tolist() == [0] * 4


def trained(seed):
    model = random_network(seed, (2, 10, 3), nn.ReLU).double()
    torch.manual_seed(seed)
    inputs = torch.randn(200, 2).double()
    labels = (inputs.sum(dim=1) > 0).long() + (inputs[:, 0] > 1).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return as_network(model, (2,)), inputs, labels


@pytest.mark.parametrize(("name", "norm"), IN_NORMS)
def test_no_class_changes_within_its_certificate(name, norm):
    network, inputs, labels = trained(0)
    certificate = load("lipbench.certificates", name, Certificate)()
    assert certificate.refuses(network, norm) is None
    epsilons = [0.05, 0.2, 0.5]
    radii = certificate.radius(network, norm, inputs, labels, epsilons)
    assert bool((radii[network(inputs).argmax(dim=1) != labels] <= 0).all())
    assert float((radii > 0.05).double().mean()) > 0.5
    rng = torch.Generator().manual_seed(0)
    for radius, x, label in zip(radii.tolist(), inputs, labels, strict=True):
        if radius > 0:
            around = x + moves(100, 2, norm, radius * (1 - 1e-9), rng)
            assert bool((network(around).argmax(dim=1) == label).all())


@pytest.mark.parametrize("name", CERTIFICATES)
def test_a_certificate_names_its_source(name):
    assert "Source:" in load("lipbench.certificates", name, Certificate).__doc__


def test_balls_certify_more_than_one_constant_for_all():
    network, inputs, labels = trained(1)
    margins = gaps(network, inputs, labels)
    value = load("lipbench.bounds", "lipsdp_neuron", Bound)().compute(network, L2, None)
    everywhere = certified_radius(margins, labels, network, value)
    nearby = local_radius(network, L2, inputs, labels, margins, [0.2])
    assert int((nearby > 0.2).sum()) > int((everywhere > 0.2).sum())


def test_the_absolute_value_is_no_classifier_but_has_a_ball():
    computed = Balls(as_network(ABSOLUTE, (1,)), L2).constants(
        torch.tensor([[2.0]]), torch.tensor([0]), 1.0
    )
    assert computed.tolist() == [[0.0]]
