"""Multipliers layer by layer: by hand, in order with their relatives, and against a solver."""

import math
from contextlib import suppress
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bounds import bound
from support.chains import (
    BY_HAND,
    GELU,
    SLOPED,
    chain_bound,
    chained,
    eclipse,
    l2_bound,
    norm,
    random_weights,
    steepest,
)
from support.nets import by_hand, random_network
from torch import nn

from lipbench.lipschitz.relaxations.chain import Chain
from lipbench.lipschitz.relaxations.loop_transformation import loop_transformation
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.lipschitz.semidefinite.certify import certify
from lipbench.lipschitz.semidefinite.layer_by_layer import closed, solve, solve_stages
from lipbench.lipschitz.soundness import crossings
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused

L2 = Norm(2.0)
TIGHT = 1e-6  # the interior-point method stops a little above the optimum
BEST = partial(solve, tolerance=1e-6, iterations=200)
computed = partial(l2_bound, name="eclipse")
value = partial(chain_bound, name="eclipse")


def proposed(weights, activation, choice):
    """Return the multipliers of each layer as the paper has them, and the square."""
    blocks = as_neuron_blocks(as_network(chained(weights, activation), (weights[0].shape[1],)))
    chain = Chain.of(blocks, None)
    multipliers, square = solve_stages(chain, [choice] * len(chain.slopes))
    half = torch.cat([(hi - lo) / 2 for lo, hi in chain.slopes])
    sizes = [len(lo) for lo, _ in chain.slopes]
    return (multipliers / (square * half.square())).split(sizes), square


@pytest.mark.parametrize(
    ("model", "features", "expected"),
    by_hand(BY_HAND),
)
def test_a_hand_computed_network(model, features, expected):
    upper = computed(model, features).value
    assert expected * (1 - 1e-9) <= upper
    assert upper == pytest.approx(expected, rel=TIGHT)


@settings(max_examples=4)
@given(
    st.integers(0, 1000),
    st.lists(st.integers(1, 4), min_size=3, max_size=5),
    st.sampled_from(SLOPED),
    st.sampled_from([None, 1]),
)
def test_it_lies_between_lipsdp_and_the_closed_form(seed, widths, sloped, rank):
    activation, *ends = sloped
    weights = random_weights(seed, widths, rank)
    upper, neuron = value(weights, activation), value(weights, activation, name="lipsdp_neuron")
    assert steepest(weights, *ends) <= upper * (1 + 1e-9)
    assert neuron <= upper * (1 + TIGHT)
    if ends[0] >= 0:
        assert upper <= value(weights, activation, name="eclipse_fast") * (1 + 1e-8)
    if len(weights) == 2:  # one stage: the same program
        assert upper <= neuron * (1 + TIGHT)


@settings(max_examples=10)
@given(
    st.integers(0, 1000),
    st.lists(st.integers(1, 5), min_size=3, max_size=5),
    st.sampled_from(SLOPED),
    st.sampled_from([closed, BEST]),
)
def test_its_ellipsoids_are_the_matrices_of_the_paper(seed, widths, sloped, choice):
    activation, *ends = sloped
    weights = random_weights(seed, widths)
    multipliers, square = proposed(weights, activation, choice)
    assert eclipse(weights, multipliers, *ends)[-1] == pytest.approx(square, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_closed_form_is_that_of_the_paper(seed):
    weights = random_weights(seed, (4, 6, 5, 3))
    _, square = proposed(weights, nn.ReLU, closed)
    assert math.sqrt(square) == pytest.approx(value(weights, name="eclipse_fast"), rel=1e-8)
    multipliers, square = proposed(weights, lambda: nn.LeakyReLU(0.3), closed)
    expected = 1 / (2 * 0.65**2 * norm(weights[0]) ** 2)
    assert multipliers[0].tolist() == pytest.approx([expected] * 6, rel=1e-9)
    fast = value(weights, lambda: nn.LeakyReLU(0.3), name="eclipse_fast")
    assert math.sqrt(square) <= fast  # which does not use that slopes are at least 0.3


def test_where_a_single_step_is_not_enough_it_is_the_closed_form():
    weights = random_weights(72, (2, 2, 4))
    fast = value(weights, name="eclipse_fast")
    assert value(weights, iterations=1) == pytest.approx(fast, rel=1e-8)
    assert value(weights) < 0.995 * fast


def test_the_product_of_slopes_is_not_dropped():
    """The published code did, and had 1 for GELU, whose constant is 1.129, and less for others."""
    unit = torch.ones(1, 1, dtype=torch.float64)
    (multipliers,), _ = proposed([unit, unit], nn.GELU, BEST)
    dropped = 1 / (4 * (1 / 2) ** 2)  # c of the stage with slopes of mean 1/2 and product 0
    assert dropped == 1
    assert eclipse([unit, unit], [multipliers], 1 - GELU, GELU)[0] >= GELU**2 * (1 - 1e-9)
    assert value([unit, unit], nn.GELU) >= GELU
    weights = random_weights(0, (3, 4, 4, 2))
    formal = steepest(weights, 1 - GELU, GELU)
    # The best multipliers for slopes in [0, 1] have the same mean, and another product.
    multipliers, square = proposed(weights, nn.ReLU, BEST)
    assert math.sqrt(square) < formal
    network = loop_transformation(as_neuron_blocks(as_network(chained(weights, nn.GELU), (3,))))
    same = torch.cat(multipliers) * square * (GELU - 1 / 2) ** 2
    assert certify(network, same, square)[0] >= formal
    assert value(weights, nn.GELU) >= formal


def by_cvxpy(weight, after, before, lo, hi):
    # The stage as the paper writes it, for slopes of which one is 0; else with their product.
    cvxpy = pytest.importorskip("cvxpy", reason="the extra sdp is not installed")
    mean, both = (lo + hi) / 2, lo * hi
    multipliers, c = cvxpy.Variable(len(weight), nonneg=True), cvxpy.Variable()
    corner = cvxpy.diag(multipliers) - c * (after.T @ after).numpy()
    if both == 0:
        values, vectors = torch.linalg.eigh(weight @ torch.linalg.solve(before, weight.T))
        root = mean * (vectors * values.clamp_min(0).sqrt() @ vectors.T).numpy()
        cross, last = cvxpy.diag(multipliers) @ root, torch.eye(len(weight)).double().numpy()
    else:
        matrix = weight.numpy()
        cross = mean * cvxpy.diag(multipliers) @ matrix
        last = before.numpy() + both * matrix.T @ cvxpy.diag(multipliers) @ matrix
    whole = cvxpy.bmat([[corner, cross], [cross.T, last]])
    problem = cvxpy.Problem(cvxpy.Maximize(c), [(whole + whole.T) / 2 >> 0])
    problem.solve(solver=cvxpy.CLARABEL)
    return torch.tensor(multipliers.value), float(c.value)


def state(weight, multipliers, before, lo, hi):
    drop = (lo + hi) / 2 * multipliers.diag() @ weight
    before = before + lo * hi * weight.T @ multipliers.diag() @ weight
    return multipliers.diag() - drop @ torch.linalg.solve(before, drop.T)


@pytest.mark.parametrize("sloped", [SLOPED[0], SLOPED[2]], ids=["relu", "gelu"])
def test_its_stages_are_those_of_a_general_solver(sloped):
    activation, *ends = sloped
    weights = random_weights(0, (6, 10, 8, 4))
    multipliers, square = proposed(weights, activation, BEST)
    ours = eclipse(weights, multipliers, *ends)
    same = alone = torch.eye(6, dtype=torch.float64)
    for layer, multiplier in enumerate(multipliers):
        weight, after = weights[layer : layer + 2]
        _, best = by_cvxpy(weight, after, same, *ends)
        assert 1 / ours[layer] == pytest.approx(best, rel=1e-3)
        same = state(weight, multiplier, same, *ends)
        theirs, last = by_cvxpy(weight, after, alone, *ends)
        alone = state(weight, theirs * (1 - 1e-6), alone, *ends)
    assert math.sqrt(square) == pytest.approx(last**-0.5, rel=1e-3)


@settings(max_examples=4)
@given(
    st.integers(0, 999),
    st.floats(-1, 1),
    st.floats(1e-3, 1),
    st.sampled_from([nn.ReLU, nn.LeakyReLU, nn.GELU]),
)
def test_on_a_box_it_is_above_the_lower_bounds_and_lipsdp(seed, lo, width, activation):
    model, box = random_network(seed, (3, 6, 5, 2), activation), (lo, lo + width)
    with suppress(Refused):  # the network may be constant on the box
        upper = computed(model, 3, box)
        assert not crossings([computed(model, 3, box, name="jacobian", points=8), upper])
        assert computed(model, 3, box, name="lipsdp_neuron").value <= upper.value * (1 + TIGHT)
        if activation is not nn.GELU:
            assert upper.value <= computed(model, 3, box, name="eclipse_fast").value * (1 + 1e-8)


def test_neurons_that_are_linear_on_a_box_cost_nothing():
    model = random_network(0, (3, 6, 6, 2), nn.ReLU).double()
    point = torch.full((3,), 0.4, dtype=torch.float64)
    expected = norm(torch.func.jacrev(model)(point).detach())
    assert computed(model, 3, (0.4, 0.4 + 1e-9)).value == pytest.approx(expected, rel=1e-9)


def test_stages_that_stop_early_help_the_layers_after_them():
    weights = [weight / 7 for weight in random_weights(0, (8, 20, 20, 20, 4))]
    _, square = proposed(weights, nn.ReLU, BEST)
    assert value(weights) < 0.97 * math.sqrt(square)


@pytest.mark.parametrize(("iterations", "scale"), [(1, 1.0), (3, 1e-40), (1, 1e40), (200, 1e40)])
def test_few_steps_and_any_scale_are_sound(iterations, scale):
    weights = [scale * weight for weight in random_weights(1, (4, 6, 5, 3))]
    upper = value(weights, iterations=iterations)
    assert steepest(weights) <= upper
    assert upper <= value(weights, name="product") * (1 + 1e-8)


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_squares_that_are_no_numbers_are_refused(scale):
    with pytest.raises(Refused, match=r"no number in float64|too large for float64"):
        value([scale * weight for weight in random_weights(1, (4, 6, 5, 3))])


def test_layers_that_read_or_pass_on_nothing():
    weights = random_weights(2, (3, 5, 4, 2))
    weights[0][1], weights[1][:, 2], weights[1][3], weights[2][:, 0] = 0, 0, 0, 0
    assert steepest(weights) <= value(weights)
    for idle in range(3):
        broken = [weight * (number != idle) for number, weight in enumerate(weights)]
        with pytest.raises(Refused, match="the network is constant"):
            value(broken)


def test_what_is_no_chain_or_too_wide_is_refused():
    pool = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (1, 4)), nn.MaxPool1d(2))
    reason = bound("eclipse").refuses(as_network(pool, (4,)), L2, None)
    assert reason == "step '2' (MaxPool) is no layer of neurons between two dense ones."
    with pytest.raises(Refused, match="reads more than the neurons"):
        computed(pool, 4)
    wide = as_network(random_network(0, (2, 300, 3), nn.ReLU), (2,))
    reason = "a layer has 300 neurons, more than the 256 of most_neurons."
    assert bound("eclipse").refuses(wide, L2, None) == reason
    assert bound("eclipse", most_neurons=300).refuses(wide, L2, None) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"most_neurons": 0}, "most_neurons must be at least 1, got 0"),
        ({"tolerance": 0.0}, r"tolerance must be in \(0, 1\), got 0.0"),
    ],
)
def test_fields_that_make_no_sense_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        bound("eclipse", **options)


def test_less_time_is_fewer_steps():
    network = as_network(random_network(0, (5, 100, 100, 3), nn.ReLU), (5,))
    whole = bound("eclipse")
    assert whole.within(network, L2, None, 1e6) == whole
    less = whole.within(network, L2, None, whole.cost(network, L2, None) * 0.6)
    assert less.iterations in (10, 20)
    assert whole.within(network, L2, None, 1e-4) is None
