"""Attacks on the networks of a stack at once, in whole runs."""

from importlib import import_module

import pytest
from support import runs

SEEDS = (0, 1, 2)
TRAINING = {
    "epochs": 3,
    "batch_size": 16,
    "warmup": 0,
    "dtype": "float64",
    "optimizer": {"name": "adam", "lr": 0.02},
}
ATTACKS = [
    {"name": "pgd", "norm": 2, "epsilon": [0.1, 0.3, 0.6], "steps": 3, "starts": 2},
    {"name": "pgd_l2_sign", "epsilon": [0.4], "alpha": 0.1, "steps": 3},
]
HEAD = """
from dataclasses import dataclass
from typing import ClassVar
from lipbench.adversary import Attack
from lipbench.norm import Norm
"""
PICKY = (
    HEAD
    + """
@dataclass(frozen=True, kw_only=True)
class Picky(Attack):
    "Moves inputs a little, and refuses more samples than one network has."
    norms: ClassVar = frozenset({Norm(2)})
    samplewise: ClassVar[bool] = True

    def propose(self, model, inputs, labels, threat, rng):
        if len(inputs) > 40:
            raise RuntimeError("too many")
        return inputs + 0.01
"""
)
SLEEPY = (
    HEAD
    + """
import time

NAP, naps = 0.6, []

@dataclass(frozen=True, kw_only=True)
class Sleepy(Attack):
    "Moves inputs a little, and takes its time."
    norms: ClassVar = frozenset({Norm(2)})
    samplewise: ClassVar[bool] = True

    def propose(self, model, inputs, labels, threat, rng):
        naps.append(time.sleep(NAP))
        return inputs + 0.01
"""
)


def config(*methods, **evaluation):
    return runs.config(
        *methods, seeds=SEEDS, training=TRAINING, **runs.evaluation(bound=["product"], **evaluation)
    )


def attacked(folder):
    """Return the rows that attacks gave, by what they are about."""
    return {
        (row.seed, row.checkpoint, row.metric, row.estimator, row.epsilon): row
        for row in runs.results(folder)
        if row.metric in ("robust_accuracy", "attack_queries")
    }


def test_a_stack_is_attacked_as_its_members_are_alone(tmp_path):
    """With random starts: each network's are its own, whoever shares the batch."""
    settings = config("standard", attack=ATTACKS)
    for name, stacked in [("together", True), ("alone", False)]:
        assert runs.run(settings, tmp_path / name, stacked=stacked) == 0
    together, alone = attacked(tmp_path / "together"), attacked(tmp_path / "alone")
    assert together.keys() == alone.keys()
    assert len({row.value for row in alone.values()}) > 6
    for key, row in alone.items():
        assert together[key].value == pytest.approx(row.value)


def test_the_seconds_of_a_group_are_shared(publish, tmp_path):
    """Six networks are attacked at once by one that sleeps: a sixth for each, and its own rest."""
    publish(
        "sleepy",
        {"lipbench.attacks": {"sleepy": "sleepy_attack:Sleepy"}},
        {"sleepy_attack.py": SLEEPY},
    )
    settings = config("standard", attack=[{"name": "sleepy", "norm": 2, "epsilon": [0.5]}])
    assert runs.run(settings, tmp_path) == 0
    sleepy = import_module("sleepy_attack")
    spent = {key[:2]: row.seconds for key, row in attacked(tmp_path).items()}
    assert len(spent) == 6
    slept = sleepy.NAP * len(sleepy.naps)
    assert min(spent.values()) >= slept / 6
    assert max(spent.values()) < slept / 2
    assert len(set(spent.values())) == 6


def test_where_a_group_fails_each_network_gets_its_chance_alone(publish, tmp_path):
    publish(
        "picky", {"lipbench.attacks": {"picky": "picky_attack:Picky"}}, {"picky_attack.py": PICKY}
    )
    settings = config("standard", attack=[{"name": "picky", "norm": 2, "epsilon": [0.5]}])
    assert runs.run(settings, tmp_path) == 0
    assert len(attacked(tmp_path)) == len(SEEDS) * 2 * 2


def test_a_cell_that_is_measured_later_gets_the_same_bits(tmp_path):
    """Its rows are deleted, those of its stack are not: the group is attacked as before."""
    settings = config("standard", attack=ATTACKS)
    assert runs.run(settings, tmp_path) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("samples-*.safetensors")}
    lost = runs.cell_folders(tmp_path)["standard", 1].path
    for path in [*lost.glob("rows-*"), *lost.glob("samples-*")]:
        path.unlink()
    assert runs.run(settings, tmp_path) == 0
    after = {path: path.read_bytes() for path in tmp_path.rglob("samples-*.safetensors")}
    assert after == before
