"""The trainer against a plain loop, a stack against its members, a resumed run against a whole."""

import copy
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from support import runs
from support.training import (
    ADAM,
    METHODS,
    SMALL,
    STACKABLE,
    VARIANTS,
    a_method,
    a_model,
    a_trainer,
    an_entry,
    batches,
    digits,
    initial,
    is_stackable,
    of_each,
    same,
    train,
)
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lipbench.config.file import parse
from lipbench.data.splits import split
from lipbench.dataset import Dataset
from lipbench.evaluation.selection import selection_score
from lipbench.method import Method
from lipbench.model import Model
from lipbench.registry import load
from lipbench.runs.training_state import read_training_state, write_training_state
from lipbench.training.discrepancy import Discrepancy
from lipbench.training.ensemble import TrainingRefused
from lipbench.training.epoch import train_epoch
from lipbench.training.optimiser import Optimizer
from lipbench.training.trainer import Trainer
from lipbench.training.trial import Trial

FRAIL = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from lipbench.method import Method

@dataclass(frozen=True, kw_only=True)
class Frail(Method):
    stackable: ClassVar[bool] = True
    fails: float

    def start(self, net, data, rng):
        return {"age": data.train.inputs.new_zeros(())}

    def loss(self, net, batch, state, draw, h):
        outputs, buffers = net.train(batch.inputs)
        age = state["age"] + 1
        value = batch.loss(outputs) * torch.where(age == h["fails"], torch.nan, 1.0)
        return value, {**state, "age": age, "buffers": buffers}
"""

LONE = """
from dataclasses import dataclass
from lipbench.method import Method

@dataclass(frozen=True, kw_only=True)
class Lone(Method):
    weight: float = 1.0

    def loss(self, net, batch, state, draw, h):
        assert float(h["weight"]) == self.weight
        outputs, buffers = net.train(batch.inputs)
        return batch.loss(outputs), {**state, "buffers": buffers}
"""


class Readback(TorchDispatchMode):
    """Counts what would let the host wait for the device."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")
        self.numbers += func._schema.name in names
        return func(*args, **(kwargs or {}))


def by_margin(model, seed):
    # A selection score without an attack: the share of confident answers on ten samples.
    outputs = model(digits().validation.inputs[:10])
    return float(outputs.softmax(dim=1).max(dim=1).values.mean())


def variant(name, **changes):
    return an_entry(**{**VARIANTS[name], **changes})


def checkpoints(outcome):
    return {
        f"{name}/{key}": value
        for name, checkpoint in outcome.checkpoints.items()
        for key, value in checkpoint.params.items()
    }


@pytest.mark.parametrize("optimizer", [Optimizer(lr=0.5), ADAM], ids=["sgd", "adam"])
def test_standard_training_is_a_plain_loop(optimizer):
    data = digits(dtype=torch.float64)
    net = initial(data)
    if optimizer.name == "sgd":
        theirs = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    else:
        theirs = torch.optim.Adam(net.parameters(), lr=0.01)
    total = 0.0
    for inputs, targets in batches(data, 30, epochs=2):
        loss = F.cross_entropy(net(inputs), targets)
        total += loss.item() * len(inputs) / 128 / 2
        theirs.zero_grad()
        loss.backward()
        theirs.step()
    entry = an_entry("standard", epochs=2, batch_size=30, optimizer=optimizer, dtype="float64")
    (outcome,) = train(entry, data)
    for name, value in net.named_parameters():
        found = outcome.checkpoints["last"].params[name]
        torch.testing.assert_close(found, value.detach(), rtol=1e-9, atol=1e-11)
    assert sum(row["loss"] for row in outcome.history) / 2 == pytest.approx(total)
    correct = (net(data.train.inputs).argmax(dim=1) == data.train.targets).double().mean()
    assert outcome.history[-1]["train_accuracy"] == pytest.approx(float(correct))


@pytest.mark.parametrize("name", VARIANTS)
def test_two_runs_of_one_seed_give_the_same_bits(name):
    (one,), (other,) = (train(variant(name), score=by_margin) for _ in range(2))
    assert same(checkpoints(one), checkpoints(other))
    assert one.history == other.history


@pytest.mark.parametrize("name", METHODS)
def test_another_seed_gives_other_weights(name):
    (one,), (other,) = (train(variant(name, epochs=1), seeds=(seed,)) for seed in (0, 1))
    assert not same(checkpoints(one), checkpoints(other))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(name, tmp_path):
    """From the files after one epoch and after four, with all checkpoints; two in a stack."""
    entry = variant(name, epochs=2 if name == "path" else 6)
    seeds = (0, 1) if is_stackable(name) else (0,)
    trainer = a_trainer(entry, seeds=seeds, score=by_margin)
    files = [tmp_path / str(number) for number in range(1, 7)]
    keys = ("a", "b")[: len(seeds)]
    left = iter(files)
    whole = trainer.run(trainer.begin(), lambda now: write_training_state(next(left), now, keys))
    for file in (files[0], files[3]):
        resumed = trainer.run(read_training_state(file, trainer.begin(), keys))
        for one, other in zip(whole, resumed, strict=True):
            assert same(checkpoints(one), checkpoints(other))
            assert facts(one) == facts(other)


def facts(outcome):
    kept = {
        name: (checkpoint.epoch, checkpoint.strength, checkpoint.validation_score)
        for name, checkpoint in outcome.checkpoints.items()
    }
    return outcome.state, outcome.history, outcome.forwards, outcome.gradients, kept


# Convolutions and single precision: of every method in the slow tests, of these always.
USUAL = ("standard", "clip", "driven norm")


@pytest.mark.parametrize(
    ("name", "kind", "dtype"),
    [
        pytest.param(name, *how, marks=[] if name in USUAL or how == usual else pytest.mark.slow)
        for usual in [("dense", "float64")]
        for name in STACKABLE
        for how in product(("dense", "convolutional"), ("float64", "float32"))
    ],
)
def test_a_stack_equals_its_members_alone(name, kind, dtype):
    """After three epochs, up to the order of sums: relative to the largest weight of a tensor."""
    # In float32 convolutions and Adam blow rounding up, and more steps would show nothing else.
    few = 32 if dtype == "float32" else 96
    data = digits(train=128 if kind == "dense" else few, dtype=getattr(torch, dtype))
    options = {"model": SMALL if kind == "dense" else a_model("madry_cnn")}
    entry = variant(name, dtype=dtype)
    if kind == "convolutional":
        if reason := entry.method.refuses(initial(data, model=options["model"]), data):
            pytest.skip(reason)
        slow = replace(entry.training.optimizer, lr=0.002)
        entry = replace(entry, training=replace(entry.training, optimizer=slow))
    tolerance = {"float64": 1e-9, "float32": 1e-5}[dtype]
    together = train(entry, data, seeds=(0, 1, 2), **options)
    (alone,) = train(entry, data, seeds=(2,), **options)
    for key, value in checkpoints(alone).items():
        found, largest = checkpoints(together[2])[key], float(value.abs().max())
        assert float((found - value).abs().max()) <= tolerance * max(largest, 1e-3)


@pytest.mark.parametrize("driven", [False, True])
def test_members_of_a_stack_may_differ_in_real_numbers(driven):
    """In strength, learning rate, seed and target, each as it would be alone."""
    data = digits(dtype=torch.float64)
    entries = [
        an_entry(
            "clip",
            pairs=8,
            lambda_=weight,
            lr=rate,
            target=target if driven else None,
            dtype="float64",
        )
        for weight, rate, target in ((0.0, 0.5, 0.3), (0.5, 0.2, 0.5), (0.1, 0.5, 0.6))
    ]
    trials = [Trial(entry=entry, seed=seed) for seed, entry in enumerate(entries)]
    trainer = Trainer(trials, SMALL, data)
    together = trainer.run(trainer.begin())
    for seed, (entry, outcome) in enumerate(zip(entries, together, strict=True)):
        (alone,) = train(entry, data, seeds=(seed,))
        assert [row["strength"] for row in outcome.history] == pytest.approx(
            [row["strength"] for row in alone.history], rel=1e-9
        )
        for key, value in checkpoints(alone).items():
            torch.testing.assert_close(checkpoints(outcome)[key], value, rtol=1e-9, atol=1e-11)
    assert not same(checkpoints(together[0]), checkpoints(together[1]))


def test_trials_that_differ_in_more_than_numbers_are_no_stack():
    one, other = an_entry("clip", pairs=8), an_entry("clip", pairs=9)
    trials = [Trial(entry=entry, seed=0) for entry in (one, other)]
    with pytest.raises(ValueError, match="may differ in seeds and real numbers only"):
        Trainer(trials, SMALL, digits())


def test_a_method_that_is_not_stackable_trains_alone_and_as_well(publish):
    publish("lone", {"lipbench.methods": {"lone": "lone_method:Lone"}}, {"lone_method.py": LONE})
    (outcome,) = train(an_entry("lone"))
    (standard,) = train(an_entry("standard"))
    for key, value in checkpoints(standard).items():
        torch.testing.assert_close(checkpoints(outcome)[key], value)
    with pytest.raises(ValueError, match="lone is not stackable: train its trials one by one"):
        a_trainer(an_entry("lone"), seeds=(0, 1))


@pytest.fixture
def frail(publish):
    files = {"frail_method.py": FRAIL}
    publish("frail", {"lipbench.methods": {"frail": "frail_method:Frail"}}, files)
    return load("lipbench.methods", "frail", Method)


def frail_stack(*fails):
    # Four steps an epoch; a trial diverges at the step given, or never.
    entries = [an_entry("frail", fails=float(step), epochs=4) for step in fails]
    trials = [Trial(entry=entry, seed=seed) for seed, entry in enumerate(entries)]
    trainer = Trainer(trials, SMALL, digits(), of_each(by_margin))
    return trainer.run(trainer.begin())


def test_a_trial_that_diverges_is_recorded_with_its_epoch_and_spoils_no_neighbour(frail):
    lost = frail_stack(0, 6, 0)
    well = frail_stack(0, 0, 0)
    assert [outcome.state for outcome in lost] == ["done", "nan", "done"]
    assert lost[1].message == "a number was not finite after epoch 2"
    assert lost[1].checkpoints == {}
    assert [row["epoch"] for row in lost[1].history] == [1, 2]
    for number in (0, 2):
        assert same(checkpoints(lost[number]), checkpoints(well[number]))
        assert lost[number].history == well[number].history


def test_a_stack_without_a_survivor_stops(frail):
    lost = frail_stack(1, 5)
    assert [outcome.state for outcome in lost] == ["nan", "nan"]
    assert [len(outcome.history) for outcome in lost] == [1, 2]
    assert lost[0].forwards == 2 * 128


def test_a_diverged_trial_stays_so_when_it_is_resumed(frail, tmp_path):
    entry = an_entry("frail", fails=2.0)
    trainer, path = a_trainer(entry), tmp_path / "last"
    trainer.run(trainer.begin(), lambda state: write_training_state(path, state, ("a",)))
    (outcome,) = trainer.run(read_training_state(path, trainer.begin(), ("a",)))
    assert (outcome.state, len(outcome.history)) == ("nan", 1)


@pytest.fixture(scope="module")
def path():
    (outcome,) = train(variant("path"), score=by_margin)
    return outcome


def test_a_path_keeps_the_network_of_each_point_and_ends_with_the_last(path):
    assert list(path.checkpoints) == ["path:0", "path:1", "path:2", "last", "chosen"]
    assert [path.checkpoints[f"path:{n}"].strength for n in (0, 1)] == [0.0, 1.0]
    assert [path.checkpoints[f"path:{n}"].epoch for n in range(3)] == [2, 4, 6]
    assert [row["epoch"] for row in path.history] == [1, 2, 3, 4, 5, 6]
    for name in ("last", "chosen"):
        assert same(path.checkpoints[name].params, path.checkpoints["path:2"].params)


def test_each_point_of_a_path_starts_from_the_network_of_the_one_before(path):
    """With a learning rate of next to nothing all points are the initial network."""
    frozen = variant("path", optimizer=Optimizer(lr=1e-30))
    (outcome,) = train(frozen)
    start = dict(initial(digits()).named_parameters())
    for checkpoint in outcome.checkpoints.values():
        assert all(torch.equal(value, start[name]) for name, value in checkpoint.params.items())
    (first,) = train(an_entry("clip", pairs=8, lambda_=0.0, epochs=2))
    assert same(path.checkpoints["path:0"].params, first.checkpoints["last"].params)
    assert path.history[2]["loss"] != path.history[0]["loss"]


def test_a_path_starts_cold_only_in_the_moments_of_the_optimiser():
    """Two points of strength 0 are two runs of sgd, the second from the weights of the first."""
    data = digits()
    net = initial(data)
    for epoch in range(2):
        theirs = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
        for inputs, targets in list(batches(data, 32, epochs=2))[4 * epoch : 4 * epoch + 4]:
            theirs.zero_grad()
            F.cross_entropy(net(inputs), targets).backward()
            theirs.step()
    (outcome,) = train(an_entry("weight_regularization", path=(0.0, 0.0), epochs=1))
    for name, value in net.named_parameters():
        found = outcome.checkpoints["path:1"].params[name]
        torch.testing.assert_close(found, value.detach(), rtol=1e-4, atol=1e-6)


def test_the_chosen_network_is_the_one_that_scored_best_near_the_target():
    entry = an_entry("standard", epochs=8, lr=1.0, target=None)
    scores = []

    def score(model, seed):
        scores.append(by_margin(model, seed))
        return scores[-1]

    (outcome,) = train(entry, score=score)
    rows = [row for row in outcome.history if row["validation_score"] is not None]
    assert [row["validation_score"] for row in rows] == scores
    most = max(row["train_accuracy"] for row in outcome.history)
    eligible = [row for row in rows if row["train_accuracy"] >= most - 0.005]
    best = max(eligible, key=lambda row: row["validation_score"])
    assert outcome.checkpoints["chosen"].epoch == best["epoch"]
    assert outcome.checkpoints["chosen"].validation_score == best["validation_score"]


def test_the_chosen_network_is_a_copy_of_that_epoch():
    """Training as long as the chosen epoch gives the same bits."""
    entry = an_entry("standard", epochs=6)
    (outcome,) = train(entry, score=lambda model, seed: 0.5)
    chosen = outcome.checkpoints["chosen"]
    (short,) = train(an_entry("standard", epochs=chosen.epoch))
    assert same(chosen.params, short.checkpoints["last"].params)


@pytest.mark.parametrize("name", ["driven", "driven norm"])
def test_the_last_network_is_that_of_the_strength_it_was_trained_with(name):
    """Chosen and last are one network when only the last epoch can be chosen."""
    (outcome,) = train(variant(name, warmup=2), score=lambda model, seed: 0.5)
    chosen, last = outcome.checkpoints["chosen"], outcome.checkpoints["last"]
    assert chosen.epoch == last.epoch == 3
    assert chosen.strength == last.strength == outcome.history[-1]["strength"]
    assert same(chosen.params, last.params)


def test_an_epoch_whose_driven_strength_is_0_is_chosen_only_if_there_is_no_other():
    """The network meets the target after its first epoch, and lambda is above 0 in the third."""
    settings = {"epochs": 3, "lambda_": 0.0, "discrepancy": Discrepancy(measure="train")}

    def driven(target):
        entry = variant("driven", target=target, **settings)
        return train(entry, score=lambda model, seed: 0.5)[0]

    first, second, _ = [row["train_accuracy"] for row in driven(0.999).history]
    assert first < second
    outcome = driven(first)
    assert [row["strength"] > 0 for row in outcome.history] == [False, False, True]
    assert outcome.checkpoints["chosen"].epoch == 3
    assert driven(0.999).checkpoints["chosen"].strength == 0


def test_a_missed_target_is_flagged():
    (outcome,) = train(variant("driven"), score=lambda model, seed: 0.5)
    assert outcome.checkpoints["chosen"].flags == ("target_missed",)
    assert outcome.checkpoints["last"].flags == ()


def test_the_strength_rests_during_warm_up_and_moves_afterwards():
    (outcome,) = train(variant("driven", epochs=5, warmup=3, lambda_=1.0, target=0.99))
    strengths = [row["strength"] for row in outcome.history]
    assert strengths[:3] == [1.0] * 3
    assert strengths[4] < strengths[3] < 1


def test_moved_by_steps_the_strength_rests_during_warm_up_too():
    entry = variant("driven by steps", epochs=4, warmup=2, mu=1e-3, target=0.99)
    (outcome,) = train(entry)
    first, second, third, fourth = [row["strength"] for row in outcome.history]
    assert first == second == pytest.approx(1e-3)
    assert third < second
    assert fourth <= third


def test_without_a_target_the_strength_stays():
    (outcome,) = train(an_entry("clip", pairs=8, lambda_=0.25))
    assert {row["strength"] for row in outcome.history} == {0.25}


@pytest.mark.parametrize("measure", ["train", "batch", "validation"])
def test_any_measure_of_accuracy_can_drive(measure):
    discrepancy = Discrepancy(measure=measure, rule="additive", step=0.5, scale=1.0)
    (outcome,) = train(variant("driven", lambda_=1.0, target=0.99, discrepancy=discrepancy))
    assert [row["strength"] for row in outcome.history] == [1.0, 0.5, 0.0]


def test_driving_by_validation_data_that_are_not_there_is_refused():
    entry = variant("driven", discrepancy=Discrepancy(measure="validation"))
    with pytest.raises(TrainingRefused, match="there are none: set validation_size"):
        train(entry, digits(validation=0))


def test_a_refusal_names_the_method_and_the_reason_before_any_training():
    with pytest.raises(
        TrainingRefused, match=r"clip refuses: it needs 33 pair samples .* raise pair_size"
    ):
        a_trainer(an_entry("clip", pairs=33))


def test_a_network_that_a_method_cannot_build_is_refused_before_any_training():
    class Softmin(Model):
        def build(self, input_shape, outputs, rng):
            return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs), nn.Softmin(dim=1))

    with pytest.raises(TrainingRefused, match=r"spectral_norm refuses: layer '2' \(Softmin\)"):
        a_trainer(an_entry("spectral_norm"), model=Softmin())


def test_forward_passes_and_gradients_are_counted_per_trial():
    """128 samples in each of three epochs, whatever the size of the stack."""
    for outcome in train(an_entry("standard"), seeds=(0, 1)):
        assert (outcome.forwards, outcome.gradients) == (3 * 128, 3 * 128)


def test_the_last_batch_of_an_epoch_may_be_smaller():
    (outcome,) = train(an_entry("standard", epochs=1, batch_size=100))
    assert outcome.forwards == 128


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    train(variant("driven"), score=by_margin)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_leaves_the_data_alone():
    data = digits()
    before = copy.deepcopy((data.train.inputs, data.pairs.inputs))
    train(variant("driven", project_pairs=True))
    assert torch.equal(before[0], data.train.inputs)
    assert torch.equal(before[1], data.pairs.inputs)


def test_a_regression_has_losses_and_no_accuracies():
    dataset = load("lipbench.datasets", "half_max_abs", Dataset)()
    data = split(dataset, dataset.read(Path()))
    entry = an_entry("clip", pairs=8, lambda_=0.01, epochs=3, lr=0.05)
    (outcome,) = train(entry, data, score=by_margin)
    assert [row["train_accuracy"] for row in outcome.history] == [None] * 3
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"]
    assert outcome.checkpoints["chosen"].epoch == 3
    assert outcome.checkpoints["chosen"].train_accuracy is None


def test_a_method_with_random_draws_has_its_own_stream(publish):
    """Order and initial weights are those of standard training; the draws do not move them."""
    text = LONE.replace("    weight: float", "    stackable = True\n    weight: float").replace(
        '        assert float(h["weight"]) == self.weight\n', ""
    )
    text += """
    def draw(self, batch, rng):
        import torch
        return {"noise": torch.rand(batch.inputs.shape, generator=rng)}
"""
    text = text.replace("batch.inputs)", 'batch.inputs + 0 * draw["noise"])')
    publish("noisy", {"lipbench.methods": {"noisy": "noisy_m:Lone"}}, {"noisy_m.py": text})
    (noisy,), (standard,) = train(an_entry("noisy")), train(an_entry("standard"))
    assert same(checkpoints(noisy), checkpoints(standard))
    assert a_method("noisy").weight == 1.0


def test_a_trial_whose_weights_are_finite_and_outputs_are_not_has_ended():
    """One step of a huge rate; its neighbour in the stack is scored as if it were alone."""
    model = a_model(widths=(8,), activation="relu")
    data = digits()
    entries = [an_entry("standard", epochs=1, batch_size=128, lr=lr) for lr in (0.05, 1e25)]
    trials = [Trial(entry=entry, seed=0) for entry in entries]
    (benchmark,) = parse(runs.config("standard")).benchmarks
    trainer = Trainer(trials, model, data, selection_score(benchmark, data))
    well, lost = trainer.run(trainer.begin())
    assert (well.state, lost.state) == ("done", "nan")
    assert well.history[0]["validation_score"] is not None


@pytest.mark.parametrize("name", STACKABLE)
def test_steps_read_nothing_back_from_the_device(name):
    """An epoch of four steps reads as many numbers as one of two."""
    found = []
    for size in (16, 32):
        trainer = a_trainer(variant(name, batch_size=size), digits(train=64))
        state = trainer.begin()
        with Readback() as counted:
            train_epoch(trainer.ensemble, state, trainer.step)
        found.append(counted.numbers)
    assert found[0] == found[1]
