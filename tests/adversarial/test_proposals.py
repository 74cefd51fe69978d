"""What an attack proposes is confined, classified anew, and refused if it cannot be judged."""

import math

import pytest
import torch
from support.scripted import LINE, ZEROS, Scripted, generator, judge_line, threat, threshold, up

from lipbench.adversarial.judge import judge
from lipbench.adversary import AttackInvalid


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
