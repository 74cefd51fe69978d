"""Data, networks and bounds for training under LipSDP by ADMM."""

from pathlib import Path

import torch
from support.training import a_model, a_net, initial

from lipbench.bound import Bound
from lipbench.data.splits import split
from lipbench.dataset import Dataset
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load
from lipbench.training.optimiser import Optimizer

TANH = a_model(widths=(4,), activation="tanh")
QUICK = {"optimizer": Optimizer(name="adam", lr=0.05), "tolerance": 1e-2}


def curve(name="sine", dtype=torch.float32):
    dataset = load("lipbench.datasets", name, Dataset)(samples=20)
    return split(dataset, dataset.read(Path()), dtype=dtype)


def saved(params, data, model):
    return a_net(initial(data, model=model), data.dataset.input_shape).with_params(params)


def value(bound, net):
    network = as_network(net.module(), net.skeleton.input_shape)
    return load("lipbench.bounds", bound, Bound)().compute(network, Norm(2), None).value
