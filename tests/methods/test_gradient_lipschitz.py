import math
from dataclasses import replace

import pytest
import torch
from support.objectives import (
    SETTINGS,
    a_batch,
    a_dense_net,
    assert_is,
    is_standard,
    setting,
    step,
    trained,
)
from support.training import a_method, digits
from torch import nn

from lipbench.data.folder import folder
from lipbench.data.splits import Batch, split
from lipbench.dataset import Dataset
from lipbench.registry import load

NAME = "gradient_lipschitz"
DATA = digits(dtype=torch.float64)


def gradients(net, rows, of):
    # Lengths, sample by sample.
    def value(x, y):
        logits = net(x[None])[0]
        if of == "loss":
            return logits.logsumexp(dim=0) - logits[y]
        others = [logits[k] for k in range(10) if k != int(y)]
        return torch.stack(others).max() - logits[y]

    slope = torch.func.grad(value)
    found = [slope(DATA.train.inputs[row], DATA.train.targets[row]).norm() for row in rows]
    return torch.stack(found)


def kept(rows):
    return {"buffers": {}, "rows": torch.tensor(rows)}


@pytest.mark.parametrize("of", ["margin", "loss"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_the_penalty_is_the_excess_of_the_largest_gradient(kind, of):
    """Of the batch and of the samples kept, which are measured anew."""
    net, batch = setting(kind)
    size = len(batch.inputs)
    steepest = int(gradients(net, range(size, 128), of).argmax()) + size
    rows = [*range(size), steepest]
    bound = float(gradients(net, rows, of).max()) / 2
    method = a_method(NAME, lambda_=0.3, bound=bound, of=of)
    found = step(method, net, batch, kept([steepest]))
    expected = lambda now: 0.3 * (gradients(now, rows, of).max() - bound)  # noqa: E731
    assert_is(found, expected, net, rtol=1e-8, atol=1e-10)


def test_after_an_epoch_the_steepest_samples_of_the_data_are_kept():
    """Three of 128, with weights that do not move, in batches of 32 that hold those kept too."""
    net, state = a_dense_net(), kept([0, 1, 2])
    method = a_method(NAME, kept=3)
    for _ in range(2):
        for rows in torch.arange(128).split(32):
            inputs, targets = DATA.train.inputs[rows], DATA.train.targets[rows]
            batch = Batch(inputs, targets, index=rows, data=DATA)
            state = step(method, net, batch, state)[2]
    expected = gradients(net, range(128), "margin").topk(3).indices
    assert state["rows"].tolist() == expected.tolist()


def test_none_need_be_kept():
    net, batch = a_dense_net(), a_batch()
    value, _, state = step(a_method(NAME, lambda_=1.0, kept=0), net, batch)
    torch.testing.assert_close(value, gradients(net, range(20), "margin").max())
    assert state["rows"].shape == (0,)


def test_up_to_the_bound_nothing_is_penalised():
    value, slope, _ = step(a_method(NAME, bound=1e3), a_dense_net(), a_batch())
    assert float(value) == 0
    assert not any(each.any() for each in slope.values())


@pytest.mark.parametrize("fields", [{"lambda_": 0.0, "kept": 0}, {"bound": math.inf}])
def test_without_a_penalty_it_is_standard_training_bit_for_bit(fields):
    assert is_standard(NAME, **fields)


def test_a_larger_lambda_leaves_a_smaller_largest_gradient():
    nets = trained(NAME, "lambda_", (0.0, 0.05, 0.5))
    sizes = [float(gradients(net, range(0, 128, 2), "margin").max()) for net in nets]
    assert sizes[0] > 1.2 * sizes[1] > 1.2**2 * sizes[2]


def test_what_it_cannot_train_is_refused():
    module = nn.Identity()
    dataset = load("lipbench.datasets", "half_max_abs", Dataset)()
    data = split(dataset, dataset.read(folder()))
    assert "set of = 'loss'" in a_method(NAME).refuses(module, data)
    assert a_method(NAME, of="loss").refuses(module, data) is None
    assert a_method(NAME, kept=128).refuses(module, DATA) is None
    assert a_method(NAME, kept=129).refuses(module, DATA) == (
        "it keeps 129 samples of 128: lower kept"
    )
    one = replace(DATA, dataset=replace(DATA.dataset, classes=(3,)))
    assert "there is one" in a_method(NAME).refuses(module, one)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lambda_": math.nan}, "lambda must be at least 0, got nan"),
        ({"bound": -1.0}, r"bound must be at least 0, got -1\.0"),
        ({"kept": -1}, "kept must be at least 0, got -1"),
    ],
)
def test_a_number_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        a_method(NAME, **fields)
