"""Softmax and its logarithm: constants, rounding, and the networks that end in them."""

import math
from dataclasses import replace
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from written import read

import lipbench
from lipbench.auditing import audit
from lipbench.bound import Bound, Refused
from lipbench.constants import constant
from lipbench.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load
from lipbench.rounding import Enclosed, _radius, enclose
from lipbench.soundness import recheck
from lipbench.steps import Softmax

L1, L2, LINF = NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]
LAYERS = [nn.Softmax(1), nn.LogSoftmax(1)]


def the_step(layer, *shape):
    (step,) = as_network(layer, shape).steps
    return step


def jacobian(layer, x):
    return torch.func.jacrev(lambda one: layer(one.unsqueeze(0))[0])(x)


def operator_norm(matrix, norm):
    return float(torch.linalg.matrix_norm(matrix, ord=float(norm)))


@pytest.mark.parametrize(
    ("count", "is_log", "expected"),
    [
        (1, False, (0, 0, 0)),
        (2, False, (0.5, 0.5, 0.5)),
        (10, False, (0.5, 0.5, 0.5)),
        (1, True, (0, 0, 0)),
        (2, True, (1, math.sqrt(2), 2)),
        (10, True, (9, math.sqrt(10), 2)),
    ],
)
def test_constants_are_those_computed_by_hand(count, is_log, expected):
    step = the_step(LAYERS[is_log], count)
    assert isinstance(step, Softmax)
    assert [constant(step, norm) for norm in NORMS] == pytest.approx(expected, rel=1e-11)


@given(st.integers(0, 10_000), st.integers(2, 7), st.sampled_from([0.1, 3.0, 50.0]))
def test_no_jacobian_has_a_larger_norm(seed, count, scale):
    rng = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(count, generator=rng, dtype=torch.float64)
    for layer in LAYERS:
        found = jacobian(layer, x)
        step = the_step(layer, count)
        for norm in NORMS:
            assert operator_norm(found, norm) <= constant(step, norm) * (1 + 1e-12)


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("norm", NORMS)
def test_a_smaller_constant_would_be_wrong(count, norm):
    """Two equal entries far above the others are where p is steepest, and one where log p is."""
    level, peak = torch.full((2, count), -60.0, dtype=torch.float64)
    level[:2], peak[0] = 0, 0
    for layer, x in zip(LAYERS, (level, peak), strict=True):
        # For log p, rows that are not the peak's; columns and l2 norms are those of the peak.
        found = operator_norm(jacobian(layer, x), norm)
        assert found == pytest.approx(constant(the_step(layer, count), norm), rel=1e-9)


@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("kind", [nn.Softmax, nn.LogSoftmax])
def test_along_an_axis_of_an_image_places_are_side_by_side(kind, axis):
    layer, shape = kind(axis), (2, 3, 4)
    step, x = the_step(layer, *shape), torch.randn(5, *shape, dtype=torch.float64)
    assert torch.equal(step(x), layer(x))
    line = the_step(kind(1), shape[axis % 4 - 1])
    found = jacobian(layer, 40 * x[0]).reshape(24, 24)
    for norm in NORMS:
        assert constant(step, norm) == constant(line, norm)
        assert operator_norm(found, norm) <= constant(step, norm)


@pytest.mark.parametrize(
    ("forward", "axis", "is_log"),
    [
        (lambda x: F.softmax(x, 1), 1, False),
        (lambda x: F.softmax(x, dim=-1), 1, False),
        (lambda x: torch.softmax(x, 1), 1, False),
        (lambda x: x.softmax(1), 1, False),
        (lambda x: x.softmax(dim=-1), 1, False),
        (lambda x: F.log_softmax(x, dim=1), 1, True),
        (lambda x: torch.log_softmax(x, 1), 1, True),
        (lambda x: x.log_softmax(x.ndim - 1), 1, True),
    ],
)
def test_functions_and_methods_are_read(forward, axis, is_log):
    network = read(lambda self, x: forward(x), 4)
    (step,) = network.steps
    assert (step.axis, step.is_log) == (axis, is_log)
    x = torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(network(x), forward(x))


def test_a_temperature_is_a_scale():
    model = nn.Linear(3, 3)
    network = read(lambda self, x: (self.layer(x) / 4).softmax(1), 3, layer=model)
    value = load("lipbench.bounds", "product", Bound)().compute(network, L2, None)
    plain = load("lipbench.bounds", "product", Bound)().compute(as_network(model, (3,)), L2, None)
    assert value.value == pytest.approx(plain.value / 8, rel=1e-9)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nn.Softmax(0), (3,), r"layer '1' \(Softmax\): it mixes samples"),
        (nn.LogSoftmax(-2), (3,), r"layer '1' \(LogSoftmax\): it mixes samples"),
        (nn.Softmax2d(), (3, 4, 4), r"layer '1' \(Softmax2d\): no rule"),
        (nn.Softmin(1), (3,), r"layer '1' \(Softmin\): no rule"),
    ],
)
def test_others_are_refused_by_name(layer, shape, message):
    first = nn.Conv2d(3, 3, 1) if len(shape) == 3 else nn.Linear(3, 3)
    with pytest.raises(Refused, match=message):
        lipbench.bracket(nn.Sequential(first, layer), shape)


@pytest.mark.filterwarnings("ignore:Implicit dimension")
def test_an_axis_that_torch_guesses_is_refused():
    with pytest.raises(Refused, match=r"layer '1' \(Softmax\).*give it as dim"):
        as_network(nn.Sequential(nn.Linear(3, 3), nn.Softmax()), (3,))
    with pytest.raises(Refused, match=r"'softmax'.*give it as dim"):
        read(lambda self, x: F.softmax(x), 3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tail", LAYERS)
def test_a_network_that_ends_in_it_has_both_bounds(tail, norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), tail).eval()
    found = lipbench.bracket(model, (4,), norm, time_limit=5)
    assert 0 < found.lower <= found.upper < math.inf
    assert "not read neuron by neuron" in found.refused["liplt"]
    network = as_network(model, (4,))
    product = load("lipbench.bounds", "product", Bound)().compute(network, norm, None)
    assert recheck(network, product) == []
    assert recheck(network, replace(product, value=0.9 * product.value))
    names = {bound.name for bound in found.bounds if bound.side == "upper"}
    assert "product" in names
    assert names <= {
        "product",
        "sedghi",
        "gram",
        "gram_lattice",
        "lipbound",
        "tight_layers",
    }


def test_an_audit_proves_a_claim():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
    limit = float(torch.linalg.matrix_norm(model[0].weight.detach(), ord=2)) / 2
    assert audit(model, (4,), claims=1.001 * limit).verdict == "proved"
    refuted = audit(model, (4,), claims=0.01 * limit)
    assert (refuted.verdict, refuted.measured) == ("refuted", None)


@given(
    st.integers(0, 10_000), st.sampled_from([1e-3, 1.0, 30.0, 600.0]), st.sampled_from([2, 5, 33])
)
def test_rounding_is_enclosed(seed, scale, count):
    rng = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(1, count, generator=rng, dtype=torch.float64)
    weight = torch.randn(count, count, generator=rng, dtype=torch.float64)
    for layer in LAYERS:
        alone = enclose(as_network(layer, (count,)), x)
        _check(alone, x[0].tolist(), layer)
        dense = nn.Linear(count, count, bias=False).double()
        dense.weight.data = weight
        behind = enclose(as_network(nn.Sequential(dense, layer), (count,)), x)
        with localcontext(prec=60):
            rows = [
                sum(Decimal(w) * Decimal(v) for w, v in zip(row, x[0].tolist(), strict=True))
                for row in weight.tolist()
            ]
        _check(behind, rows, layer)
        assert float(behind.radius.max()) <= 1e-12 * (1 + scale) * count**2


@pytest.mark.parametrize("radius", [1e-9, 0.3, 20.0])
@pytest.mark.parametrize("layer", LAYERS)
def test_errors_of_inputs_are_passed_on(layer, radius):
    step, x = the_step(layer, 4), torch.tensor([[0.0, 0.0, -60.0, -60.0]], dtype=torch.float64)
    own = torch.tensor([[radius, radius, 0.0, radius]], dtype=torch.float64)
    spread = _radius(step, Enclosed(values=x, radius=own))
    for signs in torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4):
        assert bool(((step(x + signs * own) - step(x)).abs() <= spread * (1 + 1e-12)).all())


def _check(found, inputs, layer):
    with localcontext(prec=60):
        powers = [Decimal(one).exp() for one in inputs]
        exact = [one / sum(powers) for one in powers]
        if isinstance(layer, nn.LogSoftmax):
            exact = [one.ln() for one in exact]
        ends = zip(found.values[0].tolist(), found.radius[0].tolist(), exact, strict=True)
        for value, radius, truth in ends:
            # Results below the smallest normal number are beside the point.
            assert abs(Decimal(value) - truth) <= Decimal(radius) + Decimal("2.3e-308")
