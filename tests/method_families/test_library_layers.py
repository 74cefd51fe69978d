"""Layers of other libraries as methods, which those libraries train alike."""

import importlib
import re

import pytest
import torch
from support.training import (
    a_method,
    a_model,
    a_net,
    a_trainer,
    an_entry,
    batches,
    digits,
    initial,
    train,
)
from torch import nn
from torch.nn import functional as F

from lipbench.bound import Bound
from lipbench.data.splits import Batch
from lipbench.method import Method
from lipbench.method_families import library_layers
from lipbench.method_families.library_layers import is_installed
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import PluginError, load, resolve, variants
from lipbench.seeds import stream
from lipbench.training.optimiser import Optimizer

PACKAGES = {"torchlip": "deel.torchlip", "orthogonium": "orthogonium"}
SMALL = a_model(widths=(6, 4))
FAST = Optimizer(name="adam", lr=0.02)


def needs(name):
    return pytest.mark.skipif(
        not is_installed(PACKAGES[name]),
        reason=f'the extra is not installed: pip install "lipbench[{name}]"',
    )


def cases(*values):
    return [
        pytest.param(*value, marks=needs(value[0]), id="-".join(map(str, value)))
        for value in values
    ]


KINDS = cases(
    ("torchlip", {"variant": "bjorck"}),
    ("torchlip", {"variant": "spectral"}),
    ("torchlip", {"variant": "frobenius"}),
    ("orthogonium", {"variant": "aoc"}),
    ("orthogonium", {"variant": "aol"}),
    ("orthogonium", {"orthogonaliser": "qr"}),
    ("orthogonium", {"orthogonaliser": "exponential"}),
    ("orthogonium", {"orthogonaliser": "cholesky"}),
)


class Convolutional(nn.Module):
    """What builds a small network of convolutions, as a model does."""

    def build(self, input_shape, outputs, rng):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(96, outputs),
        )


def built(method, model, seed=0):
    module = model.build((1, 8, 8), 10, stream(seed, "init"))
    return method.build(module, (1, 8, 8), stream(seed, "method", "any", "build")).eval()


def in_the_end(method, net):
    state = method.start(net, digits(), torch.Generator().manual_seed(0))
    return net.with_params(method.finish(net, state, digits(), {}))


def product(net):
    network = as_network(net.module(), (1, 8, 8))
    return load("lipbench.bounds", "product", Bound)().compute(network, Norm(2), None).value


@pytest.mark.parametrize(
    ("name", "made", "fields", "options"),
    cases(
        # Without Björck's iteration, behind which the vectors of power iterations hardly matter.
        ("torchlip", "SpectralLinear", {"variant": "spectral"}, {"eps_bjorck": None}),
        ("orthogonium", "OrthoLinear", {}, {}),
    ),
)
def test_the_library_trains_the_same_network(name, made, fields, options):
    """Its layers in an ordinary loop, with the same start, loss, order and optimiser."""
    place = {"torchlip": "deel.torchlip", "orthogonium": "orthogonium.layers"}[name]
    kind = getattr(importlib.import_module(place), made)
    data = digits(dtype=torch.float64)
    loss = {"offset": 0.5, "temperature": 0.2}
    entry = an_entry(name, epochs=2, lr=0.1, dtype="float64", **loss, **fields)
    trainer = a_trainer(entry, data, model=SMALL)
    progress = trainer.begin()
    torch.set_default_dtype(torch.float64)
    try:
        layers = [kind(*sizes, **options) for sizes in ((64, 6), (6, 4), (4, 10))]
    finally:
        torch.set_default_dtype(torch.float32)
    numbers = ("1", "3", "5")
    with torch.no_grad():
        for number, layer in zip(numbers, layers, strict=True):
            raw, *_ = (
                value for value in layer.parameters() if value.ndim == 2 and value.requires_grad
            )
            raw.copy_(progress.params[f"{number}.raw.0"][0])
            layer.bias.copy_(progress.params[f"{number}.plain.bias"][0])
            for key, value in [*layer.named_parameters(), *layer.named_buffers()]:
                if f"{number}.{key}" in progress.state["library"]:
                    value.copy_(progress.state["library"][f"{number}.{key}"][0])
    trained = [value for layer in layers for value in layer.parameters() if value.requires_grad]
    theirs = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
    for inputs, targets in batches(data, 32, epochs=2):
        x = inputs.flatten(1)
        for number, layer in enumerate(layers):
            x = layer(x)
            if number < 2:  # pairs, the larger first
                pairs = x.unflatten(1, (-1, 2))
                x = torch.stack([pairs.amax(dim=2), pairs.amin(dim=2)], dim=2).flatten(1)
        x = (x - 0.5 * F.one_hot(targets, 10)) / 0.2
        theirs.zero_grad()
        (0.2 * F.cross_entropy(x, targets)).backward()
        theirs.step()
    trainer.run(progress)
    for number, layer in zip(numbers, layers, strict=True):
        raw, *_ = (value for value in layer.parameters() if value.ndim == 2 and value.requires_grad)
        torch.testing.assert_close(progress.params[f"{number}.raw.0"][0], raw.detach())
        torch.testing.assert_close(progress.params[f"{number}.plain.bias"][0], layer.bias.detach())


@pytest.mark.parametrize(("name", "fields"), KINDS)
@pytest.mark.parametrize("model", [SMALL, Convolutional()], ids=["dense", "convolutional"])
def test_the_claim_of_the_library_is_proved(name, fields, model):
    """By lipbench's own bound, for parameters far from those it begins with."""
    method = a_method(name, **fields)
    net = a_net(built(method, model), (1, 8, 8))
    rng = torch.Generator().manual_seed(1)
    moved = {n: v + 0.3 * torch.randn(v.shape, generator=rng) for n, v in net.params.items()}
    finished = in_the_end(method, net.with_params(moved))
    claim = method.claims(finished)
    assert claim.constant == 1
    assert product(finished) <= 1 + claim.tolerance
    assert any(not torch.equal(finished.params[n], moved[n]) for n in moved)


@pytest.mark.parametrize(("name", "fields"), KINDS)
def test_gradients_reach_what_the_library_trains(name, fields):
    method = a_method(name, **fields)
    net = a_net(built(method, Convolutional()), (1, 8, 8))
    state = method.start(net, digits(), torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    raw = {
        n: (v + 0.1 * torch.randn(v.shape, generator=rng)).requires_grad_()
        for n, v in net.params.items()
        if ".raw." in n
    }
    data = digits()
    batch = Batch(inputs=data.train.inputs[:16], targets=data.train.targets[:16])
    h = {"offset": torch.tensor(0.4), "temperature": torch.tensor(0.25)}
    loss, _ = method.loss(net.with_params(raw), batch, state, {}, h)
    for key, gradient in zip(raw, torch.autograd.grad(loss, list(raw.values())), strict=True):
        # The library's own q of almost-orthogonal layers cancels: it is never trained.
        is_dead = fields.get("variant") == "aol" and key.endswith("raw.1")
        assert (float(gradient.abs().max()) > 1e-8) != is_dead, key


@pytest.mark.parametrize(("name", "fields"), cases(("torchlip", {}), ("orthogonium", {})))
def test_the_network_of_madry_trains(name, fields):
    data = digits(train=16, pairs=0, validation=0)
    model = a_model("madry_cnn")
    (outcome,) = train(an_entry(name, epochs=1, batch_size=16, lr=0.01), data, model=model)
    assert outcome.state == "done"
    net = a_net(built(a_method(name), model), (1, 8, 8))
    assert product(net.with_params(outcome.checkpoints["last"].params)) <= 1 + 1e-5


@pytest.mark.parametrize(("name", "fields"), cases(("torchlip", {}), ("orthogonium", {})))
def test_a_saved_network_is_read_without_the_library(name, fields, monkeypatch):
    (outcome,) = train(an_entry(name, epochs=1, optimizer=FAST), model=SMALL)
    net = a_net(built(a_method(name), SMALL), (1, 8, 8))
    monkeypatch.setattr(importlib, "import_module", None)
    network = as_network(net.with_params(outcome.checkpoints["last"].params).module(), (1, 8, 8))
    assert [type(step).__name__ for step in network.steps][::2] == ["Rearrange"] + ["GroupSort"] * 2
    assert len(network.layers) == 3


@pytest.mark.parametrize("name", PACKAGES)
def test_an_absent_library_is_refused_with_the_way_out(name, monkeypatch):
    monkeypatch.setattr(library_layers, "find_spec", lambda package: None)
    reason = a_method(name).refuses(initial(digits()), digits())
    assert reason == f'{PACKAGES[name]} is not installed: pip install "lipbench[{name}]"'
    family = load("lipbench.methods", name, Method)
    with pytest.raises(PluginError, match=re.escape(f'pip install "lipbench[{name}]"')):
        variants("lipbench.methods", name, family)


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in PACKAGES])
def test_layers_are_named_behind_a_colon(name):
    family = load("lipbench.methods", name, Method)
    for kind in family.kinds:
        assert resolve("lipbench.methods", f"{name}:{kind}", Method) == (family, {"variant": kind})
    with pytest.raises(PluginError, match=f"did you mean '{name}:{family.kinds[0]}'"):
        resolve("lipbench.methods", f"{name}:{family.kinds[0]}s", Method)
    with pytest.raises(ValueError, match=f"{name}:lipnn is not offered; there are"):
        family(variant="lipnn")


@pytest.mark.parametrize(
    ("name", "fields", "layer", "reason"),
    cases(
        ("torchlip", {}, nn.Conv2d(1, 2, 3, dilation=2), "no spread kernels"),
        ("torchlip", {"variant": "frobenius"}, nn.Conv2d(1, 2, 3, stride=2), "no strides"),
        ("torchlip", {}, nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), "copies"),
        ("orthogonium", {}, nn.Conv2d(1, 2, (3, 1)), "square kernels"),
        ("orthogonium", {}, nn.Conv2d(1, 2, 2, stride=3), "exceeds its kernel"),
        ("orthogonium", {"variant": "aol"}, nn.Conv2d(1, 2, 3, dilation=2), "spread kernels"),
    ),
)
def test_convolutions_without_a_version_are_refused(name, fields, layer, reason):
    size = layer(torch.zeros(1, 1, 8, 8)).numel()
    module = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(size, 10))
    assert reason in a_method(name, **fields).refuses(module, digits())


def test_methods_of_other_libraries_say_which():
    for name, package in PACKAGES.items():
        method = load("lipbench.methods", name, Method)
        assert (method.package, method.extra, method.stackable) == (package, name, False)
