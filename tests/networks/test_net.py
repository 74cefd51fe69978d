import copy

import pytest
import torch
from support.training import a_net
from torch import nn

from lipbench.networks.net import Net, Skeleton, fill
from lipbench.refused import Refused

SHAPE = (1, 4, 4)


def module(*, norm=True, momentum=0.1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5)]
        if norm:
            layers[1:1] = [nn.BatchNorm2d(3, momentum=momentum)]
            layers.append(nn.BatchNorm1d(5, momentum=momentum))
        net = nn.Sequential(*layers)
        for name, parameter in net.named_parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, mean=float("weight" in name))
        return net.double()


def inputs(count=6, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, *SHAPE, generator=rng, dtype=torch.float64)


def test_a_net_is_the_function_of_its_module_in_evaluation_mode():
    original = module()
    expected = copy.deepcopy(original).eval()(inputs())
    torch.testing.assert_close(a_net(original, SHAPE)(inputs()), expected)


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
def test_training_mode_is_that_of_torch_with_the_statistics_returned(momentum):
    original = module(momentum=momentum)
    net, twin = a_net(original, SHAPE), copy.deepcopy(original).train()
    buffers = net.buffers
    for seed in range(3):
        outputs, buffers = net.skeleton.train(net.params, buffers, inputs(seed=seed))
        torch.testing.assert_close(outputs, twin(inputs(seed=seed)))
    for name, value in twin.named_buffers():
        torch.testing.assert_close(buffers[name], value)


def test_training_mode_changes_nothing_that_was_there_before():
    net = a_net(module(), SHAPE)
    params, buffers = copy.deepcopy(net.params), copy.deepcopy(net.buffers)
    net.train(inputs())
    for name, value in {**params, **buffers}.items():
        assert torch.equal(value, {**net.params, **net.buffers}[name])


def test_gradients_in_training_mode_are_those_of_torch():
    original = module()
    net, twin = a_net(original, SHAPE), copy.deepcopy(original).train()
    twin(inputs()).square().sum().backward()
    slopes = torch.func.grad(lambda p: net.with_params(p).train(inputs())[0].square().sum())(
        net.params
    )
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(slopes[name], parameter.grad)


def test_training_mode_works_for_a_stack():
    net = a_net(module(), SHAPE)
    batches = torch.stack([inputs(seed=seed) for seed in range(3)])
    stacked = torch.func.vmap(lambda x: net.train(x))(batches)
    for number, batch in enumerate(batches):
        outputs, buffers = net.train(batch)
        torch.testing.assert_close(stacked[0][number], outputs)
        for name, value in buffers.items():
            torch.testing.assert_close(stacked[1][name][number], value)


def test_a_frozen_net_gives_gradients_in_its_inputs_only():
    net = a_net(module(norm=False), SHAPE)
    outer = torch.func.grad(lambda params: net.with_params(params).frozen(inputs()).sum())
    assert not any(slope.any() for slope in outer(net.params).values())
    inner = torch.func.grad(lambda x: net.frozen(x).sum())(inputs())
    assert inner.any()


def test_the_meter_counts_samples_and_gradients_in_the_weights():
    net = a_net(module(), SHAPE)
    net(inputs(4))
    net.train(inputs(3))
    net.frozen(inputs(2))
    net.with_params(net.params)(inputs(1))
    assert (net.meter.forwards, net.meter.gradients) == (10, 8)


def test_parameters_can_be_replaced_one_by_one():
    net = a_net(module(norm=False), SHAPE)
    shifted = net.with_params({"3.bias": net.params["3.bias"] + 1})
    torch.testing.assert_close(shifted(inputs()), net(inputs()) + 1)


def test_layers_are_the_linear_steps_with_their_current_weights():
    net = a_net(module(norm=False), SHAPE)
    doubled = net.with_params({"3.weight": 2 * net.params["3.weight"]})
    assert [layer.weight_name for layer in doubled.layers] == ["0.weight", "3.weight"]
    assert torch.equal(doubled.layers[1].weight, 2 * net.params["3.weight"])


def test_a_layer_without_a_rule_is_refused_by_name_when_steps_are_asked_for():
    net = a_net(nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Softmin(dim=1)), SHAPE)
    with pytest.raises(Refused, match="Softmin"):
        _ = net.layers


def test_the_module_is_an_ordinary_one_that_needs_no_gradient():
    net = a_net(module(), SHAPE)
    ordinary = net.module()
    assert not ordinary.training
    assert not any(parameter.requires_grad for parameter in ordinary.parameters())
    torch.testing.assert_close(ordinary(inputs()), net(inputs()))


def test_layers_that_share_a_parameter_are_refused():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    with pytest.raises(Refused, match=r"'0\.weight' and '1\.weight' are one"):
        Skeleton(nn.Sequential(first, second), (3,))


def test_one_module_in_two_places_is_one():
    layer = nn.Linear(3, 3)
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    points = torch.rand(2, 3)
    found = Net(Skeleton(twice, (3,)), dict(twice.named_parameters()))(points)
    torch.testing.assert_close(found, twice(points))


def test_a_module_in_two_places_is_left_without_numbers():
    layer = nn.Linear(3, 3)
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    net = Net(Skeleton(twice, (3,)), dict(twice.named_parameters()))
    net(torch.rand(2, 3))
    assert all(value.is_meta for value in net.skeleton.module.parameters())
    assert [step.weight_name for step in net.layers] == ["0.weight"] * 2
    torch.testing.assert_close(net.module()(torch.ones(1, 3)), twice(torch.ones(1, 3)))


def test_names_that_do_not_fit_are_an_error():
    layer = nn.Linear(3, 3)
    twice = nn.Sequential(layer, layer)
    with pytest.raises(
        RuntimeError, match=r"Missing key\(s\) in state_dict: \"0.bias\", \"1.bias\""
    ):
        fill(twice, {"0.weight": layer.weight})
