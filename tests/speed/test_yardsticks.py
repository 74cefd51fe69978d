"""The yardsticks do what this project does, and no less."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.training import digits
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lipbench.lipschitz.lower_bounds.pairs import Pairs, ascend
from lipbench.speed import eager, ours, plain

DEVICE = torch.device("cpu")


def network(seed=0, size=64):
    return plain.network(size, 10, seed).double()


def some_pairs(seed, count=6):
    rng = torch.Generator().manual_seed(seed)
    u = torch.rand(count, 1, 8, 8, generator=rng, dtype=torch.float64)
    return u, u + 0.1 * torch.rand(u.shape, generator=rng, dtype=torch.float64)


def whole(data):
    return TensorDataset(data.train.inputs, data.train.targets)


@given(seed=st.integers(0, 1000), scale=st.floats(1, 30))
@settings(max_examples=10)
def test_the_plain_update_of_pairs_is_ours(seed, scale):
    """Moves, accept test and step sizes over several steps, of which some are refused."""
    model = network(seed)
    with torch.no_grad():
        model[1].weight *= scale
    u, v = some_pairs(seed)
    theirs = plain.PlainPairs(u.clone(), v.clone())
    pairs = Pairs.of(u, v, torch.full((len(u),), plain.TAU, dtype=u.dtype))
    for _ in range(5):
        theirs.climb(model)
        with torch.no_grad():
            pairs, quotients = ascend(model, pairs, accept=True, factor=plain.FACTOR)
    torch.testing.assert_close(theirs.u, pairs.u, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(theirs.v, pairs.v, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(theirs.step, pairs.step)
    torch.testing.assert_close(theirs.square.sqrt(), quotients, rtol=1e-9, atol=1e-12)


def test_a_refused_step_leaves_the_pair_and_shrinks_its_step():
    model = network()
    u, v = some_pairs(0)
    pairs = plain.PlainPairs(u, v)
    pairs.step[:3] = 1e6
    pairs.climb(model)

    assert torch.equal(pairs.u[:3], u[:3])
    assert (pairs.u[3:] != u[3:]).any()
    assert pairs.step.tolist() == pytest.approx([1e6 / 1.3] * 3 + [1.3] * 3)


def test_the_constant_is_the_largest_quotient_and_has_gradients_in_the_weights():
    model = network()
    pairs = plain.PlainPairs(*some_pairs(1))
    pairs.climb(model)
    constant = pairs.constant(model)
    constant.backward()

    run = (pairs.u - pairs.v).flatten(1).norm(dim=1)
    quotients = (model(pairs.u) - model(pairs.v)).norm(dim=1).detach() / run
    assert constant.item() == pytest.approx(float(quotients.max()))
    assert model[1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("with_pairs", [None, 8])
def test_ours_is_what_a_run_trains(with_pairs):
    data = digits(train=300)
    stack, same = (ours.trainer(data, trials=2, epochs=3, pairs=with_pairs) for _ in range(2))
    outcomes = same.run(same.begin())
    for network, outcome in zip(ours.train(stack, stack.begin()), outcomes, strict=True):
        for name, value in network.state_dict().items():
            assert torch.equal(outcome.checkpoints["last"].params[name], value)


@pytest.mark.parametrize("with_pairs", [False, True])
def test_both_yardsticks_and_ours_learn_the_same(with_pairs):
    """On an epoch of one batch, whose order does not matter, from the same networks and pairs."""
    data = digits(train=100, dtype=torch.float64)
    inputs, targets = data.train.inputs, data.train.targets
    stack = ours.trainer(data, trials=1, epochs=4, pairs=8 if with_pairs else None)
    progress = stack.begin()
    start = {name: value[0].clone() for name, value in progress.params.items()}
    u, v = _ends(progress.state) if with_pairs else (None, None)

    def model_and_pairs():
        model = network()
        model.load_state_dict(start)
        return model, plain.PlainPairs(u.clone(), v.clone()) if with_pairs else None

    by_plain, pairs = model_and_pairs()
    plain.train(by_plain, whole(data), epochs=4, seed=0, device=DEVICE, pairs=pairs)
    by_eager, pairs = model_and_pairs()
    eager.train(by_eager, inputs, targets, epochs=4, seed=0, pairs=pairs)
    (by_ours,) = ours.train(stack, progress)

    for name, value in by_ours.state_dict().items():
        torch.testing.assert_close(by_plain.state_dict()[name], value, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(by_eager.state_dict()[name], value, rtol=1e-8, atol=1e-10)
        assert not torch.equal(start[name], value)


def _ends(state):
    tensors = {name: value[0] for name, value in state.items() if isinstance(value, torch.Tensor)}
    if "u" in tensors:
        return tensors["u"], tensors["v"]
    total, difference = tensors["total"], tensors["difference"]
    return (total + difference) / 2, (total - difference) / 2


def test_the_eager_loop_is_gradient_descent_with_momentum():
    """A naive twin: the update written out, on the batches of the same order."""
    data = digits(train=100, dtype=torch.float64)
    inputs, targets = data.train.inputs, data.train.targets
    model, twin = network(), network()
    eager.train(model, inputs, targets, epochs=2, seed=3)

    rng = torch.Generator().manual_seed(3)
    velocity = [torch.zeros_like(value) for value in twin.parameters()]
    for _ in range(2):
        for rows in torch.randperm(100, generator=rng).split(128):
            loss = F.cross_entropy(twin(inputs[rows]), targets[rows])
            gradients = torch.autograd.grad(loss, list(twin.parameters()))
            with torch.no_grad():
                for value, moment, gradient in zip(
                    twin.parameters(), velocity, gradients, strict=True
                ):
                    moment.mul_(0.9).add_(gradient)
                    value.sub_(0.1 * moment)
    for trained, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(trained, expected, rtol=1e-10, atol=1e-12)


def test_every_sample_is_seen_once_in_an_epoch():
    data = digits(train=300)
    seen = []

    class Seen(torch.nn.Flatten):
        def forward(self, inputs):
            seen.append(inputs.detach())
            return super().forward(inputs)

    expected = sorted(data.train.inputs.flatten(1).sum(dim=1).tolist())
    for train in (
        lambda model: plain.train(model, whole(data), epochs=1, seed=0, device=DEVICE),
        lambda model: eager.train(model, data.train.inputs, data.train.targets, epochs=1, seed=0),
    ):
        model = plain.network(64, 10, 0)
        model[0] = Seen()
        seen.clear()
        train(model)
        assert [len(batch) for batch in seen] == [128, 128, 44]
        assert sorted(torch.cat(seen).flatten(1).sum(dim=1).tolist()) == expected


def test_building_a_network_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, second = plain.network(4, 2, 0), plain.network(4, 2, 0)

    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first[1].weight, second[1].weight)


@pytest.mark.parametrize("side", ["plain", "eager"])
def test_pairs_are_drawn_as_the_protocol_says(side):
    """Different images, and copies of them with noise between 0 and 0.1 in pixel units."""
    images = digits(pairs=32).pairs.inputs
    if side == "plain":
        pairs = plain.draw_pairs(TensorDataset(images, images), 8, 0, DEVICE)
    else:
        pairs = eager.draw_pairs(images, 8, 0)
    noise = pairs.v - pairs.u

    assert len(pairs.u.unique(dim=0)) == 8
    assert all((images == u).flatten(1).all(dim=1).any() for u in pairs.u)
    assert 0 <= noise.min() < 0.01
    assert 0.09 < noise.max() <= 0.1 + 1e-6


def test_the_two_attacks_are_given_the_same_problem():
    pytest.importorskip("torchattacks")
    data = digits(train=1000)
    (model,) = ours.train(stack := ours.trainer(data, trials=1, epochs=60), stack.begin())
    inputs, targets = data.test.inputs[:50], data.test.targets[:50]
    settings = {"epsilon": 0.2, "step_size": 0.02, "steps": 20}
    before = torch.get_rng_state()
    theirs = [
        plain.robust_accuracy(model, inputs, targets, batch_size=size, **settings)
        for size in (20, 50)
    ]
    mine = ours.robust_accuracy(model, inputs, targets, **settings)
    clean = float((model(inputs).argmax(dim=1) == targets).double().mean())

    assert torch.equal(before, torch.get_rng_state())
    assert mine <= min(theirs) < clean
    assert all(
        math.isclose(50 * share, round(50 * share), abs_tol=1e-9) for share in (*theirs, mine)
    )
