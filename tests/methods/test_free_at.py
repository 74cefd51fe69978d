import pytest
import torch
from support.adversaries import close, held, plain, steepest
from support.training import a_method, a_net, a_trainer, an_entry, batches, digits, initial, train
from torch.nn import functional as F

from lipbench.data.splits import Batch
from lipbench.norm import Norm

FIELDS = {"epsilon": 0.2, "replays": 3, "rel_step": 0.7}


@pytest.mark.parametrize("norm", [Norm(2), Norm(torch.inf)], ids=str)
def test_training_is_algorithm_1(norm):
    """One backward pass gives both steps; delta outlives its batch, also a smaller one."""
    data = digits(train=30, dtype=torch.float64)
    net, theirs = plain(data)
    delta = torch.zeros(12, 1, 8, 8, dtype=torch.float64)
    for inputs, targets in batches(data, 12, epochs=2):
        for _ in range(3):
            pairs = zip(inputs + delta[: len(inputs)], inputs, strict=True)
            points = torch.stack([held(point, centre, 0.2, norm) for point, centre in pairs])
            points.requires_grad_()
            theirs.zero_grad()
            F.cross_entropy(net(points), targets).backward()
            for row, slope in enumerate(points.grad):
                moved = delta[row] + 0.7 * 0.2 * steepest(slope, norm)
                # The ball alone: what the box cuts off is kept.
                if norm == torch.inf:
                    delta[row] = moved.clamp(-0.2, 0.2)
                else:
                    delta[row] = moved * min(1.0, 0.2 / float(moved.norm()))
            theirs.step()
    entry = an_entry("free_at", epochs=2, batch_size=12, dtype="float64", norm=norm, **FIELDS)
    close(train(entry, data)[0], net)


def test_perturbations_outlive_a_smaller_batch_and_stay_in_the_ball():
    trainer = a_trainer(an_entry("free_at", epochs=2, batch_size=48, **FIELDS))
    progress = trainer.begin()
    trainer.run(progress)
    delta = progress.state["delta"][0]
    assert delta.shape == (48, 1, 8, 8)
    assert delta.flatten(1).abs().amax(dim=1).gt(0).all()
    assert float(delta.abs().max()) <= 0.2 * (1 + 1e-6)


def test_coordinates_that_the_box_cuts_move_on():
    """Black pixels are most of an image, and would keep a first step down for good."""
    data, method = digits(), a_method("free_at", **FIELDS)
    net, inputs = a_net(initial(data), (1, 8, 8)), data.train.inputs
    h = {name: torch.tensor(FIELDS[name]) for name in ("epsilon", "rel_step")}
    state = {"delta": torch.full_like(inputs, -0.2), "share": torch.ones(())}

    def height(delta):
        batch = Batch(inputs, data.train.targets)
        return method.loss(net, batch, {**state, "delta": delta}, {}, h)[0]

    slope = torch.func.grad(height)(state["delta"])
    black = inputs == 0
    assert float((slope[black] != 0).float().mean()) > 0.9
    moved = method.ascend(state, {"delta": slope}, h)["delta"]
    torch.testing.assert_close(
        moved[black & (slope > 0)], torch.tensor(-0.06).expand_as(moved[black & (slope > 0)])
    )
