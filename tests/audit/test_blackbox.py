"""Networks that are asked: what is taken off a quotient, and what is refused."""

import math

import pytest
import torch
from support.nets import random_network
from torch import nn

from lipbench.audit.audit import audit
from lipbench.audit.blackbox import MARGIN, Unmeasurable, measure
from lipbench.bound import Bound
from lipbench.lipschitz.bracket import bracket
from lipbench.lipschitz.lower_bounds.pair_steps import move, quotients, turn
from lipbench.lipschitz.lower_bounds.pairs import Pairs
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.registry import load

NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]
L2 = Norm(2.0)


class Of(nn.Module):
    """A function that no rule covers."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def in_float32(x):
    return (3 * x.float()).to(x.dtype)


def far_away(x):
    # Numbers near a million have steps of 1/16 in float32.
    return (x.float() + 1e6 - 1e6).to(x.dtype)


def rounded(x):
    return torch.round(1000 * x) / 1000


def written(x):
    return x.mul_(2)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("domain", [None, (0.0, 0.7)])
@pytest.mark.parametrize(
    ("function", "constant"),
    [(in_float32, 3), (far_away, 1), (rounded, 1), (written, 2), (torch.cos, 1)],
)
def test_rounding_inside_does_not_raise_a_quotient(function, constant, norm, domain):
    """Steps of a size that nobody knows are no slope: all of these are as steep as without."""
    measured = measure(Of(function), (2,), norm, domain)
    least = 0.6 if function in (torch.cos, far_away) else 0.99
    assert least * constant < measured.quotient <= constant
    run = float(norm.length((measured.u - measured.v).unsqueeze(0)))
    assert run > 1e-3
    for end in (measured.u, measured.v):
        assert torch.equal(end, end.float().double())
        if domain is not None:
            assert domain[0] <= float(end.min()) <= float(end.max()) <= domain[1]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * (1 + 1e-4 * (len(x) == 1)),
        lambda x: x * (1 + 1e-4 * (x.dtype == torch.double)),
    ],
    ids=["alone", "in float64"],
)
def test_what_an_answer_changes_by_is_taken_off(function):
    """It is 1-Lipschitz, or 1.0001 as it is asked: who knows."""
    assert 0.99 < measure(Of(function), (2,), L2, None).quotient <= 1


def test_a_jump_is_no_slope():
    """sign(x) / 2 has a quotient of 1/d across 0."""
    assert measure(Of(lambda x: x.sign() / 2), (1,), L2, (-1.0, 1.0)).quotient < 1e-3
    both = measure(Of(lambda x: x.sign() / 2 + 3 * x), (1,), L2, (-1.0, 1.0)).quotient
    assert both == pytest.approx(3, rel=1e-2)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x + torch.rand_like(x), "answers the same inputs differently"),
        (lambda x: x - x.mean(dim=0), "depends on others in the batch"),
        (torch.fft.fft, "gives torch.complex128"),
        (lambda x: x / 0, "not finite"),
        (lambda x: x @ torch.ones(2, 2), "cannot be evaluated in float64"),
    ],
)
def test_what_is_no_function_in_float64_is_refused(function, message):
    with pytest.raises(Unmeasurable, match=message):
        measure(Of(function), (2,), L2, None)
    with pytest.raises(Refused, match=message):
        audit(Of(function), (2,))


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_measured_is_hardly_less_than_what_is_proved(norm):
    """Of a network that could be read; and it is less than its constant."""
    model = random_network(0, (6, 9, 4), nn.SiLU)
    network = as_network(model, (6,))
    inputs = torch.rand(50, 6, generator=torch.Generator().manual_seed(0))
    proved = load("lipbench.bounds", "pair_ascent", Bound)().compute(
        network, norm, None, (), inputs
    )
    product = load("lipbench.bounds", "product", Bound)().compute(network, norm, None)
    measured = measure(model, (6,), norm, None, inputs)
    assert 0.97 * proved.value < measured.quotient < product.value


def test_a_network_without_gradients_is_sampled():
    model = Of(lambda x: (2 * x).detach())
    assert measure(model, (3,), L2, None).quotient == pytest.approx(2, rel=1e-3)


def test_an_audit_asks_only_what_it_cannot_read():
    model = nn.Sequential(nn.Linear(2, 2), nn.Softmin(1))
    with pytest.raises(Refused):
        bracket(model, (2,))
    audited = audit(model, (2,), claims=1e-3)
    assert audited.measured is not None
    assert audited.verdict == "refuted"
    assert audited.witness.found_by == "measured"
    assert audited.bracket.lower == audited.measured.quotient
    assert audited.bracket.upper == math.inf
    close = audited.bracket.lower / (1 + MARGIN / 2)
    assert audit(model, (2,), claims=close).verdict == "open"
    assert audit(nn.Linear(2, 2), (2,), claims=1e-3).measured is None


# The moves.


def pairs_of(count, size, box=None):
    rng = torch.Generator().manual_seed(0)
    u, v = torch.rand(2, count, size, generator=rng, dtype=torch.float64)
    return Pairs.of(u, v, torch.full((count,), 0.01, dtype=torch.float64), box)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
def test_moves_lower_no_quotient_and_stay_in_the_box(norm, box):
    model = random_network(0, (3, 8, 2), nn.ReLU).double().requires_grad_(False)
    pairs = pairs_of(6, 3, box)
    for _ in range(5):
        before = quotients(model, pairs.u, pairs.v, norm)
        for moved in (turn(model, pairs, norm, 0.5), move(model, pairs, norm)):
            assert bool((quotients(model, moved.u, moved.v, norm) >= before).all())
            if box is not None:
                assert bool(((moved.u >= 0) & (moved.u <= 1)).all())
        pairs = move(model, turn(model, pairs, norm, 1.0), norm)


def test_turns_of_a_linear_map_find_its_norm():
    matrix = torch.tensor([[3.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    pairs = pairs_of(4, 2)
    for _ in range(60):
        pairs = turn(lambda x: x @ matrix.T, pairs, L2, 0.5, nearest=0.1)
    ratios = quotients(lambda x: x @ matrix.T, pairs.u, pairs.v, L2)
    expected = float(torch.linalg.matrix_norm(matrix, 2))
    assert ratios.tolist() == pytest.approx([expected] * 4, rel=1e-6)
    assert float(L2.length(pairs.difference).min()) >= 0.1 * (1 - 1e-12)
