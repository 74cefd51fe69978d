import pytest
import torch
from support.adversaries import Normed, climbed, close, held, plain, uniform
from support.training import an_entry, batches, digits, train
from torch.nn import functional as F

from lipbench.norm import Norm
from lipbench.seeds import stream


@pytest.mark.parametrize("norm", [Norm(2), Norm(torch.inf)], ids=str)
def test_training_is_a_plain_loop_over_the_worst_points_found(norm):
    data, rng = digits(train=24, dtype=torch.float64), stream(0, "method", "pgd_at")
    net, theirs = plain(data)
    for inputs, targets in batches(data, 12, epochs=1):
        offsets = 0.2 * uniform(inputs.shape, norm, rng)
        pairs = zip(inputs + offsets, inputs, strict=True)
        first = torch.stack([held(point, centre, 0.2, norm) for point, centre in pairs])

        def height(point, row, targets=targets):
            return F.cross_entropy(net(point), targets[row : row + 1])

        points = climbed(height, first, inputs, 0.2, norm, steps=3, length=0.1)
        theirs.zero_grad()
        F.cross_entropy(net(points), targets).backward()
        theirs.step()
    fields = {"epsilon": 0.2, "norm": norm, "steps": 3, "rel_step": 0.5}
    close(
        train(an_entry("pgd_at", epochs=1, batch_size=12, dtype="float64", **fields), data)[0], net
    )


def test_the_ascent_leaves_the_batch_statistics_alone():
    (outcome,) = train(an_entry("pgd_at", epochs=1, steps=2), model=Normed())
    assert int(outcome.checkpoints["last"].buffers["2.num_batches_tracked"]) == 4
