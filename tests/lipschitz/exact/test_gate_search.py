"""Exact derivatives on a box by gates and linear programs, against what else is exact."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from sklearn.datasets import load_iris
from support.bounds import bound, rechecked
from support.nets import HAT, IDENTITY, LINEAR, SHIFTED, by_hand, dense, random_network
from torch import nn

from lipbench.lipschitz.exact.gates import Gates
from lipbench.lipschitz.exact.mixed_integer import MixedIntegerProgram
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused

NORMS = [Norm(1.0), Norm(math.inf)]
ROUNDING = 1e-9
BOX = (-1.0, 1.0)


def searched(model, features, norm, domain=BOX, name="lipmip", **options):
    return rechecked(name, model, features, norm, domain, **options)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("model", "features", "constant"),
    by_hand(
        {
            "absolute value": 1,
            "identity": 1,  # faces count where gates are anything there: 2
            "step": 1,
            "zero": 0,  # so counted, 1
            "hat": 1,
            "maximum": 1,  # so counted, 2
            "shifted": 2,
        }
    ),
)
def test_a_hand_computed_network(model, features, constant, norm):
    value = searched(model, features, norm, (-5.0, 5.0))
    assert value.value == pytest.approx(constant, rel=ROUNDING, abs=1e-12)
    assert value.side == ("exact" if constant else "upper")


def test_a_linear_network_is_its_norm():
    for norm, constant in zip(NORMS, (7, 4), strict=True):
        value = searched(LINEAR, 2, norm)
        assert (value.side, value.value) == ("exact", pytest.approx(constant, rel=ROUNDING))


def test_the_box_decides():
    """The hat is steep on [0, 2] alone, and constant elsewhere."""
    for norm in NORMS:
        assert searched(HAT, 1, norm, (0.5, 0.75)).value == pytest.approx(1, rel=ROUNDING)
        assert searched(HAT, 1, norm, (3.0, 4.0)).value == pytest.approx(0, abs=1e-12)
        assert searched(SHIFTED, 1, norm, (0.0, 5.0)).value == pytest.approx(1, rel=ROUNDING)


def test_an_end_of_a_box_is_not_rounded_to_float32():
    """Which would move 7000.3 below the kink, and close a gate that is open before the end."""
    late = dense(([[1], [1]], [-7000.2999, 0]), ([[1, 0]], [0]))
    for norm in NORMS:
        value = searched(late, 1, norm, (0.0, 7000.3))
        assert (value.side, value.value) == ("exact", pytest.approx(1, rel=ROUNDING))
        gates = Gates(as_neuron_blocks(as_network(late, (1,))), norm, (0.0, 7000.3))
        relaxation = MixedIntegerProgram(gates, 0, [(0, True)]).relaxation()
        assert relaxation.bound(relaxation.propose().duals) >= 1


def test_a_neuron_that_turns_at_0_is_least_there():
    """relu(1/2 - |x|) is flat but near 0, and the ends of a box say nothing of that."""
    tent = dense(([[1]], [0]), ([[-1]], [0.5]), ([[1]], [0]))
    tent[1] = nn.LeakyReLU(-1.0)
    for norm in NORMS:
        assert searched(tent, 1, norm).value == pytest.approx(1, rel=ROUNDING)


class Skip(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.outer = random_network(seed, (2, 3, 2), lambda: nn.LeakyReLU(-0.5))

    def forward(self, x):
        return self.outer(x + self.inner(x))


@settings(max_examples=3)
@given(
    st.integers(0, 1000),
    st.sampled_from([(2, 4, 2), (2, 3, 3, 2), (3, 5, 1)]),
    st.sampled_from([nn.ReLU, lambda: nn.LeakyReLU(0.2), lambda: nn.LeakyReLU(2.0)]),
    st.sampled_from(NORMS),
    st.sampled_from([BOX, (0.2, 0.6)]),
)
def test_it_is_the_exact_constant(seed, widths, activation, norm, domain):
    model = random_network(seed, widths, activation)
    value = searched(model, widths[0], norm, domain)
    exact = searched(model, widths[0], norm, domain, "lipbab")
    assert (value.side, exact.side) == ("exact", "exact")
    assert value.value == pytest.approx(exact.value, rel=ROUNDING)


@pytest.mark.parametrize("norm", NORMS)
def test_a_skip_is_the_same_to_it(norm):
    """What passes by a gate is read behind it, and slopes of both signs are slopes."""
    model = Skip(0)
    value, exact = (searched(model, 2, norm, name=name) for name in ("lipmip", "lipbab"))
    assert value.side == "exact"
    assert value.value == pytest.approx(exact.value, rel=ROUNDING)


def paper(model, box):
    """Return max_j of the paper's program for e_j, by a solver of mixed-integer programs."""
    weights = [layer.weight.detach().numpy() for layer in model[::2]]
    biases = [layer.bias.detach().numpy() for layer in model[::2]]
    return max(row(weights, biases, output, box) for output in range(len(weights[-1])))


def ends(weight, lo, hi):
    up, down = np.maximum(weight, 0), np.minimum(weight, 0)
    return up @ lo + down @ hi, up @ hi + down @ lo


def row(weights, biases, output, box):
    # Variables are added as they come; a constraint is Σ factor·variable ≤ end.
    lo, hi, whole, constraints = [], [], [], []

    def new(low, high, integer=0):
        lo.append(low), hi.append(high), whole.append(integer)
        return len(lo) - 1

    def below(end, *terms):
        constraints.append((dict(terms), end))

    def equal(end, *terms):
        below(end, *terms)
        below(-end, *[(variable, -factor) for variable, factor in terms])

    values = [new(*box) for _ in range(weights[0].shape[1])]
    low, high = (np.full(len(values), end) for end in box)
    gates = []
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        low, high = (end + bias for end in ends(weight, low, high))
        layer, switches = [], []
        for i, coefficients in enumerate(weight):
            z, h, a = new(low[i], high[i]), new(0, max(high[i], 0)), new(0, 1, 1)
            equal(bias[i], (z, 1), *[(v, -w) for v, w in zip(values, coefficients, strict=True)])
            below(0, (z, 1), (h, -1))
            below(0, (h, 1), (a, -max(high[i], 0)))
            below(-min(low[i], 0), (h, 1), (z, -1), (a, -min(low[i], 0)))
            layer.append(h)
            switches.append(a)
        gates.append(switches)
        values, low, high = layer, np.maximum(low, 0), np.maximum(high, 0)
    low = high = weights[-1][output]
    behind = [new(end, end) for end in low]
    for weight, switches in zip(weights[-2::-1], gates[::-1], strict=True):
        least, most = np.minimum(low, 0), np.maximum(high, 0)
        passed = []
        for i, (y, a) in enumerate(zip(behind, switches, strict=True)):
            v = new(least[i], most[i])
            below(0, (v, 1), (a, -most[i]))
            below(0, (v, -1), (a, least[i]))
            below(-least[i], (v, 1), (y, -1), (a, -least[i]))
            below(most[i], (y, 1), (v, -1), (a, most[i]))
            passed.append(v)
        low, high = ends(weight.T, least, most)
        behind = [new(*pair) for pair in zip(low, high, strict=True)]
        for y, coefficients in zip(behind, weight.T, strict=True):
            equal(0, (y, 1), *[(v, -w) for v, w in zip(passed, coefficients, strict=True)])
    least, most = np.minimum(low, 0), np.maximum(high, 0)
    sums = []
    for i, g in enumerate(behind):
        t, s = new(0, max(-least[i], most[i])), new(0, 1, 1)
        below(-2 * least[i], (t, 1), (g, -1), (s, -2 * least[i]))
        below(0, (t, 1), (g, 1), (s, -2 * most[i]))
        sums.append(t)
    objective, matrix = np.zeros(len(lo)), np.zeros((len(constraints), len(lo)))
    objective[sums] = -1
    for number, (terms, _) in enumerate(constraints):
        for variable, factor in terms.items():
            matrix[number, variable] += factor
    solved = milp(
        objective,
        integrality=whole,
        bounds=Bounds(lo, hi),
        constraints=LinearConstraint(matrix, -np.inf, [end for _, end in constraints]),
        options={"mip_rel_gap": 0},
    )
    return -solved.fun


@pytest.mark.parametrize("seed", range(2))
def test_rows_are_the_program_of_the_paper(seed):
    model = random_network(seed, (2, 4, 3, 2), nn.ReLU).double()
    expected = paper(model, BOX)
    assert searched(model, 2, Norm(math.inf)).value == pytest.approx(expected, rel=1e-6)


def test_columns_are_the_steepest_sum_of_outputs_with_signs():
    """L₁(f) = max over s of L₁(s·f), s of ±1: each of these a network with one output."""
    model = random_network(1, (2, 4, 2), nn.ReLU).double().requires_grad_(False)
    values = []
    for signs in itertools.product([1.0, -1.0], repeat=2):
        row = torch.tensor([signs], dtype=torch.float64)
        signed = nn.Sequential(*model[:-1], nn.Linear(4, 1, dtype=torch.float64))
        with torch.no_grad():
            signed[-1].weight.copy_(row @ model[-1].weight)
        values.append(searched(signed, 2, Norm(1.0), name="lipbab").value)
    assert searched(model, 2, Norm(1.0)).value == pytest.approx(max(values), rel=1e-7)


def test_a_trained_network_is_known_exactly():
    """Iris, 4-6-6-3, on a box of standardised inputs."""
    inputs, labels = (torch.tensor(array) for array in load_iris(return_X_y=True))
    inputs = ((inputs - inputs.mean(dim=0)) / inputs.std(dim=0)).float()
    model = random_network(0, (4, 6, 6, 3), nn.ReLU)
    for _ in range(60):
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.5 * parameter.grad
    value, exact = (searched(model, 4, NORMS[1], name=name) for name in ("lipmip", "lipbab"))
    assert (value.side, exact.side) == ("exact", "exact")
    assert value.value == pytest.approx(exact.value, rel=ROUNDING)
    assert len(value.proof["parts_lengths"]) > 10


@settings(max_examples=10)
@given(
    st.integers(0, 1000),
    st.sampled_from([nn.ReLU, lambda: nn.LeakyReLU(0.3), lambda: nn.LeakyReLU(-2.0)]),
    st.sampled_from(NORMS),
    st.data(),
)
def test_whatever_is_decided_points_of_which_it_is_true_stay_below(seed, activation, norm, data):
    model = random_network(seed, (3, 4, 4, 2), activation).double()
    network = as_neuron_blocks(as_network(model, (3,)))
    gates = Gates(network, norm, BOX)
    point = 2 * torch.rand(1, 3, generator=torch.Generator().manual_seed(seed)).double() - 1
    sides = gates.sides(point)
    matrix = gates.matrices(sides)[0]
    outputs = network(point.requires_grad_())[0]
    jacobian = [torch.autograd.grad(output, point, retain_graph=True)[0][0] for output in outputs]
    point = point.detach()
    assert torch.allclose(matrix, torch.stack(jacobian), atol=1e-12)
    number = data.draw(st.integers(0, gates.sums - 1))
    sums = matrix[number] if math.isinf(norm) else matrix[:, number]
    truth = [*sides[0].tolist(), *(sums > 0).tolist()]
    assert len(truth) == gates.decisions
    chosen = data.draw(st.lists(st.integers(0, len(truth) - 1), unique=True))
    program = MixedIntegerProgram(
        gates, number, [(variable, truth[variable]) for variable in chosen]
    )
    relaxation = program.relaxation()
    proposal = relaxation.propose()
    least = float(sums.abs().sum()) * (1 - 1e-9)
    assert proposal.point is not None
    assert relaxation.bound(proposal.duals) >= least
    assert program.bounds.total >= least
    assert relaxation.bound(torch.zeros(len(relaxation)).double()) >= least
    decided = program.sides(point[0])
    assert all(bool(decided[gate]) == truth[gate] for gate in chosen if gate < gates.neurons)


@pytest.mark.parametrize("norm", NORMS)
def test_a_larger_box_has_no_smaller_constant(norm):
    model = random_network(2, (2, 4, 2), nn.ReLU)
    values = [searched(model, 2, norm, box).value for box in ((0.0, 0.5), BOX, (-3.0, 3.0))]
    for inner, outer in itertools.pairwise(values):
        assert inner <= outer * (1 + ROUNDING)


@pytest.mark.parametrize("norm", NORMS)
def test_wherever_a_search_is_cut_its_bound_is_proved(norm):
    model = random_network(1, (2, 4, 3, 2), nn.ReLU)
    whole = searched(model, 2, norm)
    simple = searched(model, 2, norm, name="fastlip").value
    before = math.inf
    for nodes in (0, 1, 7):
        value = searched(model, 2, norm, nodes=nodes)
        assert whole.value * (1 - ROUNDING) <= value.value <= simple
        assert len(value.proof.get("parts_lengths", ())) <= 2 + nodes
        assert value.value <= before * (1 + ROUNDING)
        before = value.value
    assert before < simple


@pytest.mark.parametrize("norm", NORMS)
def test_layers_that_had_to_be_multiplied_are_bounded_and_not_called_exact(norm):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    merged = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), model[3]).double()
    with torch.no_grad():
        merged[0].weight.copy_(model[1].weight @ model[0].weight)
        merged[0].bias.copy_(model[1](model[0].bias))
    gates = Gates(as_neuron_blocks(as_network(model, (2,))), norm, BOX)
    rows = MixedIntegerProgram(gates, 0).relaxation().equal.radius
    assert (rows[:3, :2] > 0).all()
    value = searched(model, 2, norm)
    assert value.side == "upper"
    assert value.value == pytest.approx(searched(merged, 2, norm).value, rel=1e-8)


def test_what_it_cannot_do_is_refused_by_name():
    network = as_network(random_network(0, (2, 61, 2), nn.ReLU), (2,))
    wide = as_network(random_network(0, (101, 2, 2), nn.ReLU), (101,))
    assert "61 neurons, more than the 60" in bound("lipmip").refuses(network, NORMS[0], BOX)
    assert "101 inputs, more than the 100" in bound("lipmip").refuses(wide, NORMS[0], BOX)
    assert bound("lipmip", most_neurons=61).refuses(network, NORMS[0], BOX) is None
    assert "needs a box" in bound("lipmip").refuses(network, NORMS[0], None)
    with pytest.raises(Refused, match="needs a box"):
        searched(HAT, 1, NORMS[0], None)
    with pytest.raises(Refused, match="step '1' is not linear on both sides of 0"):
        searched(random_network(0, (2, 3, 2), nn.Sigmoid), 2, NORMS[0])
    with pytest.raises(ValueError, match="nodes must be at least 0, got -1"):
        bound("lipmip", nodes=-1)


def test_a_search_has_as_many_nodes_as_a_time_allows():
    network = as_network(random_network(0, (3, 8, 2), nn.ReLU), (3,))
    search = bound("lipmip")
    assert search.within(network, NORMS[0], BOX, 1e6) == search
    few = search.within(network, NORMS[0], BOX, 0.5)
    assert 0 < few.nodes < search.nodes
    assert few.cost(network, NORMS[0], BOX) <= 0.5
    assert search.within(network, NORMS[0], BOX, 0.0) is None


def first(proof, name):
    """Return the proof without the first list of a name that is not empty."""
    lengths = proof[f"{name}_lengths"]
    index = int((lengths > 0).nonzero()[0])
    start = int(lengths[:index].sum())
    kept = torch.ones(len(proof[name]), dtype=torch.bool)
    kept[start : start + int(lengths[index])] = False
    lengths = lengths.clone()
    lengths[index] = 0
    return proof | {name: proof[name][kept], f"{name}_lengths": lengths}


def dropped(proof):
    """Return the proof without its last node."""
    lists = {}
    for name in ("parts", "duals", "support", "weights"):
        lengths = proof[f"{name}_lengths"]
        lists[name] = proof[name][: len(proof[name]) - int(lengths[-1])]
        lists[f"{name}_lengths"] = lengths[:-1]
    return proof | lists


SPOILT = {
    "a smaller value": lambda v: replace(v, value=v.value * 0.99),
    "a larger exact value": lambda v: replace(v, value=v.value * 1.01),
    "a part left out": lambda v: replace(v, proof=dropped(v.proof)),
    "no multipliers": lambda v: replace(v, proof=v.proof | {"duals": v.proof["duals"] * 0}),
    "other multipliers": lambda v: replace(v, proof=v.proof | {"duals": -v.proof["duals"]}),
    "no numbers": lambda v: replace(v, proof=v.proof | {"duals": v.proof["duals"] * math.nan}),
    "one part without multipliers": lambda v: replace(v, proof=first(v.proof, "duals")),
    "decisions that are others": lambda v: replace(
        v, proof=v.proof | {"parts": v.proof["parts"] ^ 2}
    ),
    "one side twice": lambda v: replace(v, proof=v.proof | {"parts": v.proof["parts"] | 1}),
    "another point": lambda v: replace(v, proof=v.proof | {"point": v.proof["point"] * 0}),
    "all of space": lambda v: replace(v, domain=None),
    "a larger box": lambda v: replace(v, domain=(-9.0, 9.0)),
}


@pytest.fixture(scope="module")
def exact():
    network = as_network(random_network(0, (2, 4, 3, 2), nn.ReLU), (2,))
    value = bound("lipmip").compute(network, NORMS[1], BOX)
    assert value.side == "exact"
    return network, value


@pytest.mark.parametrize("how", SPOILT)
def test_a_proof_that_is_spoilt_is_found_out(how, exact):
    network, value = exact
    assert recheck(network, SPOILT[how](value)), how


def test_a_region_that_is_not_empty_is_not_called_so():
    network = as_network(IDENTITY, (1,))
    value = bound("lipmip").compute(network, NORMS[0], BOX)
    assert len(value.proof["support"])
    for name, factor in (("support", 0), ("weights", 0.0)):
        spoilt = replace(value, proof=value.proof | {name: value.proof[name] * factor})
        assert recheck(network, spoilt)


@pytest.mark.parametrize(("shift", "constant"), [(1e-3, 2), (1e-8, 2), (1e-14, 2), (0.0, 1)])
def test_a_region_counts_however_thin_and_not_if_it_is_flat(shift, constant):
    """relu(x + shift) - relu(-x) has slope 2 between -shift and 0."""
    model = dense(([[1], [-1]], [shift, 0]), ([[1, -1]], [0]))
    value = searched(model, 1, NORMS[1])
    assert (value.side, value.value) == ("exact", pytest.approx(constant, rel=ROUNDING))
