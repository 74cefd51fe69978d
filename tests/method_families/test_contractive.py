"""What all methods must do whose layers are 1-Lipschitz by construction."""

import math
from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch
from support.training import METHODS, a_method, a_model, a_net, an_entry, digits, initial, train
from torch import nn
from torch.nn import functional as F

from lipbench.bound import Bound
from lipbench.data.splits import Batch
from lipbench.layers.normalise import Normalise
from lipbench.layers.sorting import MaxMin
from lipbench.method import Method
from lipbench.method_families.contractive import Contractive
from lipbench.model import Model
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load
from lipbench.training.optimiser import Optimizer

NAMES = [n for n in METHODS if issubclass(load("lipbench.methods", n, Method), Contractive)]
DENSE = a_model(widths=(16, 16), normalisation=(0.5, 0.5))
# Bounds that prove a claim, where the product of layer norms does not.
PROOFS: dict[str, str] = {}
# Methods that have no version for convolutions.
DENSE_ONLY: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class Convolutions(Model):
    """Two convolutions, one of which keeps its shape, and a dense layer."""

    def build(self, input_shape, outputs, rng):
        layers = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Linear(64, outputs),
        )
        for layer in layers:
            for parameter in layer.parameters():
                nn.init.normal_(parameter, std=0.2, generator=rng)
        first, second, last = layers
        pooled = (second, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        return nn.Sequential(first, nn.ReLU(), *pooled, last)


MODELS = {"dense": DENSE, "convolutional": Convolutions()}
CASES = [
    (name, kind) for name in NAMES for kind in MODELS if kind == "dense" or name not in DENSE_ONLY
]


def built(name, kind, **fields):
    return a_method(name, **fields).build(
        initial(digits(), model=MODELS[kind]), (1, 8, 8), torch.Generator().manual_seed(0)
    )


@lru_cache
def trained(name, kind):
    # The network that a checkpoint is loaded into.
    entry = an_entry(name, epochs=2, optimizer=Optimizer(name="adam", lr=0.02))
    (outcome,) = train(entry, model=MODELS[kind])
    module = built(name, kind)
    last = outcome.checkpoints["last"]
    module.load_state_dict({**last.params, **last.buffers})
    return module.eval()


def at_first(name, kind):
    # The network before any step, as it would be saved.
    net = a_net(built(name, kind), (1, 8, 8))
    method = a_method(name)
    state = method.start(net, digits(), torch.Generator().manual_seed(0))
    return net.with_params(method.finish(net, state, digits(), {})).module()


def quotients(module, u, v):
    return (module(u) - module(v)).norm(dim=1) / (u - v).flatten(1).norm(dim=1)


def largest_quotient(module):
    # Of 1,000 random pairs near and far, and of 12 pairs that climb for 100 steps.
    rng = torch.Generator().manual_seed(0)
    u = torch.rand(1000, 1, 8, 8, generator=rng)
    reach = torch.tensor([0.05, 0.3, 1.0, 5.0]).repeat(250).view(-1, 1, 1, 1)
    v = u + reach * torch.randn(u.shape, generator=rng)
    with torch.no_grad():
        most = float(quotients(module, u, v).max())
    pairs = torch.stack([u[:12], v[:12]])
    for _ in range(100):
        pairs = pairs.detach().requires_grad_()
        found = quotients(module, *pairs)
        most = max(most, float(found.detach().max()))
        slope = torch.autograd.grad(found.sum(), pairs)[0]
        length = slope.flatten(2).norm(dim=2).clamp_min(1e-12)
        moved = pairs.detach() + 0.1 * slope / length.view(2, -1, 1, 1, 1)
        # Closer pairs would measure the rounding of float32.
        apart = (moved[0] - moved[1]).flatten(1).norm(dim=1) > 0.1
        pairs = torch.where(apart.view(1, -1, 1, 1, 1), moved, pairs.detach())
    return most


def constants(module):
    return math.prod(1 / float(each.std.min()) for each in module if isinstance(each, Normalise))


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.parametrize("network", [at_first, trained])
def test_no_pair_of_inputs_moves_apart(name, kind, network):
    module = network(name, kind)
    most = largest_quotient(module)
    assert 0.05 < most <= constants(module) * (1 + 1e-4)


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.parametrize("network", [at_first, trained])
def test_the_claim_is_proved_by_a_bound(name, kind, network):
    module = network(name, kind)
    claim = a_method(name).claims(a_net(module, (1, 8, 8)))
    bound = load("lipbench.bounds", PROOFS.get(name, "product"), Bound)()
    value = bound.compute(as_network(module, (1, 8, 8)), Norm(2), None).value
    assert claim.constant == pytest.approx(constants(module), rel=1e-6)
    assert value <= claim.constant * (1 + claim.tolerance)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_parameter_is_trained(name, kind):
    method = a_method(name)
    module = built(name, kind)
    net = a_net(module, (1, 8, 8))
    state = method.start(net, digits(), torch.Generator().manual_seed(0))
    # Away from the symmetry of the first weights.
    rng = torch.Generator().manual_seed(1)
    params = {
        name: (value + 0.1 * torch.randn(value.shape, generator=rng)).requires_grad_()
        for name, value in net.params.items()
        if not name.endswith(".plain.weight")  # made by another library, and not trained
    }
    batch = a_batch()
    h = {"offset": torch.tensor(method.offset), "temperature": torch.tensor(method.temperature)}
    loss, _ = method.loss(net.with_params(params), batch, state, {}, h)
    gradients = torch.autograd.grad(loss, list(params.values()))
    for key, gradient in zip(params, gradients, strict=True):
        assert float(gradient.abs().max()) > 1e-6, key


def a_batch():
    data = digits()
    return Batch(inputs=data.train.inputs[:32], targets=data.train.targets[:32])


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_loss_is_the_offset_cross_entropy_of_the_network_in_effect(name, kind):
    method, batch = a_method(name), a_batch()
    net = a_net(built(name, kind), (1, 8, 8))
    state = method.start(net, digits(), torch.Generator().manual_seed(0))
    h = {"offset": torch.tensor(0.7), "temperature": torch.tensor(0.2)}
    found, _ = method.loss(net, batch, state, {}, h)
    logits = net.with_params(method.effective(net, state, h)).module()(batch.inputs)
    shifted = logits - 0.7 * F.one_hot(batch.targets, 10)
    expected = 0.2 * F.cross_entropy(shifted / 0.2, batch.targets)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-5)


def test_activations_are_replaced_but_not_behind_the_last_layer():
    model = a_model(widths=(4, 6), activation="tanh", output_activation="sigmoid")
    for activation, kind in (("maxmin", MaxMin), ("relu", nn.ReLU), ("keep", nn.Tanh)):
        module = a_method("aol", activation=activation).build(
            initial(digits(), model=model), (1, 8, 8), torch.Generator()
        )
        found = [type(layer) for layer in module]
        assert found == [nn.Flatten, nn.Linear, kind, nn.Linear, kind, nn.Linear, nn.Sigmoid]
        assert module[1].bias.tolist() == initial(digits(), model=model)[1].bias.tolist()


def refusal(*layers, **fields):
    return a_method("aol", **fields).refuses(nn.Sequential(*layers), digits())


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 10)], "'2' (ReLU): 5 channels"),
        ([nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)], "'1' (BatchNorm2d): no rule for this class"),
        ([nn.Linear(8, 4)], "'0' (Linear): inputs of shape (1, 8, 8) must be flattened first"),
        ([nn.Flatten(), nn.Linear(64, 10), nn.GELU()], "'2' (GELU): it can expand distances 1.129"),
        ([nn.Conv2d(1, 2, 3), nn.MaxPool2d(3, 1)], "'1' (MaxPool2d): it can expand distances 3"),
        ([nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3, groups=2)], "'1' (Conv2d): groups of channels"),
        ([nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")], "padding with copies may expand"),
        ([nn.Conv2d(1, 2, 1, padding=1, padding_mode="circular")], "so wide that outputs repeat"),
        (
            [nn.Conv2d(1, 2, 3, (1, 3), (0, 1), padding_mode="circular")],
            "the stride (1, 3) does not divide the image, of size (8, 8)",
        ),
        ([nn.Sequential(nn.Flatten())], "'0' (Sequential): no rule for this class"),
    ],
)
def test_what_could_expand_distances_is_refused_by_name(layers, reason):
    assert reason in refusal(*layers)


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_in_two_places_is_refused_since_its_copies_would_train_apart(name):
    layer, other = nn.Linear(64, 64), nn.Linear(64, 64)
    other.weight = layer.weight
    for second in (layer, other):
        layers = [nn.Flatten(), layer, nn.ReLU(), second, nn.ReLU(), nn.Linear(64, 10)]
        found = a_method(name).refuses(nn.Sequential(*layers), digits())
        assert "layer '3' (Linear)" in found
        assert "shares its weight with layer 1" in found


def expansion(name, layer, size):
    # The norm, as a matrix, of the layer that a method makes of this one.
    method, shape = a_method(name), (1, size, size)
    rng = torch.Generator().manual_seed(0)
    net = a_net(method.build(nn.Sequential(layer, nn.Flatten()), shape, rng), shape)
    net = net.with_params(
        {key: value + torch.randn(value.shape, generator=rng) for key, value in net.params.items()}
    )
    state = method.start(net, digits(), rng)
    module = net.with_params(method.finish(net, state, digits(), {})).module()
    points = torch.eye(size**2).view(-1, *shape)
    rows = module(points) - module(torch.zeros_like(points))
    return float(torch.linalg.matrix_norm(rows.double(), 2))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (4, 2), (5, 4)])
def test_a_stride_that_divides_a_periodic_image_expands_nothing(name, kernel, stride):
    padding = (kernel - 1) // 2
    layer = nn.Conv2d(1, 4, kernel, stride, padding, padding_mode="circular")
    assert a_method(name, activation="relu").refuses(nn.Sequential(layer), digits()) is None
    assert expansion(name, layer, 8) <= 1 + 1e-5


def test_windows_around_the_edges_would_overlap_more_than_a_kernel_is_divided_by():
    """Some of the 7 pixels of a side lie in 3 windows, and 5 taps at stride 3 count as 2."""
    layer = nn.Conv2d(1, 25, 5, 3, 2, padding_mode="circular")
    assert expansion("bjorck", layer, 7) == pytest.approx(3 / 2)


def test_what_the_activation_allows_is_not_refused():
    odd = [nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 10)]
    assert refusal(*odd, activation="relu") is None
    assert refusal(*odd, activation="keep") is None
    steep = [nn.Flatten(), nn.Linear(64, 4), nn.GELU(), nn.Linear(4, 10)]
    assert refusal(*steep) is None
    assert "GELU" in refusal(*steep, activation="keep")
    prelu = [nn.Flatten(), nn.Linear(64, 4), nn.PReLU(), nn.Linear(4, 10)]
    assert "its slope is trained" in refusal(*prelu, activation="keep")


def test_a_network_that_is_no_chain_is_refused():
    assert "it is no nn.Sequential" in a_method("aol").refuses(nn.Linear(64, 10), digits())


def test_networks_in_double_precision_are_read():
    data = digits()
    assert a_method("aol").refuses(initial(data).double(), data) is None


def test_averages_make_the_claim_smaller():
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 10))
    method = a_method("aol")
    claim = method.claims(a_net(method.build(model, (1, 8, 8), torch.Generator()), (1, 8, 8)))
    assert claim.constant == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"offset": -0.1}, "offset must be at least 0 and finite, got -0.1"),
        ({"offset": math.inf}, "offset must be at least 0 and finite, got inf"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
    ],
)
def test_a_bad_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        a_method("aol", **fields)
