"""Convex potential layers."""

import pytest
import torch
from support.training import a_method, a_model, a_net, an_entry, batches, digits, initial, train
from torch import nn
from torch.nn import functional as F

from lipbench.layers.explanations import ConvResidual, Residual
from lipbench.seeds import stream

WIDE = a_model(widths=(64,))
FIELDS = {"offset": 0.5, "temperature": 0.2}


def unit(vector):
    return vector / vector.norm()


def built(model):
    return a_method("cpl").build(model, (1, 8, 8), stream(0, "method", "cpl", "build"))


def moved(module, seed=1):
    # With parameters that are not orthogonal.
    net = a_net(module.double(), (1, 8, 8))
    rng = torch.Generator().manual_seed(seed)
    return net.with_params(
        {name: torch.randn(v.shape, generator=rng).double() for name, v in net.params.items()}
    )


def test_training_is_a_plain_loop_with_one_power_step_per_training_step():
    """x - (2/σ²)·V·relu(Vᵀx + σb), then a linear layer V/σ; σ = |Vᵀu|, u held fixed."""
    data = digits(dtype=torch.float64)
    module = built(initial(digits(), model=WIDE)).double()
    v, b = module[1].weight, module[1].bias
    w, c = module[2].weight, module[2].bias
    rng = stream(0, "method", "cpl")
    rights = [unit(torch.randn(64, generator=rng).double()) for _ in range(2)]
    with torch.no_grad():
        for _ in range(15):
            rights = [unit(m.T @ (m @ r)) for m, r in zip((v.T, w), rights, strict=True)]
    theirs = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for inputs, targets in batches(data, 32, epochs=2):
        with torch.no_grad():
            rights = [unit(m.T @ (m @ r)) for m, r in zip((v.T, w), rights, strict=True)]
        one, two = (v.T @ rights[0]).norm(), (w @ rights[1]).norm()
        x = inputs.flatten(1)
        x = x - 2 / one**2 * F.relu(x @ v + one * b) @ v.T
        logits = F.linear(x, w / two, c) - 0.5 * F.one_hot(targets, 10)
        theirs.zero_grad()
        (0.2 * F.cross_entropy(logits / 0.2, targets)).backward()
        theirs.step()
    entry = an_entry("cpl", epochs=2, lr=0.1, dtype="float64", **FIELDS)
    (outcome,) = train(entry, data, model=WIDE)
    last = outcome.checkpoints["last"].params
    for key, raw in (("1", v), ("2", w)):
        expected = raw.detach() / torch.linalg.matrix_norm(raw.detach(), ord=2)
        torch.testing.assert_close(last[f"{key}.weight"], expected, rtol=1e-8, atol=1e-10)
    for key, raw in (("1", b), ("2", c)):
        torch.testing.assert_close(last[f"{key}.bias"], raw.detach(), rtol=1e-8, atol=1e-10)


def test_a_finished_dense_layer_has_norm_one():
    net = moved(built(initial(digits(), model=WIDE)))
    found = a_method("cpl").finish(net, {}, digits(), {})
    for key in ("1.weight", "2.weight"):
        assert float(torch.linalg.matrix_norm(found[key], ord=2)) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_a_finished_convolution_has_norm_one_or_a_little_less(mode):
    layers = [nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode)]
    module = built(nn.Sequential(*layers))
    assert isinstance(module[1], ConvResidual)
    net = moved(module)
    net = net.with_params(a_method("cpl").finish(net, {}, digits(), {}))
    operator = net.steps.steps[1].operator
    inputs = torch.eye(256, dtype=torch.float64).view(256, 4, 8, 8)
    norm = float(torch.linalg.matrix_norm(operator.apply(inputs).flatten(1), ord=2))
    assert (0.9 if mode == "zeros" else 1 - 1e-9) < norm <= 1


def test_training_is_near_the_network_that_is_saved():
    net = moved(built(initial(digits(), model=WIDE)))
    method = a_method("cpl", iterations=20)
    state = method.start(net, digits(), torch.Generator().manual_seed(0))
    saved = method.finish(net, state, digits(), {})
    for name, value in method.effective(net, state, {}).items():
        torch.testing.assert_close(value, saved[name], rtol=0.01, atol=1e-3)


def test_a_step_moves_the_vectors():
    net = moved(built(initial(digits(), model=WIDE)))
    method = a_method("cpl")
    state = method.start(net, digits(), torch.Generator().manual_seed(0))
    assert isinstance(net.module()[1], Residual)
    _, after = method.in_effect(net, state)
    assert after.keys() == state.keys()
    assert all(not torch.equal(after[name], state[name]) for name in state)


def test_iterations_must_be_positive():
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        a_method("cpl", iterations=0)
