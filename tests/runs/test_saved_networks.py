"""What is said of a saved network beside its numbers."""

import pytest
import torch
from support import runs

import lipbench
from lipbench.runs.saved_networks import load_network
from lipbench.storage.cell_folder import Status


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


MODEL = """
from dataclasses import dataclass
from torch import nn
from lipbench.model import Model

@dataclass(frozen=True, kw_only=True)
class Twice(Model):
    def build(self, input_shape, outputs, rng):
        inner = nn.Linear(16, 16)
        layers = nn.Linear(64, 16), nn.ReLU(), inner, nn.ReLU(), inner, nn.ReLU()
        model = nn.Sequential(nn.Flatten(), *layers, nn.Linear(16, outputs))
        for value in model.parameters():
            nn.init.normal_(value, std=0.3, generator=rng)
        return model
"""


@pytest.mark.parametrize("method", ["gram_regularization", "lcc"])
def test_a_network_with_a_layer_in_two_places_is_trained_and_measured(publish, tmp_path, method):
    publish("twice", {"lipbench.models": {"twice": "twice_model:Twice"}}, {"twice_model.py": MODEL})
    folder = tmp_path / "run"

    assert runs.run(runs.config(method, model={"name": "twice"}), folder) == 0
    rows = [row for row in runs.results(folder) if row.metric == "lipschitz"]
    values = {row.estimator: row.value for row in rows if row.checkpoint == "chosen"}
    assert 0 < values["jacobian"] <= values["product"]
