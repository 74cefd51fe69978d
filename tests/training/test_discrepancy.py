import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipbench.method import Strength
from lipbench.training.discrepancy import Discrepancy

WEIGHT = Strength(field="weight", scale=0.01)
SIZE = Strength(field="size", shrinks=False, least=1e-3)
RULES = ["adaptive", "relative", "additive"]
ACCURACIES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def follow(discrepancy, accuracies, *, start=1.0, target=0.9, law=WEIGHT):
    # The strengths of one trial, after each comparison.
    course = discrepancy.start(torch.tensor([start], dtype=torch.float64))
    goal = torch.tensor([target], dtype=torch.float64)
    strengths = []
    for accuracy in accuracies:
        measured = torch.tensor([accuracy], dtype=torch.float64)
        course = discrepancy.move(course, measured, goal, law)
        strengths.append(float(course["strength"]))
    return strengths


@pytest.mark.parametrize(
    ("rule", "expected"), [("relative", [1.1, 1.21, 1.089]), ("additive", [1.1, 1.2, 1.1])]
)
def test_hand_computed_courses(rule, expected):
    discrepancy = Discrepancy(rule=rule, step=0.1, scale=1.0)
    assert follow(discrepancy, [1.0, 1.0, 0.5]) == pytest.approx(expected)


def test_an_adaptive_step_is_halved_at_a_turn_and_recovers_on_one_side():
    discrepancy = Discrepancy(rule="adaptive", step=0.1, scale=1e-6)
    found = follow(discrepancy, [1.0, 0.5, 0.5])
    assert found == pytest.approx([1.1, 1.1 * 0.95, 1.1 * 0.95 * (1 - 0.06)])


def test_an_adaptive_step_shrinks_in_proportion_within_two_points_of_the_target():
    far, near = (follow(Discrepancy(), [accuracy])[0] - 1 for accuracy in (0.92, 0.905))
    assert near == pytest.approx(far / 4)


def test_an_adaptive_step_is_kept_between_a_quarter_of_the_first_and_the_first():
    """A step that could grow was measured to run ahead of the network, until it collapsed."""
    turns = follow(Discrepancy(step=0.2), [1.0, 0.5] * 10 + [1.0])
    assert turns[-1] / turns[-2] == pytest.approx(1.05)
    repeated = follow(Discrepancy(step=0.2), [0.5, *[1.0] * 20])
    assert repeated[-1] / repeated[-2] == pytest.approx(1.2)


@pytest.mark.parametrize("rule", RULES)
@given(accuracy=st.floats(0, 1).filter(lambda value: abs(value - 0.9) > 1e-6))
def test_an_accurate_network_gets_the_strength_of_a_smaller_constant(rule, accuracy):
    """More lambda shrinks the constant; a larger layer norm lets it grow."""
    discrepancy = Discrepancy(rule=rule)
    assert (follow(discrepancy, [accuracy])[0] > 1) == (accuracy > 0.9)
    assert (follow(discrepancy, [accuracy], law=SIZE)[0] > 1) == (accuracy < 0.9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("law", [WEIGHT, SIZE])
@given(accuracies=ACCURACIES, step=st.floats(0.01, 1))
def test_the_strength_never_falls_below_the_least_and_stays_finite(rule, law, accuracies, step):
    strengths = follow(Discrepancy(rule=rule, step=step), accuracies, law=law)
    assert all(law.least <= strength < float("inf") for strength in strengths)


@pytest.mark.parametrize("rule", RULES)
def test_a_strength_of_0_comes_back(rule):
    assert follow(Discrepancy(rule=rule, scale=0.5, step=0.2), [1.0], start=0.0) == [0.1]


def test_a_relative_step_depends_on_the_scale_only_below_it():
    small, large = (Discrepancy(rule="relative", scale=scale) for scale in (0.01, 0.5))
    assert follow(small, [1.0]) == follow(large, [1.0])
    assert follow(small, [1.0], start=0.1) != follow(large, [1.0], start=0.1)


def test_without_a_scale_of_its_own_it_takes_that_of_the_method():
    found = follow(Discrepancy(rule="additive", step=0.5), [1.0])
    assert found == pytest.approx([1 + 0.5 * WEIGHT.scale])


@pytest.mark.parametrize("rule", RULES)
@given(accuracies=ACCURACIES)
def test_trials_of_a_stack_do_not_feel_each_other(rule, accuracies):
    discrepancy = Discrepancy(rule=rule)
    course = discrepancy.start(torch.tensor([1.0, 3.0], dtype=torch.float64))
    goals = torch.tensor([0.9, 0.2], dtype=torch.float64)
    for accuracy in accuracies:
        measured = torch.tensor([accuracy, float("nan")], dtype=torch.float64)
        course = discrepancy.move(course, measured, goals, WEIGHT)
    assert float(course["strength"][0]) == follow(discrepancy, accuracies)[-1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"step": 0.0}, "step must be in"),
        ({"step": 1.5}, "step must be in"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"every": "step", "measure": "train"}, "measure must be 'batch'"),
    ],
)
def test_a_setting_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Discrepancy(**fields)
