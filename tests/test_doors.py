"""Methods that suit the doors least, trained through them and nothing else."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import pytest
import torch
from sketches.perturbed import Occluded, Rounded
from sketches.residual import Blocks
from support.training import a_method, a_model, digits, same
from torch import nn

from lipbench.bound import Bound
from lipbench.method import Method, Strength
from lipbench.model import Model
from lipbench.networks.net import Net
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load
from lipbench.runs.training_state import read_training_state, write_training_state
from lipbench.training.discrepancy import Discrepancy
from lipbench.training.ensemble import TrainingRefused
from lipbench.training.optimiser import Optimizer
from lipbench.training.settings import MethodEntry, TrainingSettings
from lipbench.training.trainer import Trainer
from lipbench.training.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Normed(Model):
    """A small network with batch normalisation."""

    dropout: float | None = None

    def build(self, input_shape, outputs, rng):
        dense = nn.Linear(64, 16), nn.Linear(16, outputs)
        layers = [nn.Flatten(), dense[0], nn.BatchNorm1d(16), nn.ReLU(), dense[1]]
        if self.dropout is not None:
            layers.append(nn.Dropout(self.dropout))
        for layer in dense:
            nn.init.kaiming_uniform_(layer.weight, generator=rng)
            nn.init.zeros_(layer.bias)
        return nn.Sequential(*layers)


L2 = Norm(2)
SHALLOW = a_model(widths=(16,), activation="relu")
SQUARE = a_model(widths=(24, 24), activation="relu")
# Each with the network it trains and, where it can be stacked, a second member of the stack.
SKETCHES = {
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
    trainer = Trainer(trials, model, digits())
    trainer.step._record = None  # to record so few steps takes longer than to take them
    return trainer


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


@each_sketch
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
            write_training_state(path, progress, ("key",))

    trainer = a_trainer(model, *methods)
    whole = trainer.run(trainer.begin(), save)
    again = a_trainer(model, *methods)
    progress = read_training_state(path, again.begin(), ("key",))
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


def test_without_its_effect_a_sketch_is_standard_training():
    (found,), (standard,) = train(SHALLOW, Occluded(rate=0.0)), train(SHALLOW, a_method("standard"))
    assert same(found.params, standard.params)
    assert same(found.buffers, standard.buffers)


def test_batch_statistics_reach_the_saved_network():
    trainer = a_trainer(Normed(), a_method("lcc"))
    (outcome,) = trainer.run(trainer.begin())
    buffers = outcome.checkpoints["last"].buffers
    assert int(buffers["2.num_batches_tracked"]) == 9
    assert not torch.equal(buffers["2.running_var"], torch.ones(16))


def test_a_batch_size_beyond_the_data_is_known_as_what_it_comes_to():
    trainer = a_trainer(SHALLOW, a_method("free_at"), batch_size=1000)
    assert len(trainer.begin().state["delta"][0]) == 128


def test_what_cannot_be_stacked_is_refused_before_training():
    with pytest.raises(ValueError, match="not stackable"):
        a_trainer(SHALLOW, a_method("sdp_enforced"), a_method("sdp_enforced"))


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
    norm: Norm = L2

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
    with pytest.raises(TrainingRefused, match="layer '5' is dropout"):
        train(model, a_method("standard"))
    train(Normed(dropout=0.0), a_method("standard"))


def test_names_that_a_file_could_not_keep_apart_are_refused(tmp_path):
    trainer = a_trainer(SHALLOW, a_method("standard"))
    progress = trainer.begin()
    progress.state["right/0"] = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="must not contain a slash, got 'right/0'"):
        write_training_state(tmp_path / "last.safetensors", progress, ("key",))


def test_methods_with_other_norms_are_not_stacked():
    with pytest.raises(ValueError, match="may differ in seeds and real numbers only"):
        a_trainer(SHALLOW, Careless(), Careless(norm=Norm(1)))
