"""The walker: which modules are read, how, and what is refused."""

import copy

import pytest
import torch
from support.written import Written
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from lipbench.layers.normalise import Normalise
from lipbench.networks.network import as_network, walk
from lipbench.networks.steps import Convolution, Dense
from lipbench.refused import Refused

RTOL = 1e-12  # rounding only


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.flatten(x.view(x.size(0), -1).reshape(x.shape[0], 3, 2), 1)
        return self.second(F.relu(self.first(x))).tanh()


class Squaring(nn.Module):
    def forward(self, x):
        return x * x


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Changed(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.fixture(name="convolutional")
def _convolutional():
    torch.manual_seed(0)
    model = nn.Sequential(
        Normalise([0.5], [0.25]),
        nn.Conv2d(1, 4, 3, padding=1, stride=2, padding_mode="circular"),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, groups=2, padding="same"),
        nn.MaxPool2d(2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.PReLU(6),
        parametrizations.weight_norm(nn.Linear(6, 3, bias=False)),
        nn.GELU(),
    )
    model[2].running_mean.normal_()
    model[2].running_var.uniform_(0.5, 2)
    return model.eval()


def test_steps_compute_the_modules_function(convolutional):
    network = as_network(convolutional, (1, 8, 8))
    inputs = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    expected = convolutional.double()(inputs)
    torch.testing.assert_close(network(inputs), expected, rtol=RTOL, atol=RTOL)


def test_layers_are_the_linear_steps_in_order(convolutional):
    network = as_network(convolutional, (1, 8, 8))
    assert [layer.name for layer in network.layers] == ["1", "4", "10"]
    assert [Convolution, Convolution, Dense] == [type(layer) for layer in network.layers]
    assert [x.weight_name for x in network.layers] == ["1.weight", "4.weight", "10.weight"]
    assert network.layers[2].bias_name is None
    assert network.is_chain
    assert network.output_shape == (3,)


def test_functional_calls_are_steps_of_their_own():
    network = as_network(Functional(), (2, 3))
    assert [x.weight_name for x in network.layers] == ["first.weight", "second.weight"]


def test_a_network_with_a_sum_is_no_chain():
    network = as_network(Written(lambda self, x: (self.f(x) + x).relu(), f=nn.Linear(2, 2)), (2,))
    assert not network.is_chain


def test_a_single_layer_is_a_network():
    assert [x.weight_name for x in as_network(nn.Linear(2, 3), (2,)).layers] == ["weight"]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_the_adjoint_is_the_transpose(stride, mode):
    """⟨Wx, y⟩ = ⟨x, Wᵀy⟩, also where the stride leaves inputs unread."""
    layer = nn.Conv2d(
        2, 4, (3, 2), stride=stride, padding=(1, 2), dilation=2, groups=2, padding_mode=mode
    )
    step = as_network(layer, (2, 7, 8)).layers[0]
    x = torch.randn(1, *step.input_shape, dtype=torch.float64)
    y = torch.randn(1, *step.output_shape, dtype=torch.float64)
    torch.testing.assert_close((step.apply(x) * y).sum(), (x * step.adjoint(y)).sum())


def test_stacked_parameters_give_what_each_gives_alone():
    """Binding works inside vmap and grad, on a module without storage."""
    torch.manual_seed(0)
    graph = walk(nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten()).to("meta"), (1, 5))
    params = {"0.weight": torch.randn(3, 2, 1, 3), "0.bias": torch.randn(3, 2)}
    x = torch.randn(4, 1, 5)

    def total(params):
        return graph.bind(params, {})(x).sum()

    stacked = torch.func.vmap(torch.func.grad(total))(params)
    for row in range(3):
        alone = torch.func.grad(total)({name: value[row] for name, value in params.items()})
        torch.testing.assert_close(stacked["0.weight"][row], alone["0.weight"])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Softmin(1)), r"layer '1' \(Softmin\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), r"layer '1' \(LayerNorm\)"),
        (nn.Sequential(nn.Linear(4, 4), Squaring()), r"layer '1' \(Squaring\).*'mul'"),
        (nn.Sequential(Attending()), r"layer '0.attention' \(MultiheadAttention\): no rule"),
        (nn.MultiheadAttention(4, 1), r"\(MultiheadAttention\): no rule"),
        (nn.Sequential(nn.LSTM(4, 4)), r"layer '0' \(LSTM\): no rule"),
        (nn.Sequential(nn.ConstantPad1d(1, 1.0)), r"layer '0' \(ConstantPad1d\): no rule"),
        (nn.ZeroPad2d(1), r"\(ZeroPad2d\): it mixes samples"),
        (nn.Sequential(nn.ZeroPad2d(1)), r"\(ZeroPad2d\): '_0' mixes samples"),
        (nn.Sequential(Branching()), "cannot be traced"),
        (nn.Sequential(nn.BatchNorm1d(4)), r"layer '0' \(BatchNorm1d\).*model.eval"),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout()), r"layer '1' \(Dropout\).*model.eval"),
        (nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4))), "model.eval"),
        (nn.Conv1d(4, 1, 1), "does not take inputs of shape"),
        (nn.Linear(4, 4, dtype=torch.complex64), "weight is complex"),
        (nn.Sequential(nn.LazyLinear(3)), r"layer '0' \(LazyLinear\): its weight has no shape yet"),
        (nn.Sequential(nn.Linear(5, 4)), "does not take inputs of shape"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(module, message):
    with pytest.raises(Refused, match=message):
        as_network(module, (4,))


def test_a_mean_with_a_negative_divisor_is_refused():
    with pytest.raises(Refused, match=r"layer '0' \(AvgPool2d\): a negative divisor"):
        as_network(nn.Sequential(nn.AvgPool2d(2, divisor_override=-1)), (1, 4, 4))


def test_forward_hooks_are_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda layer, inputs, output: 2 * output)
    with pytest.raises(Refused, match=r"layer '0' \(Linear\).*hooks"):
        as_network(model, (4,))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(value):
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = value
    with pytest.raises(Refused, match=r"layer '0' \(Linear\).*NaN or infinite"):
        as_network(model, (2,))


def test_a_spectral_norm_layer_is_read_with_its_effective_weight():
    layer = parametrizations.spectral_norm(nn.Linear(4, 4)).eval()
    found = as_network(nn.Sequential(layer), (4,)).layers[0].weight
    torch.testing.assert_close(found.float(), layer.weight.detach(), rtol=1e-5, atol=1e-6)


PARAMETRISED = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("name", PARAMETRISED)
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 3), (4,)),
        (nn.Conv1d(2, 3, 3), (2, 5)),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 4, 4)),
        (nn.ConvTranspose1d(2, 3, 3), (2, 4)),
        (nn.ConvTranspose2d(2, 3, 3, stride=2), (2, 3, 3)),
    ],
    ids=repr,
)
def test_a_parametrised_layer_is_read_with_its_effective_weight(name, layer, shape):
    torch.manual_seed(0)
    made = PARAMETRISED[name](copy.deepcopy(layer)).double().eval()
    network = as_network(nn.Sequential(made), shape)
    with torch.no_grad():
        torch.testing.assert_close(network.layers[0].weight, made.weight)
        inputs = torch.randn(5, *shape, dtype=torch.float64)
        torch.testing.assert_close(network(inputs), made(inputs))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("old", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_weight_that_a_hook_remakes_is_refused_with_the_way_out(old):
    model = nn.Sequential(nn.Linear(4, 4), old(nn.Linear(4, 4))).eval()
    with pytest.raises(Refused, match=r"layer '1' \(Linear\).*torch\.nn\.utils\.parametrizations"):
        as_network(model, (4,))


class Tied(nn.Module):
    """One matrix under three names."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.own = self.two.weight = self.one.weight

    def forward(self, x):
        return F.linear(self.two(self.one(x).relu()), self.own)


def test_layers_may_share_a_weight():
    model = Tied()
    network = as_network(model, (4,))
    assert [layer.weight_name for layer in network.layers] == ["one.weight", "two.weight", "own"]
    inputs = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(network(inputs), model.double()(inputs))


def test_train_mode_alone_is_no_refusal():
    assert len(as_network(nn.Sequential(nn.Linear(2, 2), nn.ReLU()).train(), (2,)).steps) == 2


def test_the_walk_leaves_the_module_as_it_was(convolutional):
    before = {name: value.clone() for name, value in convolutional.state_dict().items()}
    as_network(convolutional, (1, 8, 8))
    after = convolutional.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.dtype == torch.float32 for parameter in convolutional.parameters())


def test_a_layer_with_a_forward_of_its_own_is_read_through_it():
    network, layer = as_network(nn.Sequential(Changed(4, 3)), (4,)), Changed(4, 3)
    assert [type(step).__name__ for step in network.steps] == ["Dense", "Sum"]
    assert network.steps[0].weight_name == "0.weight"
    network, x = as_network(layer, (4,)), torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(network(x), layer.double()(x))


def test_a_function_read_wrongly_is_refused():
    """A forward that does something else than when it was traced gives no bound."""

    class Fickle(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x.relu() if self.calls == 2 else x.tanh()

    with pytest.raises(Refused, match=r"changes its own '0\.calls' with every call"):
        as_network(nn.Sequential(Fickle()), (3,))


class Overwriting(nn.Module):
    """Adds to its input, in place, what is 0 at all inputs that a comparison would try."""

    def forward(self, x):
        y = x
        y += F.relu(x - 1e6)
        return x


class Remembering(nn.Module):
    def forward(self, x):
        y = F.relu(x.view(x.size(0), -1), inplace=True)
        return x if y is not None else y


class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.clip = nn.Hardtanh(-1e6, 1e6, inplace=True)

    def forward(self, x):
        return x + self.clip(x)


@pytest.mark.parametrize("model", [Overwriting(), Remembering(), Skipping()], ids=repr)
def test_a_value_read_after_it_changed_in_place_is_refused(model):
    """The trace has its old value, the module its new one."""
    with pytest.raises(Refused, match=rf"{type(model).__name__}.*after it changed in place"):
        as_network(model, (3,))


def test_a_value_that_nothing_reads_again_may_change_in_place():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.relu = nn.Linear(3, 3), nn.ReLU(inplace=True)

        def forward(self, x):
            y = self.relu(self.layer(x))
            y += x
            return self.relu(y)

    network = as_network(Block(), (3,))
    assert [step.inputs for step in network.steps] == [(0,), (1,), (2, 0), (3,)]


def test_normalise_needs_positive_deviations():
    with pytest.raises(ValueError, match="one positive std per mean"):
        Normalise([0.5], [0.0])
