"""Networks and the penalties that methods add to their loss."""

import torch
from support.training import a_model, a_net, an_entry, digits
from torch import nn

from lipbench.data.splits import Batch
from lipbench.training.trial import Trial

SHAPE = (1, 8, 8)


def dense(*, seed=0, widths=(12, 9), activation="relu"):
    rng = torch.Generator().manual_seed(seed)
    module = a_model(widths=widths, activation=activation).build(SHAPE, 10, rng)
    return a_net(module.double(), SHAPE)


def convolutional(*, seed=0):
    # Strided, dilated, grouped and circular: every kind of convolution at once.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
            nn.ReLU(),
            nn.Conv2d(6, 3, 2, dilation=2),
            nn.Flatten(),
            nn.Linear(12, 10),
        )
    return a_net(module.double(), SHAPE)


def penalty(name, net, state=None, draw=None, **fields):
    """Return the objective less the loss, its gradients, and the state after it."""
    trial = Trial(entry=an_entry(name, **fields), seed=0)
    h = {key: torch.tensor(value, dtype=torch.float64) for key, value in trial.scalars().items()}
    data = digits(dtype=torch.float64)
    batch = Batch(data.train.inputs[:8], data.train.targets[:8])
    if state is None:
        state = trial.method.start(net, data, torch.Generator().manual_seed(1))

    def difference(params):
        now = net.with_params(params)
        value, after = trial.method.loss(now, batch, {"buffers": {}, **state}, draw or {}, h)
        return value - batch.loss(now(batch.inputs)), after

    gradients, (value, after) = torch.func.grad_and_value(difference, has_aux=True)(net.params)
    return float(value), gradients, after


def matrices(net):
    """Return every layer as a float64 matrix, column by column."""
    found = []
    for layer in net.layers:
        size = torch.Size(layer.input_shape).numel()
        inputs = torch.eye(size, dtype=torch.float64).view(size, *layer.input_shape)
        found.append(layer.apply(inputs).flatten(1).T.detach())
    return found
