import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipbench.networks.trees import stack, take
from lipbench.training.optimiser import Optimizer

RATES = {
    "sgd": [Optimizer(lr=0.1, momentum=0.9), Optimizer(lr=0.3, momentum=0.0)],
    "adam": [Optimizer(name="adam", lr=0.01), Optimizer(name="adam", beta1=0.5, eps=1e-3)],
}
ALL = [optimizer for group in RATES.values() for optimizer in group]


def bowl(params):
    # Curved, and not quadratic: momentum and second moments matter.
    return sum((value - 1).square().sum() + value.cos().sum() for value in params.values())


def start(seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(3, 2, generator=rng, dtype=dtype),
        "b": torch.randn(3, generator=rng, dtype=dtype),
    }


def slopes(params):
    return torch.func.grad(bowl)(params)


def torch_twin(optimizer, params):
    if optimizer.name == "sgd":
        return torch.optim.SGD(params, lr=optimizer.lr, momentum=optimizer.momentum)
    betas = (optimizer.beta1, optimizer.beta2)
    return torch.optim.Adam(params, lr=optimizer.lr, betas=betas, eps=optimizer.eps)


@pytest.mark.parametrize("optimizer", ALL, ids=repr)
def test_ten_steps_are_those_of_torch(optimizer):
    params = start()
    twin = {name: value.clone().requires_grad_() for name, value in params.items()}
    theirs = torch_twin(optimizer, twin.values())
    moments = optimizer.start(params)
    for _ in range(10):
        rate = torch.tensor(optimizer.lr, dtype=torch.float64)
        params, moments = optimizer.step(params, slopes(params), moments, rate)
        theirs.zero_grad()
        bowl(twin).backward()
        theirs.step()
    for name, value in params.items():
        torch.testing.assert_close(value, twin[name].detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ALL, ids=repr)
def test_a_stack_with_a_rate_for_each_trial_equals_the_trials_alone(optimizer):
    trials = [start(seed) for seed in range(3)]
    rates = torch.tensor([0.01, 0.1, 0.2], dtype=torch.float64)
    alone = [
        optimizer.step(params, slopes(params), optimizer.start(params), rate)
        for params, rate in zip(trials, rates, strict=True)
    ]
    stacked = stack(trials)
    moments = stack([optimizer.start(p) for p in trials])
    gradients = stack([slopes(p) for p in trials])
    together = torch.func.vmap(optimizer.step)(stacked, gradients, moments, rates)
    for number, (params, _) in enumerate(alone):
        for name, value in params.items():
            torch.testing.assert_close(take(together[0], number)[name], value)


@pytest.mark.parametrize("optimizer", ALL, ids=repr)
def test_a_step_leaves_its_arguments_alone(optimizer):
    params = start()
    before = {name: value.clone() for name, value in params.items()}
    moments = optimizer.start(params)
    optimizer.step(params, slopes(params), moments, torch.tensor(0.1, dtype=torch.float64))
    assert all(torch.equal(params[name], before[name]) for name in params)
    assert all(not value.any() for tree in moments.values() for value in tree.values())


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.0), ("lr", float("nan")), ("momentum", 1.0), ("beta1", -0.1), ("eps", 0.0)],
)
def test_a_number_out_of_range_is_refused_by_name_and_value(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be .* got {value}"):
        Optimizer(**{field: value})


@given(st.floats(1e-4, 0.1), st.floats(0, 0.99))
def test_a_constant_slope_moves_sgd_by_the_sum_of_its_velocities(lr, momentum):
    """After two steps of slope 1 the way is lr·(1 + 1 + momentum)."""
    optimizer = Optimizer(lr=lr, momentum=momentum)
    params, slope = {"w": torch.zeros(1).double()}, {"w": torch.ones(1).double()}
    moments, rate = optimizer.start(params), torch.tensor(lr).double()
    for _ in range(2):
        params, moments = optimizer.step(params, slope, moments, rate)
    assert float(params["w"]) == pytest.approx(-lr * (2 + momentum), rel=1e-6)
