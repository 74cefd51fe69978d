"""What shows that a network is no function, and what does not."""

import itertools
import random
import time

import numpy as np
import pytest
import torch
from torch import nn

import lipbench
from lipbench.networks.determinism import irregularity
from lipbench.networks.network import as_network
from lipbench.refused import Refused


class Net(nn.Module):
    """A linear network whose forward does something beside."""

    total = 0

    def __init__(self, act, **kept):
        super().__init__()
        self.linear, self.act = nn.Linear(2, 2), act
        for name, value in kept.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.linear(x) * self.act(self, x)


class Global(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x, seen=[]):  # noqa: B006
        seen.append(0)
        return self.linear(x)


def counted(net, x):
    net.calls += 1
    return 1


def counted_in_a_list(net, x):
    net.calls[0] += 1
    return 1


def counted_by_its_class(net, x):
    type(net).total += 1
    return 1


def counted_by_an_iterator(net, x):
    return 1 + next(net.calls) * 0


def late(net, x):
    net.calls += 1
    return 1 if net.calls < 1000 else 100


def flipped(net, x):
    return 1 + (random.random() < 0.5)


def numpys(net, x):
    return 1 + (np.random.rand() < 0.5)


def torchs(net, x):
    return 1 + 1e-9 * torch.rand(2)


def own_generator(net, x):
    return 1 + torch.rand(2, generator=net.rng)


def own_random(net, x):
    return 1 + (net.rng.random() < 0.5)


def of_the_time(net, x):
    return 1 + time.perf_counter_ns() % 1000


def of_the_batch(net, x):
    return 1 if len(x) > 1 else 2


def of_its_neighbours(net, x):
    return 1 + x.mean(0)


def of_the_first(net, x):
    return 1 + x[:1]


STRANGE = {
    "counted": (Net(counted, calls=0), "changes its own 'calls' with every call"),
    "counted in a list": (Net(counted_in_a_list, calls=[0]), "changes its own 'calls'"),
    "counted by its class": (Net(counted_by_its_class), "changes its own 'total'"),
    "counted by an iterator": (Net(counted_by_an_iterator, calls=itertools.count()), "'calls'"),
    "counted by a default": (Global(), "changes its own 'forward, default 0'"),
    "another one late": (Net(late, calls=0), "changes its own 'calls'"),
    "random": (Net(flipped), "its forward draws random numbers"),
    "numpy's random": (Net(numpys), "its forward draws random numbers"),
    "torch's random": (Net(torchs), "its forward draws random numbers"),
    "a generator": (Net(own_generator, rng=torch.Generator()), "changes its own 'rng'"),
    "its own random": (Net(own_random, rng=random.Random(0)), "changes its own 'rng'"),
    "the time": (Net(of_the_time), "answers the same inputs differently when asked again"),
    "the batch": (Net(of_the_batch), "depends on others in the batch"),
    "neighbours": (Net(of_its_neighbours), "depends on others in the batch"),
    "the first": (Net(of_the_first), "depends on others in the batch"),
    "train mode": (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), "draws random numbers"),
}


def inputs(dtype=torch.float32):
    return torch.rand(8, 2, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("what", STRANGE)
def test_a_network_that_is_no_function_says_why(what):
    model, message = STRANGE[what]
    assert message in irregularity(model, inputs())


def test_a_function_in_plain_code_may_be_strange_too():
    calls = [0]

    def model(x):
        calls[0] += 1
        return x

    assert "'calls'" in irregularity(model, inputs())


@pytest.mark.parametrize("what", ["counted", "another one late", "random", "its own random"])
def test_it_has_no_bracket(what):
    model, _ = STRANGE[what]
    with pytest.raises(Refused, match=r"Net.*(draws random|changes its own)"):
        lipbench.bracket(model, (2,))


def kept_shape(net, x):
    net.shape, net.last = x.shape, x.detach()
    return 1


ORDINARY = {
    "linear": nn.Linear(2, 2),
    "what is kept of the last call": Net(kept_shape),
    "evaluation mode": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).eval(),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", ORDINARY)
def test_an_ordinary_network_is_a_function(what, dtype):
    assert irregularity(ORDINARY[what].to(dtype), inputs(dtype)) is None


def test_the_generators_are_looked_at_and_left_alone():
    model = nn.Linear(2, 2)
    before = torch.get_rng_state(), random.getstate()
    as_network(model, (2,))
    irregularity(model, inputs())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_an_attack_on_what_is_no_function_is_flagged():
    x, y = inputs(), torch.zeros(8, dtype=torch.int64)
    model = Net(counted, calls=0)
    result = lipbench.attack(model, x, model(x).argmax(dim=1), steps=1, starts=1)
    assert result.flags == ("no function: its forward changes its own 'calls' with every call",)
    assert lipbench.attack(nn.Linear(2, 2), x, y, steps=1, starts=1).flags == ()
