"""Krivine's certificates, against all corners of the cube and against the paper's own program."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from support.bounds import rechecked
from support.nets import ABSOLUTE, by_hand, random_network
from torch import nn

from lipbench import MaxMin
from lipbench.bound import Bound
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.intervals import loop_transformation_on, slopes
from lipbench.lipschitz.relaxations.krivine import Family, Products, families, plain_bound
from lipbench.lipschitz.relaxations.loop_transformation import loop_transformation
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.lipschitz.relaxations.polynomials import Polynomial, derivative_polynomials, levels
from lipbench.lipschitz.soundness import crossings
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.registry import load

NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]
INF = Norm(math.inf)
TIGHT = 1e-6  # an interior-point method stops a little above the optimum
ACTIVATIONS = [nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.Hardtanh]


def value(model, features, norm=INF, domain=None, name="lipopt", **options):
    return rechecked(name, model, features, norm, domain, **options)


def polynomial(model, features, output=0):
    known = derivative_polynomials(
        loop_transformation_on(as_neuron_blocks(as_network(model, (features,))), None)
    )
    return known.row(output, torch.ones(features, dtype=torch.float64))


def certified(target, degree, is_sparse=True):
    """Return the bound of the best certificate of a degree."""
    products = Products.of(target.sizes, Family(degree, is_sparse))
    return products.bound(target, *products.propose(target))


def matrices(model):
    return [layer.weight.detach().double() for layer in model if isinstance(layer, nn.Linear)]


def corners(weights, ends):
    """Yield the derivatives for all choices of extreme slopes of the neurons of a chain."""
    sizes = [len(weight) for weight in weights[:-1]]
    for chosen in product(ends, repeat=sum(sizes)):
        matrix = weights[0]
        for diagonal, weight in zip(
            torch.tensor(chosen).double().split(sizes), weights[1:], strict=True
        ):
            matrix = weight @ (diagonal.unsqueeze(1) * matrix)
        yield matrix


def largest(model, norm, ends=(0.0, 1.0)):
    return max(
        float(torch.linalg.matrix_norm(matrix, float(norm)))
        for matrix in corners(matrices(model), ends)
    )


# Norm infinity, norm 1, l2: over all slopes in [0, 1], whether neurons can have them or not.
HAND = by_hand(
    {
        "absolute value": (1, 1, 1),
        "identity": (2, 2, 2),
        "step": (1, 1, 1),
        "zero": (1, 1, 1),
        "hat": (2, 2, 2),
        "maximum": (2, 2, None),  # intervals say 3 in norm infinity
        "shifted": (2, 2, 2),
        "sigmoid": (1, 1, 1),
        "gelu": (1.1289041452, 1.1289041452, 1.1289041452),
        "linear": (4, 7, 5),
    }
)


@pytest.mark.parametrize(("model", "features", "rows", "columns", "both"), HAND)
def test_a_hand_computed_network(model, features, rows, columns, both):
    assert value(model, features, INF).value == pytest.approx(rows, rel=1e-9)
    assert value(model, features, Norm(1.0)).value == pytest.approx(columns, rel=1e-9)
    if both is not None:
        assert value(model, features, Norm(2.0)).value == pytest.approx(both, rel=1e-9)


@pytest.mark.parametrize(
    ("norm", "widths"),
    [
        (INF, (2, 5, 1)),
        (INF, (3, 4, 2)),
        (Norm(1.0), (2, 3, 3, 2)),
        (INF, (2, 3, 3, 1)),
        (Norm(1.0), (1, 2, 3, 2, 2)),
    ],
)
def test_the_greatest_degree_is_the_maximum_and_none_is_below_it(norm, widths):
    model = random_network(1, widths, nn.ReLU).double()
    exact, least = largest(model, norm), len(widths) - 1
    low, high, last = (
        value(model, widths[0], norm, degree=degree).value for degree in (least, least + 1, 20)
    )
    assert exact <= last <= min(high, exact) * (1 + TIGHT)
    assert high <= low * (1 + TIGHT)
    assert value(model, widths[0], norm).value == pytest.approx(exact, rel=2 * TIGHT)


def test_a_higher_degree_can_be_better():
    target = polynomial(random_network(0, (4, 8, 1), nn.ReLU).double(), 4)
    exact = target.vertex(50)
    assert certified(target, 2) > 1.1 * exact
    assert exact <= certified(target, 3) <= exact * (1 + TIGHT)


def test_all_outputs_are_bounded_as_well_as_the_largest():
    model = random_network(0, (4, 8, 1), nn.ReLU).double()
    alone = value(model, 4, degree=3).value
    with torch.no_grad():
        model[2].weight = nn.Parameter(model[2].weight.tile(3, 1))
        model[2].bias = nn.Parameter(model[2].bias.tile(3))
    assert value(model, 4, degree=3).value == pytest.approx(alone, rel=TIGHT)
    assert value(model, 4, name="fastlip").value > 1.1 * alone


def krivine(model, features, degree):
    """Return the bound of the paper, all exponents and factors written out, variables in [0, 1].

    Polynomials are dictionaries from exponents to coefficients.
    """

    def times(first, second):
        terms = {}
        for (left, a), (right, b) in product(first.items(), second.items()):
            key = tuple(i + j for i, j in zip(left, right, strict=True))
            terms[key] = terms.get(key, 0) + a * b
        return terms

    weights = matrices(model)
    starts = np.cumsum([0, features, *map(len, weights[:-1])])
    count = int(starts[-1])
    zero = (0,) * count
    units = [{tuple(int(i == j) for i in range(count)): 1.0} for j in range(count)]
    wanted = {}
    for i, *path in product(range(features), *(range(len(weight)) for weight in weights[:-1])):
        # t = 2·x - 1 for the input, s = x for the slopes.
        term = {zero: -1.0, **{key: 2.0 for key in units[i]}}
        for start, neuron in zip(starts[1:], path, strict=False):
            term = times(term, units[start + neuron])
        steps = zip(weights, [*path, 0], [i, *path], strict=True)
        weight = math.prod(float(layer[row, column]) for layer, row, column in steps)
        for key, coefficient in term.items():
            wanted[key] = wanted.get(key, 0) + weight * coefficient
    factors = [*units, *({zero: 1.0, **{key: -1.0 for key in unit}} for unit in units)]
    products = {}
    for exponents in product(range(degree + 1), repeat=len(factors)):
        if sum(exponents) <= degree:
            terms = {zero: 1.0}
            for factor, exponent in zip(factors, exponents, strict=True):
                for _ in range(exponent):
                    terms = times(terms, factor)
            products[exponents] = terms
    rows = {
        key: row for row, key in enumerate({key for terms in products.values() for key in terms})
    }
    matrix = np.zeros((len(rows), 1 + len(products)))
    matrix[rows[zero], 0] = 1
    for column, terms in enumerate(products.values(), 1):
        for key, coefficient in terms.items():
            matrix[rows[key], column] = -coefficient
    right = np.zeros(len(rows))
    for key, coefficient in wanted.items():
        right[rows[key]] = coefficient
    costs = np.eye(1, 1 + len(products))[0]
    limits = [(None, None)] + [(0, None)] * len(products)
    return linprog(costs, A_eq=matrix, b_eq=right, bounds=limits).fun


@pytest.mark.parametrize("seed", range(2))
def test_products_do_what_the_program_of_the_paper_does(seed):
    """In one layer those that have a factor of each group do as well."""
    model = random_network(seed, (2, 3, 1), nn.ReLU).double()
    target = polynomial(model, 2)
    assert certified(target, 2) == pytest.approx(krivine(model, 2, 2), rel=TIGHT)
    assert certified(target, 3, False) == pytest.approx(krivine(model, 2, 3), rel=TIGHT)
    model = random_network(seed, (1, 2, 2, 1), nn.ReLU).double()
    paper = krivine(model, 1, 3)
    assert certified(polynomial(model, 1), 3, False) == pytest.approx(paper, rel=TIGHT)
    assert certified(polynomial(model, 1), 3) >= paper * (1 - TIGHT)


def test_products_without_a_factor_of_each_group_can_be_of_use():
    model = random_network(0, (3, 4, 4, 1), nn.ReLU).double()
    target = polynomial(model, 3)
    best = certified(target, 3, False)
    assert best < 0.95 * certified(target, 3)
    assert value(model, 3, degree=3).value == pytest.approx(best, rel=TIGHT)
    room = Family(3, True).terms(target.sizes)
    sparse = value(model, 3, most_terms=room).value
    assert sparse == pytest.approx(certified(target, 3), rel=TIGHT)


@given(st.integers(0, 999), st.integers(0, 999), st.integers(3, 4), st.booleans())
@settings(max_examples=15)
def test_any_weights_prove_a_bound(seed, other, degree, is_sparse):
    target = polynomial(random_network(seed, (2, 3, 2, 1), nn.LeakyReLU).double(), 2)
    products = Products.of(target.sizes, Family(degree, is_sparse))
    rng = np.random.default_rng(other)
    numbers = rng.integers(products.matrix.shape[1], size=20)
    weights = rng.exponential(float(target.values.abs().mean()), size=20)
    assert products.bound(target, numbers, weights) >= target.vertex(20)
    assert plain_bound(target) >= target.vertex(20)


def test_what_is_no_weight_or_product_proves_nothing():
    target = polynomial(ABSOLUTE, 1)
    products = Products.of(target.sizes, Family(2, True))
    for number, weight in ((0, -1.0), (0, math.nan), (0, math.inf), (-1, 1.0), (10**6, 1.0)):
        assert products.bound(target, np.array([number]), np.array([weight])) == math.inf


@pytest.mark.parametrize("sizes", [(3, 4), (4, 5, 2), (2, 2, 2, 2), (7,)])
def test_terms_are_counted_without_products(sizes):
    for family in families(sizes):
        products = Products.of(sizes, family)
        assert products.matrix.nnz == family.terms(sizes)
        assert products.matrix.shape[1] * 2**family.degree == family.terms(sizes)


def test_families_begin_with_a_factor_of_each_group_and_end_where_all_is_known():
    assert list(families((2, 3))) == [Family(2, True), Family(2, False), Family(3, True)]
    assert list(families((2, 3), 1)) == [Family(2, True), Family(2, False)]
    assert list(families((2, 3), 9)) == [Family(3, True)]
    assert Family(2, True).terms((2, 3)) == 6 * 16
    assert Family(2, False).terms((2, 3)) == 7 * 16


def test_coefficients_are_known_up_to_their_radius():
    """Layers that were multiplied, in rational numbers, at all corners of the slopes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3)).double()
    model.append(nn.Linear(3, 2).double())

    def exact(matrix):
        rows = [[Fraction(entry) for entry in row] for row in matrix.tolist()]
        return np.array(rows, dtype=object)

    first, second, third, fourth = map(exact, matrices(model))
    known = derivative_polynomials(loop_transformation(as_neuron_blocks(as_network(model, (2,)))))
    values, radius = exact(known.values.flatten(1)), exact(known.radius.flatten(1))
    values, radius = (array.reshape(known.values.shape) for array in (values, radius))
    differ = 0
    for slope in product((0, 1), repeat=2):
        matrix = fourth.dot(third).dot(np.diag(slope)).dot(second.dot(first))
        signs = np.array([1, *(2 * bit - 1 for bit in slope)])
        error = abs((values * signs[None, :, None]).sum(axis=1) - matrix.T)
        assert (error <= radius.sum(axis=1)).all()
        differ += int((error > 0).sum())
    assert differ
    assert float(radius.max()) < 1e-14


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(6, 3)

    def forward(self, x):
        y = torch.relu(self.first(x))
        z = self.second(torch.cat([y, x], dim=1))
        return x - torch.relu(z) + y


def test_skips_and_maxima_are_paths_like_others():
    network = as_network(Branching().double(), (3,))
    lipbab = load("lipbench.bounds", "lipbab", Bound)()
    for norm in (Norm(2.0), INF):
        upper = value(Branching().double(), 3, norm)
        exact = lipbab.compute(network, norm, None)
        assert crossings([upper, exact]) == []
        assert upper.value < value(Branching().double(), 3, norm, name="fastlip").value
    model = nn.Sequential(nn.Linear(2, 4), MaxMin(), nn.Linear(4, 1), nn.Flatten()).double()
    first, second = matrices(model)
    exact = max(
        float((second @ torch.block_diag(*(swap[k] for k in chosen)) @ first).abs().sum())
        for swap in [(torch.eye(2).double(), torch.eye(2).double().flip(0))]
        for chosen in product((0, 1), repeat=2)
    )
    assert value(model, 2).value >= exact * (1 - 1e-9)


def test_a_neuron_is_one_level_above_those_that_it_reads():
    """Neurons of parallel branches are on one level, wherever they are in the network."""

    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList([nn.Linear(2, 3), nn.Linear(2, 1), nn.Linear(3, 1)])

        def forward(self, x):
            left, right = torch.relu(self.layers[0](x)), torch.tanh(self.layers[1](x))
            return right + torch.relu(self.layers[2](left))

    network = as_neuron_blocks(as_network(Parallel().double(), (2,)))
    assert sorted(map(len, network.blocks)) == [1, 1, 3]
    assert [len(level) for level in levels(loop_transformation_on(network, None))] == [4, 1]


@st.composite
def cases(draw):
    widths = draw(st.sampled_from([(2, 4, 2), (2, 3, 3, 1), (1, 2, 3, 2, 2)]))
    model = random_network(draw(st.integers(0, 999)), widths, draw(st.sampled_from(ACTIVATIONS)))
    lo = draw(st.floats(-2, 1))
    box = draw(st.sampled_from([None, (lo, lo + draw(st.floats(1e-3, 2)))]))
    return model.double(), widths[0], box


@given(cases(), st.sampled_from(NORMS), st.sampled_from([None, 1, 4]))
@settings(max_examples=8)
def test_the_bound_is_between_derivatives_of_some_slopes_and_intervals(case, norm, degree):
    model, features, box = case
    network = as_network(model, (features,))
    options = {"lipopt": {"degree": degree}, "fastlip": {}}
    bound, intervals = (
        load("lipbench.bounds", name, Bound)(**fields).compute(network, norm, box)
        for name, fields in options.items()
    )
    assert recheck(network, bound) == []
    assert bound.value <= intervals.value
    known = slopes(as_neuron_blocks(network), box)
    for _ in range(50):
        matrix, (last, *others) = torch.eye(features).double(), reversed(matrices(model))
        for weight, (lo, hi) in zip(reversed(others), known, strict=True):
            chosen = torch.where(torch.rand(len(lo)) < 0.5, lo, hi)
            matrix = chosen.unsqueeze(1) * (weight @ matrix)
        assert float(torch.linalg.matrix_norm(last @ matrix, float(norm))) <= bound.value


@pytest.mark.parametrize("seed", range(3))
def test_a_box_leaves_the_slopes_that_neurons_have_there(seed):
    """The maximum is that over the slopes of intervals, from the paper's own formula."""
    model = random_network(seed, (3, 5, 4, 1), nn.ReLU).double()
    box = (0.2, 0.9)
    known = slopes(as_neuron_blocks(as_network(model, (3,))), box)
    ends = [
        sorted({float(lo), float(hi)}) for block in known for lo, hi in zip(*block, strict=True)
    ]
    first, second, third = matrices(model)
    exact = max(
        float((third @ (s[5:, None] * second) @ (s[:5, None] * first)).abs().sum())
        for s in map(torch.tensor, product(*ends))
        for s in [s.double()]
    )
    assert exact < largest(model, INF) * 0.99
    assert value(model, 3, INF, box).value == pytest.approx(exact, rel=2 * TIGHT)


def test_a_value_that_its_weights_do_not_prove_is_caught():
    model = random_network(1, (2, 3, 3, 2), nn.ReLU).double()
    network = as_network(model, (2,))
    for norm in (INF, Norm(2.0)):
        upper = value(model, 2, norm)
        proof = upper.proof
        assert upper.value < value(model, 2, norm, name="fastlip").value
        assert len(proof["weights"])
        broken = [
            {"weights": proof["weights"] / 2},
            {"weights": -proof["weights"]},
            {"products": proof["products"] + 1},
            {"products": proof["products"] + 10**6},
            {"products": proof["products"][1:]},
            {"families": torch.zeros_like(proof["families"])},
            {"families": -proof["families"]},
            {"families": 9 * proof["families"]},
            {"families": proof["families"][1:]},
            {"lengths": proof["lengths"].flip(0) + 1},
            {"output_scales": -torch.ones(2, dtype=torch.float64)},
        ]
        if norm != 2:  # where there are no weights
            broken.append({"input_scales": torch.full((2,), 0.5, dtype=torch.float64)})
        for change in broken:
            assert recheck(network, replace(upper, proof={**proof, **change})) != []
        assert recheck(network, replace(upper, value=upper.value * (1 - 1e-6))) != []


def test_weights_that_favour_an_entry_prove_no_less_in_l2():
    """Any weights of rows and columns hold, and those of intervals are no worse than these."""
    model = random_network(0, (2, 3, 2), nn.ReLU).double()
    network, exact = as_network(model, (2,)), largest(model, Norm(2.0))
    upper = value(model, 2, Norm(2.0))
    for inputs, outputs in (((1.0, 1.0), (1.0, 1.0)), ((1.0, 7.0), (0.1, 1.0))):
        scales = {
            "input_scales": torch.tensor(inputs).double(),
            "output_scales": torch.tensor(outputs).double(),
        }
        lowered = replace(upper, value=exact * (1 - 1e-6), proof={**upper.proof, **scales})
        assert recheck(network, lowered) != []


def test_a_network_with_too_many_products_is_refused_by_their_number():
    network = as_network(random_network(0, (4, 30, 30, 2), nn.ReLU), (4,))
    bound = load("lipbench.bounds", "lipopt", Bound)
    reason = bound(most_terms=1000).refuses(network, INF, None)
    assert "64 inputs and neurons" in reason
    assert "460800 terms, more than the 1000 of most_terms" in reason
    assert bound().refuses(network, INF, None) is None
    assert bound(degree=4).refuses(network, INF, None) is not None
    with pytest.raises(Refused, match="most_terms"):
        bound(most_terms=1000).compute(network, INF, None)
    assert bound().within(network, INF, None, 1.0) is None
    short = bound().within(network, INF, None, 7.0)
    assert 460800 <= short.most_terms < 1_000_000
    assert short.cost(network, INF, None) <= 7.0
    assert bound().within(network, INF, None, math.inf) == bound()


def test_numbers_that_float64_does_not_hold_prove_nothing():
    model = random_network(0, (2, 3, 3, 2), nn.Tanh).double()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.copy_(1e200 * layer.weight.sign())
    network = as_network(model.append(nn.Tanh()), (2,))
    for norm, name in product(NORMS, ("lipopt", "fastlip")):
        with pytest.raises(Refused, match="too large for float64"):
            load("lipbench.bounds", name, Bound)().compute(network, norm, None)
    large = torch.full((3,), 1e308, dtype=torch.float64)
    assert plain_bound(Polynomial(values=large, radius=0 * large)) == math.inf


@pytest.mark.parametrize("field", ["degree", "most_terms"])
def test_fields_that_are_no_counts_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1.*got 0"):
        load("lipbench.bounds", "lipopt", Bound)(**{field: 0})
