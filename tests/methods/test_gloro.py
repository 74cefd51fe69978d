import pytest
import torch
from support.training import a_method, a_net, digits, initial
from torch.nn import functional as F

from lipbench.data.splits import Batch


def objective(net, **fields):
    # Of twenty samples, with converged vectors and the whole of epsilon.
    data, method = digits(dtype=torch.float64), a_method("gloro", ramp=0.0, **fields)
    batch = Batch(data.train.inputs[:20], data.train.targets[:20])
    state = method.start(net, data, torch.Generator().manual_seed(0))
    h = {name: torch.tensor(getattr(method, name)).double() for name in ("epsilon", "lambda_")}
    value, state = method.loss(net, batch, {**state, "buffers": {}}, {}, h)
    return value, state, batch


def literal(net, batch, epsilon):
    # Logits with that of ⊥ beside them, sample by sample.
    first, second, last = (layer.weight.detach() for layer in net.layers)
    norms = [torch.linalg.matrix_norm(weight, ord=2) for weight in (first, second)]
    constant = norms[0] * norms[1] / 16  # the slopes of two sigmoids
    rows = []
    for logits in net(batch.inputs):
        j = int(logits.argmax())
        rises = [
            logits[i] + epsilon * constant * (last[j] - last[i]).norm() for i in range(10) if i != j
        ]
        rows.append(torch.stack([*logits, torch.stack(rises).max()]))
    return torch.stack(rows)


@pytest.fixture(scope="module")
def net():
    made = a_net(initial(digits(dtype=torch.float64)), (1, 8, 8))
    return made.with_params({name: 3 * value for name, value in made.params.items()})


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_the_first_loss_is_cross_entropy_over_classes_and_bottom(net, epsilon):
    value, _, batch = objective(net, epsilon=epsilon)
    expected = F.cross_entropy(literal(net, batch, epsilon), batch.targets)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("lambda_", [0.0, 1.0, 1.5])
def test_the_trades_form_is_a_divergence_from_the_distribution_without_bottom(net, lambda_):
    value, _, batch = objective(net, epsilon=0.2, lambda_=lambda_)
    extended = literal(net, batch, 0.2)
    logits = extended[:, :10]
    divergence = F.kl_div(
        extended.log_softmax(dim=1)[:, :10], logits.softmax(dim=1), reduction="batchmean"
    )
    expected = F.cross_entropy(logits, batch.targets) + lambda_ * divergence
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_at_epsilon_0_the_class_bottom_is_the_runner_up(net):
    """So the loss exceeds cross entropy, to which lambda = 0 leads."""
    value, _, batch = objective(net, epsilon=0.0)
    logits = net(batch.inputs)
    runner_up = logits.topk(2).values[:, 1:]
    expected = F.cross_entropy(torch.cat([logits, runner_up], dim=1), batch.targets)
    assert float(value) == pytest.approx(float(expected), rel=1e-9)
