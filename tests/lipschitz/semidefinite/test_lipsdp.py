"""Bounds that know only the slopes of neurons: hand-computed, brute force, and published twins."""

import math
from itertools import combinations, pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bounds import rechecked
from support.nets import MAXIMUM, STEP, by_hand, random_network
from support.written import Written
from torch import nn

import lipbench
from lipbench.bound import Bound
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.loop_transformation import loop_transformation
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.lipschitz.semidefinite.certify import certify
from lipbench.lipschitz.semidefinite.interior_point import propose
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.registry import load

L2 = Norm(2.0)
TIGHT = 1e-6  # the interior-point method stops a little above the optimum
RELAXED = ["liplt", "eclipse_fast", "eclipse", "lipsdp_layer", "lipsdp_neuron"]

# LipLT, ECLipsE-Fast and LipSDP-Neuron of networks whose constants can be derived on paper.
HAND = by_hand(
    {
        "absolute value": (1, math.sqrt(2), 1),
        "identity": (2, 2, 2),
        "step": (1, math.sqrt(2), 1),
        "zero": (1, math.sqrt(2), 1),
        "hat": (2.121320, 3, 2),
        "maximum": (2.307313, 2.394701, 2),
        "shifted": (2, 2, 2),
        "sigmoid": (1, 1, 1),
        "gelu": (1.128904145, None, 1.128904145),
        "linear": (5, 5, 5),
    }
)


def value(name, model, features, norm=L2):
    return rechecked(name, model, features, norm).value


@pytest.mark.parametrize(("model", "features", "liplt", "fast", "lipsdp"), HAND)
def test_a_hand_computed_network(model, features, liplt, fast, lipsdp):
    assert value("liplt", model, features) == pytest.approx(liplt, rel=1e-6)
    if fast is not None:
        assert value("eclipse_fast", model, features) == pytest.approx(fast, rel=1e-6)
    for name in ("lipsdp_neuron", "lipsdp_layer"):
        upper = value(name, model, features)
        assert lipsdp * (1 - 1e-9) <= upper
    assert value("lipsdp_neuron", model, features) == pytest.approx(lipsdp, rel=TIGHT)


@pytest.mark.parametrize("scale", [1e-80, 1e80])
def test_weights_beyond_the_powers_of_floats_have_no_closed_form(scale):
    model = random_network(0, (2, 3, 1), nn.ReLU).double()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor *= scale
    with pytest.raises(Refused, match=r"powers float64 does not hold|too large for float64"):
        value("eclipse_fast", model, 2)


def test_slopes_of_both_signs_have_no_closed_form():
    with pytest.raises(Refused, match="slopes of both signs"):
        value("eclipse_fast", random_network(0, (3, 4, 2), nn.GELU), 3)


def formal_constant(network):
    # The largest norm over all slopes at their ends, of a network with few neurons.
    blocks, best = as_neuron_blocks(network), 0.0
    lo, hi = (torch.cat([getattr(b, end) for b in blocks.blocks]) for end in ("lo", "hi"))
    for bits in product([False, True], repeat=len(lo)):
        slopes, start = torch.where(torch.tensor(bits), hi, lo), 0
        known = [torch.eye(blocks.inputs, dtype=torch.float64)]
        for block in blocks.blocks:
            chosen = slopes[start : start + len(block)].unsqueeze(1)
            known.append(chosen * sum(m.values @ known[s] for s, m in block.reads.matrices.items()))
            start += len(block)
        whole = sum(m.values @ known[s] for s, m in blocks.output.matrices.items())
        best = max(best, float(torch.linalg.matrix_norm(whole, 2)))
    return best


SLOPED = [
    nn.ReLU,
    nn.Sigmoid,
    nn.GELU,
    nn.SiLU,
    lambda: nn.LeakyReLU(0.3),
    lambda: nn.LeakyReLU(-2.0),
    lambda: nn.PReLU(init=-0.5),
]


@settings(max_examples=12)
@given(
    st.integers(0, 1000),
    st.lists(st.integers(1, 4), min_size=3, max_size=4),
    st.sampled_from(SLOPED),
)
def test_bounds_come_in_order(seed, widths, activation):
    """Brute force ≤ LipSDP-Neuron ≤ its looser relatives, negative slopes included."""
    model = random_network(seed, widths, activation)
    network = as_network(model, (widths[0],))
    formal = formal_constant(network)
    neuron, layer, liplt = (
        value(name, model, widths[0]) for name in ("lipsdp_neuron", "lipsdp_layer", "liplt")
    )
    assert formal <= neuron * (1 + 1e-9)
    assert neuron <= layer * (1 + TIGHT)
    assert layer <= liplt * (1 + TIGHT)
    if len(widths) == 3 and sum(widths[1:-1]) <= 1:
        assert neuron == pytest.approx(formal, rel=TIGHT)


@settings(max_examples=15)
@given(st.integers(0, 1000), st.lists(st.integers(1, 6), min_size=3, max_size=5))
def test_the_closed_form_lies_between_lipsdp_and_the_product(seed, widths):
    model = random_network(seed, widths, nn.ReLU)
    fast = value("eclipse_fast", model, widths[0])
    assert value("lipsdp_neuron", model, widths[0]) <= fast * (1 + TIGHT)
    assert fast <= value("product", model, widths[0]) * (1 + 1e-9)


def all_cuts(weights):
    # The naive twin of LipLT for slopes in [0, 1]: a mean over all ways to cut the network.
    # Combettes and Pesquet, Lipschitz Certificates for Layered Network Structures Driven by
    # Averaged Activation Operators (2020), with all activations 1/2-averaged.
    positions, total = range(1, len(weights)), 0.0
    for count in range(len(weights)):
        for cuts in combinations(positions, count):
            term = 1.0
            for start, stop in pairwise([0, *cuts, len(weights)]):
                whole = torch.linalg.multi_dot([*reversed(weights[start:stop]), EYE])
                term *= float(torch.linalg.matrix_norm(whole, 2))
            total += term
    return total / 2 ** (len(weights) - 1)


EYE = torch.eye(3, dtype=torch.float64)


@given(st.integers(0, 1000), st.integers(2, 5))
def test_liplt_is_a_mean_over_all_cuts(seed, depth):
    model = random_network(seed, (3,) * (depth + 1), nn.ReLU).double()
    weights = [layer.weight.detach() for layer in model[::2]]
    assert value("liplt", model, 3) == pytest.approx(all_cuts(weights), rel=1e-9)


@pytest.mark.parametrize("norm", [Norm(1), L2, Norm(math.inf)])
def test_liplt_of_the_identity_as_activation_is_the_norm_of_the_product(norm):
    model = random_network(0, (3, 4, 2), lambda: nn.LeakyReLU(1.0)).double()
    whole = model[2].weight.detach() @ model[0].weight.detach()
    expected = float(torch.linalg.matrix_norm(whole, float(norm)))
    assert value("liplt", model, 3, norm) == pytest.approx(expected, rel=1e-9)
    if norm == 2:
        assert value("lipsdp_neuron", model, 3) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=10)
@given(st.integers(0, 1000), st.sampled_from([0.01, 3.0, 100.0]))
def test_lipsdp_does_not_see_a_diagonal_between_layers(seed, spread):
    """Relu(Dz) = D relu(z): the function is the same, and so is the bound; the product is not."""
    model = random_network(seed, (4, 5, 5, 3), nn.ReLU).double().requires_grad_(False)
    before = value("lipsdp_neuron", model, 4)
    scale = torch.linspace(1, spread, 5, dtype=torch.float64)
    model[0].weight.mul_(scale.unsqueeze(1))
    model[0].bias.mul_(scale)
    model[2].weight.div_(scale)
    assert value("lipsdp_neuron", model, 4) == pytest.approx(before, rel=2 * TIGHT)


def test_a_layer_of_the_identity_changes_nothing():
    model = random_network(0, (4, 5, 3), nn.ReLU).double()
    identity = nn.Linear(5, 5, bias=False).double()
    nn.init.eye_(identity.weight)
    longer = nn.Sequential(*model[:2], identity, *model[2:])
    for name in RELAXED:
        assert value(name, longer, 4) == pytest.approx(value(name, model, 4), rel=TIGHT)


def test_a_convolution_is_the_matrix_it_unrolls_to():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    ).double()
    images = torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4)
    plain = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3)).double()
    with torch.no_grad():
        plain[0].weight.copy_((model[0](images) - model[0](0 * images)).flatten(1).T)
        plain[2].weight.copy_(model[3].weight)
    network = as_network(model, (1, 4, 4))
    upper = load("lipbench.bounds", "lipsdp_neuron", Bound)().compute(network, L2, None).value
    assert upper == pytest.approx(value("lipsdp_neuron", plain, 16), rel=TIGHT)


@given(st.integers(0, 1000), st.floats(-3, 3), st.floats(-2, 2))
def test_whatever_multipliers_are_proposed_the_bound_holds(seed, noise, size):
    """Also those of a solver that was wrong: the kernel certifies or gets loose."""
    network = as_network(random_network(seed, (3, 4, 3, 2), nn.ReLU), (3,))
    loops, formal = loop_transformation(as_neuron_blocks(network)), formal_constant(network)
    best = propose(loops)
    rng = torch.Generator().manual_seed(seed)
    spoilt = torch.exp(noise * torch.randn(7, generator=rng, dtype=torch.float64))
    certified, _ = certify(loops, best.multipliers * spoilt, best.square * 10**size)
    assert certified >= formal * (1 - 1e-9)


@pytest.mark.parametrize("share", [0.7, 0.9, 0.999])
def test_a_solver_that_stops_too_early_proves_no_less_than_the_truth(share):
    """Of weights ≥ 0 the constant is a norm; a first-order solver called 30.8 of 36.5 optimal."""
    model = random_network(0, (2, 10, 30, 20, 2), nn.ReLU).double().requires_grad_(False)
    for layer in model[::2]:
        layer.weight.abs_()
    whole = torch.linalg.multi_dot([layer.weight for layer in reversed(model[::2])])
    truth = float(torch.linalg.matrix_norm(whole, 2))
    loops = loop_transformation(as_neuron_blocks(as_network(model, (2,))))
    best = propose(loops)
    assert certify(loops, best.multipliers, best.square)[0] == pytest.approx(truth, rel=1e-4)
    claimed = best.square * share**2
    for multipliers in (best.multipliers, best.multipliers * share**2):
        assert certify(loops, multipliers, claimed)[0] >= truth


@pytest.mark.parametrize("scales", [(1e-8, 1e-8), (1e-10, 1e10), (1e30, 1e30), (1e40, 1e-60)])
@pytest.mark.parametrize("name", ["lipsdp_neuron", "lipsdp_layer", "lipbab"])
def test_layers_of_any_size_have_multipliers(name, scales):
    model = random_network(0, (4, 6, 3), nn.ReLU).double()
    before = value(name, model, 4)
    with torch.no_grad():
        for layer, scale in zip(model[::2], scales, strict=True):
            layer.weight *= scale
        model[0].bias *= scales[0]
    assert value(name, model, 4) == pytest.approx(scales[0] * scales[1] * before, rel=2 * TIGHT)


def test_neurons_that_read_nothing_do_not_stand_in_the_way():
    layers = {"f": nn.Linear(2, 3), "g": nn.Linear(3, 2)}
    nn.init.zeros_(layers["f"].weight)
    model = Written(lambda self, x: x + self.g(torch.relu(self.f(x))), **layers)
    for name in ("lipsdp_neuron", "lipsdp_layer"):
        assert value(name, model, 2) == pytest.approx(1, rel=TIGHT)
    large, small = (random_network(0, (4, n, 3), nn.ReLU).double() for n in (6, 5))
    with torch.no_grad():
        large[0].weight[5] = 0
        small[0].weight.copy_(large[0].weight[:5])
        small[2].weight.copy_(large[2].weight[:, :5])
    expected = value("lipsdp_neuron", small, 4)
    assert value("lipsdp_neuron", large, 4) == pytest.approx(expected, rel=TIGHT)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("name", ["lipsdp_neuron", "lipsdp_layer"])
def test_a_constant_network_is_refused(name, layer):
    model = random_network(0, (4, 6, 3), nn.ReLU)
    nn.init.zeros_(model[layer].weight)
    with pytest.raises(Refused, match="the network is constant"):
        value(name, model, 4)
    assert value("product", model, 4) == 0
    assert lipbench.bracket(model, (4,), time_limit=1).upper == 0


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_no_multiplier_that_is_no_positive_number_proves_anything(bad):
    loops = loop_transformation(as_neuron_blocks(as_network(MAXIMUM, (2,))))
    best = propose(loops)
    spoilt = best.multipliers.clone()
    spoilt[1] = bad
    assert certify(loops, spoilt, best.square)[0] == math.inf


def test_multipliers_that_couple_neurons_are_not_offered():
    """With them the step function, whose constant is 1, would have a bound of about 0."""
    assert value("lipsdp_neuron", STEP, 1) >= 1


@pytest.mark.parametrize("name", RELAXED)
def test_a_value_that_its_certificate_does_not_prove_is_found_out(name):
    network = as_network(random_network(0, (4, 5, 3), nn.ReLU), (4,))
    upper = load("lipbench.bounds", name, Bound)().compute(network, L2, None)
    lie = type(upper)(**{**vars(upper), "value": upper.value * 0.999})
    assert "prove" in recheck(network, lie)[0].message
    model = random_network(0, (4, 5, 3), nn.ReLU)
    with torch.no_grad():
        model[2].weight.mul_(2)
    assert "prove" in recheck(as_network(model, (4,)), upper)[0].message


def by_cvxpy(model):
    # LipSDP-Neuron as the paper writes it, by a solver for general semidefinite programs.
    cvxpy = pytest.importorskip("cvxpy", reason="the extra sdp is not installed")
    weights = [layer.weight.detach().numpy() for layer in model[::2]]
    sizes = [weight.shape[1] for weight in weights]
    multipliers = [cvxpy.Variable(size, nonneg=True) for size in sizes[1:]]
    rho = cvxpy.Variable(nonneg=True)
    total, last = sum(sizes), 0
    matrix = 0
    for number, (weight, multiplier) in enumerate(zip(weights[:-1], multipliers, strict=True)):
        # 2 Δφ' T Δz - 2 Δφ' T Δφ ≥ 0 for slopes in [0, 1].
        reads, neurons = (torch.zeros(len(weight), total).numpy() for _ in range(2))
        start = sum(sizes[:number])
        reads[:, start : start + sizes[number]] = weight
        start += sizes[number]
        neurons[:, start : start + sizes[number + 1]] = torch.eye(len(weight)).numpy()
        crossed = neurons.T @ cvxpy.diag(multiplier) @ reads
        matrix += crossed + crossed.T - 2 * neurons.T @ cvxpy.diag(multiplier) @ neurons
        last = start
    ends = torch.zeros(total, total).double().numpy()
    ends[last:, last:] = weights[-1].T @ weights[-1]
    first = torch.zeros(total, total).numpy()
    first[: sizes[0], : sizes[0]] = torch.eye(sizes[0]).numpy()
    problem = cvxpy.Problem(cvxpy.Minimize(rho), [matrix + ends - rho * first << 0])
    sharp = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-10)
    problem.solve(solver=cvxpy.CLARABEL, **sharp)
    return math.sqrt(rho.value)


@pytest.mark.parametrize("widths", [(3, 6, 2), (4, 5, 5, 3), (6, 10, 8, 4)])
def test_lipsdp_reaches_the_optimum_of_a_general_solver(widths):
    model = random_network(0, widths, nn.ReLU).double()
    expected = by_cvxpy(model)
    upper = value("lipsdp_neuron", model, widths[0])
    assert upper == pytest.approx(expected, rel=1e-6)
    # The order of the bounds, with the optimum of that solver.
    larger = ("lipsdp_layer", "eclipse", "eclipse_fast", "liplt", "product")
    assert all(expected <= value(name, model, widths[0]) * (1 + 1e-6) for name in larger)
    assert value("pair_ascent", model, widths[0]) <= expected * (1 + 1e-6)
    # A diagonal between layers with ReLU changes weights, and not the function.
    scale = torch.rand(widths[1], dtype=torch.float64) + 0.5
    with torch.no_grad():
        model[0].weight.mul_(scale.unsqueeze(1))
        model[0].bias.mul_(scale)
        model[2].weight.div_(scale)
    assert by_cvxpy(model) == pytest.approx(expected, rel=1e-6)
    assert value("lipsdp_neuron", model, widths[0]) == pytest.approx(upper, rel=1e-6)


def test_its_own_gap_is_honest():
    """The proposal says how far it may be from the optimum."""
    model = random_network(0, (4, 6, 5, 3), nn.ReLU).double()
    loops = loop_transformation(as_neuron_blocks(as_network(model, (4,))))
    close, far = propose(loops, tolerance=1e-9), propose(loops, tolerance=1e-2)
    assert close.gap <= 1e-9
    assert close.square * (1 - 1e-12) <= far.square
    assert far.square * (1 - far.gap) <= close.square
