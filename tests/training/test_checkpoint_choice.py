"""The rules of the choice, against a twin that keeps every epoch."""

import math
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipbench.training.checkpoint_choice import MAXIMUM_WINDOW, TARGET_WINDOW, Choice

# Coarse numbers: ties and accuracies at the edge of a window are frequent.
ACCURACIES = st.sampled_from([0.5, 0.8, 0.884, 0.886, 0.895, 0.9, 0.905, 0.914, 0.916, 0.95])
SCORES = st.sampled_from([0.1, 0.2, 0.3])
EPOCHS = st.lists(st.tuples(ACCURACIES, SCORES, st.booleans()), max_size=12)


def choose(epochs, target=None, warmup=0):
    # Returns the chosen epoch with its flags, and those that were attacked. An epoch has an
    # accuracy, a score, and may say that its strength had no effect.
    choice, attacked = Choice(target, warmup, []), []
    for number, (accuracy, score, *regularised) in enumerate(epochs, start=1):
        wanted = choice.wants(number, accuracy, *regularised)
        if wanted:
            attacked.append(number)
        net = partial("net {}".format, number)
        choice.offer(number, accuracy, score if wanted else None, net, *regularised)
    chosen = choice.chosen()
    return (None if chosen is None else (chosen[0].epoch, chosen[1])), attacked, choice


def naive(epochs, target, warmup):
    late = [(n, *epoch) for n, epoch in enumerate(epochs, start=1) if n > warmup]
    if not late:
        return None
    if target is None:
        most = max(a for _, a, _, _ in late)
        eligible = [e for e in late if e[1] >= most - MAXIMUM_WINDOW]
        return max(eligible, key=lambda e: (e[2], e[1], -e[0]))[0], ()
    eligible = [e for e in late if e[3] and abs(e[1] - target) <= TARGET_WINDOW]
    if eligible:
        return max(eligible, key=lambda e: (e[2], -e[0]))[0], ()
    regularised = [e for e in late if e[3]] or late
    nearest = min(regularised, key=lambda e: (abs(e[1] - target), e[0]))
    missed = abs(nearest[1] - target) > TARGET_WINDOW
    return nearest[0], ("target_missed",) if missed else ()


@settings(max_examples=200)
@given(EPOCHS, st.sampled_from([None, 0.9]), st.integers(0, 3))
def test_the_choice_is_that_of_a_twin_which_keeps_every_epoch(epochs, target, warmup):
    assert choose(epochs, target, warmup)[0] == naive(epochs, target, warmup)


@given(EPOCHS)
def test_with_a_target_one_network_is_kept(epochs):
    assert len(choose(epochs, target=0.9)[2].candidates) <= 1


@given(EPOCHS)
def test_without_a_target_no_kept_network_is_beaten_in_both(epochs):
    kept = choose(epochs)[2].candidates
    for one in kept:
        others = [c for c in kept if c is not one]
        assert not any(c.accuracy >= one.accuracy and c.score >= one.score for c in others)


def test_the_most_robust_epoch_near_the_target_wins():
    assert choose([(0.91, 0.2), (0.89, 0.4), (0.9, 0.3)], target=0.9)[0] == (2, ())


def test_a_robust_epoch_far_from_the_target_does_not_win():
    """A network after one epoch is flat and inaccurate: the attack alone would pick it."""
    assert choose([(0.6, 0.5), (0.9, 0.3)], target=0.9)[0] == (2, ())
    assert choose([(0.6, 0.5), (0.9, 0.3)])[0] == (2, ())


def test_without_an_epoch_near_the_target_the_nearest_is_flagged():
    assert choose([(0.5, 0.4), (0.8, 0.1), (0.7, 0.3)], target=0.9)[0] == (2, ("target_missed",))


def test_an_epoch_without_regularisation_is_chosen_only_if_there_is_no_other():
    """A network that learns passes its target, whatever would be done to it later."""
    assert choose([(0.9, 0.4, False), (0.91, 0.2, True)], target=0.9)[0] == (2, ())
    missed = ("target_missed",)
    assert choose([(0.9, 0.4, False), (0.8, 0.2, True)], target=0.9)[0] == (2, missed)
    assert choose([(0.9, 0.4, False), (0.8, 0.2, False)], target=0.9)[:2] == ((1, ()), [])


def test_only_eligible_epochs_are_attacked():
    assert choose([(0.5, 0.1), (0.9, 0.1), (0.6, 0.1), (0.91, 0.1)], target=0.9)[1] == [2, 4]
    assert choose([(0.5, 0.1), (0.9, 0.1), (0.6, 0.1), (0.898, 0.1)])[1] == [1, 2, 4]


@pytest.mark.parametrize("target", [None, 0.9])
def test_warm_up_and_epochs_without_an_accuracy_do_not_count(target):
    assert choose([(0.9, 0.9), (math.nan, 0.9), (0.9, 0.1)], target, warmup=1)[0] == (3, ())
    assert choose([(0.9, 0.9)], target, warmup=1)[0] is None
