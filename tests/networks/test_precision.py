import pytest
import torch
from support.training import a_model, a_trainer, an_entry, digits, initial, train
from torch import nn
from torch.nn import functional as F

from lipbench.networks.net import Net, Skeleton
from lipbench.networks.precision import products
from lipbench.training.settings import TrainingSettings

CNN = a_model("madry_cnn")


def flags():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("before", [True, False])
def test_tf32_is_on_where_it_is_asked_for_alone(before, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    for precision, expected in [("full", False), ("bf16", False), ("tf32", True)]:
        with products(precision):
            assert flags() == (expected, expected)
        assert torch.backends.cudnn.allow_tf32 == before


def nets():
    data = digits()
    module = initial(data, model=CNN)
    params = {name: value.detach() for name, value in module.named_parameters()}
    full, narrow = (
        Net(Skeleton(module, (1, 8, 8), "bf16" if narrow else "full"), params)
        for narrow in (False, True)
    )
    return full, narrow, data.train.inputs[:20], data.train.targets[:20]


def test_in_bfloat16_outputs_and_gradients_are_rounded_and_keep_their_type():
    """Eight bits of mantissa: about a hundredth, but not nothing."""
    full, narrow, inputs, targets = nets()

    def loss(params, net):
        return F.cross_entropy(net.with_params(params).train(inputs)[0], targets)

    for name, value in torch.func.grad(loss)(full.params, full).items():
        found = torch.func.grad(loss)(full.params, narrow)[name]
        assert found.dtype == torch.float32
        assert 0 < float((found - value).norm()) < 0.1 * float(value.norm())


def test_the_exact_form_of_a_network_computes_in_full():
    full, narrow, inputs, _ = nets()
    assert not torch.equal(narrow(inputs), full(inputs))
    assert torch.equal(narrow.exact(inputs), full(inputs))
    assert torch.equal(narrow.frozen.exact(inputs), full(inputs))


def test_statistics_of_batch_normalisation_stay_in_full_precision():
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 2))
    tensors = dict(module.named_parameters()), dict(module.named_buffers())
    inputs = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for precision in ("full", "bf16"):
        outputs, buffers = Skeleton(module, (1, 8, 8), precision).train(*tensors, inputs)
        assert outputs.dtype == buffers["1.running_var"].dtype == torch.float32


def trained(name, precision, **options):
    entry = an_entry(name, epochs=3, batch_size=16, lr=0.02, precision=precision, **options)
    (outcome,) = train(entry, digits(train=64), model=CNN)
    return outcome


def test_training_in_bfloat16_is_another_run_of_the_same_kind():
    full, narrow = (trained("standard", precision) for precision in ("full", "bf16"))
    losses = [outcome.history[-1]["loss"] for outcome in (full, narrow)]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.2)
    assert all(value.dtype == torch.float32 for value in narrow.checkpoints["last"].params.values())


@pytest.mark.parametrize("update", ["accept", "plain", "free"])
def test_pairs_climb_in_full_precision(update):
    """After one step from the same weights, pairs and quotients are the same to the bit."""
    found = []
    for precision in ("full", "bf16"):
        entry = an_entry(
            "clip", epochs=1, batch_size=64, pairs=4, update=update, precision=precision
        )
        trainer = a_trainer(entry, digits(train=64), model=CNN)
        progress = trainer.begin()
        trainer.run(progress)
        found.append(progress.state)
    for name in ("quotient", "total", "difference"):
        assert torch.equal(found[0][name], found[1][name]), name


def test_tf32_on_a_cpu_changes_nothing():
    one, other = (trained("standard", precision) for precision in ("full", "tf32"))
    assert one.history == other.history


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_less_than_full_precision_goes_with_float32(precision):
    with pytest.raises(ValueError, match="goes with dtype 'float32' alone, got 'float64'"):
        TrainingSettings(epochs=1, dtype="float64", precision=precision)
