import pytest
import torch
from support.classifiers import network
from support.scripted import (
    INF,
    LINE,
    ZEROS,
    Scripted,
    generator,
    judge_line,
    threat,
    threshold,
    up,
)

from lipbench.adversarial.judge import judge, judge_epsilons, judge_networks
from lipbench.adversary import AttackInvalid
from lipbench.networks.network_stack import Networks
from lipbench.norm import Norm


def test_batches_do_not_matter_to_an_attack_without_randomness():
    whole, batched = judge_line(up), judge_line(up, batch_size=2)
    assert torch.equal(whole.inputs, batched.inputs)
    assert torch.equal(whole.distance, batched.distance)


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
