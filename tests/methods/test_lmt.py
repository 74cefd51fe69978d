import math

import pytest
import torch
from support.training import a_method, a_net, digits, initial
from torch.nn import functional as F

from lipbench.data.splits import Batch


def objective(net, **fields):
    # Of twenty samples, with converged vectors and the whole of c.
    data, method = digits(dtype=torch.float64), a_method("lmt", ramp=0.0, **fields)
    batch = Batch(data.train.inputs[:20], data.train.targets[:20])
    state = method.start(net, data, torch.Generator().manual_seed(0))
    h = {"c": torch.tensor(method.c).double()}

    def value(params):
        now = net.with_params(params)
        return method.loss(now, batch, {**state, "buffers": {}}, {}, h)[0]

    slopes, found = torch.func.grad_and_value(value)(net.params)
    return found, slopes, batch


def literal(params, net, batch, c, form, limited=False):
    # Sample by sample, as the paper and, for the limit, the authors' code.
    first, second, last = (params[layer.weight_name] for layer in net.layers)
    norms = [torch.linalg.matrix_norm(weight, ord=2) for weight in (first, second, last)]
    before = norms[0] * norms[1] / 16  # the slopes of two sigmoids
    losses = []
    for logits, y in zip(net.with_params(params)(batch.inputs), batch.targets, strict=True):
        rises = []
        for j in range(10):
            if j == y:
                rises.append(logits.new_zeros(()))
            elif form == "rows":
                rises.append(c * before * (last[j] - last[y]).norm())
            else:
                rises.append(math.sqrt(2) * c * before * norms[2])
        share = 1.0
        if limited:
            for j in range(10):
                lead = (logits[y] - logits[j]).item()
                if j != y:
                    share = min(share, max(0.0, lead / rises[j].item()))
        raised = logits + share * torch.stack(rises)
        losses.append(F.cross_entropy(raised.unsqueeze(0), y.unsqueeze(0)))
    return torch.stack(losses).mean()


@pytest.fixture(scope="module")
def net():
    # Wide enough apart that some samples have a margin and others none.
    made = a_net(initial(digits(dtype=torch.float64)), (1, 8, 8))
    return made.with_params({name: 3 * value for name, value in made.params.items()})


@pytest.mark.parametrize("form", ["rows", "network"])
@pytest.mark.parametrize("limited", [False, True])
def test_objective_and_slope_are_those_of_the_paper(net, form, limited):
    value, slopes, batch = objective(net, c=0.002, form=form, limited=limited)
    right = net(batch.inputs).argmax(dim=1) == batch.targets
    assert 0 < int(right.sum()) < len(right)
    params = {name: value.detach().requires_grad_() for name, value in net.params.items()}
    expected = literal(params, net, batch, 0.002, form, limited)
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-6)
    names = list(params)
    theirs = torch.autograd.grad(expected, [params[name] for name in names])
    for name, slope in zip(names, theirs, strict=True):
        torch.testing.assert_close(slopes[name], slope, rtol=1e-3, atol=1e-5)
