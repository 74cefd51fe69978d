"""Proofs checked anew: values that their proofs do not hold, and values without one."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lipbench.bound import Bound, Lipschitz
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.soundness import crossings
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load

L2 = Norm(2.0)


def known(side, value, **fields):
    return Lipschitz(value=value, side=side, norm=L2, domain=None, **fields)


@pytest.fixture(name="network")
def _network():
    torch.manual_seed(0)
    return as_network(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (3,))


def test_a_lowered_upper_bound_is_caught(network):
    """An upper bound below a known lower bound, or below its own certificate, is found."""
    product = load("lipbench.bounds", "product", Bound)().compute(network, L2, None)
    lower = load("lipbench.bounds", "jacobian", Bound)().compute(network, L2, None)
    assert [*crossings([lower, product]), *recheck(network, product)] == []
    lowered = replace(product, value=lower.value * 0.999)
    assert len(crossings([lower, lowered])) == 1
    assert "the constants of its steps prove" in recheck(network, lowered)[0].message


def test_a_raised_lower_bound_is_caught(network):
    lower = load("lipbench.bounds", "jacobian", Bound)().compute(network, L2, None)
    assert recheck(network, lower) == []
    raised = replace(lower, value=lower.value * 1.001)
    assert "its witness proves" in recheck(network, raised)[0].message


def test_a_witness_outside_the_domain_is_caught(network):
    lower = load("lipbench.bounds", "jacobian", Bound)().compute(network, L2, None)
    moved = replace(lower, domain=(5.0, 6.0))
    assert "witness reaches" in recheck(network, moved)[0].message


def test_a_value_without_a_proof_must_say_so(network):
    assert len(recheck(network, known("upper", 100.0))) == 1
    assert recheck(network, known("upper", 100.0, flags=("unverified",))) == []
    assert recheck(network, known("estimate", 1.0)) == []
