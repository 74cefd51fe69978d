"""Forged proofs: cases of Jacobians that do not make up all."""

import math

import pytest
import torch
from support.nets import random_network
from torch import nn

from lipbench.bound import Lipschitz
from lipbench.lipschitz.relaxations.jacobian_cases import proved_by_cases
from lipbench.networks.network import as_network
from lipbench.norm import Norm

LINF = Norm(math.inf)
LEFT, RIGHT = [0, 1]
"""Codes of the sides of neuron 0; those of neuron n are larger by 2n."""


def proved(*cases):
    """Return what cases prove of a network with the neurons 0 and 1, and the smooth ones 2 to 4."""
    model = nn.Sequential(
        random_network(0, (2, 2), nn.ReLU), nn.ReLU(), random_network(1, (2, 3, 2), nn.Tanh)
    )
    longest = max(map(len, cases), default=1)
    rows = torch.tensor([[*case, *[-1] * (longest - len(case))] for case in cases])
    claim = Lipschitz(
        value=math.inf,
        side="upper",
        norm=LINF,
        domain=(-1.0, 1.0),
        proof={"cases": rows.reshape(len(cases), longest)},
    )
    return proved_by_cases(as_network(model, (2,)), claim)


@pytest.mark.parametrize(
    "cases",
    [
        [[0], [1]],
        [[0, LEFT], [0, RIGHT], [1]],
        [[0, LEFT], [0, RIGHT, 2], [0, RIGHT, 3], [1]],
        [[0, RIGHT], [1, 3], [0, LEFT], [1, 2]],
    ],
)
def test_cases_that_make_up_all_prove_a_constant(cases):
    assert 0 < proved(*cases) < math.inf


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param([], id="no case"),
        pytest.param([[0]], id="a row missing"),
        pytest.param([[0, LEFT], [1]], id="a side missing"),
        pytest.param([[0, LEFT], [0, RIGHT, 2], [1]], id="a side of a side missing"),
        pytest.param([[0], [0], [1]], id="the same case twice"),
        pytest.param([[0, LEFT], [0, LEFT], [1]], id="one side twice"),
        pytest.param([[0, LEFT], [0, LEFT], [0, RIGHT], [1]], id="one side once more"),
        pytest.param([[0], [0, LEFT], [0, RIGHT], [1]], id="a case and its halves"),
        pytest.param([[0, LEFT], [0, 3], [1]], id="sides of different neurons"),
        pytest.param([[0], [1], [2]], id="a row that the network does not have"),
        pytest.param([[-1], [0], [1]], id="a row before the first"),
        pytest.param([[0, 4], [0, 5], [1]], id="a smooth neuron"),
        pytest.param([[0, LEFT], [0, RIGHT, 4], [0, RIGHT, 5], [1]], id="a smooth neuron later"),
        pytest.param([[0, 10], [0, 11], [1]], id="a neuron that the network does not have"),
    ],
)
def test_a_forged_proof_proves_nothing(cases):
    assert proved(*cases) == math.inf
