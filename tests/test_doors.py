"""Methods that suit the doors least, trained through them and nothing else."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import pytest
import torch
from sketches.adversarial import FreeTraining, PGDTraining
from sketches.gloro import GloRo
from sketches.lcc import LCC
from sketches.pauli import Enforced, certificate
from sketches.perturbed import Occluded, Rounded
from sketches.residual import Blocks
from torch import nn
from training import a_method, a_model, digits, same

from lipbench.adversary import Attack
from lipbench.bound import Bound, Refused
from lipbench.certified import certified_accuracy, certified_radius, gaps
from lipbench.checkpoints import read_progress, write_progress
from lipbench.constants import constant
from lipbench.discrepancy import Discrepancy
from lipbench.judge import judge
from lipbench.method import Method, Strength
from lipbench.model import Model
from lipbench.net import Net
from lipbench.network import as_network
from lipbench.norm import Norm
from lipbench.norms import converged_norm
from lipbench.optimiser import Optimizer
from lipbench.registry import load
from lipbench.settings import MethodEntry, TrainingSettings
from lipbench.steps import Linear, Scale
from lipbench.threat import Threat
from lipbench.trainer import Refusal, Trainer
from lipbench.trees import take
from lipbench.trial import Trial

INF = torch.inf
NORMS = (Norm(1), Norm(2), Norm(INF))


@dataclass(frozen=True, kw_only=True)
class Normed(Model):
    """A small network with batch normalisation, dense or convolutional."""

    convolutional: bool = False
    dropout: float | None = None

    def build(self, input_shape, outputs, rng):
        if self.convolutional:
            first = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
            layers = [*first, nn.Linear(256, outputs)]
        else:
            first = [nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU()]
            layers = [*first, nn.Linear(16, outputs)]
        if self.dropout is not None:
            layers.append(nn.Dropout(self.dropout))
        for layer in layers:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, generator=rng)
                nn.init.zeros_(layer.bias)
        return nn.Sequential(*layers)


SHALLOW = a_model(widths=(16,), activation="relu")
SQUARE = a_model(widths=(24, 24), activation="relu")
# Each with the network it trains and, where it can be stacked, a second member of the stack.
SKETCHES = {
    "lcc": (Normed(), [LCC(), LCC(lambda_=1.0, lambda_bn=1.0)]),
    "lcc_conv": (Normed(convolutional=True), [LCC(norm=Norm(INF), lambda_=4.0)]),
    "gloro": (SHALLOW, [GloRo(epsilon=0.1), GloRo(epsilon=0.3)]),
    "gloro_bottom": (SHALLOW, [GloRo(form="bottom"), GloRo(form="bottom", epsilon=0.0)]),
    "pgd": (SHALLOW, [PGDTraining(epsilon=0.05), PGDTraining(length=0.3)]),
    "free": (SHALLOW, [FreeTraining(), FreeTraining(epsilon=0.02)]),
    "enforced": (SHALLOW, [Enforced()]),
    "blocks": (SQUARE, [Blocks(), Blocks(temperature=0.2)]),
    "occluded": (SHALLOW, [Occluded(), Occluded(rate=0.5)]),
    "rounded": (SHALLOW, [Rounded(), Rounded()]),
}
each_sketch = pytest.mark.parametrize("name", SKETCHES)


def a_trainer(model, *methods, epochs=3, seeds=None, batch_size=48, target=None):
    # 128 samples in batches of 48: the last one has 32.
    training = TrainingSettings(
        epochs=epochs,
        batch_size=batch_size,
        warmup=0,
        optimizer=Optimizer(name="adam", lr=0.02),
    )
    trials = [
        Trial(
            entry=MethodEntry(
                name="sketch",
                method=method,
                training=training,
                target_accuracy=target,
                discrepancy=None if target is None else Discrepancy(),
            ),
            seed=seed,
        )
        for method, seed in zip(methods, seeds or range(len(methods)), strict=True)
    ]
    return Trainer(trials, model, digits())


def train(model, *methods, **options):
    trainer = a_trainer(model, *methods, **options)
    return [outcome.checkpoints["last"] for outcome in trainer.run(trainer.begin())]


def trained_net(trainer, checkpoint):
    return Net(trainer.ensemble.skeleton, checkpoint.params, checkpoint.buffers)


@lru_cache
def a_trained_net(model, method, **options):
    trainer = a_trainer(model, method, **options)
    (outcome,) = trainer.run(trainer.begin())
    return trained_net(trainer, outcome.checkpoints["last"])


def network(net):
    return as_network(net.module(), (1, 8, 8))


def product(net, norm=2):
    found = load("lipbench.bounds", "product", Bound)().compute(network(net), Norm(norm), None)
    return replace(found, domain=None)


def lower(net):
    bound = load("lipbench.bounds", "jacobian", Bound)(points=8)
    return bound.compute(network(net), Norm(2), None, (), digits().test.inputs[:20]).value


def accuracy(net, part):
    return float((net(part.inputs).argmax(dim=1) == part.targets).float().mean())


# Every sketch.


@each_sketch
def test_a_sketch_learns(name):
    model, (method, *_) = SKETCHES[name]
    net = a_trained_net(model, method, epochs=12)
    assert accuracy(net, digits().train) > 0.6


# Plans do not stack convolutions on a CPU: in groups they sum in another order.
@pytest.mark.parametrize("name", [name for name in SKETCHES if name != "lcc_conv"])
def test_a_member_of_a_stack_ends_as_it_does_alone(name):
    model, methods = SKETCHES[name]
    together = train(model, *methods)
    for seed, (method, found) in enumerate(zip(methods, together, strict=True)):
        (alone,) = train(model, method, seeds=[seed])
        assert same(found.params, alone.params)
        assert same(found.buffers, alone.buffers)


@each_sketch
def test_a_resumed_sketch_ends_with_the_same_bits(name, tmp_path):
    model, methods = SKETCHES[name]
    path = tmp_path / "last.safetensors"

    def save(progress):
        if progress.epoch == 2:
            write_progress(path, progress, ("key",))

    trainer = a_trainer(model, *methods)
    whole = trainer.run(trainer.begin(), save)
    again = a_trainer(model, *methods)
    progress = read_progress(path, again.begin(), ("key",))
    assert progress.epoch == 2
    for one, other in zip(whole, again.run(progress), strict=True):
        assert same(one.checkpoints["last"].params, other.checkpoints["last"].params)
        assert same(one.checkpoints["last"].buffers, other.checkpoints["last"].buffers)


@each_sketch
def test_the_accuracy_on_record_is_that_of_the_saved_network(name):
    model, (method, *_) = SKETCHES[name]
    trainer = a_trainer(model, method)
    (outcome,) = trainer.run(trainer.begin())
    last = outcome.checkpoints["last"]
    found = accuracy(trained_net(trainer, last), digits().train)
    # Where the weights converge at the end only, a sample may still change sides.
    assert found == pytest.approx(last.train_accuracy, abs=1.5 / 128)


@pytest.mark.parametrize(
    ("method", "model"),
    [
        (LCC(lambda_=INF, lambda_bn=INF, norm=Norm(1)), Normed()),
        (GloRo(epsilon=0.0), SHALLOW),
        (PGDTraining(epsilon=0.0), SHALLOW),
        (FreeTraining(epsilon=0.0, replays=1), SHALLOW),
        (Occluded(rate=0.0), SHALLOW),
    ],
    ids=lambda value: type(value).__name__,
)
def test_without_its_effect_a_sketch_is_standard_training(method, model):
    (found,), (standard,) = train(model, method), train(model, a_method("standard"))
    assert same(found.params, standard.params)
    assert same(found.buffers, standard.buffers)


# Layers projected after every step, with batch normalisation.


@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("convolutional", [False, True], ids=["dense", "conv"])
def test_projected_layers_keep_their_bounds_after_every_epoch_and_when_saved(norm, convolutional):
    method = LCC(lambda_=1.0, lambda_bn=0.8, norm=norm)
    trainer = a_trainer(Normed(convolutional=convolutional), method, epochs=4)
    seen = []

    def size(step):
        # The bound of a padded convolution lies above the norm that the method follows.
        is_norm = isinstance(step, Linear) and norm == 2
        return float(converged_norm(step).value) if is_norm else constant(step, norm)

    def check(net, size, slack):
        for step in network(net).steps:
            if isinstance(step, Linear | Scale):
                limit = 1.0 if isinstance(step, Linear) else 0.8
                assert size(step) <= limit * (1 + slack)
                seen.append(size(step))

    def after_epoch(progress):
        (net,) = trainer.ensemble.nets(progress)
        h = {"lambda_": torch.tensor(1.0), "lambda_bn": torch.tensor(0.8)}
        params = method.effective(net, take(progress.state, 0), h)
        # Power iteration ends below the norm.
        check(net.with_params(params), size, slack=1e-2 if norm == 2 else 1e-5)

    (outcome,) = trainer.run(trainer.begin(), after_epoch)
    assert len(seen) == 12
    assert max(seen) > 0.9
    net = trained_net(trainer, outcome.checkpoints["last"])
    check(net, lambda step: constant(step, norm), slack=1e-5)
    claim = method.claims(net)
    assert product(net, norm).value <= claim.constant * (1 + claim.tolerance)


def test_batch_statistics_reach_the_saved_network():
    trainer = a_trainer(Normed(), LCC())
    (outcome,) = trainer.run(trainer.begin())
    buffers = outcome.checkpoints["last"].buffers
    assert int(buffers["2.num_batches_tracked"]) == 9
    assert not torch.equal(buffers["2.running_var"], torch.ones(16))


# Margins against the network's own bound.


def test_margin_training_raises_certified_accuracy():
    def certified(method):
        net = a_trained_net(SHALLOW, method, epochs=12)
        part, steps = digits().test, network(net)
        own = gaps(steps, part.inputs, part.targets)
        return certified_accuracy(certified_radius(own, part.targets, steps, product(net)), 0.2)

    assert certified(GloRo(epsilon=0.2)) > certified(a_method("standard")) + 0.05


def test_power_vectors_in_the_state_follow_the_norm():
    method = GloRo(epsilon=0.1)
    trainer = a_trainer(SHALLOW, method, epochs=4)
    progress = trainer.begin()
    trainer.run(progress)
    (net,), rights = trainer.ensemble.nets(progress), progress.state["rights"]
    found, _ = method.constant(net, {name: value[0] for name, value in rights.items()})
    first, *_ = network(net).layers
    assert float(found) == pytest.approx(constant(first, Norm(2)), rel=1e-2)


def test_a_schedule_lives_in_the_state():
    trainer = a_trainer(SHALLOW, GloRo(epsilon=0.1, growth=0.5), epochs=4)
    shares = []
    trainer.run(trainer.begin(), lambda progress: shares.append(float(progress.state["share"][0])))
    assert shares == [0.5, 1.0, 1.0, 1.0]


# Adversarial training.


def robust_accuracy(net, epsilon):
    part = digits().test
    threat = Threat(norm=Norm(INF), epsilon=torch.full((len(part),), epsilon, dtype=torch.float64))
    attack = load("lipbench.attacks", "pgd", Attack)(steps=5, starts=1)
    rng = torch.Generator().manual_seed(0)
    return 1 - float(
        judge(attack, net.module(), part.inputs, part.targets, threat, rng).success.float().mean()
    )


@pytest.mark.parametrize("method", [PGDTraining(epsilon=0.1), FreeTraining(epsilon=0.1)])
def test_adversarial_training_raises_robust_accuracy(method):
    found = robust_accuracy(a_trained_net(SHALLOW, method, epochs=12), 0.1)
    standard = robust_accuracy(a_trained_net(SHALLOW, a_method("standard"), epochs=12), 0.1)
    assert found > standard + 0.05


def test_the_inner_ascent_stays_in_its_threat_model_and_is_counted():
    method = PGDTraining(epsilon=0.1, steps=3)
    trainer = a_trainer(SHALLOW, method, epochs=2)
    (outcome,) = trainer.run(trainer.begin())
    assert outcome.forwards == outcome.gradients == 2 * 128 * 4


def test_offsets_outlive_the_smaller_last_batch_of_an_epoch():
    trainer = a_trainer(SHALLOW, FreeTraining(epsilon=0.1, replays=3), epochs=2)
    progress = trainer.begin()
    (outcome,) = trainer.run(progress)
    delta = progress.state["delta"][0]
    assert delta.shape == (48, 1, 8, 8)
    assert delta.flatten(1).abs().amax(dim=1).gt(0).all()
    assert float(delta.abs().max()) <= 0.1 * (1 + 1e-6)
    assert outcome.forwards == outcome.gradients == 2 * 3 * 128


def test_a_batch_size_beyond_the_data_is_known_as_what_it_comes_to():
    trainer = a_trainer(SHALLOW, FreeTraining(), batch_size=1000)
    assert len(trainer.begin().state["delta"][0]) == 128


# A constraint enforced once an epoch, outside of torch.


def test_an_enforced_constant_is_certified_in_the_saved_network():
    method = Enforced(constant=2.0)
    net = a_trained_net(SHALLOW, method, epochs=8)
    first, last = (layer.weight.double().numpy() for layer in network(net).layers)
    limit = 2.0 * (1 + method.claims(net).tolerance)
    assert lower(net) <= certificate(first, last, 1.0) <= limit
    assert accuracy(net, digits().train) > 0.5


def test_what_cannot_be_stacked_or_trained_is_refused_before_training():
    with pytest.raises(ValueError, match="not stackable"):
        a_trainer(SHALLOW, Enforced(), Enforced())
    with pytest.raises(Refusal, match="one hidden layer"):
        a_trainer(SQUARE, Enforced())


# Layers that are no primitives.


def test_blocks_that_explain_themselves_are_one_lipschitz_before_and_after_training():
    trainer = a_trainer(SQUARE, Blocks(), epochs=8)
    progress = trainer.begin()
    (before,) = trainer.ensemble.nets(progress)
    (outcome,) = trainer.run(progress)
    after = trained_net(trainer, outcome.checkpoints["last"])
    for net in (before, after):
        found = product(net)
        assert lower(net) <= found.value <= 1 + 1e-5
        assert found.flags
    for name, value in after.params.items():
        assert not torch.equal(value, before.params[name])


def test_a_rebuilt_network_takes_the_saved_tensors():
    """Names of parametrised weights, and all random numbers of `build`, are those of the seed."""
    net = a_trained_net(SQUARE, Blocks())
    again = a_trainer(SQUARE, Blocks(), seeds=[0])
    rebuilt = again.ensemble.skeleton.module.to_empty(device="cpu")
    rebuilt.load_state_dict({**net.params, **net.buffers})
    inputs = digits().test.inputs[:5]
    assert torch.equal(rebuilt(inputs), net(inputs))
    other, first = a_trainer(SQUARE, Blocks(), seeds=[0]), again.begin().params
    assert same(other.begin().params, first)


# What hooks see of a stack.


@dataclass(frozen=True, kw_only=True)
class Careless(Method):
    """Reads a number from itself that comes through `h`."""

    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="weight")

    weight: float = 1.0
    norm: Norm = NORMS[1]

    def loss(self, net, batch, state, draw, h):
        return self.weight * batch.loss(net(batch.inputs)), state


def test_a_field_that_differs_in_the_stack_cannot_be_read_from_the_method():
    train(SHALLOW, Careless(), Careless())
    with pytest.raises(TypeError, match=r'Careless reads self\.weight .* read h\["weight"\]'):
        train(SHALLOW, Careless(), Careless(weight=2.0))


def test_a_driven_strength_cannot_be_read_from_the_method():
    trainer = a_trainer(SHALLOW, Careless(), target=0.5)
    with pytest.raises(TypeError, match=r'read h\["weight"\]'):
        trainer.run(trainer.begin())


def test_dropout_in_the_network_is_refused_rather_than_left_out():
    model = Normed(dropout=0.1)
    with pytest.raises(Refused, match="layer '5' is dropout"):
        train(model, a_method("standard"))
    train(Normed(dropout=0.0), a_method("standard"))


def test_names_that_a_file_could_not_keep_apart_are_refused(tmp_path):
    trainer = a_trainer(SHALLOW, a_method("standard"))
    progress = trainer.begin()
    progress.state["right/0"] = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="must not contain a slash, got 'right/0'"):
        write_progress(tmp_path / "last.safetensors", progress, ("key",))


def test_methods_with_other_norms_are_not_stacked():
    with pytest.raises(ValueError, match="may differ in seeds and real numbers only"):
        a_trainer(SHALLOW, Careless(), Careless(norm=Norm(1)))
