"""Models are trained as they are written, or refused by name."""

import pytest
import torch
from support.training import an_entry, batches, digits, initial, train
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from lipbench.model import Model
from lipbench.registry import load, names
from lipbench.training.ensemble import TrainingRefused
from lipbench.training.optimiser import Optimizer


def a_model(build):
    """Return a model plugin that builds a network by a function of the number of outputs."""

    class Strange(Model):
        def build(self, input_shape, outputs, rng):
            torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
            return build(outputs)

    return Strange()


class Acting(nn.Module):
    """A dense network whose hidden values go through a function of the mode."""

    def __init__(self, act, outputs=10):
        super().__init__()
        self.first, self.last, self.act = nn.Linear(64, 8), nn.Linear(8, outputs), act
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        return self.last(self.act(self, torch.relu(self.first(x.flatten(1)))))


def counting(self, h):
    if self.training:
        self.seen += 1
    return h


def in_training(change):
    return lambda self, h: change(h) if self.training else h


STRANGE = {
    "dropout by its flag": (
        lambda n: Acting(lambda self, h: F.dropout(h, 0.9, self.training), n),
        "it draws from the generator of torch",
    ),
    "a little dropout": (
        lambda n: Acting(lambda self, h: F.dropout(h, 0.001, self.training), n),
        "it draws from the generator of torch",
    ),
    "noise": (
        lambda n: Acting(in_training(lambda h: h + 5 * torch.randn_like(h)), n),
        "it draws from the generator of torch",
    ),
    "a dropout layer": (
        lambda n: nn.Sequential(nn.Flatten(), nn.Linear(64, n), nn.Dropout(0.5)),
        "layer '2' is dropout",
    ),
    "another slope in training": (
        lambda n: Acting(in_training(lambda h: 0.5 * h), n),
        "in training mode it answers otherwise",
    ),
    "random slopes": (
        lambda n: nn.Sequential(nn.Flatten(), nn.Linear(64, n), nn.RReLU()),
        "it draws from the generator of torch",
    ),
    "a counter": (lambda n: Acting(counting, n), "it changes the buffer 'seen'"),
    "power iteration in a parametrisation": (
        lambda n: nn.Sequential(nn.Flatten(), spectral_norm(nn.Linear(64, n))),
        "changes the buffer|answers otherwise",
    ),
    "a frozen layer": (
        lambda n: nn.Sequential(
            nn.Flatten(), nn.Linear(64, 8).requires_grad_(False), nn.Linear(8, n)
        ),
        "parameter '1.weight' is frozen",
    ),
    "a frozen bias": (
        lambda n: frozen_bias(nn.Sequential(nn.Flatten(), nn.Linear(64, n))),
        "parameter '1.bias' is frozen",
    ),
    "three outputs": (
        lambda n: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
        r"it returns shape \(8, 3\), expected \(8, 10\): there are 10 classes",
    ),
    "an axis too many": (
        lambda n: nn.Sequential(nn.Flatten(), nn.Linear(64, n), nn.Unflatten(1, (n, 1))),
        r"it returns shape \(8, 10, 1\)",
    ),
    "another input": (
        lambda n: nn.Sequential(nn.Flatten(), nn.Linear(32, n)),
        r"it does not take inputs of shape \(1, 8, 8\)",
    ),
    "overflowing outputs": (
        lambda n: Acting(lambda self, h: h * torch.inf, n),
        "its outputs are NaN or infinite before any training",
    ),
}


def frozen_bias(module):
    module[1].bias.requires_grad_(False)
    return module


@pytest.mark.parametrize("name", STRANGE)
def test_what_would_be_left_out_is_refused(name):
    build, says = STRANGE[name]
    with pytest.raises(TrainingRefused, match=f"model Strange: .*({says})"):
        train(an_entry("standard", epochs=1), model=a_model(build))


def test_one_logit_for_two_classes_is_refused_with_the_way_out():
    data = digits(64, 8, 8, classes=(3, 8))
    model = a_model(lambda n: nn.Sequential(nn.Flatten(), nn.Linear(64, 1)))
    with pytest.raises(TrainingRefused, match="written as the two logits 0 and g"):
        train(an_entry("standard", epochs=1), data, model=model)


class Doubled(nn.Module):
    """A residual network with two kinds of layers that have a state in training."""

    def __init__(self, outputs):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.last = nn.Linear(256, 256), nn.Linear(256, outputs)
        self.flat = nn.BatchNorm1d(256, momentum=None, affine=False, eps=1e-3)

    def forward(self, x):
        h = torch.relu(self.norm(self.conv(x))).flatten(1)
        return self.last(h + self.flat(torch.tanh(self.inner(h))))


MODELS = {
    **{name: load("lipbench.models", name, Model)() for name in names("lipbench.models")},
    "residual, normalised": a_model(Doubled),
    "weight norm": a_model(
        lambda n: nn.Sequential(
            nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 8)), nn.Linear(8, n)
        )
    ),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", MODELS)
def test_an_epoch_is_that_of_plain_torch(name):
    """Cross entropy, module.train() and SGD with momentum: parameters and buffers alike."""
    model, data = MODELS[name], digits(96, 8, 16, dtype=torch.float64)
    plain = initial(data, model=model).train()
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    momentum = Optimizer(name="sgd", lr=0.05, momentum=0.9)
    entry = an_entry("standard", epochs=1, optimizer=momentum, dtype="float64")
    (outcome,) = train(entry, data, model=model)
    for inputs, labels in batches(data, 32, 1):
        optimiser.zero_grad()
        F.cross_entropy(plain(inputs), labels).backward()
        optimiser.step()
    checkpoint = outcome.checkpoints["last"]
    ours = checkpoint.params | checkpoint.buffers
    for key, value in [*plain.named_parameters(), *plain.named_buffers()]:
        assert torch.allclose(ours[key].double(), value.double(), rtol=1e-9, atol=1e-11), key
