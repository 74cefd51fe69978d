import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipbench.norm import Norm
from lipbench.threat import Threat


def threat(norm, epsilon, domain=(0.0, 1.0)):
    return Threat(norm=Norm(norm), epsilon=torch.as_tensor(epsilon), domain=domain)


@st.composite
def situations(draw):
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.sampled_from([(3, 7), (2, 1, 4, 4), (4, 300)]))
    centre = torch.rand(shape, generator=rng)
    inputs = centre + draw(st.sampled_from([1e-4, 0.1, 3.0])) * torch.randn(shape, generator=rng)
    epsilon = draw(st.sampled_from([1e-7, 1e-3, 0.1, 2.0])) * torch.rand(shape[0], generator=rng)
    domain = draw(st.sampled_from([None, (0.0, 1.0)]))
    norm = Norm(draw(st.sampled_from([1, 2, math.inf])))
    return Threat(norm=norm, epsilon=epsilon, domain=domain), inputs, centre


@given(situations())
def test_confined_points_exceed_neither_ball_nor_box(situation):
    """Measured in float64, not even by rounding."""
    allowed, inputs, centre = situation
    moved = allowed.confine(inputs, centre)
    distance = allowed.norm.length(moved.double() - centre.double())
    assert (distance <= allowed.epsilon.double()).all()
    assert allowed.domain is None or (moved.min() >= 0 and moved.max() <= 1)


@given(situations())
def test_projection_equals_confinement_up_to_rounding(situation):
    allowed, inputs, centre = situation
    torch.testing.assert_close(
        allowed.project(inputs, centre), allowed.confine(inputs, centre), rtol=0, atol=2e-6
    )


@given(situations())
def test_allowed_points_stay_where_they_are(situation):
    allowed, inputs, centre = situation
    moved = allowed.confine(inputs, centre)
    torch.testing.assert_close(allowed.project(moved, centre), moved, rtol=0, atol=2e-6)


def test_l2_projection_scales_the_offset():
    centre, inputs = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    moved = threat(2, [2.5], domain=None).project(inputs, centre)
    torch.testing.assert_close(moved, torch.tensor([[1.5, 2.0]]))


def test_l_infinity_projection_clips_each_coordinate():
    centre, inputs = torch.tensor([[0.5, 0.9, 0.5]]), torch.tensor([[2.0, 2.0, 0.45]])
    moved = threat(math.inf, [0.25]).project(inputs, centre)
    torch.testing.assert_close(moved, torch.tensor([[0.75, 1.0, 0.45]]))


def test_every_sample_has_its_own_epsilon():
    moved = threat(math.inf, [0.1, 0.2]).project(torch.ones(2, 1), torch.zeros(2, 1))
    torch.testing.assert_close(moved, torch.tensor([[0.1], [0.2]]))


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_epsilon_zero_gives_the_centre_itself(norm):
    centre = torch.rand(3, 5)
    assert torch.equal(centre, threat(norm, [0.0] * 3).project(centre + 1, centre))


def test_selection_keeps_the_epsilons_of_the_selected():
    allowed = threat(2, [0.1, 0.2, 0.3])
    assert torch.equal(torch.tensor([0.3, 0.1]), allowed.only(torch.tensor([2, 0])).epsilon)
    assert torch.equal(
        torch.tensor([0.2]), allowed.only(torch.tensor([False, True, False])).epsilon
    )


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_projection_works_under_vmap(norm):
    allowed, centre, inputs = threat(norm, [0.1, 0.3]), torch.rand(4, 2, 5), torch.randn(4, 2, 5)
    alone = torch.stack([allowed.project(*pair) for pair in zip(inputs, centre, strict=True)])
    torch.testing.assert_close(torch.vmap(allowed.project)(inputs, centre), alone)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_projection_has_gradients_and_takes_epsilons_of_a_stack(p):
    centre, moved = torch.rand(2, 3), torch.rand(2, 3) + 1

    def project(points, epsilon):
        threat = Threat(norm=Norm(p), epsilon=epsilon.expand(2), domain=None)
        return threat.project(points, centre)

    slope = torch.func.grad(lambda points: project(points, torch.tensor(0.5)).sum())(moved)
    assert slope.isfinite().all()
    epsilons = torch.tensor([0.1, 0.5, 9.0])
    together = torch.vmap(project, in_dims=(None, 0))(moved, epsilons)
    for found, epsilon in zip(together, epsilons, strict=True):
        torch.testing.assert_close(found, project(moved, epsilon))
