"""What an exact search proves from below, by a pair of inputs around its steepest point."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import runs
from support.nets import (
    ABSOLUTE,
    HAT,
    IDENTITY,
    MAXIMUM,
    SHIFTED,
    STEP,
    ZERO,
    dense,
    random_network,
)
from torch import nn

from lipbench.audit.audit import audit
from lipbench.bound import Bound, Lipschitz
from lipbench.lipschitz.exact.incumbent import incumbent
from lipbench.lipschitz.proof_check import recheck
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load

NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]
L2 = Norm(2.0)
CLOSE = 1e-9


def searched(network, norm=L2, domain=None, known=(), **options):
    return load("lipbench.bounds", "lipbab", Bound)(**options).compute(network, norm, domain, known)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("model", "features"),
    [(ABSOLUTE, 1), (IDENTITY, 1), (STEP, 1), (HAT, 1), (MAXIMUM, 2), (SHIFTED, 1)],
)
def test_a_pair_proves_a_hand_computed_constant(model, features, norm):
    network = as_network(model, (features,))
    value = searched(network, norm)
    lower = incumbent(network, value)
    assert lower.value == pytest.approx(value.value, rel=CLOSE)
    assert lower.value <= value.value
    assert recheck(network, lower) == []


@settings(max_examples=5)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(2, 3, 2), (2, 2, 2, 2), (1, 5, 1)]),
    st.sampled_from([nn.ReLU, lambda: nn.LeakyReLU(0.3)]),
    st.sampled_from(NORMS),
    st.sampled_from([None, (-1.0, 1.0)]),
)
def test_a_pair_proves_what_a_search_found(seed, widths, activation, norm, domain):
    network = as_network(random_network(seed, widths, activation), (widths[0],))
    value = searched(network, norm, domain)
    lower = incumbent(network, value)
    assert (value.side, lower.side, lower.domain) == ("exact", "lower", domain)
    assert value.value * (1 - CLOSE) <= lower.value <= value.value * (1 + 1e-12)
    assert recheck(network, lower) == []


@pytest.mark.parametrize("shift", [1e-4, 1e-8, 1e-12])
def test_of_a_thin_region_a_pair_proves_less_than_all(shift):
    """relu(x + shift) - relu(-x): how much of a quotient is rounding depends on the distance."""
    network = as_network(dense(([[1], [-1]], [shift, 0]), ([[1, -1]], [0])), (1,))
    lower = incumbent(network, searched(network))
    assert 2 * (1 - 1e-13 / shift) <= lower.value <= 2


def test_nothing_is_proved_of_a_constant_network_and_by_other_values():
    network = as_network(ZERO, (1,))
    assert incumbent(network, searched(network)) is None
    network = as_network(HAT, (1,))
    assert (
        incumbent(network, load("lipbench.bounds", "product", Bound)().compute(network, L2, None))
        is None
    )
    lower = load("lipbench.bounds", "jacobian", Bound)().compute(network, L2, None)
    assert incumbent(network, lower) is None


@pytest.mark.parametrize("norm", NORMS)
def test_a_search_that_is_cut_short_still_knows_a_steep_point(norm):
    network = as_network(random_network(0, (3, 6, 6, 2), nn.ReLU), (3,))
    cut = searched(network, norm, nodes=5)
    lower = incumbent(network, cut)
    assert cut.side == "upper"
    assert recheck(network, cut) == []
    data = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    sampled = load("lipbench.bounds", "jacobian", Bound)().compute(network, norm, None, (), data)
    assert sampled.value < 0.9 * lower.value
    assert lower.value <= cut.value


def test_a_search_begins_with_what_is_known():
    network = as_network(random_network(0, (3, 5, 5, 2), nn.ReLU), (3,))
    known = (load("lipbench.bounds", "region_ascent", Bound)(points=32).compute(network, L2, None),)
    cut = searched(network, L2, None, known, nodes=1, programs=0)
    lower = incumbent(network, cut)
    assert lower.value >= known[0].value * (1 - CLOSE)
    alone = incumbent(network, searched(network, nodes=1, programs=0))
    assert alone.value < known[0].value


def test_a_point_of_a_network_that_cannot_be_read_exactly_counts_as_a_float():
    merged = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Tanh())
    network = as_network(merged, (2,))
    proof = {"point": torch.zeros(1, 2, dtype=torch.float64)}
    value = Lipschitz(value=9.0, side="upper", norm=L2, domain=(0.0, 1.0), proof=proof)
    lower = incumbent(network, value)
    assert lower.value > 0
    assert recheck(network, lower) == []


def test_a_bracket_has_it_beside_the_search_and_an_audit_refutes_with_it():
    """Slope 2 on an interval of length 1e-6 only, which no sample meets."""
    model = dense(([[1], [-1]], [1e-6, 0]), ([[1, -1]], [0]))
    report = audit(model, (1,), claims=1.9, domain=(-5.0, 5.0))
    sides = {bound.name: bound.side for bound in report.bracket.bounds}
    assert (sides["lipbab"], sides["lipbab:incumbent"]) == ("exact", "lower")
    assert report.verdict == "refuted"
    assert report.witness.found_by in ("lipbab:incumbent", "region_ascent")
    assert report.witness.quotient > 1.9


def test_a_run_has_a_row_for_it(tmp_path):
    settings = runs.config(
        model={"name": "mlp", "widths": [2], "activation": "relu"},
        evaluation={"test_size": 20, "bound": ["lipbab"]},
    )
    assert runs.run(settings, tmp_path / "run") == 0
    rows = [row for row in runs.results(tmp_path / "run") if row.metric == "lipschitz"]
    values = {(row.checkpoint, row.estimator): (row.side, row.value) for row in rows}
    for checkpoint in {row.checkpoint for row in rows}:
        side, exact = values[checkpoint, "lipbab"]
        beside, lower = values[checkpoint, "lipbab:incumbent"]
        assert (side, beside) == ("exact", "lower")
        assert exact * (1 - CLOSE) <= lower <= exact
