"""The objective of a method at one batch, to be held against a formula; and short trainings."""

from dataclasses import fields

import torch
from support.training import a_model, a_net, an_entry, digits, initial, same, train
from torch import nn

from lipbench.data.splits import Batch
from lipbench.seeds import stream
from lipbench.training.optimiser import Optimizer
from lipbench.training.trainer import Trainer
from lipbench.training.trial import Trial

SHAPE = (1, 8, 8)


def scalars(method):
    """Return what the trainer hands over as `h`."""
    return {
        item.name: torch.tensor(getattr(method, item.name), dtype=torch.float64)
        for item in fields(method)
        if type(getattr(method, item.name)) is float
    }


def a_batch(size=20):
    """Return the first samples of the digits in double precision."""
    data = digits(dtype=torch.float64)
    rows = torch.arange(size)
    return Batch(data.train.inputs[:size], data.train.targets[:size], index=rows, data=data)


def a_dense_net():
    """Return the small network that training starts from."""
    return a_net(initial(digits(dtype=torch.float64)), SHAPE)


def a_conv_net():
    """Return a convolution with ReLU and pooling, and a dense layer."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 10),
    )
    return a_net(module.double(), SHAPE)


# Behind a dense layer there is a short way to slopes, which pays for many samples.
SETTINGS = {"dense": (a_dense_net, 40), "few": (a_dense_net, 5), "conv": (a_conv_net, 10)}


def setting(kind):
    """Return a network and a batch."""
    build, size = SETTINGS[kind]
    return build(), a_batch(size)


def step(method, net, batch, state=None):
    """Return the objective less the loss, its slope in the weights, and the state after it."""
    data = digits(dtype=torch.float64)
    if state is None:
        state = {"buffers": {}, **method.start(net, data, stream(0, "method"))}
    draw = method.draw(batch, stream(1, "method"))

    def penalty(params):
        now = net.with_params(params)
        value, after = method.loss(now, batch, state, draw, scalars(method))
        return value - batch.loss(now(batch.inputs)), after

    slope, (value, after) = torch.func.grad_and_value(penalty, has_aux=True)(net.params)
    return value, slope, after


def assert_is(found, expected, net, **tolerance):
    """Check a value and its slope against a function of the network."""
    value, slope = found[:2]
    formula = lambda params: expected(net.with_params(params))  # noqa: E731
    wanted, wanted_value = torch.func.grad_and_value(formula)(net.params)
    torch.testing.assert_close(value, wanted_value, **tolerance)
    for name, each in wanted.items():
        torch.testing.assert_close(slope[name], each, **tolerance)


def trained(name, field, values, epochs=11, **fields):
    """Return the networks that one stack of several strengths ends with, in double precision.

    One step an epoch, and few of them: not enough to be recorded, which takes longer.
    """
    entries = [
        an_entry(
            name,
            epochs=epochs,
            batch_size=128,
            optimizer=Optimizer(name="adam", lr=0.05),
            dtype="float64",
            **{**fields, field: value},
        )
        for value in values
    ]
    model, data = a_model(widths=(16,), activation="relu"), digits(dtype=torch.float64)
    trainer = Trainer([Trial(entry=entry, seed=0) for entry in entries], model, data)
    net = a_net(initial(data, model=model), SHAPE)
    outcomes = trainer.run(trainer.begin())
    return [net.with_params(outcome.checkpoints["last"].params) for outcome in outcomes]


def is_standard(name, model=None, **fields):
    """Return whether training gives the bits of standard training, with two seeds."""
    model = model or a_model(widths=(16,), activation="relu")
    ours, standard = (
        train(an_entry(*each, epochs=2, **own), seeds=(0, 1), model=model)
        for each, own in (((name,), fields), (("standard",), {}))
    )
    return all(
        same(one.checkpoints["last"].params, other.checkpoints["last"].params)
        for one, other in zip(ours, standard, strict=True)
    )
