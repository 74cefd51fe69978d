import pytest
import torch
from support.adversaries import climbed, close, plain
from support.training import an_entry, batches, digits, same, train
from torch.nn import functional as F

from lipbench.norm import Norm


@pytest.mark.parametrize("norm", [Norm(2), Norm(torch.inf)], ids=str)
def test_training_is_a_plain_loop_over_samples_and_moved_samples(norm):
    """The objective of section 6, with alpha = 0.3."""
    data = digits(train=24, dtype=torch.float64)
    net, theirs = plain(data)
    for inputs, targets in batches(data, 12, epochs=1):

        def height(point, row, targets=targets):
            return F.cross_entropy(net(point), targets[row : row + 1])

        points = climbed(height, inputs, inputs, 0.2, norm, steps=1, length=0.2)
        theirs.zero_grad()
        clean, moved = F.cross_entropy(net(inputs), targets), F.cross_entropy(net(points), targets)
        (0.3 * clean + 0.7 * moved).backward()
        theirs.step()
    fields = {"epsilon": 0.2, "norm": norm, "clean": 0.3}
    close(
        train(an_entry("fgsm_at", epochs=1, batch_size=12, dtype="float64", **fields), data)[0], net
    )


def test_with_all_weight_on_the_samples_it_is_standard_training():
    (ours,) = train(an_entry("fgsm_at", epochs=1, clean=1.0))
    (standard,) = train(an_entry("standard", epochs=1))
    assert same(ours.checkpoints["last"].params, standard.checkpoints["last"].params)
