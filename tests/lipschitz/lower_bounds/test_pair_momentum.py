import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipbench.lipschitz.lower_bounds.pair_momentum import ascend_with_memory, nothing
from lipbench.lipschitz.lower_bounds.pairs import LEAST_DISTANCE, Pairs, quotients
from lipbench.networks.stem import Stem

RULES = ["nesterov", "adam"]
SEEDS = st.integers(0, 2**32)
DECAY = 0.8


def network(seed=0):
    rng = torch.Generator().manual_seed(seed)
    first = 2 * torch.randn(5, 12, generator=rng, dtype=torch.float64)
    last = torch.randn(5, 3, generator=rng, dtype=torch.float64)
    return Stem(weight=first, rest=lambda product: product.tanh() @ last)


def some_pairs(seed=0, count=4, apart=0.3, step=0.05):
    rng = torch.Generator().manual_seed(seed)
    u = torch.rand(count, 3, 4, generator=rng, dtype=torch.float64)
    v = u + apart * torch.randn(count, 3, 4, generator=rng, dtype=torch.float64)
    return Pairs.of(u, v, torch.full((count,), step, dtype=torch.float64))


def climbed(function, pairs, rule, steps, accept):
    memory = nothing(rule, pairs)
    for _ in range(steps):
        pairs, memory, values = ascend_with_memory(
            function, pairs, memory, rule=rule, decay=DECAY, accept=accept
        )
    return pairs, values


def quotient(function, ends):
    rise = function(ends[:1]) - function(ends[1:])
    return rise.norm() / (ends[0] - ends[1]).norm()


def optimiser(rule, ends, step):
    if rule == "nesterov":
        return torch.optim.SGD([ends], lr=step, momentum=DECAY, nesterov=True, maximize=True)
    return torch.optim.Adam([ends], lr=step, betas=(DECAY, 0.999), maximize=True)


def by_torch(function, pairs, rule, steps, accept):
    # One optimiser for each pair, on ½L²; a new one after a step that is taken back.
    rows = []
    for u, v, step in zip(pairs.u, pairs.v, pairs.step.tolist(), strict=True):
        ends = torch.stack([u, v]).requires_grad_()
        solver = optimiser(rule, ends, step)
        for _ in range(steps):
            before = ends.detach().clone()
            solver.zero_grad()
            value = quotient(function, ends)
            (value.square() / 2).backward()
            solver.step()
            if not accept:
                continue
            if float(quotient(function, ends.detach())) > float(value.detach()):
                step *= 1.3
                solver.param_groups[0]["lr"] = step
            else:
                step /= 1.3
                ends = before.requires_grad_()
                solver = optimiser(rule, ends, step)
        rows.append((*ends.detach(), torch.tensor(step, dtype=torch.float64)))
    return Pairs.of(*(torch.stack(column) for column in zip(*rows, strict=True)))


@pytest.mark.parametrize("accept", [True, False])
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=6)
@given(seed=SEEDS, step=st.sampled_from([0.01, 0.3]))
def test_each_pair_climbs_as_the_optimisers_of_torch_do(rule, accept, seed, step):
    pairs = some_pairs(seed, step=step / 10 if rule == "adam" else step)
    moved, _ = climbed(network(seed), pairs, rule, 5, accept)
    expected = by_torch(network(seed), pairs, rule, 5, accept)
    for name in ("u", "v", "step"):
        torch.testing.assert_close(
            getattr(moved, name), getattr(expected, name), rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=10)
@given(seed=SEEDS, step=st.floats(1e-3, 100))
def test_with_the_accept_test_no_quotient_falls(rule, seed, step):
    function, pairs, memory = network(seed), some_pairs(seed, step=step), None
    before, memory = quotients(function, pairs), nothing(rule, pairs)
    for _ in range(3):
        pairs, memory, values = ascend_with_memory(
            function, pairs, memory, rule=rule, decay=DECAY, accept=True
        )
        after = quotients(function, pairs)
        torch.testing.assert_close(values, after)
        assert (after >= before * (1 - 1e-12)).all()
        before = after


@pytest.mark.parametrize("rule", RULES)
def test_a_small_first_step_raises_each_quotient_as_its_slope_says(rule):
    """By tau·(1 + decay)·L·‖∇L‖² with Nesterov's rule, by tau·‖∇L‖₁ with Adam's."""
    function, tau = network(), 1e-7
    pairs = some_pairs(step=tau)
    u, v = pairs.u.requires_grad_(), pairs.v.requires_grad_()
    before = quotients(function, Pairs.of(u, v, pairs.step))
    slopes = torch.autograd.grad(before.sum(), (u, v))
    moved, values = climbed(function, pairs, rule, 1, accept=False)
    rise = quotients(function, moved) - before.detach()
    flat = torch.cat([slope.flatten(1) for slope in slopes], dim=1)
    if rule == "nesterov":
        expected = tau * (1 + DECAY) * before.detach() * flat.square().sum(dim=1)
    else:
        expected = tau * flat.abs().sum(dim=1)
    torch.testing.assert_close(rise, expected, rtol=0.02, atol=1e-12)
    torch.testing.assert_close(values, before.detach())


@pytest.mark.parametrize("rule", RULES)
def test_the_ascent_finds_the_norm_of_a_linear_map_and_never_exceeds_it(rule):
    matrix = torch.diag(torch.tensor([3.0, 1.0, 0.5, 0.1], dtype=torch.float64))
    rng = torch.Generator().manual_seed(0)
    u = torch.rand(6, 4, generator=rng, dtype=torch.float64)
    v = u + 0.3 * torch.randn(6, 4, generator=rng, dtype=torch.float64)
    pairs = Pairs.of(u, v, torch.full((6,), 0.01, dtype=torch.float64))
    _, values = climbed(lambda x: x @ matrix.T, pairs, rule, 80, accept=True)
    assert float(values.max()) == pytest.approx(3, abs=1e-3)
    assert float(values.max()) <= 3 * (1 + 1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_no_pair_comes_closer_than_the_least_distance_or_leaves_the_box(rule):
    for apart, step in ((1e-7, 1e3), (0.3, 50.0)):
        free = some_pairs(apart=apart, step=step)
        held = Pairs.of(free.u.clamp(0, 1), free.v.clamp(0, 1), free.step, (0.0, 1.0))
        moved, _ = climbed(network(), held, rule, 3, accept=False)
        far = (moved.u - moved.v).flatten(1).norm(dim=1) >= LEAST_DISTANCE[torch.float64] / 2
        stayed = (moved.u == held.u).flatten(1).all(dim=1)
        assert (far | stayed).all()
        assert (float(torch.minimum(moved.u, moved.v).min()) >= 0) & (
            float(torch.maximum(moved.u, moved.v).max()) <= 1
        )


@pytest.mark.parametrize("rule", RULES)
def test_no_pair_climbs_to_where_the_quotient_overflows(rule):
    """There it is the largest of all, and says nothing."""
    pairs = some_pairs(apart=0.1)
    _, values = climbed(overflowing, pairs, rule, 30, accept=True)
    assert bool(values.isfinite().all())


def overflowing(x):
    return torch.where(x.flatten(1) > 1.1, torch.inf, x.flatten(1).square())


def test_no_step_of_adam_grows_without_end():
    """A slope that rises towards 1 leads ever farther outside, however little it still rises."""
    pairs = some_pairs(step=0.01)
    moved, _ = climbed(rising, pairs, "adam", 200, accept=True)
    assert float(moved.step.max()) == 1
    assert float(moved.total.abs().max()) < 500


def rising(x):
    return x.flatten(1).square() / (1 + x.flatten(1).abs())
