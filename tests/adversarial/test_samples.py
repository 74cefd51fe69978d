"""Arguments of attacks that do not fit each other, and networks of one logit."""

import math

import pytest
import torch
from torch import nn

import lipbench
from lipbench.audit.audit import Labelled, audit

X, Y = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


def a_network(outputs=3):
    torch.manual_seed(0)
    return nn.Linear(4, outputs)


class Answer(nn.Module):
    """A linear layer whose result goes through a function."""

    def __init__(self, change):
        super().__init__()
        self.layer, self.change = a_network(), change

    def forward(self, x):
        return self.change(self.layer(x))


def attack(model, x=X, y=Y, epsilon=0.0, **options):
    return lipbench.attack(model, x, y, epsilon=epsilon, steps=1, starts=1, **options)


@pytest.mark.parametrize("labels", [Y.int(), Y.to(torch.uint8), Y.to(torch.int16), Y])
def test_whole_numbers_of_any_type_are_labels(labels):
    assert torch.equal(attack(a_network(), y=labels).success, attack(a_network()).success)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (Y.float(), "labels are torch.float32, expected whole numbers"),
        (torch.eye(3)[Y].long(), r"labels have shape \(6, 3\), expected \(6,\).*argmax"),
        (Y[:, None], r"labels have shape \(6, 1\), expected \(6,\)"),
        (Y[:5], r"labels have shape \(5,\), expected \(6,\)"),
        (Y.numpy(), "labels are ndarray, expected a torch.Tensor"),
        (Y.tolist(), "labels are list, expected a torch.Tensor"),
        (Y - 1, "the label at index 0 is -1, expected 0 or more"),
        (Y + 1, "the network has 3 outputs, and there is a label 3, expected 0 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, says):
    with pytest.raises(ValueError, match=says):
        attack(a_network(), y=labels)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ((X * 255).to(torch.uint8), "inputs are torch.uint8 from .* divide bytes by 255"),
        (X.numpy(), "inputs are ndarray, expected a torch.Tensor"),
        (torch.where(X[2, 1] == X, torch.nan, X), "1 inputs have NaN .* the first at index 2"),
        (X.double(), r"does not take inputs of shape \(4,\) and torch.float64"),
        (X[:, :3], r"does not take inputs of shape \(3,\)"),
        (X[:, 0], r"inputs have shape \(6,\), expected an axis of samples"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs, says):
    with pytest.raises(ValueError, match=says):
        attack(a_network(), x=inputs)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda z: {"logits": z}, "the model returns dict, expected one tensor"),
        (lambda z: (z, z), "the model returns tuple"),
        (lambda z: z.argmax(1), r"the model returns shape \(2,\) for 2 inputs"),
        (lambda z: z[:, :, None], r"the model returns shape \(2, 3, 1\) for 2 inputs"),
        (lambda z: z.squeeze(0), r"returns \(3,\) for one input, expected \(1, 3\): does it squee"),
        (lambda z: z[:, :2], "the network has 2 outputs, and there is a label 2, expected 0 to 1"),
    ],
)
def test_answers_that_are_no_logits_are_named(change, says):
    with pytest.raises(ValueError, match=says):
        attack(Answer(change))


def test_so_many_radii_as_samples():
    with pytest.raises(ValueError, match=r"epsilon has shape \(3,\), .* for each of the 6 inputs"):
        attack(a_network(), epsilon=torch.tensor([0.1, 0.2, 0.3]))
    assert attack(a_network(), epsilon=torch.full((6,), 0.1)).accuracy <= 1
    assert len(attack(a_network(), X[:0], Y[:0]).success) == 0


def one_and_two_logits():
    """Return a network of one logit, and the same as two, 0 and g."""
    one = a_network(1)
    two = nn.Linear(4, 2)
    with torch.no_grad():
        one.bias -= one(X).sort(dim=0).values[2:4].mean()
        two.weight[0], two.bias[0] = 0, 0
        two.weight[1], two.bias[1] = one.weight[0], one.bias[0]
    return one, two, (one(X)[:, 0] > 0).long()


@pytest.mark.parametrize("norm", [2, math.inf])
def test_one_logit_is_read_as_two(norm):
    """All are right, attacked or not, as they are with the logits 0 and g."""
    one, two, labels = one_and_two_logits()
    assert lipbench.attack(one, X, labels, epsilon=0.0).accuracy == 1
    ones = labels == 1
    assert lipbench.attack(one, X[ones], labels[ones], epsilon=0.0).accuracy == 1
    first, second = (
        lipbench.attack(model, X, labels, norm=norm, epsilon=0.2) for model in (one, two)
    )
    assert torch.equal(first.success, second.success)
    assert int(first.success.sum()) > 0
    with pytest.raises(ValueError, match="1 outputs, and there is a label 2, expected 0 to 1"):
        lipbench.attack(one, X, labels + 1, epsilon=0.0)


def test_one_logit_is_certified_by_its_distance_to_zero():
    one, _, labels = one_and_two_logits()
    one, inputs = one.double(), X.double()
    data = Labelled(name="made up", inputs=inputs, labels=labels, box=(0.0, 1.0))
    radius = (one(inputs)[:, 0].abs() / one.weight.norm()).detach()
    least = float(radius.min())
    found = audit(one, (4,), data=data, epsilons=(0.99 * least, 1.01 * least), time_limit=5)
    assert found.accuracy.clean == 1
    near, far = found.accuracy.at
    assert near.certified == 1
    assert far.certified < 1


@pytest.mark.parametrize(
    ("inputs", "labels", "says"),
    [
        ((X * 255).to(torch.uint8), Y, "divide bytes by 255"),
        (X, Y + 1, "the network has 3 outputs, and there is a label 3"),
        (X, Y.float(), "labels are torch.float32"),
        (X * torch.nan, Y, "6 inputs have NaN"),
    ],
)
def test_an_audit_names_data_that_do_not_fit_before_it_bounds_anything(inputs, labels, says):
    data = Labelled(name="made up", inputs=inputs, labels=labels, box=None)
    with pytest.raises(ValueError, match=says):
        audit(a_network(), (4,), data=data)
