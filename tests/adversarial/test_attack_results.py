"""Results of no attack, and what is counted of them."""

import math

import pytest
import torch
from support.scripted import (
    LINE,
    ZEROS,
    Scripted,
    generator,
    judge_line,
    still,
    threat,
    threshold,
    up,
)

from lipbench.adversarial.judge import judge
from lipbench.adversary import AttackResult, NonFiniteLogits


def test_clean_mistake_is_a_success_at_distance_zero_and_not_attacked():
    result = judge_line(still)
    assert result.success.tolist() == [False, False, False, True]
    assert [math.inf, math.inf, math.inf, 0] == result.distance.tolist()
    assert torch.equal(LINE, result.inputs)


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


def test_accuracy_is_the_share_without_success():
    result = AttackResult(
        inputs=torch.zeros(4, 1),
        success=torch.tensor([True, False, False, False]),
        distance=torch.zeros(4, dtype=torch.float64),
        queries=torch.zeros(4, dtype=torch.int64),
    )
    assert result.accuracy == 0.75
