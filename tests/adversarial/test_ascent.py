import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.classifiers import exact_radius, linear, network

from lipbench.adversarial.ascent import ascend, ascent_step, random_start, steepest
from lipbench.adversarial.losses import error_odds, margin
from lipbench.adversarial.queries import Counted
from lipbench.adversarial.rivals import nearest_rivals
from lipbench.norm import Norm
from lipbench.threat import Threat

NORMS = (Norm(2), Norm(math.inf))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def situation(norm=NORMS[0], epsilon=0.5, samples=40):
    net = network().eval()
    inputs = torch.rand(samples, 64, generator=generator())
    labels = net(inputs).argmax(dim=1)
    threat = Threat(norm=norm, epsilon=torch.full((samples,), epsilon))
    return net, inputs, labels, threat


def climb(model, inputs, labels, threat, lengths, relative=True):
    return ascend(
        model,
        inputs,
        inputs,
        labels,
        threat,
        lambda logits, rows: error_odds(logits, labels[rows]),
        lambda gradient: steepest(gradient, threat.norm),
        lengths,
        relative,
    )


@given(st.sampled_from(NORMS), st.integers(0, 2**31))
def test_no_direction_of_length_one_is_steeper(norm, seed):
    gradient, other = torch.randn(2, 3, 2, 4, generator=generator(seed), dtype=torch.float64)
    other = other / norm.length(other).view(-1, 1, 1)
    direction = steepest(gradient, norm)
    assert (norm.length(direction) <= 1 + 1e-12).all()
    assert ((gradient * other).sum((1, 2)) <= (gradient * direction).sum((1, 2)) + 1e-12).all()


@pytest.mark.parametrize("norm", NORMS)
def test_tiny_gradients_give_full_steps_and_zero_gives_none(norm):
    """Squares of 1e-30 vanish in float32."""
    gradient = torch.tensor([[1e-30, 0.0], [0.0, 0.0]])
    assert steepest(gradient, norm).tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_steps_are_refused_in_the_l1_norm():
    with pytest.raises(ValueError, match="norms 2 and inf, got 1"):
        steepest(torch.ones(1, 2), Norm(1))


@pytest.mark.parametrize("norm", NORMS)
def test_steps_work_under_vmap(norm):
    """Adversarial training takes them for a stack of networks at once."""
    threat = Threat(norm=norm, epsilon=torch.tensor([0.1, 0.2]))
    centre, gradient = torch.rand(3, 2, 5), torch.randn(3, 2, 5)

    def move(centre, gradient):
        return ascent_step(centre, centre, steepest(gradient, norm), threat, threat.epsilon)

    alone = torch.stack([move(*pair) for pair in zip(centre, gradient, strict=True)])
    torch.testing.assert_close(torch.vmap(move)(centre, gradient), alone)


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_are_uniform_in_the_ball(norm):
    """Of a uniform point in d dimensions, (length / radius)^d is uniform on [0, 1]."""
    epsilon = torch.linspace(0.1, 2, 2000)
    threat = Threat(norm=norm, epsilon=epsilon, domain=None)
    centre = torch.zeros(2000, 3)
    shares = (norm.length(random_start(centre, threat, generator())) / epsilon) ** 3
    assert shares.max() <= 1 + 1e-5
    quantiles = torch.quantile(shares, torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quantiles, torch.tensor([0.25, 0.5, 0.75]), rtol=0, atol=0.05)


@pytest.mark.parametrize("norm", NORMS)
def test_ascent_equals_its_naive_twin(norm):
    """One sample at a time, without dropping anything."""
    net, inputs, labels, threat = situation(norm, epsilon={2: 0.3, math.inf: 0.03}[norm])
    net, inputs = net.double(), inputs.double()  # the sign of a gradient is a matter of rounding
    lengths = [0.5, 0.4, 0.3, 0.2, 0.1]
    ascent = climb(net, inputs, labels, threat, lengths)
    assert 0 < len(ascent.survivors) < len(inputs)
    for row in range(len(inputs)):
        x, y, ball = inputs[row : row + 1], labels[row : row + 1], threat.only(torch.tensor([row]))
        point, visited = x, []
        for length in [*lengths, None]:
            visited.append((margin(net(point), y).item(), point))
            if length is None or visited[-1][0] > 0:
                break
            slope = torch.func.grad(lambda p, y=y: error_odds(net(p), y).sum())(point)
            step = slope.sign() if norm == math.inf else slope / slope.norm()
            point = ball.project(point + length * ball.epsilon * step, x)
        assert ascent.margins[row].item() == pytest.approx(max(m for m, _ in visited), abs=1e-9)
        torch.testing.assert_close(ascent.points[row], visited[-1][1][0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_of_the_same_lengths_are_never_weaker(norm):
    net, inputs, labels, threat = situation(norm, epsilon=0.05)
    few, many = (climb(net, inputs, labels, threat, [0.9] * n).margins for n in (3, 12))
    # Once a sample is broken its margin is not followed any further.
    assert ((many >= few - 1e-5) | (few > 0)).all()
    assert (many > few + 1e-5).any()


def test_queries_of_broken_samples_that_stay_in_the_batch_are_not_counted():
    """One of forty is too few to pack the batch anew."""
    net, inputs, labels, threat = situation(epsilon=1e-6)
    labels[0] = (labels[0] + 1) % 4
    counted = Counted(net, len(inputs))
    climb(counted, inputs, labels, threat, [0.1] * 5)
    assert counted.queries.tolist() == [1] + [6] * 39


def test_broken_samples_are_asked_no_more():
    net, inputs, labels, threat = situation(epsilon=3.0)
    labels[:10] = (labels[:10] + 1) % 4
    counted = Counted(net, len(inputs))
    climb(counted, inputs, labels, threat, [0.1] * 20)
    assert counted.queries[:10].tolist() == [1] * 10
    assert counted.queries[10:].min() > 1
    assert counted.queries.max() <= 21


def test_what_is_broken_leaves_the_batch():
    net, inputs, labels, threat = situation(epsilon=1e-6)
    labels[:10] = (labels[:10] + 1) % 4
    sizes = []

    def watched(points):
        sizes.append(len(points))
        return net(points)

    climb(watched, inputs, labels, threat, [0.1] * 3)
    assert sizes == [40, 30, 30, 30]


def test_samples_at_rest_in_a_corner_are_asked_no_more():
    """A linear classifier is climbed straight into a corner, and every answer stays the same."""
    weight, bias, inputs, labels = linear(5, 8, 50)
    threat = Threat(norm=NORMS[1], epsilon=torch.full((50,), 0.05))

    def climbed(lengths):
        counted = Counted(lambda x: x @ weight.T + bias, 50)
        return climb(counted, inputs, labels, threat, lengths), counted.queries

    ascent, queries = climbed([0.5] * 40)
    assert len(ascent.survivors) > 10
    assert queries.max() <= 9
    growing, queries = climbed([0.5 + 0.01 * step for step in range(38)])
    assert queries.max() == 39
    rows = ascent.survivors
    assert torch.equal(rows, growing.survivors)
    assert torch.equal(ascent.points[rows], growing.points[rows])
    torch.testing.assert_close(ascent.margins[rows], growing.margins[rows])


def test_parameters_receive_no_gradients():
    net, inputs, labels, threat = situation()
    climb(net, inputs, labels, threat, [0.5, 0.5])
    assert all(parameter.grad is None for parameter in net.parameters())


def test_logits_that_are_not_a_number_count_as_broken():
    inputs, labels = torch.rand(3, 2), torch.zeros(3, dtype=torch.int64)
    threat = Threat(norm=NORMS[1], epsilon=torch.full((3,), 0.1))

    def model(x):
        logits = torch.stack([1 - x.sum(1), x.sum(1) - 9], dim=1)
        return torch.where((x != inputs[: len(x)]).any(1, keepdim=True), torch.nan, logits)

    ascent = climb(model, inputs, labels, threat, [0.5, 0.5])
    assert len(ascent.survivors) == 0
    assert ascent.points.isfinite().all()


@pytest.mark.parametrize("norm", NORMS)
def test_nearest_rival_of_a_linear_classifier_is_the_nearest(norm):
    weight, bias, inputs, labels = linear(5, 8, 50)
    rivals = nearest_rivals(lambda x: x @ weight.T + bias, inputs, labels, norm)
    radius = exact_radius(weight, bias, inputs, labels, norm)
    for row, rival in enumerate(rivals[:, 0].tolist()):
        pair = [int(labels[row]), rival]
        alone = exact_radius(
            weight[pair], bias[pair], inputs[row : row + 1], torch.tensor([0]), norm
        )
        assert radius[row].item() == pytest.approx(alone.item(), rel=1e-4)


def test_rivals_are_the_wrong_classes_each_once():
    weight, bias, inputs, labels = linear(5, 8, 50)
    rivals = nearest_rivals(lambda x: x @ weight.T + bias, inputs, labels, NORMS[0])
    everything = torch.cat([rivals, labels[:, None]], dim=1).sort(dim=1).values
    assert torch.equal(torch.arange(5).expand(50, 5), everything)


def test_queries_of_unknown_origin_are_charged_to_all_evenly():
    counted = Counted(lambda x: x, 4)
    counted(torch.zeros(4, 2))
    counted(torch.zeros(2, 2))
    assert counted.queries.tolist() == [2, 2, 2, 2]
