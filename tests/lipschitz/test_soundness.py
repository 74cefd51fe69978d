"""Numbers that must not cross: what is caught, and what is no crossing."""

import math

import pytest
import torch
from torch import nn

from lipbench.bound import Lipschitz
from lipbench.lipschitz.soundness import broken_certificates, crossings
from lipbench.networks.network import as_network
from lipbench.norm import Norm

L2 = Norm(2.0)
BOX = (0.0, 1.0)


def known(side, value, norm=L2, domain=None, **fields):
    return Lipschitz(value=value, side=side, norm=norm, domain=domain, **fields)


@pytest.mark.parametrize(
    "values",
    [
        [known("lower", 2.0), known("upper", 1.0)],
        [known("exact", 2.0), known("upper", 1.0)],
        [known("lower", 2.0), known("exact", 1.0)],
        [known("lower", 2.0, domain=BOX), known("upper", 1.0)],
        [known("lower", 2.0, domain=(0.2, 0.8)), known("upper", 1.0, domain=BOX)],
        [known("lower", 1 + 1e-8), known("upper", 1.0)],
        [known("lower", math.nan)],
        [known("upper", -1.0)],
    ],
)
def test_a_crossing_is_a_violation(values):
    assert len(crossings(values)) == 1


@pytest.mark.parametrize(
    "values",
    [
        [known("lower", 1.0), known("upper", 1.0)],
        [known("lower", 1 + 1e-10), known("upper", 1.0)],
        [known("lower", 2.0), known("upper", 1.0, norm=Norm(1.0))],
        [known("lower", 2.0), known("upper", 1.0, domain=BOX)],
        [known("lower", 2.0, domain=(0.0, 2.0)), known("upper", 1.0, domain=BOX)],
        [known("estimate", 2.0), known("upper", 1.0)],
        [known("exact", 2.0)],
    ],
)
def test_what_cannot_be_compared_is_no_crossing(values):
    assert crossings(values) == []


def test_a_broken_certificate_names_the_sample():
    """Logits (x₁, x₂): only the sample that is wrong within its radius is a violation."""
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
        model.bias.zero_()
    network = as_network(model, (2,))
    clean = torch.tensor([[1.0, 0.0]]).repeat(3, 1)
    attacked = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.9, 0.0]])
    radius = torch.tensor([1.5, 1.4, 9.0], dtype=torch.float64)
    labels = torch.zeros(3, dtype=torch.long)
    (violation,) = broken_certificates(network, clean, labels, attacked, radius, L2)
    assert "sample 0 is certified within 1.5" in violation.message
