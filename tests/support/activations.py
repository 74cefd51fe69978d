"""Activation layers with settings of all kinds."""

from torch import nn

LAYERS = [
    nn.ReLU(),
    nn.ReLU6(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Hardtanh(-2, 0.5),
    nn.LeakyReLU(0.1),
    nn.LeakyReLU(-2.0),
    nn.LeakyReLU(3.0),
    nn.PReLU(init=-3.0),
    nn.ELU(),
    nn.ELU(2.5),
    nn.CELU(2.0),
    nn.SELU(),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.SiLU(),
    nn.Mish(),
    nn.Softplus(3.0),
    nn.Hardswish(),
    nn.Hardsigmoid(),
    nn.Softsign(),
    nn.LogSigmoid(),
    nn.Tanhshrink(),
]
