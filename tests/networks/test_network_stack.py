import pytest
import torch
from support.training import SMALL

from lipbench.networks.network_stack import Networks, StackClassifier

INPUTS = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def modules(count=3):
    rng = torch.Generator().manual_seed(0)
    return [SMALL.build((1, 8, 8), 10, rng).eval() for _ in range(count)]


@pytest.mark.parametrize(
    "owner",
    [
        [0, 0, 0, 1, 1, 1, 2, 2, 2],
        [0, 0, 0, 0, 0, 0, 1, 2, 2],
        [0, 0, 0, 2, 2, 2, 2, 2, 2],
        [1, 1, 1, 1, 1, 1, 1, 1, 1],
        [2, 0, 1, 1, 0, 2, 2, 0, 1],
    ],
    ids=["even", "uneven", "one absent", "one alone", "mixed"],
)
def test_each_sample_is_answered_by_its_own_network(owner):
    nets = modules()
    classifier = StackClassifier(Networks.of(nets), torch.tensor(owner))
    points = INPUTS.clone().requires_grad_()
    outputs = classifier(points)
    (gradient,) = torch.autograd.grad(outputs[:, 0].sum(), points)
    for number, own in enumerate(owner):
        point = INPUTS[number : number + 1].clone().requires_grad_()
        expected = nets[own](point)
        (slope,) = torch.autograd.grad(expected[:, 0].sum(), point)
        torch.testing.assert_close(outputs[number], expected[0])
        torch.testing.assert_close(gradient[number], slope[0])


def test_a_part_of_the_samples_is_answered_by_their_networks():
    nets = modules()
    classifier = StackClassifier(Networks.of(nets), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]))
    rows = torch.tensor([1, 7, 8])
    torch.testing.assert_close(classifier.on_rows(rows)(INPUTS[rows]), classifier(INPUTS)[rows])


def test_other_samples_than_its_own_are_refused():
    classifier = StackClassifier(Networks.of(modules()), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="answers 3 samples in order, got 9"):
        classifier(INPUTS)


def test_alone_a_module_is_itself():
    """Attacks of other libraries look for its parameters and its device."""
    nets = modules()
    networks = Networks.of(nets)
    assert networks.alone(1) is nets[1]
    assert networks.classifier(torch.tensor([2, 2])) is nets[2]


def test_networks_without_modules_are_functions():
    nets = modules()
    networks = Networks.of(nets)
    bare = Networks(networks.call, networks.params, networks.buffers)
    torch.testing.assert_close(bare.alone(1)(INPUTS), nets[1](INPUTS))
