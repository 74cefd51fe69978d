"""Training states are read back as they were; resuming is in test_trainer."""

import copy

import pytest
from support.training import a_trainer, an_entry, same

from lipbench.runs.training_state import read_training_state, write_training_state


@pytest.fixture
def path(tmp_path):
    return tmp_path / "last.safetensors"


def stopped(path, stack=("a", "b")):
    # A stack after its first epoch, as it is in memory and in a file.
    entry = an_entry("clip", pairs=8, lambda_=0.1, epochs=1, target=None)
    trainer = a_trainer(entry, seeds=(0, 1), score=lambda model, seed: 0.5)
    kept = []

    def save(state):
        write_training_state(path, state, stack)
        kept.append(copy.deepcopy(state.params))

    trainer.run(trainer.begin(), save)
    return trainer, kept[0]


def test_a_training_state_comes_back_in_the_order_it_had(path):
    """A sum over the parameters is rounded by their order."""
    trainer, params = stopped(path)
    stored = read_training_state(path, trainer.begin(), ("a", "b"))
    assert list(stored.params) == list(params)
    assert same(stored.params, params)
    assert stored.epoch == 1
    assert [len(choice.candidates) for choice in stored.choices] == [1, 1]


def test_the_state_of_another_stack_is_not_taken(path):
    trainer, _ = stopped(path)
    assert read_training_state(path, trainer.begin(), ("a", "c")) is None


def test_an_unreadable_state_is_as_none(path):
    trainer, _ = stopped(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert read_training_state(path, trainer.begin(), ("a", "b")) is None
