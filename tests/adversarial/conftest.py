"""What tests of attacks share."""

import pytest
import torch
from support.classifiers import network
from support.scripted import generator


@pytest.fixture(name="problem")
def _problem():
    net = network()
    inputs = torch.rand(50, 64, generator=generator())
    net.eval()
    return net, inputs, net(inputs).argmax(dim=1)
