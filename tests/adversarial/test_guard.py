"""The network and the global random state are after an attack as they were before."""

import numpy as np
import pytest
import torch
from support.scripted import Scripted, generator, threat

from lipbench.adversarial.judge import judge


def test_modes_and_gradients_survive_an_attack_that_fails(problem):
    """Each module gets its own mode back, even after an exception."""
    net, inputs, labels = problem
    net.train()
    net[2].eval()
    next(net.parameters()).grad = torch.ones(16, 64)
    modes = [module.training for module in net.modules()]

    def fail(model, inputs, labels, threat, rng):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        judge(Scripted(act=fail), net, inputs, labels, threat([0.1] * 50), generator())
    assert modes == [module.training for module in net.modules()]
    assert torch.equal(torch.ones(16, 64), next(net.parameters()).grad)
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_backward_of_an_attack_reaches_no_parameter(problem):
    """Neither as a new gradient nor added to one that was there."""
    net, inputs, labels = problem
    net[1].weight.grad = torch.ones(16, 64)

    def backward(model, inputs, labels, threat, rng):
        points = inputs.requires_grad_()
        model(points).sum().backward()
        return inputs + points.grad.sign()

    with torch.no_grad():
        judge(Scripted(act=backward), net, inputs, labels, threat([0.1] * 50), generator())
    assert torch.equal(net[1].weight.grad, torch.ones(16, 64))
    assert net[1].bias.grad is None


def test_global_generators_are_left_alone_and_follow_the_seed(problem):
    """An attack that seeds or uses them is as reproducible as any other."""
    net, inputs, labels = problem

    def careless(model, inputs, labels, threat, rng):
        drawn.append((torch.rand(()).item(), np.random.rand()))
        torch.manual_seed(5)
        np.random.seed(5)
        return inputs

    drawn, state, numpy = [], torch.get_rng_state(), np.random.get_state()[1].copy()
    for seed in (0, 0, 1):
        arguments = net, inputs, labels, threat([0.1] * 50), generator(seed)
        judge(Scripted(act=careless), *arguments)
    assert torch.equal(state, torch.get_rng_state())
    assert (numpy == np.random.get_state()[1]).all()
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
