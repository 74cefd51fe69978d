import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.training import a_method, a_net, digits, initial
from torch import nn
from torch.nn.utils import parametrizations

from lipbench.data.splits import Batch
from lipbench.layers.normalise import Normalise
from lipbench.networks.network import Network, as_network
from lipbench.networks.stem import cut
from lipbench.networks.steps import Dense, Slope


class Reshaped(nn.Module):
    # A shape written out in the forward, which a first layer of another width would not fit.
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(12, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x.reshape(-1, 12))))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 12)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x.flatten(1))))


class Sine(nn.Module):
    def forward(self, x):
        return x.sin()


BEGIN_DENSE = {
    "one layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)),
    "two layers in a row": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 2), nn.ReLU()
    ),
    "no bias": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(12, 5, bias=False), nn.Sigmoid(), nn.Linear(5, 3)
    ),
    "statistics behind": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
    ),
    "a shape in the forward": Reshaped,
    "one layer used twice": Twice,
}
BEGIN_OTHERWISE = {
    "convolution": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(4, 3)),
    "normalisation": lambda: nn.Sequential(Normalise([0.5], [0.3]), nn.Flatten(), nn.Linear(12, 3)),
    "activation": lambda: nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(12, 3)),
    "along the last axis": lambda: nn.Sequential(nn.Linear(4, 2), nn.Flatten(), nn.Linear(6, 3)),
    "parametrised": lambda: nn.Sequential(
        nn.Flatten(), parametrizations.orthogonal(nn.Linear(12, 5)), nn.Linear(5, 3)
    ),
    "unknown layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3), Sine()),
    "no layer": nn.Flatten,
}


def net_of(make):
    torch.manual_seed(0)
    module = make().double().eval()
    for name, value in module.named_buffers():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
    return a_net(module, (1, 3, 4))


@pytest.mark.parametrize("name", BEGIN_DENSE)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32))
def test_first_layer_and_rest_are_the_network(name, seed):
    net = net_of(BEGIN_DENSE[name])
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4, 1, 3, 4, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(net.stem(inputs), net(inputs), rtol=1e-13, atol=1e-14)
    products = inputs.flatten(1) @ net.stem.weight.T
    outputs = net.stem.rest(net.stem.shifted(products))
    torch.testing.assert_close(outputs, net(inputs), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", BEGIN_OTHERWISE)
def test_a_network_that_begins_otherwise_has_no_stem(name):
    assert net_of(BEGIN_OTHERWISE[name]).stem is None


def test_gradients_reach_all_parameters_through_the_stem():
    net, inputs = net_of(BEGIN_DENSE["one layer used twice"]), torch.rand(4, 1, 3, 4).double()

    def squares(params, through_stem):
        now = net.with_params(params)
        return (now.stem if through_stem else now)(inputs).square().sum()

    found, expected = (torch.func.grad(squares)(net.params, way) for way in (True, False))
    for name, slope in expected.items():
        torch.testing.assert_close(found[name], slope)


def test_a_network_that_reads_its_input_again_behind_the_layer_has_no_stem():
    place = {"input_shapes": ((3,),), "output_shape": (3,)}
    dense = Dense(
        name="first", weight=torch.eye(3), bias=None, weight_name="w", bias_name=None, **place
    )
    curve = {"function": torch.tanh, "lo": 0.0, "hi": 1.0, **place}
    for inputs, has_stem in (((1,), True), ((0,), False)):
        steps = (dense, Slope(name="second", inputs=inputs, **curve))
        network = Network(input_shape=(3,), steps=steps, output=2)
        assert (cut(network) is not None) == has_stem
    assert cut(Network(input_shape=(3,), steps=(dense,), output=0)) is None


def test_a_network_of_steps_can_be_cut():
    network = as_network(BEGIN_DENSE["no bias"](), (1, 3, 4))
    inputs = torch.rand(4, 1, 3, 4).double()
    torch.testing.assert_close(cut(network)(inputs), network(inputs))


def test_the_meter_counts_what_goes_through_the_rest():
    net = net_of(BEGIN_DENSE["one layer"])
    net.stem.rest(torch.zeros(7, 3).double())
    assert (net.meter.forwards, net.meter.gradients) == (7, 7)
    net.frozen.stem.rest(torch.zeros(5, 3).double())
    assert (net.meter.forwards, net.meter.gradients) == (12, 7)


def test_pairs_climb_in_a_network_without_a_stem_too():
    data = digits(dtype=torch.float64)
    module = nn.Sequential(nn.Flatten(), initial(data)[1], Sine(), nn.Linear(16, 10).double())
    net, method = a_net(module, (1, 8, 8)), a_method("clip", pairs=32, lambda_=1.0)
    state = method.start(net, data, torch.Generator()) | {"buffers": {}}
    h = {name: torch.tensor(getattr(method, name)).double() for name in ("lambda_", "mu", "factor")}
    batch, reached = Batch(data.train.inputs, data.train.targets), []
    for _ in range(5):
        _, state = method.loss(net, batch, state, {}, h)
        reached.append(float(state["quotient"].max()))
    assert reached == sorted(reached)
    assert reached[-1] > reached[0]
