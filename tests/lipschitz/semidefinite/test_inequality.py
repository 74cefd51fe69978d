"""Weights under the matrix inequality of LipSDP with fixed multipliers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from lipbench.lipschitz.semidefinite import conic
from lipbench.lipschitz.semidefinite.dense_layers import Layers
from lipbench.lipschitz.semidefinite.inequality import Inequality, rescaled
from lipbench.networks.network import as_network

UNIT = (torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
CASES = [
    ((1, 6, 1), nn.Tanh),
    ((7, 4, 2, 4), nn.Sigmoid),
    ((2, 4, 3), nn.GELU),
    ((2, 3, 2), nn.LeakyReLU),
]


def a_chain(sizes, activation=nn.ReLU, gain=1.0, seed=0):
    torch.manual_seed(seed)
    layers = []
    for inside, outside in pairwise(sizes):
        layers += [activation(), nn.Linear(inside, outside)]
    module = nn.Sequential(*layers[1:])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(gain)
    return Layers.of(as_network(module, sizes[:1]))


def an_inequality(layers, share=1.0):
    multipliers, square = layers.best()
    inequality = Inequality(slopes=layers.slopes, multipliers=rescaled(multipliers, share))
    return inequality, square * share**2


def distance(weights, others):
    return math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(weights, others)))  # noqa: B905


def form(inequality, weights, square, vectors):
    # The quadratic form of the inequality, neuron by neuron, at x_0, ..., x_(k-1) = `vectors`.
    total = square * vectors[0].square().sum(dim=1)
    total = total - (vectors[-1] @ weights[-1].T).square().sum(dim=1)
    layers = zip(weights[:-1], inequality.slopes, inequality.multipliers, vectors, vectors[1:])  # noqa: B905
    for weight, (lo, hi), multiplier, before, after in layers:
        z = before @ weight.T
        total = total - 2 * ((after - lo * z) * (hi * z - after)) @ multiplier
    return total


def worst(inequality, weights, square):
    # The least eigenvalue of the form, from its values at unit vectors and their sums.
    sizes = [weights[0].shape[1], *(len(weight) for weight in weights[:-1])]
    unit = torch.eye(sum(sizes), dtype=torch.float64)

    def at(vectors):
        return form(inequality, weights, square, vectors.split(sizes, dim=1))

    squares = at(unit)
    both = at((unit.unsqueeze(0) + unit.unsqueeze(1)).reshape(-1, len(unit))).view(unit.shape)
    return float(torch.linalg.eigvalsh((both - squares - squares.unsqueeze(1)) / 2)[0])


@pytest.mark.parametrize(("sizes", "activation"), CASES)
@pytest.mark.parametrize("priced", [False, True])
def test_weights_are_on_the_border_of_the_inequality(sizes, activation, priced):
    """The form, written out neuron by neuron, is not negative, and 0 somewhere."""
    layers = a_chain(sizes, activation, gain=2.0)
    inequality, square = an_inequality(layers, 0.5)
    if priced:
        nearest, square = inequality.cheapest(layers.weights, 0.1, square, 1e-6)
    else:
        nearest, _ = inequality.nearest(layers.weights, square, 1e-6)
    least = worst(inequality, nearest, square)
    assert (
        0
        < least
        < 1e-3 * min(square, *(float(multiplier.min()) for multiplier in inequality.multipliers))
    )
    assert worst(inequality, [1.01 * weight for weight in nearest], square) < 0


@pytest.mark.parametrize(
    ("sizes", "activation", "priced"),
    [((5, 4, 2), nn.ReLU, False), ((3, 3, 4, 6), nn.GELU, False), ((3, 3, 4, 6), nn.GELU, True)],
)
def test_a_general_solver_finds_the_same(sizes, activation, priced):
    pytest.importorskip("cvxpy", reason="the extra sdp is not installed")
    layers = a_chain(sizes, activation, gain=2.0)
    inequality, square = an_inequality(layers, 0.5)
    if priced:
        ours, rho = inequality.cheapest(layers.weights, 0.02, square, 1e-7)
    else:
        ours, rho = inequality.nearest(layers.weights, square, 1e-7)
    theirs, their_rho = conic.solve(inequality, layers.weights, square, 0.02 if priced else None)
    assert rho == pytest.approx(their_rho, rel=1e-3)
    assert distance(ours, theirs) <= 5e-4 * distance(theirs, [0 * weight for weight in theirs])


def by_the_paper(first, last, multiplier, square, price):
    # Its program, in its own letters: minimise over W0_bar and W1_bar, λ = 1 and Y = 0.
    cvxpy = pytest.importorskip("cvxpy", reason="the extra sdp is not installed")
    (hidden, inputs), outputs, t = first.shape, last.shape[0], np.diag(multiplier)
    first_bar, last_bar = cvxpy.Variable(first.shape), cvxpy.Variable(last.shape)
    rho = cvxpy.Variable() if price else square
    matrix = cvxpy.bmat(
        [
            [-rho * np.eye(inputs), first_bar.T @ t, np.zeros((inputs, outputs))],
            [t @ first_bar, -2 * t, last_bar.T],
            [np.zeros((outputs, inputs)), last_bar, -np.eye(outputs)],
        ]
    )
    cost = (
        price * rho
        + (cvxpy.sum_squares(first - first_bar) + cvxpy.sum_squares(last - last_bar)) / 2
    )
    unit = 1e-9 * np.eye(inputs + hidden + outputs)
    cvxpy.Problem(cvxpy.Minimize(cost), [matrix << -unit]).solve(solver=cvxpy.CLARABEL)
    return first_bar.value, last_bar.value


@pytest.mark.parametrize("price", [0.0, 0.05])
def test_the_round_of_the_paper_is_solved(price):
    layers = a_chain((2, 5, 2), gain=2.0)
    inequality, square = an_inequality(layers, 0.6)
    if price:
        nearest, _ = inequality.cheapest(layers.weights, price, square, 1e-7)
    else:
        nearest, _ = inequality.nearest(layers.weights, square, 1e-7)
    arrays = [weight.numpy() for weight in layers.weights]
    theirs = by_the_paper(*arrays, inequality.multipliers[0].numpy(), square, price)
    for weight, expected in zip(nearest, theirs, strict=True):
        np.testing.assert_allclose(weight.numpy(), expected, atol=1e-3)


def scalar(value):
    return torch.full((1, 1), value, dtype=torch.float64)


def test_two_numbers_are_projected_on_an_ellipse():
    """One neuron, T = 1: w²/2ρ + v²/2 ≤ 1 is a disc of radius √2 for ρ = 1, and (3, 4) is outside.

    Minimising ½(w - 3)² + ½v² + ρ·p with v = 0 and ρ = w²/2 gives w = 3/(1 + p).
    """
    inequality = Inequality(slopes=(UNIT,), multipliers=(torch.ones(1, dtype=torch.float64),))
    (w, v), _ = inequality.nearest((scalar(3.0), scalar(4.0)), 1.0, 1e-12)
    assert (float(w), float(v)) == pytest.approx((0.6 * 2**0.5, 0.8 * 2**0.5), rel=1e-5)
    (w, v), square = inequality.cheapest((scalar(3.0), scalar(0.0)), 0.5, 1.0, 1e-12)
    assert (float(w), float(v), square) == pytest.approx((2.0, 0.0, 2.0), rel=1e-6, abs=1e-6)


def test_for_one_layer_the_inequality_is_a_norm():
    """‖[(T/2ρ)^½ W_1, (2T)^-½ W_2']‖ is 1 at the solution."""
    layers = a_chain((4, 6, 3), gain=2.0)
    inequality, square = an_inequality(layers, 0.5)
    (first, last), _ = inequality.nearest(layers.weights, square, 1e-10)
    multiplier = inequality.multipliers[0].unsqueeze(1)
    joined = torch.cat(
        [(multiplier / (2 * square)).sqrt() * first, last.T / (2 * multiplier).sqrt()], dim=1
    )
    assert float(torch.linalg.matrix_norm(joined, 2)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("sizes", "activation"), CASES)
def test_nearest_weights_are_a_projection(sizes, activation):
    """For every U that obeys the inequality, ⟨V - W, U - W⟩ ≤ 0."""
    layers = a_chain(sizes, activation, gain=2.0)
    inequality, square = an_inequality(layers, 0.5)
    nearest, _ = inequality.nearest(layers.weights, square, 1e-7)
    for seed in range(2):
        others = a_chain(sizes, activation, seed=seed + 1).weights
        inside, _ = inequality.nearest(others, square)
        triples = zip(layers.weights, nearest, inside, strict=True)
        product = sum(float(((v - w) * (u - w)).sum()) for v, w, u in triples)
        assert product <= 1e-4 * distance(layers.weights, nearest) * distance(inside, nearest)


def test_what_obeys_the_inequality_is_left_alone():
    layers = a_chain((4, 6, 3))
    inequality, square = an_inequality(layers, 1.01)
    nearest, kept = inequality.nearest(layers.weights, square)
    assert distance(nearest, layers.weights) < 1e-12
    assert kept == square


@pytest.mark.parametrize(("sizes", "activation"), CASES)
def test_the_certificate_of_the_core_proves_what_the_inequality_says(sizes, activation):
    layers = a_chain(sizes, activation, gain=2.0)
    multipliers, square = layers.best()
    assert layers.proved(layers.weights, multipliers, square) == pytest.approx(square**0.5)
    inequality, square = an_inequality(layers, 0.5)
    nearest, _ = inequality.nearest(layers.weights, square)
    proved = layers.proved(nearest, inequality.multipliers, square)
    assert proved == pytest.approx(square**0.5, rel=1e-9)
    # Of weights that do not obey it, more is proved, and nothing is rejected.
    assert proved * 1.001 < layers.proved(layers.weights, inequality.multipliers, square) < 1e9


@pytest.mark.parametrize("sizes", [(4, 6, 3), (3, 4, 5, 4, 2)])
def test_multipliers_of_scaled_layers_are_scaled(sizes):
    """Each of k layers times c: the constant is multiplied by c^k, with the same certificate."""
    layers = a_chain(sizes)
    multipliers, square = layers.best()
    scaled = tuple(1.3 * weight for weight in layers.weights)
    ratio = 1.3 ** len(scaled)
    proved = layers.proved(scaled, rescaled(multipliers, ratio), square * ratio**2)
    assert proved == pytest.approx(ratio * square**0.5, rel=1e-9)


def test_directions_that_nobody_reads_do_not_count():
    """An input that V does not read is not read by W, and an output that is 0 stays 0."""
    layers = a_chain((3, 2, 2))
    first = torch.cat([layers.weights[0], torch.zeros(2, 4, dtype=torch.float64)], dim=1)
    last = torch.cat([layers.weights[1], torch.zeros(5, 2, dtype=torch.float64)])
    inequality, square = an_inequality(layers, 0.5)
    small, _ = inequality.nearest(layers.weights, square, 1e-7)
    large, _ = inequality.nearest((first, last), square, 1e-7)
    assert distance([large[0][:, :3], large[1][:2]], small) < 1e-3
    assert float(large[0][:, 3:].abs().max()) < 1e-12
    assert float(large[1][2:].abs().max()) < 1e-12


def test_a_constant_network_has_multipliers():
    layers = a_chain((3, 4, 2), gain=0.0)
    multipliers, square = layers.best()
    assert square == 0
    assert multipliers[0].tolist() == [1.0] * 4


def test_an_absent_solver_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setattr(conic, "find_spec", lambda name: None)
    layers = a_chain((2, 3, 1))
    inequality, square = an_inequality(layers)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"lipbench\[sdp\]\""):
        conic.solve(inequality, layers.weights, square)
