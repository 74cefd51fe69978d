"""What margin training is for, measured of finished networks by the core's own bounds."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from support.training import a_method, a_model, an_entry, digits, train
from torch import nn

from lipbench.adversarial.judge import judge
from lipbench.adversary import Attack
from lipbench.bound import Bound
from lipbench.data.splits import split
from lipbench.dataset import Dataset
from lipbench.lipschitz.certified_radius import certified_accuracy, certified_radius, gaps
from lipbench.model import Model
from lipbench.networks.net import Net
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load
from lipbench.threat import Threat
from lipbench.training.optimiser import Optimizer
from lipbench.training.trainer import Trainer
from lipbench.training.trial import Trial

SHALLOW = a_model(widths=(16,), activation="relu")
QUICK = {"epochs": 20, "batch_size": 32, "optimizer": Optimizer(name="adam", lr=0.02)}


class Tiny(Model):
    """A convolution with batch normalisation and both kinds of pooling."""

    def build(self, input_shape, outputs, rng):
        layers = [
            *(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, outputs)),
        ]
        for layer in layers:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, generator=rng)
                nn.init.zeros_(layer.bias)
        return nn.Sequential(*layers)


@lru_cache
def trained(name, model=SHALLOW, **fields):
    # The last network; the fields may be those of the entry too.
    trial = Trial(entry=an_entry(name, **{**QUICK, **fields}), seed=0)
    trainer = Trainer([trial], model, digits())
    (outcome,) = trainer.run(trainer.begin())
    assert outcome.state == "done"
    last = outcome.checkpoints["last"]
    return Net(trainer.ensemble.skeleton, last.params, last.buffers), outcome


def accuracy(net, part):
    return float((net(part.inputs).argmax(dim=1) == part.targets).float().mean())


def certified(net, epsilon):
    steps, part = as_network(net.module(), (1, 8, 8)), digits().test
    bound = load("lipbench.bounds", "product", Bound)().compute(steps, Norm(2), None)
    own = gaps(steps, part.inputs, part.targets)
    radius = certified_radius(own, part.targets, steps, replace(bound, domain=None))
    return certified_accuracy(radius, epsilon)


def attacked(net, epsilon):
    part = digits().test
    radius = torch.full((len(part),), epsilon, dtype=torch.float64)
    threat = Threat(norm=Norm(2), epsilon=radius)
    attack = load("lipbench.attacks", "pgd", Attack)(steps=5, starts=1)
    rng = torch.Generator().manual_seed(0)
    found = judge(attack, net.module(), part.inputs, part.targets, threat, rng)
    return 1 - float(found.success.float().mean())


def refusal(name, model, data=None, **fields):
    data = digits() if data is None else data
    return a_method(name, **fields).refuses(model, data)


def regression():
    dataset = load("lipbench.datasets", "half_max_abs", Dataset)()
    return split(dataset, dataset.read(Path()))


def one_step(name, model, **fields):
    # Whether a network trains at all.
    entry = an_entry(name, epochs=1, batch_size=16, lr=0.001, **fields)
    (outcome,) = train(entry, digits(train=16, pairs=0, validation=0), model=model)
    return outcome
