"""Small trainings on the digits, through the same doors as large ones."""

from functools import lru_cache
from pathlib import Path

import torch

from lipbench.data.splits import split
from lipbench.dataset import Dataset
from lipbench.method import Method
from lipbench.method_families.library_layers import is_installed
from lipbench.model import Model
from lipbench.networks.net import Net, Skeleton
from lipbench.registry import load, names
from lipbench.seeds import stream
from lipbench.training.discrepancy import Discrepancy
from lipbench.training.optimiser import Optimizer
from lipbench.training.settings import MethodEntry, TrainingSettings
from lipbench.training.trainer import Trainer
from lipbench.training.trial import Trial


def is_here(method):
    package = getattr(load("lipbench.methods", method, Method), "package", None)
    return package is None or is_installed(package)


# Methods of other libraries take an extra; without it their tests say that they are skipped.
METHODS = [name for name in names("lipbench.methods") if is_here(name)]

# What every method gets that cannot train without: to ask all of them the same questions.
TINY = {
    "clip": {"pairs": 8, "lambda_": 0.1},
    "weight_regularization": {"mu": 0.01},
    "pgd_at": {"epsilon": 0.02, "steps": 2, "rel_step": 0.6},
    "trades": {"epsilon": 0.02, "steps": 2, "rel_step": 0.6},
    "fgsm_at": {"epsilon": 0.02},
    "fast_at": {"epsilon": 0.02, "probe": 16},
    "free_at": {"epsilon": 0.02, "replays": 2},
    "lipschitz_activation": {"knots": 5},
    "sdp_penalty": {"rounds": 1, "tolerance": 0.01},
    "sdp_enforced": {"constant": 2.0, "rounds": 1, "tolerance": 0.01},
    "lipmlp": {"alpha": 0.01},
    "parseval": {"beta": 0.001, "share": 0.5},
    "lmt": {"c": 0.3, "ramp": 0.5},
    "local_lip": {"epsilon": 0.3, "iterations": 2},
    "bjorck": {"iterations": 10},
}

ADAM = Optimizer(name="adam", lr=0.01)
# Training differs in each: pairs, power vectors, driven strength, continuation.
VARIANTS = {
    **{name: {"name": name, **TINY.get(name, {})} for name in METHODS},
    "driven": {"name": "clip", "pairs": 8, "target": 0.5, "optimizer": ADAM},
    "driven by steps": {
        "name": "weight_regularization",
        "target": 0.5,
        "discrepancy": Discrepancy(every="step", measure="batch"),
    },
    "driven norm": {"name": "spectral_norm", "target": 0.5},
    "free": {"name": "clip", "pairs": 8, "lambda_": 0.1, "update": "free", "mu": 0.01},
    "refreshed": {"name": "clip", "pairs": 8, "lambda_": 0.1, "refresh": 5},
    "adam": {"name": "clip", "pairs": 8, "lambda_": 0.1, "ascent": "adam", "tau": 0.01},
    "redrawn": {"name": "clip", "pairs": 8, "lambda_": 0.1, "update": "plain", "redraw": "step"},
    "path": {"name": "clip", "pairs": 8, "path": (0.0, 1.0, 0.1), "epochs": 2},
}


def is_stackable(variant):
    return load("lipbench.methods", VARIANTS[variant]["name"], Method).stackable


STACKABLE = [variant for variant in VARIANTS if is_stackable(variant)]


def a_method(name, **fields):
    return load("lipbench.methods", name, Method)(**fields)


def a_model(name="mlp", **fields):
    return load("lipbench.models", name, Model)(**fields)


SMALL = a_model(widths=(16, 16), activation="sigmoid")


@lru_cache
def digits(train=128, pairs=32, validation=64, classes=(), dtype=torch.float32, device="cpu"):
    dataset = load("lipbench.datasets", "digits", Dataset)(
        train_size=train, pair_size=pairs, validation_size=validation, classes=classes
    )
    return split(dataset, dataset.read(Path()), device, dtype)


def an_entry(
    name,
    *,
    epochs=3,
    batch_size=32,
    warmup=0,
    lr=0.5,
    optimizer=None,
    target=None,
    path=(),
    discrepancy=None,
    dtype="float32",
    precision="full",
    **fields,
):
    return MethodEntry(
        name=name,
        method=a_method(name, **fields),
        training=TrainingSettings(
            epochs=epochs,
            batch_size=batch_size,
            warmup=warmup,
            optimizer=optimizer or Optimizer(lr=lr),
            dtype=dtype,
            precision=precision,
        ),
        target_accuracy=target,
        path=path,
        discrepancy=discrepancy or (Discrepancy() if target is not None else None),
    )


def a_trainer(entry, data=None, *, seeds=(0,), model=SMALL, score=None, records=False):
    # To record the steps takes longer than so few of them; test_replay has what is recorded.
    trials = [Trial(entry=entry, seed=seed) for seed in seeds]
    data = digits() if data is None else data
    trainer = Trainer(trials, model, data, None if score is None else of_each(score))
    if not records:
        trainer.step._record = None
    return trainer


def of_each(score):
    """Return the score of a stack, from that of one network."""

    def scores(networks, seeds):
        return [score(networks.alone(number), seed) for number, seed in enumerate(seeds)]

    return scores


def train(entry, data=None, **options):
    trainer = a_trainer(entry, data, **options)
    return trainer.run(trainer.begin())


def a_net(module, shape):
    # The network of a module, with its numbers.
    params = {name: value.detach().clone() for name, value in module.named_parameters()}
    return Net(Skeleton(module, shape), params, dict(module.named_buffers()))


def initial(data, *, seed=0, model=SMALL):
    # The network every method of a seed starts from.
    dataset = data.dataset
    module = model.build(dataset.input_shape, dataset.outputs, stream(seed, "init"))
    return module.to(data.train.inputs.dtype)


def batches(data, size, epochs, seed=0):
    # The mini-batches that a seed sees, as (inputs, targets).
    rng = stream(seed, "order")
    for _ in range(epochs):
        order = torch.randperm(len(data.train), generator=rng)
        for rows in order.split(size):
            yield data.train.inputs[rows], data.train.targets[rows]


def same(one, other):
    # Bit for bit.
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
