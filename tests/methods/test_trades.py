import pytest
import torch
from support.adversaries import Normed, climbed, close, held, plain
from support.training import an_entry, batches, digits, train
from torch.nn import functional as F

from lipbench.adversarial.losses import divergence
from lipbench.norm import Norm
from lipbench.seeds import stream


def kl(logits, others):
    # As in the authors' code: of the first from the second, summed over the batch.
    return F.kl_div(others.log_softmax(dim=1), logits.softmax(dim=1), reduction="sum")


@pytest.mark.parametrize("norm", [Norm(2), Norm(torch.inf)], ids=str)
def test_training_is_the_loop_of_the_authors_code(norm):
    data, rng = digits(train=24, dtype=torch.float64), stream(0, "method", "trades")
    net, theirs = plain(data)
    for inputs, targets in batches(data, 12, epochs=1):
        normal = torch.randn(inputs.shape, generator=rng, dtype=torch.float64)
        pairs = zip(inputs + 0.01 * normal, inputs, strict=True)
        first = torch.stack([held(point, centre, 0.2, norm) for point, centre in pairs])
        fixed = net(inputs).detach()

        def height(point, row, fixed=fixed):
            return kl(fixed[row : row + 1], net(point))

        points = climbed(height, first, inputs, 0.2, norm, steps=3, length=0.1)
        theirs.zero_grad()
        clean = net(inputs)
        value = F.cross_entropy(clean, targets) + 3.0 / len(inputs) * kl(clean, net(points))
        value.backward()
        theirs.step()
    fields = {"epsilon": 0.2, "norm": norm, "steps": 3, "rel_step": 0.5, "noise": 0.01, "beta": 3.0}
    close(
        train(an_entry("trades", epochs=1, batch_size=12, dtype="float64", **fields), data)[0], net
    )


def test_the_divergence_is_that_of_torch_and_at_least_0():
    rng = torch.Generator().manual_seed(0)
    logits, others = (10 * torch.randn(200, 4, generator=rng) for _ in range(2))
    found = divergence(logits, others)
    torch.testing.assert_close(found.sum(), kl(logits, others))
    assert float(found.min()) >= 0
    assert float(divergence(logits, logits + 1).abs().max()) <= 1e-5
    torch.testing.assert_close(divergence(logits, others), divergence(logits - 7, others + 3))


def test_a_larger_beta_makes_the_probabilities_steadier():
    found = []
    for beta in (0.0, 1.0, 10.0):
        fields = {"epsilon": 0.2, "steps": 2, "rel_step": 0.6, "beta": beta}
        (outcome,) = train(an_entry("trades", epochs=6, batch_size=16, **fields))
        net, _ = plain(digits())
        net.load_state_dict(outcome.checkpoints["last"].params)
        inputs = digits().test.inputs
        noise = 0.1 * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found.append(float(divergence(net(inputs), net(inputs + noise)).mean()))
    assert found[0] > found[1] > found[2]


def test_both_passes_move_the_batch_statistics():
    (outcome,) = train(an_entry("trades", epochs=1, steps=2), model=Normed())
    assert int(outcome.checkpoints["last"].buffers["2.num_batches_tracked"]) == 8
