import pytest
import torch

from lipbench.method import Summary
from lipbench.method_families import margins

LOGITS = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
RISES = torch.tensor([[0.0, 1.5, 0.9], [3.0, 0.0, 1.0]])


def test_the_bottom_class_has_the_largest_logit_that_a_rival_can_rise_to():
    found = margins.bottom(LOGITS, torch.tensor([0, 1]), RISES)
    torch.testing.assert_close(found, torch.tensor([2.9, 5.0]))


def test_a_sample_is_safe_where_no_rival_reaches_the_label():
    """The second sample ties: what only reaches the label's logit might win."""
    assert margins.safe(LOGITS, torch.tensor([0, 1]), RISES).tolist() == [True, False]
    assert margins.safe(LOGITS, torch.tensor([1, 2]), RISES).tolist() == [False, False]


def test_rows_are_picked_with_their_slopes():
    pairs = torch.arange(9.0).reshape(3, 3)
    rows = torch.tensor([2, 0, 2])
    assert torch.equal(margins.of_rows(pairs, rows), pairs[rows])
    slope = torch.func.grad(lambda one: margins.of_rows(one, rows).sum())(pairs)
    assert slope.tolist() == [[1, 1, 1], [0, 0, 0], [2, 2, 2]]


@pytest.mark.parametrize(
    ("first", "ramp", "expected"),
    [(0.2, 0.5, [0.6, 1, 1, 1]), (0.0, 1.0, [0.25, 0.5, 0.75, 1]), (0.2, 0.0, [1, 1, 1, 1])],
)
def test_a_share_grows_in_a_straight_line(first, ramp, expected):
    state = margins.start(torch.zeros(()), first)
    assert float(state["share"]) == pytest.approx(first)
    for epoch, share in enumerate(expected, 1):
        summary = Summary(epoch=epoch, epochs=4, loss=0.0, train_accuracy=0.0)
        found = margins.grown(state, summary, first, ramp)["share"]
        assert float(found) == pytest.approx(share)


def test_the_share_of_samples_that_passed_is_counted_anew_in_each_epoch():
    state = margins.start(torch.zeros(()), 1.0)
    for passed in ([True, False, False], [True]):
        state |= margins.counted(state, torch.tensor(passed))
    assert margins.report(state) == {"batch_certified": 0.5}
    state |= margins.restarted(state)
    assert margins.report(state | margins.counted(state, torch.tensor([True])))[
        "batch_certified"
    ] == pytest.approx(1.0)
