"""A plugin under guard changes nothing of others, and is named if it tried."""

import os
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lipbench.bound import Lipschitz
from lipbench.guards.guard import Tampered, TorchTampered, guarded
from lipbench.norm import Norm
from lipbench.threat import Threat


def a_network():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).eval()


def a_value():
    proof = {"constants": torch.ones(2, dtype=torch.float64)}
    return Lipschitz(value=1.0, side="upper", norm=Norm(2), domain=None, proof=proof)


def a_threat():
    return Threat(norm=Norm(2), epsilon=torch.full((3,), 0.25, dtype=torch.float64))


def replace_weight(network):
    network[0].weight = nn.Parameter(torch.zeros(3, 4))


def look(network):
    network[0].weight.sum()
    network(torch.zeros(1, 4))


NETWORK = {
    "scales weights": (lambda net: net[0].weight.data.mul_(0.01), "0.weight"),
    "through numpy": (lambda net: net[0].weight.detach().numpy().fill(0), "0.weight"),
    "through storage": (lambda net: net[0].weight.untyped_storage().fill_(0), "0.weight"),
    "another storage": (lambda net: setattr(net[0].weight, "data", torch.zeros(9)), "0.weight"),
    "a new weight": (replace_weight, "0._parameters['weight']"),
    "NaN": (lambda net: net[3].bias.data.fill_(torch.nan), "3.bias"),
    "the sign of zero": (lambda net: net[1].running_mean.neg_(), "1.running_mean"),
    "a hook": (lambda net: net[2].register_forward_hook(lambda *_: None), "2._forward_hooks"),
    "a hook on gradients": (
        lambda net: net.register_full_backward_hook(lambda *_: None),
        "_backward_hooks",
    ),
    "a hook of all": (
        lambda net: nn.modules.module.register_module_forward_hook(lambda *_: None),
        "hooks of all modules",
    ),
    "a parametrization": (lambda net: parametrizations.spectral_norm(net[0]), "0.__class__"),
    "another layer": (lambda net: net.__setitem__(2, nn.Tanh()), "_modules['2']"),
    "the mode": (lambda net: net.train(), "the training mode"),
    "gradients": (lambda net: net.requires_grad_(requires_grad=False), "0.weight"),
    "a number": (lambda net: setattr(net[1], "eps", 1.0), "1.eps"),
    "a method": (lambda net: setattr(net[0], "forward", lambda x: 0 * x), "0.forward"),
}


@pytest.mark.parametrize(("change", "place"), NETWORK.values(), ids=NETWORK)
def test_changes_of_a_network_are_named_and_put_back(change, place):
    network, inputs = a_network(), torch.ones(2, 4)
    before = network(inputs), {n: v.clone() for n, v in network.state_dict().items()}
    with (
        pytest.raises(Tampered, match="bound 'x' changed") as caught,
        guarded("bound 'x'", "compute", network=network),
    ):
        change(network)
    assert place in str(caught.value)
    assert "compute()" in str(caught.value)
    after = network.state_dict()
    assert list(after) == list(before[1])
    assert all(torch.equal(after[n], v) for n, v in before[1].items())
    assert torch.equal(torch.signbit(network[1].running_mean), torch.signbit(torch.zeros(3)))
    assert torch.equal(network(inputs), before[0])
    assert network(inputs).requires_grad
    assert not network.training


OTHERS = {
    "proof": (a_value, lambda value: value.proof["constants"].mul_(2), "proof['constants']"),
    "value": (a_value, lambda value: object.__setattr__(value, "value", 0.1), "value"),
    "another proof": (a_value, lambda value: value.proof.clear(), "proof['constants']"),
    "epsilon": (a_threat, lambda threat: threat.epsilon.mul_(20), "epsilon"),
    "domain": (a_threat, lambda threat: object.__setattr__(threat, "domain", None), "domain"),
    "array": (lambda: np.ones(3), lambda array: array.fill(0), "given"),
    "list": (lambda: [1.0, 2.0], lambda numbers: numbers.pop(), "[1]"),
}


@pytest.mark.parametrize(("make", "change", "place"), OTHERS.values(), ids=OTHERS)
def test_changes_of_anything_that_is_given_are_named_and_put_back(make, change, place):
    given = make()
    before = repr(given)
    with pytest.raises(Tampered) as caught, guarded("attack 'x'", "propose", given=given):
        change(given)
    assert place in str(caught.value)
    assert repr(given) == before


def test_who_changes_what_it_was_given_and_refuses_is_named_too():
    network = a_network()

    def refuse():
        network[0].weight.data.mul_(2)
        raise ValueError("refuses")

    with pytest.raises(Tampered, match=r"0\.weight"), guarded("x", "h", network=network):
        refuse()


def test_who_only_looks_is_left_alone():
    network = a_network()
    with guarded("x", "h", network=network, threat=a_threat()):
        look(network)


class Counting(nn.Module):
    """A network that counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls, self.scale = 0, 2.0

    def forward(self, x):
        self.calls += 1
        return x * self.scale


def test_what_a_network_changes_itself_is_nobodys_doing():
    network = Counting()

    def call():
        return network(torch.ones(1))

    with guarded("x", "h", changed_by_itself=call, network=network):
        call()
    assert network.calls == 2
    with (
        pytest.raises(Tampered, match="network: scale"),
        guarded("x", "h", changed_by_itself=call, network=network),
    ):
        network.scale = 3.0
    assert network.scale == 2.0


def draws():
    return torch.rand(2).tolist(), random.random(), np.random.rand()


def test_global_draws_are_those_of_the_seed_and_leave_no_trace():
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = draws()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    found = []
    for seed in (1, 1, 2):
        with guarded("x", "h", seed):
            found.append(draws())
            torch.manual_seed(9), random.seed(9), np.random.seed(9)
    assert draws() == expected
    assert found[0] == found[1] != found[2]


KEPT = []


def keep(mode):
    mode.__enter__()
    KEPT.append(mode)


def denormal():
    # A truth, since numbers themselves compare otherwise meanwhile.
    return (torch.full((2,), 1e-310, dtype=torch.float64) + 0 > 0).tolist()


SETTINGS = {
    "default dtype": (
        lambda: torch.set_default_dtype(torch.float64),
        torch.get_default_dtype,
    ),
    "default device": (lambda: torch.set_default_device("meta"), lambda: torch.ones(1).device),
    "inference mode": (
        lambda: keep(torch.inference_mode()),
        lambda: (torch.is_inference_mode_enabled(), torch.is_grad_enabled()),
    ),
    "no gradients": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "threads": (
        lambda: torch.set_num_threads(torch.get_num_threads() + 1),
        torch.get_num_threads,
    ),
    "determinism": (
        lambda: torch.use_deterministic_algorithms(True),
        torch.are_deterministic_algorithms_enabled,
    ),
    "denormal numbers": (
        lambda: torch.set_flush_denormal(any(denormal())),
        denormal,
    ),
    "precision": (
        lambda: torch.set_float32_matmul_precision("medium"),
        torch.get_float32_matmul_precision,
    ),
    "mkldnn": (
        lambda: setattr(torch.backends.mkldnn, "enabled", False),
        lambda: torch.backends.mkldnn.enabled,
    ),
    "numpy errors": (lambda: np.seterr(all="raise"), np.geterr),
    "folder": (lambda: os.chdir("/"), os.getcwd),
    "environment": (
        lambda: os.environ.update(LIPBENCH_DATA="/nowhere"),
        lambda: os.environ.get("LIPBENCH_DATA"),
    ),
}


@pytest.mark.parametrize(("change", "read"), SETTINGS.values(), ids=SETTINGS)
def test_settings_of_the_process_are_put_back(change, read):
    before = read()
    with guarded("x", "h"):
        change()
        assert read() != before
    assert read() == before


PATCHES = {
    "a function": (torch.nn.functional, "relu", lambda x, inplace=False: x),
    "a method of tensors": (torch.Tensor, "add", lambda self, other: self),
    "a layer": (nn.Linear, "forward", lambda self, x: x),
    "numpy": (np.linalg, "norm", lambda *_, **__: 0.0),
    "by another of torch": (torch, "tanh", torch.sigmoid),
}


@pytest.mark.parametrize(("owner", "name", "patch"), PATCHES.values(), ids=PATCHES)
def test_replaced_functions_of_libraries_are_named_and_put_back(owner, name, patch):
    before = getattr(owner, name)
    with (
        pytest.raises(TorchTampered, match=rf"method 'x' changed .*{name}"),
        guarded("method 'x'", "start"),
    ):
        setattr(owner, name, patch)
    assert getattr(owner, name) is before
