import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from lipbench.adversarial.losses import error_odds, lead, margin, scale_free_error_odds
from lipbench.data.splits import cross_entropy


@st.composite
def answers(draw):
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    classes = draw(st.integers(2, 6))
    logits = 3 * torch.randn(4, classes, generator=rng, dtype=torch.float64)
    return logits, torch.randint(classes, (4,), generator=rng)


def gradient(loss, logits, labels):
    logits = logits.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(loss(logits, labels).sum(), logits)
    return slopes / torch.linalg.vector_norm(slopes, dim=1, keepdim=True)


@given(answers())
def test_margin_is_the_best_wrong_logit_minus_that_of_the_label(answer):
    logits, labels = answer
    naive = [
        max(value for k, value in enumerate(row) if k != label) - row[label]
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert naive == margin(logits, labels).tolist()


def slope(loss, logits, labels):
    return torch.func.grad(lambda z: loss(z, labels).sum())(logits)


@given(answers(), st.sampled_from([1e-3, 1.0, 1e3]))
def test_cross_entropy_is_that_of_torch(answer, scale):
    logits, labels = answer
    logits = scale * logits

    def theirs(*a):
        return F.cross_entropy(*a, reduction="none")

    torch.testing.assert_close(cross_entropy(logits, labels), theirs(logits, labels))
    torch.testing.assert_close(
        slope(cross_entropy, logits, labels), slope(theirs, logits, labels), rtol=1e-6, atol=1e-15
    )


@pytest.mark.parametrize("lead", [30.0, 200.0])
def test_cross_entropy_of_a_sure_answer_keeps_its_digits(lead):
    """In float32, where the sum of exponentials of the logits themselves would overflow."""
    logits = torch.tensor([[lead, 0.0, -1.0]])
    right, wrong = torch.tensor([0]), torch.tensor([1])
    assert 0 <= float(cross_entropy(logits, right)) < 1e-6
    assert float(cross_entropy(logits, wrong)) == pytest.approx(lead, rel=1e-6)
    assert slope(cross_entropy, logits, wrong)[0].tolist() == pytest.approx([1, -1, 0], abs=1e-6)


@given(answers())
def test_error_odds_determine_cross_entropy(answer):
    logits, labels = answer
    torch.testing.assert_close(
        F.softplus(error_odds(logits, labels)), F.cross_entropy(logits, labels, reduction="none")
    )


@given(answers())
def test_error_odds_have_the_direction_of_cross_entropy(answer):
    logits, labels = answer
    torch.testing.assert_close(
        gradient(error_odds, logits, labels),
        gradient(lambda *a: F.cross_entropy(*a, reduction="none"), logits, labels),
    )


def test_error_odds_have_a_gradient_where_that_of_cross_entropy_underflows():
    logits, labels = torch.tensor([[1000.0, 0.0, -5.0]]), torch.tensor([0])
    assert torch.func.grad(lambda z: F.cross_entropy(z, labels))(logits).abs().max() == 0
    assert torch.func.grad(lambda z: error_odds(z, labels).sum())(logits).abs().max() > 0.5


@given(answers(), st.sampled_from([1e-6, 100.0, 1e8]))
def test_scale_of_the_logits_does_not_turn_the_scale_free_gradient(answer, scale):
    logits, labels = answer
    torch.testing.assert_close(
        gradient(scale_free_error_odds, logits, labels),
        gradient(scale_free_error_odds, scale * logits, labels),
        rtol=1e-6,
        atol=1e-9,
    )


def test_equal_logits_have_a_finite_scale_free_gradient():
    assert gradient(scale_free_error_odds, torch.zeros(1, 3), torch.tensor([1])).isfinite().all()


def test_lead_compares_one_rival_with_the_label():
    logits = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    led = lead(logits, torch.tensor([0, 2]), torch.tensor([1, 0]))
    assert led.tolist() == [1.0, -3.0]


def test_losses_work_under_vmap():
    logits, labels = torch.randn(3, 2, 4), torch.randint(4, (3, 2))
    for loss in (margin, error_odds, scale_free_error_odds):
        alone = torch.stack([loss(*pair) for pair in zip(logits, labels, strict=True)])
        torch.testing.assert_close(torch.vmap(loss)(logits, labels), alone)
