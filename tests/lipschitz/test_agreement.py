"""A network counts as read only if the module itself answers like it."""

import copy

import pytest
import torch
from torch import nn

import lipbench
from lipbench.lipschitz.agreement import disagreement, read_network
from lipbench.networks.network import as_network
from lipbench.refused import Refused


class Precise(nn.Module):
    """Another function in float64, in which it is read."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.linear(x) * self.factor

    def to(self, *arguments, **options):
        changed = super().to(*arguments, **options)
        if torch.float64 in arguments:
            with torch.no_grad():
                changed.factor.fill_(0.5)
        return changed


class Copied(nn.Module):
    """Another function, once it is copied."""

    def __init__(self, scale=5.0):
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(scale * torch.eye(2))

    def forward(self, x):
        return self.linear(x)

    def __deepcopy__(self, memo):
        return Copied(0.1)


@pytest.mark.parametrize("model", [Precise(), Copied()])
def test_a_module_that_answers_otherwise_than_it_reads_has_no_bracket(model):
    with pytest.raises(Refused, match="does not answer as its layers were read"):
        lipbench.bracket(model, (2,))


def test_it_is_found_out_at_the_inputs_that_count():
    network = as_network(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), (2,))
    other = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    assert "at an input that was tried" in disagreement(network, other, torch.ones(1, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e5, 1e-35, 1e35])
def test_rounding_is_no_other_function(dtype, scale):
    """Also where a difference of large numbers is what is left."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 50), nn.Linear(50, 3))
    with torch.no_grad():
        model[0].weight.mul_(scale)
        model[0].bias.mul_(scale)
        model[2].weight.div_(scale)
        model[3].bias.sub_(model[3](model[2](torch.relu(model[0](torch.ones(20))))).nan_to_num())
    model = model.to(dtype)
    assert read_network(model, (20,)).flags == ()
    assert read_network(copy.deepcopy(model), (20,), torch.ones(4, 20)).flags == ()
