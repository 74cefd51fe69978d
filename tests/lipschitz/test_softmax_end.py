"""Softmax and its logarithm: constants, rounding, and the networks that end in them."""

import math
from dataclasses import replace
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.written import read
from torch import nn
from torch.nn import functional as F

import lipbench
from lipbench.audit.audit import audit
from lipbench.bound import Bound
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.rounding import Enclosed, _radius, enclose
from lipbench.lipschitz.softmax_end import ending
from lipbench.networks.network import as_network
from lipbench.networks.steps import Softmax
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.registry import load

L1, L2, LINF = NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]
LAYERS = [nn.Softmax(1), nn.LogSoftmax(1)]


def the_step(layer, *shape):
    (step,) = as_network(layer, shape).steps
    return step


def jacobian(layer, x):
    return torch.func.jacrev(lambda sample: layer(sample.unsqueeze(0))[0])(x)


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
        matrix = jacobian(layer, x)
        step = the_step(layer, count)
        for norm in NORMS:
            assert operator_norm(matrix, norm) <= constant(step, norm) * (1 + 1e-12)


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("norm", NORMS)
def test_a_smaller_constant_would_be_wrong(count, norm):
    """Two equal entries far above the others are where p is steepest, and one where log p is."""
    level, peak = torch.full((2, count), -60.0, dtype=torch.float64)
    level[:2], peak[0] = 0, 0
    for layer, x in zip(LAYERS, (level, peak), strict=True):
        # For log p, rows that are not the peak's; columns and l2 norms are those of the peak.
        attained = operator_norm(jacobian(layer, x), norm)
        assert attained == pytest.approx(constant(the_step(layer, count), norm), rel=1e-9)


@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("kind", [nn.Softmax, nn.LogSoftmax])
def test_along_an_axis_of_an_image_places_are_side_by_side(kind, axis):
    layer, shape = kind(axis), (2, 3, 4)
    step, x = the_step(layer, *shape), torch.randn(5, *shape, dtype=torch.float64)
    assert torch.equal(step(x), layer(x))
    line = the_step(kind(1), shape[axis % 4 - 1])
    matrix = jacobian(layer, 40 * x[0]).reshape(24, 24)
    for norm in NORMS:
        assert constant(step, norm) == constant(line, norm)
        assert operator_norm(matrix, norm) <= constant(step, norm) * (1 + 1e-12)  # rounding


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


def before_it(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tail", LAYERS)
@pytest.mark.parametrize("domain", [None, pytest.param((0.0, 1.0), marks=pytest.mark.slow)])
def test_a_network_that_ends_in_it_has_the_bounds_of_what_is_before(tail, norm, domain):
    """Each times the constant of the ending; exact ones are upper bounds then."""
    model = before_it()
    first = lipbench.bracket(model, (4,), norm, domain)
    whole = lipbench.bracket(nn.Sequential(model, tail), (4,), norm, domain)
    factor = constant(the_step(tail, 3), norm)
    assert 0 < whole.lower <= whole.upper <= first.upper * factor * (1 + 1e-9)
    known = {bound.name: bound.value for bound in first.bounds if bound.side in ("upper", "exact")}
    values = {bound.name: bound.value for bound in whole.bounds if bound.side == "upper"}
    assert "lipbab" in known
    assert known.keys() == values.keys()
    assert all(value == pytest.approx(known[name] * factor) for name, value in values.items())
    assert not any(bound.side == "exact" for bound in whole.bounds)


class Beside(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.layer(x).softmax(1)) + x[:, :2]


@pytest.mark.parametrize(
    ("model", "steps"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Softmax(1)), 1),
        (nn.Sequential(nn.Linear(3, 4), nn.Softmax(1), nn.Linear(4, 2), nn.Tanh()), 3),
        (nn.Sequential(nn.Softmax(1), nn.Linear(3, 2)), 2),
        (nn.Sequential(nn.Linear(3, 4), nn.Softmax(1), nn.Softmax(1)), 2),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU()), None),
        (Beside(), None),
    ],
)
def test_an_ending_is_read_by_nothing_but_a_chain(model, steps):
    network = as_network(model.eval(), (3,))
    end = ending(network)
    assert (None if end is None else len(end.steps)) == steps
    if end is not None:
        x = torch.randn(5, 3, dtype=torch.float64)
        value = end.before(x)
        for step in end.steps:
            value = step(value)
        assert torch.equal(value, network(x))


def test_a_proof_of_what_is_before_is_checked_again():
    network = as_network(nn.Sequential(before_it(), nn.Softmax(1)), (4,))
    end = ending(network)
    inner = load("lipbench.bounds", "lipsdp_neuron", Bound)().compute(end.before, L2, None)
    value = end.behind(inner)
    assert value.value == pytest.approx(inner.value / 2)
    assert recheck(network, value) == []
    assert (
        "what is before proves"
        in recheck(network, replace(value, value=0.9 * value.value))[0].message
    )
    # A smaller value for what is before does not hold there.
    smaller = {**value.proof, "before:value": value.proof["before:value"] * 0.9}
    lie = replace(value, value=0.9 * value.value, proof=smaller)
    assert "multipliers prove" in recheck(network, lie)[0].message
    nothing = {"before:value": value.proof["before:value"]}
    assert "has no proof" in recheck(network, replace(value, proof=nothing))[0].message
    assert "no such ending" in recheck(end.before, value)[0].message
    assert "no such ending" in recheck(network, replace(value, side="exact"))[0].message
    steeper = before_it()
    with torch.no_grad():
        steeper[2].weight.mul_(3)
    changed = as_network(nn.Sequential(steeper, nn.Softmax(1)), (4,))
    assert "multipliers prove" in recheck(changed, value)[0].message


@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_what_is_before_is_no_number(value):
    network = as_network(nn.Sequential(before_it(), nn.Softmax(1)), (4,))
    end = ending(network)
    inner = load("lipbench.bounds", "product", Bound)().compute(end.before, L2, None)
    lie = end.behind(replace(inner, value=value))
    assert recheck(network, lie)


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
    radii = torch.tensor([[radius, radius, 0.0, radius]], dtype=torch.float64)
    spread = _radius(step, Enclosed(values=x, radius=radii))
    for signs in torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4):
        assert bool(((step(x + signs * radii) - step(x)).abs() <= spread * (1 + 1e-12)).all())


def _check(enclosure, inputs, layer):
    with localcontext(prec=60):
        powers = [Decimal(logit).exp() for logit in inputs]
        exact = [power / sum(powers) for power in powers]
        if isinstance(layer, nn.LogSoftmax):
            exact = [share.ln() for share in exact]
        ends = zip(enclosure.values[0].tolist(), enclosure.radius[0].tolist(), exact, strict=True)
        for value, radius, truth in ends:
            # Results below the smallest normal number are beside the point.
            assert abs(Decimal(value) - truth) <= Decimal(radius) + Decimal("2.3e-308")
