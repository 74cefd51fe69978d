"""What is said of a saved network beside its numbers."""

import pytest
import runs
import torch

import lipbench
from lipbench.cells import Status
from lipbench.networks import load_network


@pytest.mark.parametrize(("strength", "flags"), [(0.0, ("unregularised",)), (0.5, ())])
def test_a_driven_row_whose_strength_fell_to_nothing_says_so(tmp_path, strength, flags):
    """
    Near its target by chance, such a network is one of standard training.
    """
    driven = {"name": "weight_regularization", "target_accuracy": 0.5}
    settings = runs.config(driven)
    lipbench.run(settings, tmp_path)
    (cell,) = lipbench.plan(settings).cells
    folder = cell.folder(tmp_path)
    status = folder.read_status()
    assert isinstance(status, Status)
    facts = {**status.checkpoints["last"], "strength": strength, "flags": []}

    assert flags == load_network(cell, folder, "last", facts, torch.device("cpu")).flags
