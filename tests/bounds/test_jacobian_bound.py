"""Bounds of Jacobians against exact constants, brute force and hand-computed nets."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.architectures import CASES
from support.bounds import bound, rechecked
from support.nets import ABSOLUTE, HAT, IDENTITY, LINEAR, MAXIMUM, dense, random_network
from support.slopes import crown_slopes
from torch import nn

from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused

L1, L2, LINF = map(Norm, (1.0, 2.0, math.inf))
NORMS = [L1, L2, LINF]
SAME = 1 + 1e-9


def computed(model, shape, norm=LINF, domain=None, name="jacobian_bound", **options):
    return rechecked(name, model, shape, norm, domain, **options)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("model", "features", "domain", "constant"),
    [
        (ABSOLUTE, 1, (1.0, 2.0), 1),
        (ABSOLUTE, 1, (-1.0, 2.0), 1),  # slopes 1 and -1 of two neurons, never together
        (IDENTITY, 1, None, 2),  # but on all of space they are, for what is known
        (HAT, 1, (5.0, 6.0), 0),
        (MAXIMUM, 2, (1.0, 2.0), 1),
        (dense(([[3]], [0]), ([[2]], [1])), 1, (-1.0, 1.0), 6),
    ],
)
def test_a_hand_computed_network(model, features, domain, constant, norm):
    value = computed(model, (features,), norm, domain, nodes=4).value
    assert value == pytest.approx(constant, abs=1e-9)


def test_a_row_is_bounded_jointly_by_hand():
    """The maximum has derivatives s and 1 - s: their sum is 1, and 2 if each is at its worst."""
    assert computed(MAXIMUM, (2,), LINF, (1.0, 2.0), nodes=0).value == pytest.approx(1)
    assert computed(MAXIMUM, (2,), LINF, (1.0, 2.0), "fastlip").value == pytest.approx(2)


def test_a_linear_network_is_its_norm():
    for norm, constant in zip(NORMS, (7, 5, 4), strict=True):
        assert computed(LINEAR, (2,), norm).value == pytest.approx(constant, rel=1e-9)


def steepest(model, shape, norm, box):
    """Return the largest norm of the derivatives at some points."""
    lo, hi = box or (-3.0, 3.0)
    points = lo + (hi - lo) * torch.rand(50, *shape, dtype=torch.float64)
    outputs = model(points.requires_grad_()).flatten(1).sum(dim=0)
    rows = [
        torch.autograd.grad(output, points, retain_graph=True)[0].flatten(1) for output in outputs
    ]
    return float(torch.linalg.matrix_norm(torch.stack(rows, dim=1), float(norm)).max())


BOXES = st.one_of(
    st.none(),
    st.tuples(st.floats(-2, 1), st.floats(1e-2, 2)).map(lambda pair: (pair[0], sum(pair))),
)


@settings(max_examples=4)
@given(
    st.integers(0, 999),
    st.sampled_from([(2, 3, 2), (2, 2, 2, 1), (1, 3, 2, 1)]),
    st.sampled_from([nn.ReLU, nn.LeakyReLU, lambda: nn.LeakyReLU(-0.5)]),
    BOXES,
    st.sampled_from(NORMS),
)
def test_it_lies_between_the_exact_constant_and_intervals(seed, widths, activation, box, norm):
    model, shape = random_network(seed, widths, activation), widths[:1]
    exact = computed(model, shape, norm, box, "lipbab")
    few, more = (computed(model, shape, norm, box, nodes=nodes).value for nodes in (0, 10))
    assert exact.side == "exact"
    assert exact.least <= more * SAME
    assert more <= few <= computed(model, shape, norm, box, "fastlip").value * SAME


@settings(max_examples=4)
@given(
    st.integers(0, 999),
    st.sampled_from([(2, 6, 3), (3, 5, 4, 2)]),
    st.sampled_from([nn.Tanh, nn.GELU, nn.Hardtanh, nn.SELU, nn.PReLU, nn.Softplus]),
    BOXES,
    st.sampled_from(NORMS),
)
def test_smooth_networks_are_bounded_too(seed, widths, activation, box, norm):
    model, shape = random_network(seed, widths, activation).double(), widths[:1]
    value = computed(model, shape, norm, box, nodes=6).value
    assert steepest(model, shape, norm, box) <= value * SAME
    assert value <= computed(model, shape, norm, box, "fastlip").value * SAME


@pytest.mark.parametrize(
    ("case", "norm", "box"),
    [
        ("branching", LINF, (0.2, 0.4)),
        ("groups", L2, (0.2, 0.4)),
        ("groups", L1, (-1.0, 1.0)),
        ("convolutional", L2, (0.2, 0.4)),
        ("residual", LINF, None),
        ("residual", L1, (0.2, 0.4)),
        ("sandwich", L2, (0.2, 0.4)),
        ("linear", L1, (0.2, 0.4)),
        ("linear", LINF, None),
    ],
)
def test_any_architecture_is_followed(case, norm, box):
    model, shape = CASES[case]()
    value = computed(model, shape, norm, box, nodes=4).value
    assert steepest(model, shape, norm, box) <= value * SAME
    assert value <= computed(model, shape, norm, box, "fastlip").value * SAME


def formal(network, slopes, norm):
    # The largest norm over all slopes at their ends.
    best = 0.0
    lo, hi = (torch.cat(ends) for ends in zip(*slopes, strict=True))
    open_ = (lo < hi).nonzero().flatten()
    for bits in product([False, True], repeat=len(open_)):
        chosen = lo.clone()
        chosen[open_] = torch.where(torch.tensor(bits, dtype=torch.bool), hi[open_], lo[open_])
        known = [torch.eye(network.inputs, dtype=torch.float64)]
        by_block = chosen.split([len(block) for block in network.blocks])
        for block, local in zip(network.blocks, by_block, strict=True):
            reads = sum(m.values @ known[s] for s, m in block.reads.matrices.items())
            known.append(local.unsqueeze(1) * reads)
        whole = sum(m.values @ known[s] for s, m in network.output.matrices.items())
        best = max(best, float(torch.linalg.matrix_norm(whole, float(norm))))
    return best


@pytest.mark.parametrize(
    ("norm", "activation"),
    [(L1, nn.ReLU), (LINF, nn.ReLU), (L1, lambda: nn.LeakyReLU(-2.0)), (LINF, nn.LeakyReLU)],
)
def test_all_of_space_is_brute_force_once_all_slopes_are_decided(norm, activation):
    model = random_network(0, (3, 4, 3, 2), activation)
    network = as_neuron_blocks(as_network(model, (3,)))
    expected = formal(network, crown_slopes(network, None), norm)
    few, all_ = (computed(model, (3,), norm, nodes=nodes).value for nodes in (0, 2000))
    assert all_ == pytest.approx(expected, rel=1e-9)
    assert few >= expected * (1 - 1e-12)


@settings(max_examples=6)
@given(
    st.integers(0, 999),
    st.sampled_from([(2, 5, 3), (2, 3, 2, 2), (3, 2, 2, 2, 1)]),
    st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU, lambda: nn.LeakyReLU(-2.0)]),
    BOXES,
    st.sampled_from(NORMS),
)
def test_no_slopes_in_their_ranges_make_a_larger_norm(seed, widths, activation, box, norm):
    model = random_network(seed, widths, activation)
    network = as_neuron_blocks(as_network(model, widths[:1]))
    value = computed(model, widths[:1], norm, box, nodes=0).value
    assert formal(network, crown_slopes(network, box), norm) <= value * SAME


@pytest.fixture(name="searched")
def _searched():
    model = random_network(2, (3, 8, 6, 2), nn.ReLU)
    return as_network(model, (3,)), computed(model, (3,), LINF, (-1.0, 1.0), nodes=20)


def test_a_search_is_worth_its_time(searched):
    network, value = searched
    few = bound("jacobian_bound", nodes=0).compute(network, LINF, (-1.0, 1.0))
    assert value.value < 0.95 * few.value
    assert len(value.proof["cases"]) > len(few.proof["cases"]) == 2


def test_more_cases_never_make_a_value_larger():
    """Here the bounds that are left after ten cases are smaller than those after twenty."""
    model, box = random_network(43, (2, 4, 4, 4, 2), nn.LeakyReLU), (-1.0, 1.0)
    whole, ten, twenty = (computed(model, (2,), L1, box, nodes=n).value for n in (0, 10, 20))
    assert twenty == ten < 0.7 * whole


@pytest.mark.parametrize("norm", NORMS)
def test_a_lowered_value_is_caught(norm):
    network = as_network(random_network(2, (3, 8, 6, 2), nn.ReLU), (3,))
    value = bound("jacobian_bound", nodes=10).compute(network, norm, (-1.0, 1.0))
    assert recheck(network, value) == []
    (violation,) = recheck(network, replace(value, value=value.value * 0.999999))
    assert "cases of its derivatives prove" in violation.message
    (violation,) = recheck(network, replace(value, domain=(-2.0, 2.0)))
    assert "cases of its derivatives prove" in violation.message


def tampered(cases):
    deep = int((cases >= 0).sum(dim=1).argmax())
    last = int((cases[deep] >= 0).sum()) - 1
    turned, swapped, far = cases.clone(), cases.clone(), cases.clone()
    turned[deep, last] = turned[deep, last] // 2 * 2  # both halves become one
    turned[:, last] = torch.where(turned[:, last] >= 0, turned[:, last] // 2 * 2, -1)
    swapped[deep, last] = (swapped[deep, last] + 2) % 28
    far[deep, last] = 1000
    return [
        cases[1:],
        torch.cat([cases[:deep], cases[deep + 1 :]]),
        cases[cases[:, 0] == 0],
        torch.cat([cases, cases[:1]]),
        turned,
        swapped,
        far,
        cases[:, :2],
        torch.zeros(1, 1, dtype=torch.int64),
    ]


def test_cases_that_do_not_make_up_all_prove_nothing(searched):
    network, value = searched
    for cases in tampered(value.proof["cases"]):
        wrong = replace(value, proof={"cases": cases}, value=10 * value.value)
        assert "prove inf" in recheck(network, wrong)[0].message
    assert recheck(network, replace(value, value=10 * value.value)) == []


def test_smooth_neurons_are_not_decided():
    model = random_network(0, (2, 3, 2), nn.Tanh)
    value = computed(model, (2,), LINF, (0.0, 1.0))
    wrong = torch.tensor([[0, 0], [0, 1], [1, -1]])
    network = as_network(model, (2,))
    assert value.proof["cases"].tolist() == [[0], [1]]
    assert recheck(network, replace(value, proof={"cases": wrong}))


def test_large_networks_are_refused_by_their_work():
    model = random_network(0, (50, 60, 60, 10), nn.ReLU)
    network = as_network(model, (50,))
    small = bound("jacobian_bound", most_products=1e6)
    assert small.refuses(network, LINF, None).endswith("more than the 1e+06 of most_products.")
    assert bound("jacobian_bound").refuses(network, LINF, None) is None
    huge = as_network(
        nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(43264, 10)),
        (1, 28, 28),
    )
    assert bound("jacobian_bound").refuses(huge, L1, (0.0, 1.0))


def test_less_time_means_fewer_cases():
    network = as_network(random_network(0, (50, 60, 60, 10), nn.ReLU), (50,))
    whole = bound("jacobian_bound")
    cost = whole.cost(network, LINF, (0.0, 1.0))
    first = bound("jacobian_bound", nodes=0).cost(network, LINF, (0.0, 1.0))
    assert whole.within(network, LINF, (0.0, 1.0), cost * SAME) == whole
    assert whole.within(network, LINF, (0.0, 1.0), (first + cost) / 2).nodes == 50
    assert whole.within(network, LINF, (0.0, 1.0), 0.9 * first) is None
    assert whole.cost(network, L2, None) == bound("jacobian_bound", nodes=0).cost(network, L2, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": -1}, "nodes must be at least 0, got -1"),
        ({"most_products": 0.0}, "most_products must be positive, got 0"),
    ],
)
def test_fields_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bound("jacobian_bound", **options)


def test_what_overflows_is_refused():
    """Also if another row is small."""
    for last in ([[1e200, -1e200]], [[1, 0], [1e200, -1e200]], [[1e200, -1e200], [1, 0]]):
        layers = ([[1e200], [1e200]], [-1e250, -1e250]), (last, [0] * len(last))
        network = as_network(dense(*layers), (1,))
        for norm, box in product(NORMS, [None, (0.0, 1e60)]):
            with pytest.raises(Refused, match="too large for float64"):
                bound("jacobian_bound").compute(network, norm, box)
