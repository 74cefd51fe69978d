import math

import pytest
import torch
from support.classifiers import network

from lipbench.evaluation.noise import noise_accuracy


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(name="problem")
def _problem():
    net = network()
    inputs = torch.rand(150, 1, 8, 8, generator=generator())
    net.eval()
    labels = net(inputs).argmax(dim=1)
    labels[:30] = (labels[:30] + 1) % 4
    return net, inputs, labels


def test_no_noise_gives_the_clean_accuracy(problem):
    accuracies = noise_accuracy(*problem, 0.0, (0.0, 1.0), 3, generator())
    assert accuracies == pytest.approx((0.8, 0.8, 0.8))


def test_accuracy_of_a_threshold_is_the_normal_probability():
    """A point at distance a from the boundary stays right with probability Φ(a / sigma)."""
    inputs, labels = torch.zeros(20_000, 1), torch.zeros(20_000, dtype=torch.int64)
    accuracies = noise_accuracy(
        lambda x: torch.cat([0.6 - x, x - 0.6], dim=1), inputs, labels, 0.5, None, 3, generator()
    )
    expected = (1 + math.erf(0.6 / 0.5 / math.sqrt(2))) / 2
    assert accuracies == pytest.approx([expected] * 3, abs=0.01)
    assert len(set(accuracies)) == 3


def test_clamping_keeps_noisy_inputs_in_the_box():
    seen = []

    def model(x):
        seen.append(x)
        return torch.cat([x, -x], dim=1)

    inputs, labels = torch.rand(50, 1), torch.zeros(50, dtype=torch.int64)
    for clamp in ((0.0, 1.0), None):
        noise_accuracy(model, inputs, labels, 1.0, clamp, 1, generator())
    assert seen[0].min() == 0
    assert seen[0].max() == 1
    assert torch.equal(seen[0], seen[1].clamp(0, 1))
    assert seen[1].min() < 0


def test_result_depends_on_the_generator_and_not_on_the_batches(problem):
    whole, batched = (
        noise_accuracy(*problem, 0.5, None, 2, generator(), size) for size in (150, 7)
    )
    other = noise_accuracy(*problem, 0.5, None, 2, generator(1))
    assert whole == batched
    assert whole != other


def test_modes_of_modules_and_the_global_generator_are_left_alone(problem):
    net = problem[0].train()
    net[2].eval()
    before, state = [module.training for module in net.modules()], torch.get_rng_state()
    noise_accuracy(*problem, 0.5, None, 1, generator())
    assert before == [module.training for module in net.modules()]
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("sigma", "draws"), [(-0.1, 1), (math.nan, 1), (math.inf, 1), (0.1, 0)])
def test_impossible_settings_are_refused(problem, sigma, draws):
    with pytest.raises(ValueError, match="must be"):
        noise_accuracy(*problem, sigma, None, draws, generator())
