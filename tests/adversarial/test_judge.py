import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from support.classifiers import network

from lipbench.adversarial.judge import judge, judge_epsilons, judge_networks
from lipbench.adversarial.self_check import self_check
from lipbench.adversary import Attack, AttackInvalid, AttackResult, NonFiniteLogits
from lipbench.networks.network_stack import Networks
from lipbench.norm import Norm
from lipbench.threat import Threat

INF = Norm(math.inf)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True, kw_only=True)
class Scripted(Attack):
    """An attack that does what a test tells it to."""

    norms: ClassVar[frozenset[Norm]] = frozenset({INF, Norm(2)})
    act: Any

    def propose(self, model, inputs, labels, threat, rng):
        return self.act(model, inputs, labels, threat, rng)


def up(model, inputs, labels, threat, rng):
    return inputs + 9


def still(model, inputs, labels, threat, rng):
    return inputs


@pytest.fixture(name="problem")
def _problem():
    net = network()
    inputs = torch.rand(50, 64, generator=generator())
    net.eval()
    return net, inputs, net(inputs).argmax(dim=1)


def threshold(x):
    """Return logits with class 0 below 0.5 and class 1 above, for inputs of one coordinate."""
    return torch.cat([0.5 - x, x - 0.5], dim=1)


LINE = torch.tensor([[0.05], [0.35], [0.45], [0.6]])
ZEROS = torch.zeros(4, dtype=torch.int64)


def threat(epsilon, norm=INF, domain=(0.0, 1.0)):
    return Threat(norm=norm, epsilon=torch.as_tensor(epsilon), domain=domain)


def judge_line(act, epsilon=0.2, **options):
    allowed = threat([epsilon] * 4)
    return judge(Scripted(act=act), threshold, LINE, ZEROS, allowed, generator(), **options)


def test_proposals_are_projected_and_judged_anew():
    """Of four points only those within 0.2 of the threshold 0.5 can cross it."""
    result = judge_line(up)
    assert result.success.tolist() == [False, True, True, True]
    torch.testing.assert_close(
        result.inputs, torch.tensor([[0.05], [0.55], [0.65], [0.6]]), rtol=0, atol=1e-6
    )
    expected = torch.tensor([math.inf, 0.2, 0.2, 0.0], dtype=torch.float64)
    torch.testing.assert_close(result.distance, expected, rtol=0, atol=1e-6)
    assert result.accuracy == 0.25


def test_clean_mistake_is_a_success_at_distance_zero_and_not_attacked():
    result = judge_line(still)
    assert result.success.tolist() == [False, False, False, True]
    assert [math.inf, math.inf, math.inf, 0] == result.distance.tolist()
    assert torch.equal(LINE, result.inputs)


def test_batches_do_not_matter_to_an_attack_without_randomness():
    whole, batched = judge_line(up), judge_line(up, batch_size=2)
    assert torch.equal(whole.inputs, batched.inputs)
    assert torch.equal(whole.distance, batched.distance)


def test_queries_count_the_passes_of_the_attack_alone():
    def ask(model, inputs, labels, threat, rng):
        model(inputs)
        model(inputs)
        return inputs

    assert judge_line(ask).queries.tolist() == [2, 2, 2, 0]


def wrong_shape(model, inputs, labels, threat, rng):
    return inputs[:, :3]


def nothing(model, inputs, labels, threat, rng):
    return None


def not_finite(model, inputs, labels, threat, rng):
    return inputs * torch.nan


def changes_inputs(model, inputs, labels, threat, rng):
    return inputs.add_(0.1)


def changes_labels(model, inputs, labels, threat, rng):
    labels += 1
    return inputs


def changes_weights(model, inputs, labels, threat, rng):
    next(model.parameters()).data.zero_()
    return inputs


def changes_statistics(model, inputs, labels, threat, rng):
    model.train()
    model(inputs)
    model.eval()
    return inputs


def changes_mode(model, inputs, labels, threat, rng):
    model.train()
    return inputs


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (wrong_shape, r"shape \(\d+, 64\), got \(\d+, 3\)"),
        (nothing, "got NoneType"),
        (not_finite, "infinite or NaN"),
        (changes_inputs, "clean inputs or labels"),
        (changes_labels, "clean inputs or labels"),
        (changes_weights, "changed the network: 1.weight"),
        (changes_statistics, "changed the network: 2.running_mean"),
        (changes_mode, "training mode"),
    ],
)
def test_lying_attack_is_invalid_and_its_traces_are_removed(problem, lie, reason):
    net, inputs, labels = problem
    clean, state = inputs.clone(), {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(AttackInvalid, match=reason):
        judge(Scripted(act=lie), net, inputs, labels, threat([0.1] * 50), generator())
    assert torch.equal(clean, inputs)
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert not any(module.training for module in net.modules())


def test_modes_and_gradients_survive_an_attack_that_fails(problem):
    """Each module gets its own mode back, even after an exception."""
    net, inputs, labels = problem
    net.train()
    net[2].eval()
    next(net.parameters()).grad = torch.ones(16, 64)
    modes = [module.training for module in net.modules()]

    def fail(model, inputs, labels, threat, rng):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        judge(Scripted(act=fail), net, inputs, labels, threat([0.1] * 50), generator())
    assert modes == [module.training for module in net.modules()]
    assert torch.equal(torch.ones(16, 64), next(net.parameters()).grad)
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_backward_of_an_attack_reaches_no_parameter(problem):
    """Neither as a new gradient nor added to one that was there."""
    net, inputs, labels = problem
    net[1].weight.grad = torch.ones(16, 64)

    def backward(model, inputs, labels, threat, rng):
        points = inputs.requires_grad_()
        model(points).sum().backward()
        return inputs + points.grad.sign()

    with torch.no_grad():
        judge(Scripted(act=backward), net, inputs, labels, threat([0.1] * 50), generator())
    assert torch.equal(net[1].weight.grad, torch.ones(16, 64))
    assert net[1].bias.grad is None


def test_global_generators_are_left_alone_and_follow_the_seed(problem):
    """An attack that seeds or uses them is as reproducible as any other."""
    net, inputs, labels = problem

    def careless(model, inputs, labels, threat, rng):
        drawn.append((torch.rand(()).item(), np.random.rand()))
        torch.manual_seed(5)
        np.random.seed(5)
        return inputs

    drawn, state, numpy = [], torch.get_rng_state(), np.random.get_state()[1].copy()
    for seed in (0, 0, 1):
        arguments = net, inputs, labels, threat([0.1] * 50), generator(seed)
        judge(Scripted(act=careless), *arguments)
    assert torch.equal(state, torch.get_rng_state())
    assert (numpy == np.random.get_state()[1]).all()
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_clean_logits_that_are_not_finite_are_an_error():
    with pytest.raises(NonFiniteLogits, match="4 of 4"):
        judge(
            Scripted(act=up),
            lambda x: threshold(x) / 0,
            LINE,
            ZEROS,
            threat([0.1] * 4),
            generator(),
        )


def test_logits_that_an_attack_makes_infinite_are_a_success():
    result = judge(
        Scripted(act=up),
        lambda x: torch.where(x > 0.5, torch.nan, threshold(x)),
        LINE[:3],
        ZEROS[:3],
        threat([0.2] * 3),
        generator(),
    )
    assert result.success.tolist() == [False, True, True]


def test_inputs_outside_the_domain_are_refused():
    """Standardised inputs, or integers up to 255, must not be attacked as pixels."""
    with pytest.raises(ValueError, match="reach from 0 to 255, outside the domain"):
        judge(
            Scripted(act=up),
            threshold,
            torch.tensor([[0.0], [255.0]]),
            ZEROS[:2],
            threat([0.1, 0.1]),
            generator(),
        )


def test_norm_that_the_attack_does_not_know_is_refused():
    with pytest.raises(ValueError, match="norms 2, inf, got norm 1"):
        judge(Scripted(act=up), threshold, LINE, ZEROS, threat([0.1] * 4, Norm(1)), generator())


def test_negative_epsilon_is_refused():
    with pytest.raises(ValueError, match="epsilon must be finite and at least 0"):
        judge_line(up, epsilon=-0.1)


def test_accuracy_never_rises_with_epsilon_even_for_an_erratic_attack():
    """The attack succeeds at small radii only; what it found stays found."""

    def erratic(model, inputs, labels, threat, rng):
        return inputs + 9 if threat.epsilon.max() < 0.2 else inputs

    epsilons = (0.5, 0.1, 0.17)
    results = judge_epsilons(
        Scripted(act=erratic), threshold, LINE, ZEROS, INF, epsilons, None, generator()
    )
    assert [result.accuracy for result in results] == [0.25, 0.5, 0.25]
    assert torch.equal(results[0].inputs, results[2].inputs)
    for epsilon, result in zip(epsilons, results, strict=True):
        assert (result.distance[result.success] <= epsilon).all()


def test_only_survivors_are_attacked_again_at_a_larger_epsilon():
    seen = []

    def watch(model, inputs, labels, threat, rng):
        model(inputs)
        seen.append(len(inputs))
        return inputs + 9

    results = judge_epsilons(
        Scripted(act=watch), threshold, LINE, ZEROS, INF, (0.1, 0.2, 0.3), None, generator()
    )
    assert seen == [3, 2, 1]
    assert [r.queries.tolist() for r in results] == [[1, 1, 1, 0], [2, 2, 1, 0], [3, 2, 1, 0]]


class Mixing(Scripted):
    samplewise = True


def test_epsilons_share_a_batch_as_far_as_it_has_room():
    """Three samples are right: of three epsilons two fit into a batch of eight, then one."""
    seen = []

    def watch(model, inputs, labels, threat, rng):
        model(inputs)
        seen.append(threat.epsilon.tolist())
        return inputs + 9

    def judged(attack, **options):
        epsilons = (0.3, 0.1, 0.2)
        return judge_epsilons(
            attack, threshold, LINE, ZEROS, INF, epsilons, None, generator(), **options
        )

    results = judged(Mixing(act=watch), batch_size=8)
    assert seen == [[0.1, 0.2] * 3, [0.3]]
    # What is asked about a sample that a smaller epsilon has broken is not counted.
    assert [r.queries.tolist() for r in results] == [[3, 2, 1, 0], [1, 1, 1, 0], [2, 2, 1, 0]]
    for mixed, alone in zip(results, judged(Scripted(act=watch)), strict=True):
        for name in ("inputs", "success", "distance"):
            assert torch.equal(getattr(mixed, name), getattr(alone, name))


def test_in_a_shared_batch_what_a_smaller_epsilon_broke_stays_as_it_was():
    def erratic(model, inputs, labels, threat, rng):
        return torch.where(threat.epsilon[:, None] < 0.2, inputs + 9, inputs)

    results = judge_epsilons(
        Mixing(act=erratic), threshold, LINE, ZEROS, INF, (0.17, 0.5), None, generator()
    )
    assert results[0].accuracy == results[1].accuracy < 0.75
    assert torch.equal(results[0].inputs, results[1].inputs)


def test_every_epsilon_is_checked():
    arguments = LINE, ZEROS, INF, (0.1, float("inf")), None, generator()
    with pytest.raises(ValueError, match="finite and at least 0"):
        judge_epsilons(Scripted(act=up), threshold, *arguments)


@pytest.mark.parametrize(("batch_size", "sizes"), [(12, [12, 6]), (17, [12, 6]), (18, [18])])
def test_as_many_networks_are_attacked_together_as_a_batch_has_room_for(batch_size, sizes):
    nets = [network().eval() for _ in range(3)]
    inputs = torch.rand(6, 64, generator=generator())
    labels = nets[0](inputs).argmax(dim=1)
    seen = []

    def watch(model, inputs, labels, threat, rng):
        seen.append(len(inputs))
        return inputs

    arguments = inputs, labels, INF, [0.1], None, [generator() for _ in nets]
    for attack, expected in ((Mixing(act=watch), sizes), (Scripted(act=watch), [6] * 3)):
        seen.clear()
        judge_networks(attack, Networks.of(nets), *arguments, batch_size=batch_size)
        assert seen == expected


def test_changing_networks_that_are_attacked_together_is_noticed_and_undone():
    nets = [network(seed).eval() for seed in (0, 1)]
    networks = Networks.of(nets)
    inputs = torch.rand(6, 64, generator=generator())
    labels = nets[0](inputs).argmax(dim=1)

    def tamper(model, inputs, labels, threat, rng):
        next(iter(networks.params.values())).zero_()
        return inputs

    before = {name: value.clone() for name, value in networks.params.items()}
    arguments = inputs, labels, INF, [0.1], None, [generator(), generator()]
    with pytest.raises(AttackInvalid, match="changed the network"):
        judge_networks(Mixing(act=tamper), networks, *arguments)
    assert all(torch.equal(value, before[name]) for name, value in networks.params.items())


def test_no_epsilon_gives_no_result():
    assert (
        judge_epsilons(Scripted(act=up), threshold, LINE, ZEROS, INF, (), None, generator()) == []
    )


def test_self_check_passes_an_honest_attack(problem):
    self_check(Scripted(act=up), *problem, INF, (0.0, 1.0), generator())


def test_self_check_finds_a_random_model():
    def random_model(x):
        return torch.randn(len(x), 3)

    inputs, labels = torch.rand(64, 2), torch.zeros(64, dtype=torch.int64)
    with pytest.raises(AttackInvalid, match="with epsilon 0"):
        self_check(Scripted(act=still), random_model, inputs, labels, INF, None, generator())


def test_self_check_finds_an_attack_that_divides_by_epsilon(problem):
    def divide(model, inputs, labels, threat, rng):
        return inputs + (inputs - inputs) / threat.epsilon[:, None]

    with pytest.raises(AttackInvalid, match="NaN"):
        self_check(Scripted(act=divide), *problem, INF, None, generator())


def test_accuracy_is_the_share_without_success():
    result = AttackResult(
        inputs=torch.zeros(4, 1),
        success=torch.tensor([True, False, False, False]),
        distance=torch.zeros(4, dtype=torch.float64),
        queries=torch.zeros(4, dtype=torch.int64),
    )
    assert result.accuracy == 0.75
